"""What all sections of a recipe have in common: a closed schema, and the types that several of them use.

Whoever has settings in a recipe (an answer form, an objective, an engine) derives them from `Section`, in a file that imports
nothing heavy. Names no registry itself, so that there are no import circles.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from mmedge.errors import Notice, nearest
from mmedge.registry import Registry
from mmedge.tasks.base import LONGEST_TEXT

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
TokenLimit = Annotated[int, Field(gt=0, le=LONGEST_TEXT)]
Threads = Annotated[int, Field(gt=0, le=1024)]


class Section(BaseModel):
    """A part of a recipe; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class _Lookup:
    """What both annotations below share: a registry that is read when a value is validated, not before.

    Args:
        registry: A registry, or `module:attribute` of one that lies in a room above, which is imported at first use.
    """

    def __init__(self, registry: Registry[Any] | str) -> None:
        self._named = registry

    @cached_property
    def _registry(self) -> Registry[Any]:
        if not isinstance(self._named, str):
            return self._named
        module, _, attribute = self._named.partition(":")
        found: Registry[Any] = getattr(importlib.import_module(module), attribute)
        return found

    def _known(self, name: object) -> str:
        if not isinstance(name, str) or name not in self._registry:
            close = nearest(name, self._registry) if isinstance(name, str) else ""
            raise ValueError(f"unknown name {name!r:.40}; {close}known: {', '.join(self._registry)}")
        return name


class NameOf(_Lookup):
    """Annotates a field that holds the name of a registry's entry: `Annotated[str, NameOf("module:REGISTRY")]`."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._known, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "enum": list(self._registry)}


class SettingsOf(_Lookup):
    """Annotates a field that holds settings of a registry's entry: `kind: NAME` beside them, or NAME alone.

    Args:
        registry: Its entries are looked up when a recipe is validated.
        settings: Returns the section that an entry's settings must be.
    """

    def __init__(self, registry: Registry[Any] | str, settings: Callable[[Any], type[Section]]) -> None:
        super().__init__(registry)
        self._settings = settings

    def _validated(self, value: object) -> Section:
        if isinstance(value, Section):
            return value
        given = {"kind": value} if isinstance(value, str) else value
        if not isinstance(given, dict) or "kind" not in given:
            raise ValueError(f"expected a name or a mapping with 'kind'; names: {', '.join(self._registry)}")
        return self._settings(self._registry[self._known(given["kind"])]).model_validate(given)

    def section_of(self, name: str | None) -> type[Section] | None:
        """Return the section of an entry's settings; None where there is no such entry."""
        return self._settings(self._registry[name]) if name is not None and name in self._registry else None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(lambda section: section.model_dump(mode="json"))
        return core_schema.no_info_plain_validator_function(self._validated, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        sections = [self._settings(entry).model_json_schema() for entry in self._registry.values()]
        return {"anyOf": [{"type": "string", "enum": list(self._registry)}, *sections]}


class SettingsByName(_Lookup):
    """Annotates a mapping from names of a registry's entries to their settings, which the field's own validator reads."""

    def section_of(self, name: str) -> type[Section] | None:
        """Return the section of an entry's settings; None where there is no such entry."""
        return self._registry[name].settings if name in self._registry else None


def renamed(values: object, old: str, new: str, section: str) -> object:
    """Return a section's values with an old name of a field replaced by the new one, with a notice; for one version.

    Raises:
        ValueError: Both are given.
    """
    if not isinstance(values, dict) or old not in values:
        return values
    if new in values:
        raise ValueError(f"{old} is the old name of {new}; give {new} alone")
    warnings.warn(
        f"{section}.{old} is now called {section}.{new}; the old name will be refused in the next version",
        Notice,
        stacklevel=2,
    )
    return {new if name == old else name: value for name, value in values.items()}
