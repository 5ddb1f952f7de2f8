"""Lower layers that are not trained: the others learn what they would, and what lies below is computed once for each lesson."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmedge.errors import MmedgeError
from mmedge.recipe import LoraSection
from mmedge.students import frozen
from mmedge.students.adapters import add_adapters, finish_training
from mmedge.students.frozen import FrozenStates, freeze_layers, frozen_layers
from mmedge.students.passes import LossPass
from tests.conftest import mmedge, own_recipe, write_recipe
from tests.students.test_packed import RECURRENT, figures, learned, lessons, student_of

KINDS = ["llama", "qwen3", "mistral, a window", "google/gemma-3-270m", "ibm-granite/granite-3.3-2b-instruct"]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_those_of_a_padded_pass(kind: str) -> None:
    student = student_of(kind)
    freeze_layers(student, 1)
    losses, gradients = learned(student, packs=True)
    expected_losses, expected = learned(student, packs=False)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    assert not any("embed_tokens" in name or "layers.0." in name for name in gradients)
    assert any("layers.1." in name for name in gradients)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


def test_what_is_kept_is_what_would_be_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of("llama")
    freeze_layers(student, 1)
    found = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(frozen, "SHARE_OF_MEMORY", share)
        once = LossPass(student.model, student.encoder)
        together = once.token_losses(lessons(7))
        found[share] = torch.stack([figures(once.token_losses(lessons(7))) for _ in range(2)])
        assert torch.equal(figures(together), found[share][0])
    assert torch.equal(found[0.0], found[1.0])


def test_each_lesson_is_computed_once_while_there_is_room() -> None:
    kept, made = FrozenStates(1, most_bytes=2 * 4 * 8), list[str]()

    def states(name: str) -> torch.Tensor:
        made.append(name)
        return torch.zeros(4, 2)

    for _ in range(2):
        for name in ("a", "b", "c"):
            kept.of(name, lambda name=name: states(name))  # type: ignore[misc]
    assert made == ["a", "b", "c", "c"]


def test_adapters_stand_above_frozen_layers() -> None:
    student = student_of("qwen3")
    add_adapters(student, LoraSection(rank=4, alpha=8, targets=("q_proj", "down_proj")), 0, frozen=1)
    trained = {name for name, parameter in student.model.named_parameters() if parameter.requires_grad}
    assert trained and all("layers.1." in name and ("q_proj" in name or "down_proj" in name) for name in trained)
    assert frozen_layers(student.model) == 1
    losses, gradients = learned(student, packs=True)
    expected_losses, _ = learned(student, packs=False)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == trained
    finish_training(student)
    assert frozen_layers(student.model) == 0 and all(parameter.requires_grad for parameter in student.model.parameters())


def test_what_cannot_be_frozen_is_one_line() -> None:
    with pytest.raises(MmedgeError, match="for decoder-only students"):
        freeze_layers(student_of("t5"), 1)
    with pytest.raises(MmedgeError, match="2, and the student has 2 layers"):
        freeze_layers(student_of("llama"), 2)
    recurrent = student_of(RECURRENT[0])
    freeze_layers(recurrent, 1)  # it learns without keeping anything
    assert not LossPass(recurrent.model, recurrent.encoder).packs


def test_frozen_weights_stay_what_they_were(own_task: dict[str, Path], tiny_llama: Path, tmp_path: Path) -> None:
    changed = {"student": {"source": str(tiny_llama), "frozen_layers": 1}}
    recipe, whole = write_recipe(tmp_path / "r.yaml", own_recipe(own_task, tiny_llama) | changed), tmp_path / "whole"
    done = mmedge("distill", recipe, "--out", whole, "-q")
    assert done.code == 0, done.err
    before, after = (_weights(folder) for folder in (tiny_llama, whole / "student"))
    same = {name: torch.equal(before[name], after[name]) for name in before}
    assert same["model.embed_tokens.weight"] and all(same[name] for name in same if ".layers.0." in name)
    assert not all(same.values())


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found
