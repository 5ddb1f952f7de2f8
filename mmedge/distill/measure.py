"""Measuring a student on a run's questions and chains of thought: validation while it trains, everything at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmedge.distill.labels import reference
from mmedge.distill.material import Material
from mmedge.distill.metrics import Scores
from mmedge.distill.scoring import JudgedCot, Verdicts, answers_right, judged_cots, own_cots, verdicts_of
from mmedge.distill.validation import Validation
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.reports.formats import number, share
from mmedge.statistics import Proportion, proportion
from mmedge.storage import Json
from mmedge.students.student import TorchStudent
from mmedge.tasks import Example

FIRST_LOOK = 64  # questions of each split that an untrained student answers first
HOPELESS = 0.1  # with the whole interval of its accuracy below this, it answers no more


@dataclass
class Measure:
    """Measures students of one recipe.

    Attributes:
        recipe: Says how long answers may be, and what checkpoints are selected by.
        material: The questions and chains of thought.
        progress: Where progress is shown.
    """

    recipe: Recipe
    material: Material
    progress: Progress

    def __post_init__(self) -> None:
        task = self.material.task
        pairs = [(annotated.example, reference(annotated, task.form)) for annotated in self.material.validation]
        self.questions = [example for example, answer in pairs if answer is not None]
        self.references = [answer for _, answer in pairs if answer is not None]
        if not self.questions:
            raise MmedgeError("no validation question has a label or a readable CoT", "raise split.validation")
        self.validation_cots = judged_cots(self.material.validation, task)
        self.test_cots = judged_cots(self.material.verdict_test, task)

    def validation_verdicts(self, student: TorchStudent) -> Validation:
        """Verdicts on validation CoTs: balanced accuracy, or plain where one class is missing."""
        found = verdicts_of(student, self.validation_cots)
        if found is None:
            raise MmedgeError("no chain of thought of a validation question has a label or a verdict", "raise split.validation")
        score = found.score
        chosen = score.balanced if score.balanced is not None else score.accuracy.value
        text = f"verdict accuracy {_shown(score.accuracy)}, balanced {chosen:.3f}, on validation CoTs"
        return Validation(chosen, {"verdict": score.to_json()}, text, len(self.validation_cots))

    def _answers(self, student: TorchStudent) -> Proportion:
        return proportion(self._outcomes(student, self.questions, self.references))

    def _outcomes(
        self, student: TorchStudent, examples: Sequence[Example], answers: Sequence[str], *, briefly: bool = False, shown: str = ""
    ) -> list[bool]:
        """Return whether each answer is right; for a student that cannot do it, only of some questions where that is enough."""
        limit, task = self.recipe.generation.max_answer_tokens, self.material.task
        if briefly and len(examples) > FIRST_LOOK:
            some = [place * len(examples) // FIRST_LOOK for place in range(FIRST_LOOK)]
            first = answers_right(
                student, task, [examples[n] for n in some], [answers[n] for n in some], limit, self.progress, shown
            )
            if proportion(first).interval[1] < HOPELESS:
                return first
        return answers_right(student, task, examples, answers, limit, self.progress if shown else None, shown)

    def validation_answers(self, student: TorchStudent) -> Validation:
        """Answers to validation questions, and verdicts on validation CoTs too where the recipe selects by both."""
        accuracy = self._answers(student)
        text = f"answer accuracy {_shown(accuracy)} on validation questions"
        both = self.recipe.training.select_by == "answers_and_verdicts" and self.recipe.method.self_evaluation
        if not both or not self.validation_cots:
            return Validation(accuracy.value, {"answer": accuracy.to_json()}, text, accuracy.total)
        judged = self.validation_verdicts(student)
        details = {"answer": accuracy.to_json(), **judged.details}
        return Validation((accuracy.value + judged.score) / 2, details, f"{text}; {judged.text}", accuracy.total)

    def own_verdicts(self, student: TorchStudent) -> Validation:
        """Answers to validation questions, and how well the student tells its right ones from its wrong ones."""
        limits = self.recipe.generation.max_answer_tokens, self.recipe.generation.max_rationale_tokens
        cots = own_cots(student, self.material.task.form, self.questions, limits)
        judge = self.material.task.form
        right = [
            judge.agrees(cot.pseudo_label, answer, example.choices)
            for cot, answer, example in zip(cots, self.references, self.questions, strict=True)
        ]
        judged = [JudgedCot(example, cot, ok, None) for example, cot, ok in zip(self.questions, cots, right, strict=True)]
        found = verdicts_of(student, judged)
        assert found is not None
        accuracy, area = proportion(right), found.score.auroc
        score = (accuracy.value + area) / 2 if area is not None else accuracy.value
        text = f"answer accuracy {_shown(accuracy)} on validation questions, "
        text += f"AUROC of the student's verdicts on them {number(area, 3)}"
        return Validation(score, {"answer": accuracy.to_json(), "own_verdict": found.score.to_json()}, text, accuracy.total)

    def tests(self, student: TorchStudent, when: str, *, briefly: bool = False) -> dict[str, list[bool]]:
        """Return for the labelled test questions whether each is answered right, by test.

        Args:
            student: The student.
            when: What it is called in what is shown.
            briefly: Ask a student that cannot do it at all some of the questions only.
        """
        found = {}
        for name, examples in self.material.splits.tests.items():
            labelled = [example for example in examples if example.label is not None]
            labels = [example.label for example in labelled if example.label is not None]
            found[name] = self._outcomes(student, labelled, labels, briefly=briefly, shown=f"answers to {name}, {when}")
            some = f" ({len(found[name])} of {len(labelled)} questions)" if len(found[name]) < len(labelled) else ""
            self.progress.line(f"{when}: answer accuracy on {name}: {_shown(proportion(found[name]))}{some}")
        return found

    def untrained(self, student: TorchStudent) -> Scores:
        """All figures before training; briefly, unless the recipe wants all of them."""
        return self._all(student, "untrained", briefly=self.recipe.training.untrained == "brief")

    def everything(self, student: TorchStudent, when: str) -> Scores:
        """All final figures: answers on validation and test questions, verdicts on held-out CoTs."""
        return self._all(student, when)

    def _all(self, student: TorchStudent, when: str, *, briefly: bool = False) -> Scores:
        answers = {"validation": proportion(self._outcomes(student, self.questions, self.references, briefly=briefly)).to_json()}
        tests = self.tests(student, when, briefly=briefly)
        answers |= {name: proportion(outcomes).to_json() for name, outcomes in tests.items()}
        return Scores(answer=answers, verdict=self.verdicts(student, when))

    def held_out_verdicts(self, student: TorchStudent, when: str) -> Verdicts | None:
        """Verdicts on the chains of thought of the verdict test; None where there are none."""
        found = verdicts_of(student, self.test_cots)
        if found is not None:
            score = found.score
            balanced, auroc = ("–" if value is None else f"{value:.3f}" for value in (score.balanced, score.auroc))
            self.progress.line(
                f"{when}: verdict accuracy on {len(self.test_cots)} held-out CoTs: {_shown(score.accuracy)}, balanced {balanced},"
                f" AUROC {auroc} (always 'correct': {_shown(score.always_correct)})"
            )
        return found

    def verdicts(self, student: TorchStudent, when: str) -> Json | None:
        """The score of `held_out_verdicts`."""
        found = self.held_out_verdicts(student, when)
        return found.score.to_json() if found is not None else None


def _shown(found: Proportion) -> str:
    return share(found.value, found.interval)
