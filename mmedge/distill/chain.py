"""The stages of one method as a chain: what each depends on, what it learns, and the student that goes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mmedge.annotations.reading import EvaluatedCot
from mmedge.distill.checks import check_targets
from mmedge.distill.durable import StageResult
from mmedge.distill.folds import unseen_answers, unseen_cots
from mmedge.distill.material import Material, tokenizer_texts
from mmedge.distill.measure import Measure
from mmedge.distill.objectives import OBJECTIVES, LessonSource, UnseenSection
from mmedge.distill.own import graded_own_cots
from mmedge.distill.stages import STAGES, Stage, lessons_per_step, parts_of, stages_of
from mmedge.distill.step import StagePlan
from mmedge.distill.streams import LessonStream
from mmedge.distill.training import Session, StageTrainer
from mmedge.progress import Progress
from mmedge.recipe import COMPUTE_ONLY, Recipe, StageSection, recipe_values
from mmedge.storage import sha256_json
from mmedge.students.adapters import add_adapters
from mmedge.students.frozen import freeze_layers
from mmedge.students.loading import load_student
from mmedge.students.sources import ModelSource
from mmedge.students.student import TorchStudent
from mmedge.tasks.forms.constraints import refuse_impossible_answers
from mmedge.tasks.prompts import CHAT_TURN, PLAIN_TURN

LESSON_FORMAT = 5  # goes up when the same recipe would train differently


@dataclass
class StageChain:
    """The stages of one recipe's method, on one material, from one student.

    Attributes:
        recipe: Method, seed, lengths and rates.
        material: What is learned from.
        source: The student's weights.
        measure: How it is validated.
        session: Where it is trained.
    """

    recipe: Recipe
    material: Material
    source: ModelSource
    measure: Measure
    session: Session

    @cached_property
    def stages(self) -> list[Stage]:
        """The stages that the method has."""
        return stages_of(self.recipe.method)

    def key(self, stage: Stage | None = None) -> str:
        """Return the hash of everything that a stage depends on, and nothing else: methods that share it train it once.

        Args:
            stage: The stage; the last one, and so the finished student, by default.
        """
        values, student = recipe_values(self.recipe), self.recipe.student
        lora = student.lora.model_dump() if student.lora else None
        start = [LESSON_FORMAT, self.material.hash, self.recipe.seed, self.source.fingerprint, lora]
        start += [{"frozen_layers": student.frozen_layers}] if student.frozen_layers else []
        key = sha256_json(start if student.prompt == "plain" else [*start, student.prompt, student.system, student.date])
        own = (*COMPUTE_ONLY, "select_by", "quantize", "quantize_share", *(one.name for one in STAGES))
        shared = {name: value for name, value in values["training"].items() if name not in own}
        for one in self.stages:
            names = [each.name for each in STAGES[: STAGES.index(one) + 1]]
            key = sha256_json(
                {
                    "before": key,
                    "stage": one.name,
                    "training": [shared, values["training"][one.name]],
                    "reads": {path: _value(values, path) for each in STAGES if each.name in names for path in each.reads},
                    "objectives": {
                        name: added for name, added in values["method"]["objectives"].items() if added["stage"] in names
                    },
                    **({"quantize": rounds} if (rounds := self._rounds(one)) else {}),
                }
            )
            if one is stage:
                break
        return key

    # ------------------------------------------------------------------------------------------------------ the work

    def student(self) -> TorchStudent:
        """Return the student that the training starts from."""
        section, seed = self.recipe.student, self.recipe.seed
        texts = list(tokenizer_texts(self.material)) if self.source.kind == "scratch" else []
        student = load_student(section, self.source, self.recipe.training.max_input_tokens, texts, seed)
        templates = {name: text for one in self.recipe.method.objectives for name, text in OBJECTIVES[one].prompts.items()}
        if self.material.has_dialogues:
            templates["turn"] = PLAIN_TURN if student.encoder.chat is None else CHAT_TURN
        if templates:
            student.encoder = replace(student.encoder, prompts=replace(student.encoder.prompts, **templates))
        if section.lora is not None:
            add_adapters(student, section.lora, seed, section.frozen_layers)
        elif section.frozen_layers:
            freeze_layers(student, section.frozen_layers)
        student.model.to(self.session.devices.device)
        return student

    def check(self, student: TorchStudent, progress: Progress) -> None:
        """Refuse early what would only fail in a later stage, and warn about texts that are cut off.

        Raises:
            MmedgeError: The material holds nothing of what a stage learns from, or the student cannot write it.
        """
        check_targets(self.recipe, self.learned, student, progress)
        if self.recipe.answering.constrained:
            constrainer = self.material.task.form.constrainer(student.encoder)
            refuse_impossible_answers(constrainer, self.recipe.generation.max_answer_tokens)
        for stage in self.stages:
            self.streams(stage, student)

    def train(self, stage: Stage, student: TorchStudent, folder: Path) -> StageResult:
        """Train a stage; the student's weights are those of the best validation afterwards.

        Args:
            stage: The stage.
            student: As the stage before left it.
            folder: Where the stage keeps its files.
        """
        key, own = self.key(stage), list[tuple[EvaluatedCot, ...]]()
        if stage.own_cots and self.recipe.method.own_cots:
            own = self._own_cots(student, folder, key)
        unseen = [unseen_answers(self, section, folder) for section in self._unseen_sections(stage)]
        streams = self.streams(stage, student, own, unseen[0] if unseen else ())
        return self.trainer(stage, student, folder, streams).run()

    def _rounds(self, stage: Stage) -> tuple[str, float] | None:
        """Return the precision that a stage's weights are rounded to, and in how much of its steps; None where they are not."""
        training = self.recipe.training
        return (training.quantize, training.quantize_share) if training.quantize and stage is self.stages[-1] else None

    def trainer(self, stage: Stage, student: TorchStudent, folder: Path, streams: list[LessonStream]) -> StageTrainer:
        """Return what trains a stage on these streams."""
        plan = StagePlan(
            name=stage.name,
            key=self.key(stage),
            folder=folder,
            seed=self.recipe.seed,
            streams=streams,
            section=self.section(stage),
            training=self.recipe.training,
            rounds=self._rounds(stage),
            validate=lambda: stage.validate(self.measure, student),
        )
        return StageTrainer(student, plan, self.session)

    def _own_cots(self, student: TorchStudent, folder: Path, key: str) -> list[tuple[EvaluatedCot, ...]]:
        """Return chains of thought of the student's own, graded, or of students that had not seen the questions."""
        if self.recipe.method.own_folds:
            return unseen_cots(self, folder)
        devices, progress = self.session.devices, self.session.progress
        return graded_own_cots(student, self.recipe, self.learned, folder / "own.json", key, devices, progress)

    def _unseen_sections(self, stage: Stage) -> list[UnseenSection]:
        """Return the settings of a stage's objectives that learn from answers to unseen questions."""
        sections = self.recipe.method.objectives.values()
        return [section for section in sections if section.stage == stage.name and isinstance(section, UnseenSection)]

    def streams(
        self,
        stage: Stage,
        student: TorchStudent,
        own: Sequence[Sequence[EvaluatedCot]] = (),
        unseen: Sequence[Sequence[str]] = (),
    ) -> list[LessonStream]:
        """Return what a stage learns.

        Args:
            stage: The stage.
            student: Its prompts are those of the lessons.
            own: Its own chains of thought, where it learns from them.
            unseen: Answers of students that had not seen the questions, where it learns from these.

        Raises:
            MmedgeError: There is nothing of what an objective needs.
        """
        method = self.recipe.method
        source = LessonSource(self.learned.train, method, self.material.task.form, student.encoder, own, unseen)
        parts = parts_of(stage, method)
        return [
            LessonStream(part.objective, OBJECTIVES[part.objective](part.section, source), count, part.weight, part.prefix)
            for part, count in zip(parts, self.lessons_per_step(stage), strict=True)
        ]

    def lessons_per_step(self, stage: Stage) -> list[int]:
        """Return how many lessons of each of its objectives a step of a stage has."""
        return lessons_per_step(parts_of(stage, self.recipe.method), self.section(stage).batch_size)

    def section(self, stage: Stage) -> StageSection:
        """Return a stage's length and rate."""
        section: StageSection = getattr(self.recipe.training, stage.name)
        return section

    @cached_property
    def learned(self) -> Material:
        """What is learned from: no more chains of thought of a question than the method takes."""
        return self.material.limited(self.recipe.method.max_cots)


def _value(values: Any, path: str) -> Any:
    """Return the value of a field by its dotted path."""
    for name in path.split("."):
        values = values[name]
    return values
