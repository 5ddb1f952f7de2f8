"""Registries: what varies is one file and one line, and other packages can add to them.

    FORMS = Registry[AnswerForm]("forms", {"choice": "mmedge.tasks.forms.choice:ChoiceForm", …})
    FORMS["choice"]         imported now, not before
    list(FORMS)             the names, without importing anything

A package adds an entry by an entry point of the group `mmedge.plugins`, named after registry and entry:

    [project.entry-points."mmedge.plugins"]
    "forms.lines" = "my_package.lines:LinesForm"

Entries come from installed packages alone, never from a path in a recipe or a bundle.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar, cast

from mmedge.errors import MmedgeError, nearest

PLUGINS = "mmedge.plugins"

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Entries by name, imported when they are first asked for.

    Args:
        name: What plugins call the registry, such as `forms`.
        entries: For each of mmedge's own entries, `module:attribute`.
    """

    def __init__(self, name: str, entries: Mapping[str, str]) -> None:
        self.name = name
        self._own = dict(entries)
        self._loaded: dict[str, T] = {}

    @cached_property
    def _plugins(self) -> dict[str, EntryPoint]:
        """Entries of installed packages; none may take the name of one that is mmedge's own."""
        prefix = f"{self.name}."
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=PLUGINS):
            name = point.name.removeprefix(prefix)
            if not point.name.startswith(prefix):
                continue
            if name in self._own or found.get(name, point).value != point.value:
                raise MmedgeError(
                    f"two entries are called {name!r} in the registry {self.name!r}; one is {point.value}",
                    "uninstall the package that adds it, or rename its entry point",
                )
            found[name] = point
        return found

    def __getitem__(self, name: str) -> T:
        if name not in self._loaded:
            if name in self._own:
                module, _, attribute = self._own[name].partition(":")
                self._loaded[name] = getattr(importlib.import_module(module), attribute)
            elif name in self._plugins:
                self._loaded[name] = self._from_plugin(self._plugins[name])
            else:
                raise KeyError(name)
        return self._loaded[name]

    def _from_plugin(self, point: EntryPoint) -> T:
        try:
            return cast(T, point.load())
        except Exception as error:  # whatever another package's module raises when it is imported
            package = point.dist.name if point.dist else point.value
            raise MmedgeError(
                f"the plugin {point.name!r} of {package} cannot be loaded: {type(error).__name__}: {error}",
                f"update or uninstall {package}",
            ) from error

    def __iter__(self) -> Iterator[str]:
        return iter((*self._own, *self._plugins))

    def __len__(self) -> int:
        return len(self._own) + len(self._plugins)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._plugins

    def load_plugins(self) -> None:
        """Import the entries of installed packages now, for the side effects of importing them."""
        for name in self._plugins:
            self[name]

    def require(self, name: Any, where: str) -> T:
        """Return an entry that a file or a command names.

        Raises:
            MmedgeError: The name is unknown; the message says where it was given and lists the known names.
        """
        if not isinstance(name, str) or name not in self:
            close = nearest(name, self) if isinstance(name, str) else ""
            raise MmedgeError(f"{where}: unknown name {name!r}", f"{close}known: {', '.join(self)}")
        return self[name]
