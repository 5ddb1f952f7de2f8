"""The task section of a recipe: where questions come from, and what their answers look like."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from mmedge.sections import PathText, Positive, Section, SettingsOf, Share, renamed
from mmedge.tasks.forms import FORMS
from mmedge.tasks.forms.settings import FormSettings


class ArithmeticSection(Section):
    """The embedded task: word problems written by a grammar."""

    kind: Literal["arithmetic"] = Field(description="The embedded task.")
    seed: int = Field(0, description="Random seed of all problems.")
    train: Positive = Field(8000, description="Training problems.")
    test: Positive = Field(400, description="Problems in each of the two test splits.")
    train_distractors: Share = Field(
        0.2, description="Share of training problems with a number that the answer does not need; 0.2 in the test splits."
    )
    version: Literal[1, 2] = Field(
        1,
        description="1: some eighty sentence patterns, as in the published measurements. 2: thousands, with units, money"
        " and pronouns.",
    )
    unfamiliar: Annotated[int, Field(ge=0)] = Field(
        200,
        description="Version 2: validation problems of sentence patterns that neither training nor the tests have, so that"
        " confidence is calibrated on unfamiliar questions too.",
    )


class DataFolderSection(Section):
    """A task read from a folder with `train.jsonl` and `test.jsonl`."""

    kind: Literal["svamp", "commonsenseqa", "nli"] = Field(description="The public data set that the folder holds.")
    data: PathText = Field(description="The folder.")
    limit: Positive | None = Field(None, description="Use only this many training questions, from the start of the file.")


class JsonlSection(Section):
    """A task of your own: JSON lines with `question` or `messages`, `label`, optional `choices` and `id`."""

    kind: Literal["jsonl"] = Field(description="A task of your own.")
    name: str = Field("jsonl", description="Name of the task in reports.")
    train_file: PathText = Field(description="The training questions, one JSON object per line.")
    test_files: dict[str, PathText] = Field(
        default_factory=dict, description="Files of test questions, by the name of their split."
    )
    form: Annotated[FormSettings, SettingsOf(FORMS, lambda form: form.settings_type())] = Field(
        description="What answers look like: the name of a form, or its settings with `kind`."
    )
    limit: Positive | None = Field(None, description="Use only this many training questions, from the start of the file.")

    @model_validator(mode="before")
    @classmethod
    def _read_older_names(cls, values: Any) -> Any:
        """Read `judge` and `labels`, which are `form` now."""
        if not isinstance(values, dict) or "judge" not in values:
            return values
        values = dict(renamed(values, "judge", "form", "task"))  # type: ignore[call-overload]
        labels = values.pop("labels", ())
        if labels:
            values["form"] = {"kind": values["form"], "labels": labels}
        return values


TaskSection = Annotated[ArithmeticSection | DataFolderSection | JsonlSection, Field(discriminator="kind")]
