"""An objective whose lessons are given, and a trainer of it, for tests of what trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mmedge.distill.devices import Devices
from mmedge.distill.lessons import Lesson
from mmedge.distill.objectives import Objective
from mmedge.distill.step import StagePlan
from mmedge.distill.streams import LessonStream
from mmedge.distill.training import Session, StageTrainer
from mmedge.distill.validation import Validation
from mmedge.progress import Progress
from mmedge.recipe import ScratchSection, StageSection, TrainingSection
from mmedge.students.scratch import build_scratch
from mmedge.students.student import TorchStudent


class Given(Objective):
    """Lessons that are there already."""

    def __init__(self, lessons: Sequence[Lesson], alpha: float = 0.5) -> None:
        self._lessons, self._alpha = lessons, alpha

    def lessons(self, epoch: int) -> Sequence[Lesson]:
        return self._lessons

    def weights(self) -> Mapping[str, float]:
        return {"predict": self._alpha, "explain": 1 - self._alpha}


def small_student(text: str) -> TorchStudent:
    """Return a student from scratch that knows the words of a text."""
    section = ScratchSection(d_model=32, d_ff=48, d_kv=8, heads=2, encoder_layers=1, decoder_layers=1, vocabulary=300)
    return build_scratch(section, [text], 64, 0)


def trainer_of(student: TorchStudent, streams: Sequence[LessonStream], stage: StageSection, folder: Path) -> StageTrainer:
    """Return the trainer of a stage 2 that validates nothing."""
    training = TrainingSection(stage2=stage, device="cpu")
    plan = StagePlan(
        name="stage2",
        key="x",
        folder=folder,
        seed=0,
        streams=streams,
        section=stage,
        training=training,
        validate=lambda: Validation(0.0, {}, "", 100),
    )
    return StageTrainer(student, plan, Session(Devices(training), Progress(quiet=True), folder))
