"""What a bundle says of its student: kind, source, licence, prompt, what is stored how."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from mmedge.engines.onnx.graphs import check_runtime
from mmedge.errors import MmedgeError
from mmedge.manifest import QuantizationPart, VocabularyPart
from mmedge.model_card import card, describe_model, licence_of, stated_licence
from mmedge.storage import write_json
from mmedge.tasks.chat.template import ChatTemplate
from mmedge.tasks.encoding import SpecialTokens
from tests.bundles import bundle_of


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- text\n---\n# A model", "apache-2.0"),
        ('---\nlanguage:\n  license: no\nlicense: "gemma"\n---\n', "gemma"),
        ("---\nlicense: other\nlicense_name: lfm1.0\n---\n", "lfm1.0"),
        ("---\nlicense: other\n---\n", "other"),
        ("# A model\nlicense: mit", None),
        ("---\ntags: [a]\n---\nlicense: mit", None),
        ("---", None),
    ],
)
def test_the_licence_is_what_the_source_states(text: str, licence: str | None, tmp_path: Path) -> None:
    assert stated_licence(text) == licence
    assert licence_of(tmp_path) is None
    (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path) == licence


def test_a_student_says_what_it_is(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "gemma3_text"})
    details = {"origin": {"source": "google/gemma-3-270m-it", "licence": "gemma", "fingerprint": "0"}}
    plain = {"model_type": "gemma3_text", "source": "google/gemma-3-270m-it", "licence": "gemma", "prompt": "plain"}
    assert describe_model(tmp_path, details) == plain
    ChatTemplate("{{ messages }}", system="Be brief.").save(tmp_path)
    found = describe_model(tmp_path, details)
    assert found | {"prompt": "plain"} == plain | {"template_sha256": found["template_sha256"], "system": "Be brief."}


def test_the_card_says_what_was_made_of_it(tmp_path: Path) -> None:
    manifest = dataclasses.replace(
        bundle_of(tmp_path, SpecialTokens(eos=1, pad=0)).manifest,
        model={
            "model_type": "gemma3_text", "source": "google/gemma-3-270m-it", "licence": "gemma", "prompt": "chat",
            "template_sha256": "ab" * 32,
        },
        quantization=QuantizationPart({"embedding": "int8", "layers.0.attention.qkv": "int8", "head": "fp32"}, {"head": "fp32"}),
        vocabulary=VocabularyPart(100, 1000),
        least_runtime="1.32",
    )  # fmt: skip
    text = card(manifest)
    assert text.startswith('---\nlibrary_name: mmedge\nlicense: "gemma"\nbase_model: "google/gemma-3-270m-it"\n---\n')
    for line in (
        "| licence of the source | gemma |",
        "| prompt | the source's chat template, sha256 abababababab |",
        "| stored | 2 matrices in int8, 1 matrices in fp32, the rest as it was computed |",
        "| kept finer for accuracy | head: fp32 |",
        "| keys and values | as ONNX Runtime keeps them |",
        "| vocabulary | 100 of 1,000 tokens |",
        "| runs on | ONNX Runtime 1.32 or newer, cpu |",
    ):
        assert line in text
    assert "not stated" in card(dataclasses.replace(manifest, model={}))


HOSTILE = "apache-2.0\x1b[2J\x1b]0;owned\x07\u202etxt"


def test_no_licence_and_no_card_controls_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\nlicense: {HOSTILE}\n---\n")
    assert licence_of(tmp_path) == "apache-2.0�[2J�]0;owned��txt"
    assert len(stated_licence(f"---\nlicense: {'x' * 10_000}\n---\n") or "") == 200
    manifest = dataclasses.replace(
        bundle_of(tmp_path, SpecialTokens(eos=1, pad=0)).manifest,
        recipe=f"r\n<script>{HOSTILE}",
        model=dict.fromkeys(("model_type", "source", "licence"), HOSTILE),
    )
    text = card(manifest)
    assert "# r &lt;script>apache" in text and not set(text) & set("\x1b\x07\u202e")


def test_a_card_that_never_ends_states_no_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").symlink_to("/dev/zero")
    assert licence_of(tmp_path) is None


def test_a_precision_in_name_only_says_so(tmp_path: Path) -> None:
    layers = {"embedding": "int8", "layers.0.attention.qkv": "int8"}
    manifest = dataclasses.replace(bundle_of(tmp_path, SpecialTokens(eos=1, pad=0)).manifest, precision="int4")
    of = {
        kept: dataclasses.replace(manifest, quantization=QuantizationPart(layers, dict(list(layers.items())[:kept])))
        for kept in (0, 1, 2)
    }
    assert "in name only" not in card(of[0]) + card(of[1])
    assert "| precision | int4 in name only: every matrix had to be kept in int8 for accuracy |" in card(of[2])


def test_an_onnx_runtime_that_is_too_old_is_refused(tmp_path: Path) -> None:
    check_runtime("", tmp_path)
    check_runtime("1.22", tmp_path)
    with pytest.raises(MmedgeError, match=r"needs ONNX Runtime 99\.1, and this is 1\.[\s\S]*pip install -U onnxruntime"):
        check_runtime("99.1", tmp_path)
