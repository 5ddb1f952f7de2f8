"""Tasks: questions, how teachers' texts about them are read, and how answers are judged. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.tasks.base import ChainOfThought, Example, SelfEvaluation, Splits, Task, Unparsed, Verdict
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.tasks.files import FileTask, commonsenseqa, nli, svamp
from mmedge.tasks.forms.judges import judge_by_name

__all__ = [
    "ChainOfThought",
    "Example",
    "SelfEvaluation",
    "Splits",
    "Task",
    "Unparsed",
    "Verdict",
    "build_task",
]


def build_task(settings: Mapping[str, object]) -> Task:
    """Return the task that a recipe's `task` section describes.

    Args:
        settings: The section as a mapping: `kind`, and what that kind needs.

    Raises:
        MmedgeError: The kind is unknown or a needed setting is missing.
    """
    kind = settings["kind"]
    if kind == "arithmetic":
        known = ("seed", "train", "test", "train_distractors")
        return ArithmeticTask(**{name: settings[name] for name in known if name in settings})  # type: ignore[arg-type]
    limit = settings.get("limit")
    capped = limit if isinstance(limit, int) else None
    if kind == "jsonl":
        labels = settings.get("labels") or ()
        try:
            judge = judge_by_name(str(settings["judge"]), [str(label) for label in labels])  # type: ignore[attr-defined]
        except ValueError as error:
            raise MmedgeError(f"recipe: task.judge: {error}") from None
        tests = settings.get("test_files") or {}
        return FileTask(
            name=str(settings.get("name") or "jsonl"),
            judge=judge,
            train=Path(str(settings["train_file"])),
            tests={str(name): Path(str(path)) for name, path in tests.items()},  # type: ignore[attr-defined]
            has_choices=judge.name == "choice",
            limit=capped,
        )
    makers = {"svamp": svamp, "commonsenseqa": commonsenseqa, "nli": nli}
    if kind not in makers:
        raise MmedgeError(f"recipe: task.kind: unknown task {kind!r}", f"known: arithmetic, jsonl, {', '.join(makers)}")
    return makers[str(kind)](Path(str(settings["data"])), capped)
