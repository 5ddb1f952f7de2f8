"""The questions of a run: those of its recipe's task and those that were synthesized for it, as people have mended them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mmedge.annotations.decisions import Decision, Decisions, Item
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError
from mmedge.folders import Run
from mmedge.recipe import Recipe
from mmedge.tasks import Example, Splits, Task, build_task
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.synthesized import WithSynthesized


@dataclass(frozen=True)
class RunTask:
    """The task of a run.

    Attributes:
        task: The recipe's, with the new questions of the run where there are any.
        decisions: What people decided.
    """

    task: Task
    decisions: Mapping[Item, Decision] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def form(self) -> AnswerForm:
        return self.task.form

    @property
    def new_questions(self) -> Path | None:
        """The file of new questions; None where there is none."""
        return self.task.path if isinstance(self.task, WithSynthesized) else None

    def load(self) -> Splits:
        """Read all examples; training questions have the wording and the label that people gave them.

        Raises:
            MmedgeError: See `Task.load`; or a label that people gave is not an answer of the form any longer.
        """
        splits = self.task.load()
        if not self.decisions:
            return splits
        return replace(splits, train=tuple(self._mended(example) for example in splits.train))

    def _mended(self, example: Example) -> Example:
        decision = self.decisions.get(Item(example.id, "question"))
        if decision is None or decision.what == "drop":
            return example
        label = example.label
        if decision.label is not None:
            label = self.form.canonical(decision.label, example.choices)
            if label is None:
                raise MmedgeError(
                    f"the label {decision.label!r:.60} that {decision.who} gave to {example.id!r:.60} is not an answer of the form "
                    f"{self.form.name!r}",
                    f"it must be {self.form.expected()}; mend it: mmedge review RUN --page",
                )
        return replace(example, question=decision.question or example.question, label=label)


def task_of(recipe: Recipe, run: Run) -> RunTask:
    """Return the task of a run.

    Args:
        recipe: The recipe; `synthesis.file` names the file of new questions, or else it is the run's own.
        run: The run.

    Raises:
        MmedgeError: A file that the recipe names is missing.
    """
    task = build_task(recipe.task.model_dump())
    named = recipe.synthesis.file
    path = Path(named) if named else run.synthesized
    if path.is_file():
        task = WithSynthesized(task, path)
    elif named:
        raise MmedgeError(f"synthesis.file: no such file: {path}", "leave it out, or write it: mmedge synthesize RECIPE")
    return RunTask(task, decisions_of(run))


def decisions_of(run: Run) -> dict[Item, Decision]:
    """Return what people decided about a run's questions and texts."""
    if not run.annotations.is_file():
        return {}
    with AnnotationStore(run.annotations) as store:
        return Decisions(store).current()


def plain_task(task: Task) -> Task:
    """Return the task of the recipe alone."""
    while isinstance(task, (RunTask, WithSynthesized)):
        task = task.task
    return task
