"""Students quantized by bitsandbytes: the same after they were saved, verified, kept, and refused where they differ."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmedge.bench.worker import serve
from mmedge.bundle import read_quantized, seal_student
from mmedge.engines.torch_decoding import TorchEngine
from mmedge.engines.variants import find_variants
from mmedge.errors import MmedgeError
from mmedge.export.bitsandbytes import write_quantized, write_student
from mmedge.export.export import export
from mmedge.export.quantization.precisions import PRECISIONS
from mmedge.export.source import Source
from mmedge.inspection import inspect, to_json
from mmedge.manifest import QuantizationPart, QuantizedStudent, StudentPart, WrittenPart
from mmedge.progress import Progress
from mmedge.recipe import StudentSection
from mmedge.students import dialects
from mmedge.students.bitsandbytes import (
    BLOCK,
    CPU_OUTPUTS,
    bits_config,
    kept_in_float,
    restore_unsupported_linears,
)
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.saved import open_student, student_details
from mmedge.students.student import TorchStudent
from mmedge.tasks.prompts import Context
from tests.commands import kill_when
from tests.conftest import REPOSITORY

functional: Any = pytest.importorskip("bitsandbytes.functional")
QUIET = Progress(quiet=True)
BITS_PRECISIONS = ("bnb-int8", "bnb-nf4")
both_families = pytest.mark.parametrize("family", ["tiny_run", "llama_run"])


def _copied(run: Path, folder: Path) -> Path:
    kept = shutil.ignore_patterns("bundle-*", "student-*", "stage*")
    return Path(shutil.copytree(run, folder / "run", ignore=kept))


def _logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[7, 5, 9, 300, 11, 42, 6, 8], [9, 9, 12, 13, 200, 40, 30, 2]])
    arguments = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return torch.as_tensor(model.eval()(input_ids=ids, **arguments).logits)


def _rounded(run: Path, out: Path, precision: str) -> TorchStudent:
    out.mkdir()
    layers = write_quantized(run / "student", out, PRECISIONS[precision])
    stated: dict[str, Any] = {"mmedge": "0", "recipe": "tiny", "key": "", "verified_on": "", "max_accuracy_drop": 1.0}
    manifest = QuantizedStudent(
        **stated,
        precision=precision,
        student=StudentPart(0),
        written=WrittenPart(0.0, 0),
        quantization=QuantizationPart(layers, {}),
    )
    seal_student(out, student_details(run / "student"), manifest)
    return open_student(out)


def _manifest(folder: Path) -> QuantizedStudent:
    return read_quantized(student_details(folder), folder / "mmedge.json")


@pytest.fixture(scope="module")
def exported(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its student in both precisions."""
    run = _copied(tiny_run, tmp_path_factory.mktemp("rounded"))
    export(run, BITS_PRECISIONS, QUIET, max_accuracy_drop=100)
    return run


@both_families
@pytest.mark.parametrize("precision", BITS_PRECISIONS)
def test_what_is_opened_computes_what_was_quantized(
    family: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """To the bit; but for float16's own rounding, which is taken away beforehand."""
    run = _copied(request.getfixturevalue(family), tmp_path)
    exact = open_student(run / "student").model.half().float()
    exact.save_pretrained(run / "student", safe_serialization=True)
    dialects.quiet()
    settings = bits_config(PRECISIONS[precision].weights.bits, kept_in_float(exact), torch.float32)
    direct = type(exact).from_pretrained(str(run / "student"), dtype=torch.float32, quantization_config=settings)
    restore_unsupported_linears(direct)
    again = _rounded(run, tmp_path / "out", precision)
    expected = _logits(direct)
    assert torch.equal(_logits(again.model), expected)
    assert not torch.equal(_logits(exact), expected)
    assert (_logits(exact) - expected).abs().max() < (0.05 if precision == "bnb-int8" else 0.5) * expected.abs().max()
    assert torch.equal(_logits(open_student(tmp_path / "out").model), expected)


@both_families
def test_every_linear_is_quantized_but_the_head_and_what_float16_cannot_hold(
    family: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    run: Path = request.getfixturevalue(family)
    student = open_student(run / "student")
    weights = dict(student.model.named_parameters())
    products = {name for name, module in student.model.named_modules() if isinstance(module, torch.nn.Linear)}
    floats = {name for name in products if name == "lm_head" or name.endswith(".wo")}
    assert set(kept_in_float(student.model)) == floats
    for precision in BITS_PRECISIONS:
        found = _rounded(run, tmp_path / precision, precision)
        layers = _manifest(tmp_path / precision).quantization.layers
        assert {name for name, dtype in layers.items() if dtype == precision} == products - floats
        for name, parameter in found.model.named_parameters():
            exact = weights[name].detach()
            if name.removesuffix(".weight") not in products - floats:
                assert torch.equal(parameter, exact.half().float())
            elif precision == "bnb-int8":
                step = parameter.SCB[:, None] / 127
                assert parameter.dtype == torch.int8
                assert ((parameter.float() * step - exact).abs() <= 0.51 * step + 1e-3 * exact.abs()).all()
            else:
                restored = parameter  # what CPUs do not multiply in nf4, such as Llama's 112 inputs, was restored already
                if parameter.dtype == torch.uint8:
                    assert 2 * parameter.numel() == exact.numel()
                    restored = functional.dequantize_4bit(parameter.data, parameter.quant_state).float()
                outputs, inputs = exact.shape
                assert (parameter.dtype == torch.uint8) == (outputs % CPU_OUTPUTS == 0 and inputs % BLOCK == 0)
                largest = exact.reshape(-1, BLOCK).abs().amax(1).repeat_interleave(BLOCK).reshape(exact.shape)
                assert ((restored - exact).abs() <= 0.16 * largest).all()  # half of nf4's widest gap, 0.304, and a little


@pytest.mark.parametrize("precision", BITS_PRECISIONS)
def test_the_folder_is_what_transformers_expects_and_says_how_good_it_is(exported: Path, precision: str) -> None:
    folder = exported / f"student-{precision}"
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "mmedge.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".py")) for name in names)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "bitsandbytes"
    assert not any(str(exported) in path.read_text() for path in folder.glob("*.json"))
    plain = transformers.AutoModelForSeq2SeqLM.from_pretrained(str(folder), dtype=torch.float32)
    restore_unsupported_linears(plain)
    ours = _logits(open_student(folder).model)
    assert (_logits(plain) - ours).abs().max() < 0.01 * ours.abs().max()  # it multiplies nf4 in float16
    found = to_json(*inspect(folder))
    assert found["trusted"].startswith("yes") and found["precision"] == precision
    assert 10 <= found["linears"][precision] <= 14  # of 14; as many as are costly stay in float16 until the student is near enough
    checked = found["verification"]
    assert checked["questions"] == 16 and checked["top1_agreement"] >= 0.9 and 0 < checked["mean_kl"] < 0.05
    assert f">{precision}<" in (exported / "export.html").read_text()


def test_int8_is_nearer_to_the_student_than_nf4(exported: Path) -> None:
    fine, coarse = (_manifest(exported / f"student-{precision}") for precision in BITS_PRECISIONS)
    assert fine.verification.mean_kl < 0.2 * coarse.verification.mean_kl
    weights = [manifest.files["model.safetensors"].bytes for manifest in (fine, coarse)]
    assert weights[1] < weights[0] < 0.5 * (exported / "student" / "model.safetensors").stat().st_size


def test_a_run_is_benched_with_its_quantized_students(exported: Path) -> None:
    specs = {spec.place.name: spec for spec in find_variants(exported)}
    names = list(specs)
    assert names == ["student", "student-bnb-int8", "student-bnb-nf4"]
    example = {"id": "a", "question": "Ann has 3 apples and buys 4. How many has she now?", "choices": []}
    for precision in BITS_PRECISIONS:
        replies = io.StringIO()
        request = {"examples": [example], "ask": "answer", "batch": 1}
        serve(replace(specs[f"student-{precision}"], threads=1), io.StringIO(json.dumps(request) + "\n"), replies)
        opened, answer = map(json.loads, replies.getvalue().splitlines())
        assert (opened["engine"], opened["precision"]) == ("torch", precision)
        assert answer["seconds"] > 0 and len(answer["texts"]) == 1


def test_a_finished_one_is_kept_and_a_damaged_one_written_anew(exported: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported, run)
    folder = run / "student-bnb-nf4"
    content = (folder / "model.safetensors").read_bytes()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    export(run, ["bnb-nf4"], QUIET, max_accuracy_drop=100)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MmedgeError, match=r"model\.safetensors is damaged"):
        open_student(folder)
    export(run, ["bnb-nf4"], QUIET, max_accuracy_drop=100)
    assert (folder / "model.safetensors").read_bytes() == content
    details = json.loads((folder / "mmedge.json").read_text())
    details["quantized"]["verification"]["mean_kl"] = 0.0
    (folder / "mmedge.json").write_text(json.dumps(details))
    with pytest.raises(MmedgeError, match="was changed after export"):
        open_student(folder)


def test_a_killed_export_continues(exported: Path, tmp_path: Path) -> None:
    run = _copied(exported, tmp_path)
    options = ["export", str(run), "--bnb-int8", "--max-accuracy-drop", "100", "-q"]
    kill_when(options, lambda: list(run.glob(".student-bnb-int8.*.tmp/config.json")))
    assert not (run / "student-bnb-int8").exists()
    manifest = export(run, ["bnb-int8"], QUIET, max_accuracy_drop=100)["bnb-int8"]
    assert manifest.files == _manifest(exported / "student-bnb-int8").files
    assert not list(run.glob("*.tmp")) and not list(run.glob(".*.tmp"))


def test_what_costs_most_stays_in_float_until_it_holds(exported: Path, tmp_path: Path) -> None:
    run = _copied(exported, tmp_path)
    calls: list[Any] = []

    def twice(found: Any, *_: Any) -> list[str]:
        calls.append(found)
        return ["too bad"] if len(calls) < 3 else []

    manifest = write_student(Source(run / "student", run, QUIET), PRECISIONS["bnb-nf4"], twice)
    kept = [step.kept_finer for step in manifest.budget]
    assert kept[0] == 0 < kept[1] < kept[2] == len(manifest.quantization.exceptions)
    layers = manifest.quantization.layers
    assert {layers[name] for name in manifest.quantization.exceptions} == {"float16"}
    assert list(layers.values()).count("float16") == kept[2] + 3  # and the head, and T5's wo
    model = open_student(run / "student-bnb-nf4").model
    plain = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    assert plain == {name for name, dtype in layers.items() if dtype == "float16"}
    assert calls[2].mean_kl < calls[0].mean_kl


def test_where_nothing_helps_it_is_refused(exported: Path, tmp_path: Path) -> None:
    run = _copied(exported, tmp_path)
    with pytest.raises(MmedgeError, match="the bnb-int8 student is refused: far too bad"):
        write_student(Source(run / "student", run, QUIET), PRECISIONS["bnb-int8"], lambda *_: ["far too bad"])
    assert not [path.name for path in run.iterdir() if path.name.startswith((".student", "student-"))]


def test_a_quantized_student_neither_learns_nor_is_quantized_again(exported: Path) -> None:
    folder = exported / "student-bnb-int8"
    section = StudentSection(source=str(folder))
    with pytest.raises(MmedgeError, match="is quantized and cannot be trained"):
        load_student(section, resolve_source(section), 64, [], 0)
    with pytest.raises(MmedgeError, match="is already quantized"):
        export(folder, ["int8"], QUIET)


def test_without_bitsandbytes_the_error_names_the_extra(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _copied(exported, tmp_path)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for action in (lambda: open_student(exported / "student-bnb-nf4"), lambda: export(run, ["bnb-nf4"], QUIET)):
        with pytest.raises(MmedgeError, match="needs the package 'bitsandbytes'") as caught:
            action()
        assert "mmedge[gpu]" in caught.value.hint
    assert open_student(run / "student").model is not None


def test_no_machine_code_is_asked_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__):\n    raise SystemExit('asked the hub')\n")
    code = (
        "from mmedge.students.bitsandbytes import need_bitsandbytes; need_bitsandbytes(); import kernels; print(kernels.__file__)"
    )
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "kernels.py")


@pytest.mark.parametrize("precision", BITS_PRECISIONS)
def test_batches_and_single_questions_have_the_same_logits(exported: Path, precision: str) -> None:
    """LLM.int8() rounds each row of inputs by itself, so that padding beside it changes nothing but last bits."""
    student = open_student(exported / f"student-{precision}")
    engine = TorchEngine(student)
    prompts = [student.encoder.prompt("predict", Context(text)) for text in ("1 apple", "5 plums and 7 plums in 9 boxes")]
    together = engine.next_logits(prompts, [])
    for row, prompt in zip(together, prompts, strict=True):
        alone = engine.next_logits([prompt], [])[0]
        assert abs(row - alone).max() < 0.02 * abs(alone).max()
