"""An objective of another package: pairs, with a reference pass, through the whole chain and through a kill."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from mmedge.distill.lessons import Lesson, Segment, Target
from mmedge.distill.streams import LessonStream, encode_lesson
from mmedge.recipe import StageSection, StudentSection
from mmedge.students.encoded import EncodedLesson
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.passes import LossPass, TokenLosses
from mmedge.tasks.prompts import Context
from tests.conftest import REPOSITORY, is_one_line_error, killed_when_lines_are_there, mmedge, tiny_recipe, write_recipe
from tests.distill.given import Given, small_student, trainer_of


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that adds the objective `pairs`, direct preference optimization of pairs."""
    paths = [str(REPOSITORY / "tests" / "plugin"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def _recipe(folder: Path, **settings: object) -> Path:
    method = {"rehearsal": 0.25, "cots_per_visit": 1, "objectives": {"pairs": {"share": 0.5, "beta": 0.2} | settings}}
    values = tiny_recipe(method=method)
    stage3 = {"max_steps": 20, "batch_size": 8, "learning_rate": 2e-3, "evaluate_every": 10}
    values["training"] = {**values["training"], "stage3": stage3}  # type: ignore[dict-item]
    return write_recipe(folder / "r.yaml", values)


@pytest.mark.usefixtures("plugin")
def test_a_paired_objective_with_a_reference_pass_gives_the_same_student_when_it_is_killed(tmp_path: Path) -> None:
    recipe, whole, cut = _recipe(tmp_path), tmp_path / "whole", tmp_path / "cut"
    settings = ["-q", "--set", "training.checkpoint_minutes=0"]
    done = mmedge("distill", recipe, "--out", whole, *settings)
    assert done.code == 0, done.err
    killed_when_lines_are_there(["distill", recipe, "--out", cut, *settings], cut / "stage3" / "metrics.jsonl", 1)
    assert not (cut / "student").exists()
    (reference,) = (cut / "stage3").glob("reference-*.safetensors")
    written = reference.stat().st_mtime_ns
    again = mmedge("distill", recipe, "--out", cut, *settings)
    assert again.code == 0, again.err
    assert reference.stat().st_mtime_ns == written
    assert (cut / "student" / "model.safetensors").read_bytes() == (whole / "student" / "model.safetensors").read_bytes()
    lines = [json.loads(line) for line in (whole / "stage3" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "loss" in line]
    first, last = logged[0], logged[-1]
    assert last["pairs_preference_loss"] < min(math.log(2), first["pairs_preference_loss"])
    assert last["pairs_preferred"] > 0.5
    assert all("predict_loss" in line and "evaluation_predict_loss" not in line for line in logged)  # reasoning has the rest
    assert "preference" in (whole / "training.html").read_text()


@pytest.mark.usefixtures("plugin")
def test_its_settings_are_validated_by_its_own_section(tmp_path: Path) -> None:
    for settings, complaint in (
        ({"beta": 0}, "field 'method.objectives.pairs.beta' must be greater than 0"),
        ({"stage": "stage1"}, "stage3"),
    ):
        found = mmedge("distill", _recipe(tmp_path, **settings), "--out", tmp_path / "run", "-q")
        assert is_one_line_error(found) and complaint in found.err
    other = "method.objectives={other: {share: 0.5}}"
    unknown = mmedge("distill", _recipe(tmp_path), "--out", tmp_path / "run", "-q", "--set", other)
    assert (
        is_one_line_error(unknown)
        and "known: reasoning, self_evaluation, own_verdicts, " in unknown.err
        and ", pairs" in unknown.err
    )


@pytest.mark.parametrize("kind", ["encoder-decoder", "decoder-only"])
def test_before_the_first_step_nothing_differs_from_the_reference(kind: str, tiny_llama: Path, tmp_path: Path) -> None:
    class Pairs(Given):
        group, reference, parts, metrics = 2, True, ("preference",), ("moved",)

        def weights(self) -> Mapping[str, float]:
            return {"preference": 1.0}

        def totals(self, lessons: Sequence[EncodedLesson]) -> dict[str, float]:
            return {"preference": len(lessons) / 2, "moved": 1.0}

        def sums(self, tokens: TokenLosses) -> dict[str, torch.Tensor]:
            gained = tokens.log_probabilities - tokens.reference
            assert len(gained) % 2 == 0
            loss = -torch.nn.functional.logsigmoid(gained[0::2] - gained[1::2]).sum()
            return {"preference": loss, "moved": gained.abs().max().detach()}

    lessons = [
        Lesson(Context(f"what is {n // 2} and {n}"), (Target.of("explain", f"because {n} " * (1 + n % 3)),)) for n in range(12)
    ]
    student = small_student("what is 1 and 2 because")
    if kind == "decoder-only":
        section = StudentSection(source=str(tiny_llama))
        student = load_student(section, resolve_source(section), 128, [], 0)
    stream = LessonStream("pairs", Pairs(lessons), 8, 1.0, "pairs_")
    trainer_of(student, [stream], StageSection(max_steps=1, batch_size=8), tmp_path).run()
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["loss"] == line["pairs_preference_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert line["pairs_moved"] < 1e-4


def test_an_objective_can_unlearn_texts(tmp_path: Path) -> None:
    class Unlikelihood(Given):
        """-log(1 - p) of every token (Welleck et al. 2020)."""

        parts = ("unlikelihood",)

        def weights(self) -> Mapping[str, float]:
            return {"unlikelihood": 1.0}

        def sums(self, tokens: TokenLosses) -> dict[str, torch.Tensor]:
            return {"unlikelihood": -torch.log(-torch.expm1(-tokens.losses)).sum()}

    segments = [Segment(f"{n} and", 1.0, "unlikelihood") for n in range(8)]
    lessons = [Lesson(Context(f"what is {n}"), (Target("explain", (one,)),)) for n, one in enumerate(segments)]
    student = small_student("what is 1 and 2")
    encoded = [encode_lesson(lesson, student.encoder, 64) for lesson in lessons]

    def probability() -> float:
        with torch.no_grad():
            return float(LossPass(student.model.eval(), student.encoder).token_losses(encoded).log_probabilities.mean())

    before = probability()
    stream = LessonStream("unlikelihood", Unlikelihood(lessons), 8, 1.0)
    trainer_of(student, [stream], StageSection(max_steps=20, batch_size=8, learning_rate=1e-2), tmp_path).run()
    assert probability() < before - 1
