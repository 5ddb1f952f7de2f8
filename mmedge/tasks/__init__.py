"""Tasks: questions, how teachers' texts about them are read, and what answers look like."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedge.tasks.base import ChainOfThought, Example, SelfEvaluation, Unparsed, Verdict
from mmedge.tasks.task import Splits, Task

if TYPE_CHECKING:
    from mmedge.tasks.settings import ArithmeticSection, DataFolderSection, JsonlSection

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


def build_task(section: ArithmeticSection | DataFolderSection | JsonlSection | Mapping[str, Any]) -> Task:
    """Return the task that a recipe's `task` section describes.

    Args:
        section: The section, validated or as plain values.

    Raises:
        MmedgeError: A folder or a file that a form needs is missing.
        pydantic.ValidationError: Plain values are not a task section.
    """
    from pydantic import TypeAdapter

    from mmedge.tasks import files
    from mmedge.tasks.embedded.problems import ArithmeticTask
    from mmedge.tasks.forms import form_from_settings
    from mmedge.tasks.settings import ArithmeticSection, JsonlSection, TaskSection

    found = TypeAdapter(TaskSection).validate_python(section) if isinstance(section, Mapping) else section
    if isinstance(found, ArithmeticSection):
        return ArithmeticTask(**found.model_dump(exclude={"kind"}))
    if isinstance(found, JsonlSection):
        form = form_from_settings(found.form)
        tests = {name: Path(path) for name, path in found.test_files.items()}
        return files.FileTask(found.name, form, Path(found.train_file), tests, form.takes_choices, limit=found.limit)
    makers = {"svamp": files.svamp, "commonsenseqa": files.commonsenseqa, "nli": files.nli}
    return makers[found.kind](Path(found.data), found.limit)
