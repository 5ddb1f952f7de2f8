"""The task: where questions come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmedge.sections import PathText, Positive, Section, Share


class ArithmeticSection(Section):
    """The embedded task: word problems written by a grammar.

    `train_distractors` is the share of training problems with a number that the answer does not need; the tests have 0.2.
    """

    kind: Literal["arithmetic"]
    seed: int = 0
    train: Positive = 8000
    test: Positive = 400
    train_distractors: Share = 0.2


class DataFolderSection(Section):
    """A task read from a folder with `train.jsonl` and `test.jsonl`."""

    kind: Literal["svamp", "commonsenseqa", "nli"]
    data: PathText
    limit: Positive | None = None


class JsonlSection(Section):
    """A user's own task: JSON lines with `question`, `label`, optional `choices` and `id`, and how answers are judged."""

    kind: Literal["jsonl"]
    name: str = "jsonl"
    train_file: PathText
    test_files: dict[str, PathText] = Field(default_factory=dict)
    judge: Literal["expression", "choice", "label", "exact"]
    labels: tuple[str, ...] = ()
    limit: Positive | None = None

    @model_validator(mode="after")
    def _labels_where_needed(self) -> JsonlSection:
        if (self.judge == "label") != bool(self.labels):
            raise ValueError("labels: list them when judge is 'label', and only then")
        return self


TaskSection = Annotated[ArithmeticSection | DataFolderSection | JsonlSection, Field(discriminator="kind")]
