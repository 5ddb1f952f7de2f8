"""The settings of answer forms in a recipe. A file of its own, since a device that opens a bundle needs no pydantic."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mmedge.sections import Section


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
        min_length=1, description="The labels, as the student learns to write them."
    )


class ExactSettings(FormSettings):
    """An answer is free text."""

    kind: Literal["exact"] = Field("exact", description="Free text, compared without regard to case and punctuation.")
