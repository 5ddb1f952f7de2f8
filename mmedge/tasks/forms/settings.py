"""The settings of answer forms in a recipe. A file of its own, since a device that opens a bundle needs no pydantic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from mmedge.sections import PathText, Section
from mmedge.tasks.forms.structured.comparing import Comparison
from mmedge.tasks.forms.structured.regex import parse
from mmedge.tasks.reading import plain


class FormSettings(Section):
    """Settings of a form in a recipe; each form has its own, with `kind` as its name."""

    kind: str = Field(description="The form.")


class ExpressionSettings(FormSettings):
    """An answer is a number or an arithmetic expression."""

    kind: Literal["expression"] = Field("expression", description="A number or an arithmetic expression, judged by value.")


class ChoiceSettings(FormSettings):
    """An answer is one of the question's own `choices`."""

    kind: Literal["choice"] = Field("choice", description="One of the question's own choices.")


def _refuse_yaml_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("YAML reads yes, no, on and off as true or false; put the label in quotes, such as 'no'")
    return value


class LabelSettings(FormSettings):
    """An answer is one of a fixed list of labels."""

    kind: Literal["label"] = Field("label", description="One of a fixed list of labels.")
    labels: tuple[Annotated[str, BeforeValidator(_refuse_yaml_boolean), Field(min_length=1)], ...] = Field(
        min_length=1, description="The labels."
    )
    spelling: Literal["whole", "short"] = Field(
        "whole",
        description="How the student writes them: `whole`, or `short`: two or three letters each, about one token, which takes "
        "more training.",
    )

    @field_validator("labels")
    @classmethod
    def _tell_apart(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        known: dict[str, str] = {}
        for label in labels:
            if "\n" in label or not plain(label):
                raise ValueError(f"the label {label!r:.60} must be one line with a letter or digit")
            if (other := known.get(plain(label))) is not None:
                raise ValueError(f"the labels {other!r:.60} and {label!r:.60} differ in case, spaces or punctuation at most")
            known[plain(label)] = label
        return labels


class ExactSettings(FormSettings):
    """An answer is free text."""

    kind: Literal["exact"] = Field("exact", description="Free text, compared without regard to case, spaces and final punctuation.")


def _regular(pattern: str) -> str:
    parse(pattern, whole=True)
    return pattern


class _StructuredSettings(FormSettings):
    file: PathText = Field(description="The file; the bundle carries it.")
    spelling: Literal["compact", "json"] = Field(
        "compact",
        description="How the student writes values: `compact` takes fewer tokens and becomes JSON outside; `json` is JSON.",
    )
    compare: dict[str, Comparison] = Field(
        default_factory=dict,
        description="How fields are compared, by name or by the end of their dotted path; `*` is for all others. Default: `exact`.",
    )


class SchemaSettings(_StructuredSettings):
    """An answer is a JSON value that fits a schema."""

    kind: Literal["schema"] = Field("schema", description="A JSON value that fits a JSON Schema, judged by value.")
    file: PathText = Field(description="The JSON Schema, in a file; the bundle carries it.")


class ToolsSettings(_StructuredSettings):
    """An answer is a call of a function."""

    kind: Literal["tools"] = Field("tools", description="A call of one of several functions, judged by value.")
    file: PathText = Field(description="A list of OpenAI-style function definitions, in a file; the bundle carries it.")


class RegexSettings(FormSettings):
    """An answer is a text that matches a regular expression."""

    kind: Literal["regex"] = Field("regex", description="A text that matches a regular expression as a whole.")
    pattern: Annotated[str, AfterValidator(_regular)] = Field(min_length=1, description="The expression, in ECMAScript's dialect.")
