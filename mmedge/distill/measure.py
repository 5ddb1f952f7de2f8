"""Measuring a student on a run's questions and chains of thought: validation while it trains, everything at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmedge.distill.labels import reference
from mmedge.distill.material import Material
from mmedge.distill.metrics import Scores
from mmedge.distill.scoring import (
    Answered,
    JudgedCot,
    Signals,
    Verdicts,
    answer_verdicts,
    answered,
    judged_cots,
    own_answers,
    own_cots,
    own_evidence,
    verdicts_of,
)
from mmedge.distill.stages import judges
from mmedge.distill.validation import Validation
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import Recipe
from mmedge.reports.formats import number, share
from mmedge.statistics import Proportion, auroc, proportion
from mmedge.storage import Json
from mmedge.students.student import TorchStudent
from mmedge.tasks import Example

FIRST_LOOK = 64  # questions of each split that an untrained student answers first
ORACLE_TEMPERATURE = 0.7  # the runtime's default for samples
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
        task, method = self.material.task, self.recipe.method
        pairs = [(annotated.example, reference(annotated, task.form, method)) for annotated in self.material.validation]
        self.questions = [example for example, answer in pairs if answer is not None]
        self.references = [answer for _, answer in pairs if answer is not None]
        if not self.questions:
            raise MmedgeError(
                "no validation question has a label or a readable CoT",
                "check that the records have a field 'label', or the teacher's texts an answer; or raise split.validation",
            )
        self.validation_cots = judged_cots(self.material.validation, task, human=method.labels == "human")
        self.test_cots = judged_cots(self.material.verdict_test, task)

    def validation_verdicts(self, student: TorchStudent) -> Validation:
        """Verdicts on validation CoTs: balanced accuracy, or plain where one class is missing."""
        found = verdicts_of(student, self.validation_cots, self.recipe.generation.max_rationale_tokens)
        if found is None:
            raise MmedgeError("no chain of thought of a validation question has a label or a verdict", "raise split.validation")
        score = found.score
        chosen = score.balanced if score.balanced is not None else score.accuracy.value
        text = f"verdict accuracy {_shown(score.accuracy)}, balanced {chosen:.3f}, on validation CoTs"
        return Validation(chosen, {"verdict": score.to_json()}, text, len(self.validation_cots))

    @property
    def _by_whom(self) -> str:
        """Who says what is right on validation questions, where it is not a person."""
        return "" if self.recipe.method.labels == "human" else " (by the teacher's answers)"

    def _answers(self, student: TorchStudent) -> Proportion:
        """Answers to validation questions, by the kind of labels that is learned."""
        return proportion(self._outcomes(student, self.questions, self.references).right)

    def _outcomes(
        self, student: TorchStudent, examples: Sequence[Example], answers: Sequence[str], *, briefly: bool = False, shown: str = ""
    ) -> Answered:
        """Return the answers; for a student that cannot do it, only those to some questions where that is enough."""
        limit, task = self.recipe.generation.max_answer_tokens, self.material.task
        if briefly and len(examples) > FIRST_LOOK:
            some = [place * len(examples) // FIRST_LOOK for place in range(FIRST_LOOK)]
            first = answered(student, task, [examples[n] for n in some], [answers[n] for n in some], limit, self.progress, shown)
            if proportion(first.right).interval[1] < HOPELESS:
                return first
        return answered(student, task, examples, answers, limit, self.progress if shown else None, shown)

    def validation_answers(self, student: TorchStudent) -> Validation:
        """Answers to validation questions, and verdicts on validation CoTs too where the recipe selects by both."""
        accuracy = self._answers(student)
        text = f"answer accuracy {_shown(accuracy)} on validation questions{self._by_whom}"
        both = self.recipe.training.select_by == "answers_and_verdicts" and judges(self.recipe.method)
        if not both or not self.validation_cots:
            return Validation(accuracy.value, {"answer": accuracy.to_json()}, text, accuracy.total)
        judged = self.validation_verdicts(student)
        details = {"answer": accuracy.to_json(), **judged.details}
        return Validation((accuracy.value + judged.score) / 2, details, f"{text}; {judged.text}", accuracy.total)

    def own_verdicts(self, student: TorchStudent) -> Validation:
        """Answers to validation questions, and how well the student tells its right ones from its wrong ones."""
        limits = self.recipe.generation.max_answer_tokens, self.recipe.generation.max_rationale_tokens
        form = self.material.task.form
        rows = list(zip(own_cots(student, form, self.questions, limits), self.references, self.questions, strict=True))
        accuracy = proportion([form.agrees(one.answer, answer, example.choices) for one, answer, example in rows])
        agreement = proportion([one.agrees(form, example) for one, _, example in rows])
        judged = [
            JudgedCot(example, one.cot, form.agrees(one.cot.pseudo_label, answer, example.choices), None)
            for one, answer, example in rows
            if one.judgeable(form)
        ]
        found = verdicts_of(student, judged, limits[1])
        area = found.score.auroc if found is not None else None
        score = (accuracy.value + area) / 2 if area is not None else accuracy.value
        text = f"answer accuracy {_shown(accuracy)} on validation questions{self._by_whom}, "
        text += f"{_shown(agreement)} agree with their rationale, "
        text += f"AUROC of the student's verdicts on its {len(judged)} chains of thought {number(area, 3)}"
        details: Json = {"answer": accuracy.to_json(), "agreement": agreement.to_json()}
        details |= {"own_verdict": found.score.to_json() if found is not None else None}
        return Validation(score, details, text, accuracy.total)

    def tests(self, student: TorchStudent, when: str, *, briefly: bool = False) -> dict[str, Answered]:
        """Return the answers to the labelled questions of every test.

        Args:
            student: The student.
            when: What it is called in what is shown.
            briefly: Ask a student that cannot do it at all some of the questions only.
        """
        found = {}
        for name, examples in self.material.splits.tests.items():
            asked = labelled(examples)
            labels = [example.label for example in asked if example.label is not None]
            answers = self._outcomes(student, asked, labels, briefly=briefly, shown=f"answers to {name}, {when}")
            some = f" ({len(answers.right)} of {len(asked)} questions)" if len(answers.right) < len(asked) else ""
            self.progress.line(f"{when}: answer accuracy on {name}: {_shown(proportion(answers.right))}{some}")
            found[name] = answers
        return found

    def signals(self, student: TorchStudent, answers: Mapping[str, Answered], own: int = 0) -> dict[str, Signals]:
        """Return by test what a student shows of how likely its answers are right.

        Args:
            student: The student.
            answers: Its answers to the tests' labelled questions.
            own: To how many of each test's questions it also writes and judges rationales, where it has learned verdicts.
        """
        limits = self.recipe.generation.max_answer_tokens, self.recipe.generation.max_rationale_tokens
        found = {}
        for name, given in answers.items():
            every = labelled(self.material.splits.tests[name])
            asked = every[:own]
            evidence = own_evidence(student, self.material.task, asked, limits) if judges(self.recipe.method) else []
            bare = answer_verdicts(student, every, given.texts) if student.encoder.prompts.answer_verdict else []
            found[name] = Signals(
                [round(value, 4) for value in given.log_probabilities],
                [int(one) for one in given.right],
                [round(one.evaluation or 0.0, 4) for one, _ in evidence],
                [one.agreement for one, _ in evidence],
                [int(right) for _, right in evidence],
                [round(value, 4) for value in bare],
            )
        return found

    def oracle(self, student: TorchStudent, samples: int, most: int) -> dict[str, list[int]]:
        """Return by test whether one of several sampled answers to a question is right, as 0 or 1.

        Args:
            student: The student.
            samples: How many answers to each question.
            most: How many of each test's questions; 0 for all.
        """
        form, limit = self.material.task.form, self.recipe.generation.max_answer_tokens
        found = {}
        for name, examples in self.material.splits.tests.items():
            asked = labelled(examples)[: most or None]
            right = [0] * len(asked)
            for seed in range(samples):
                texts = own_answers(student, form, asked, limit, ORACLE_TEMPERATURE, seed, self.progress, f"samples for {name}")
                for place, (text, example) in enumerate(zip(texts, asked, strict=True)):
                    right[place] |= int(form.agrees(text, example.label or "", example.choices))
            found[name] = right
        return found

    def untrained(self, student: TorchStudent) -> Scores:
        """All figures before training; briefly, unless the recipe wants all of them."""
        return self._all(student, "untrained", briefly=self.recipe.training.untrained == "brief")

    def everything(self, student: TorchStudent, when: str) -> Scores:
        """All final figures: answers on validation and test questions, verdicts on held-out CoTs."""
        return self._all(student, when)

    def _all(self, student: TorchStudent, when: str, *, briefly: bool = False) -> Scores:
        pairs = zip(self.questions, self.references, strict=True)
        labels = [answer if example.label is None else example.label for example, answer in pairs]
        found = {"validation": self._outcomes(student, self.questions, labels, briefly=briefly)}
        found |= self.tests(student, when, briefly=briefly)
        answers = {name: proportion(one.right).to_json() for name, one in found.items()}
        signals = {} if briefly else {name: self._areas(student, name, one) for name, one in found.items()}
        return Scores(answer=answers, signals=signals, verdict=self.verdicts(student, when))

    def _areas(self, student: TorchStudent, split: str, given: Answered) -> dict[str, float | None]:
        """Return the AUROC of what a student shows of its answers to a split."""
        found = {"answer": auroc(given.log_probabilities, given.right)}
        if student.encoder.prompts.answer_verdict:
            asked = self.questions if split == "validation" else labelled(self.material.splits.tests[split])
            found["answer_verdict"] = auroc(answer_verdicts(student, asked, given.texts), given.right)
        return found

    def held_out_verdicts(self, student: TorchStudent, when: str) -> Verdicts | None:
        """Verdicts on the chains of thought of the verdict test; None where there are none."""
        found = verdicts_of(student, self.test_cots, self.recipe.generation.max_rationale_tokens)
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


def labelled(examples: Sequence[Example]) -> list[Example]:
    """Return the examples with a human label."""
    return [example for example in examples if example.label is not None]


def _shown(found: Proportion) -> str:
    return share(found.value, found.interval)
