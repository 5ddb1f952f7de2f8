"""Taking over a bundle that was replaced while it is served: requests that have begun end with the old one.

A folder is looked at once a second. What has changed and then rests for a second is opened and checked; where that fails, the old
bundle goes on, and the folder is tried again when it changes again. A folder that is gone is told of once, until it is back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.serve.models import Model

SECONDS = 1.0
State = tuple[tuple[str, int, int, int], ...]


class Reloader:
    """Watches the folders of bundles.

    Args:
        models: Who is served, by name; replaced ones are put into it.
        opened: Opens a model's folder anew, ready to be asked; raises MmedgeError where it cannot be used.
        told: Called with a model's name and what was wrong with its replacement; None where it was taken over.
        gone: Called with the name of a model whose folder is gone.
    """

    def __init__(
        self,
        models: dict[str, Model],
        opened: Callable[[Model], Model],
        told: Callable[[str, str | None], None],
        gone: Callable[[str], None],
    ) -> None:
        self._models, self._opened, self._told, self._gone = models, opened, told, gone
        self._missing = set[str]()
        self._seen = {name: _state(model.folder) for name, model in models.items()}  # what was opened, or tried
        self._last = dict(self._seen)
        self._stopped = threading.Event()

    def start(self) -> None:
        """Look at the folders once a second from now on, in a thread of its own."""
        threading.Thread(target=self._run, name="reloader", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(SECONDS):
            self.look()

    def look(self) -> None:
        """Look at every folder once."""
        for name, model in list(self._models.items()):
            state, before = _state(model.folder), self._last[name]
            self._last[name] = state
            if state is not None:
                self._missing.discard(name)
            elif before is None and name not in self._missing:  # a folder that is being replaced is gone for a moment
                self._missing.add(name)
                self._gone(name)
            if state is None or state == self._seen[name] or state != before:
                continue
            self._seen[name] = state
            try:
                self._models[name] = self._opened(model)
            except MmedgeError as error:
                self._told(name, error.what)
            except Exception as error:  # of files that are being written, or of a runtime that cannot open them
                self._told(name, type(error).__name__)
            else:
                self._told(name, None)


def _state(folder: Path) -> State | None:
    """Return what tells one version of a folder from another; None while it is not there."""
    try:
        files = [(path, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:
        return None
    return tuple((path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in files)
