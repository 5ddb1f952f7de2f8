"""Measuring a student on a run's questions and chains of thought: validation while it trains, everything at the end."""

from __future__ import annotations

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
        limit = self.recipe.generation.max_answer_tokens
        return proportion(answers_right(student, self.material.task, self.questions, self.references, limit))

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

    def tests(self, student: TorchStudent, when: str) -> dict[str, list[bool]]:
        """Return for every labelled test question whether it is answered right, by test."""
        limit = self.recipe.generation.max_answer_tokens
        found = {}
        for name, examples in self.material.splits.tests.items():
            labelled = [example for example in examples if example.label is not None]
            labels = [example.label for example in labelled if example.label is not None]
            task, shown = self.material.task, f"answers to {name}, {when}"
            found[name] = answers_right(student, task, labelled, labels, limit, self.progress, shown)
            self.progress.line(f"{when}: answer accuracy on {name}: {_shown(proportion(found[name]))}")
        return found

    def everything(self, student: TorchStudent, when: str) -> Scores:
        """All final figures: answers on validation and test questions, verdicts on held-out CoTs."""
        answers = {"validation": self._answers(student).to_json()}
        answers |= {name: proportion(outcomes).to_json() for name, outcomes in self.tests(student, when).items()}
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
