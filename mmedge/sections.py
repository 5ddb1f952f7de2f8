"""What all sections of a recipe have in common: a closed schema, and the types that several of them use.

Whoever has settings in a recipe (an answer form, an objective, an engine) derives them from `Section`, in a file that imports
nothing heavy. Knows no registry, so that nobody imports in a circle.
"""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DATA_VARIABLE = "MMEDGE_DATA"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def expand_path(value: object) -> object:
    """Replace `${MMEDGE_DATA}` in a path by that environment variable.

    Raises:
        ValueError: The variable is not set, or it is another one.
    """
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] != DATA_VARIABLE:
            raise ValueError(f"unknown variable ${{{match[1]}}}; only ${{{DATA_VARIABLE}}} is expanded")
        found = os.environ.get(DATA_VARIABLE)
        if not found:
            raise ValueError(f"the environment variable {DATA_VARIABLE} is not set; set it to the folder that holds your data")
        return found

    return _VARIABLE.sub(replace, value)


PathText = Annotated[str, BeforeValidator(expand_path), Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of a recipe; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
