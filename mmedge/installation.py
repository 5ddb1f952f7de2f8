"""What of mmedge is installed: its extras, the packages that each requires, and those that are missing.

    requirements()              of the core: {"numpy": ">=1.26", …}
    missing("distill")          ["torch", "transformers 5.30 (<6,>=4.57 is needed)"]

Read from the metadata that pip wrote; imports none of the packages.
"""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from mmedge.errors import MmedgeError


def distribution() -> metadata.Distribution:
    """Return mmedge as it was installed.

    Raises:
        MmedgeError: It was copied, not installed.
    """
    try:
        return metadata.distribution("mmedge")
    except metadata.PackageNotFoundError:
        raise MmedgeError("mmedge is not installed here, so its requirements are not known", "pip install . (or -e .)") from None


def extras() -> list[str]:
    """Return the names of the package's extras.

    Raises:
        MmedgeError: See `distribution`.
    """
    return [str(name) for name in distribution().metadata.get_all("Provides-Extra") or ()]


def _required(extra: str) -> list[Requirement]:
    """Return what the core (extra "") or one extra by itself requires on this machine."""
    every = [Requirement(line) for line in distribution().requires or ()]

    def holds(one: Requirement, asked: str) -> bool:
        return one.marker is None or one.marker.evaluate({"extra": asked})

    return [one for one in every if holds(one, extra) and (not extra or not holds(one, ""))]


def requirements(extra: str = "") -> dict[str, str]:
    """Return the packages that the core, or an extra and the extras that it includes, requires: `{"numpy": ">=1.26"}`.

    Args:
        extra: An extra's name; "" for the core.

    Raises:
        MmedgeError: See `distribution`.
    """
    found: dict[str, str] = {}
    for one in _required(extra):
        inside = {one.name: str(one.specifier)}
        if one.name == "mmedge":
            inside = {name: limits for part in one.extras for name, limits in requirements(part).items()}
        for name, limits in inside.items():
            found[name] = ",".join(filter(None, (found.get(name), limits)))
    return found


def missing(extra: str = "") -> list[str]:
    """Return the packages that are not installed, or in another version than required, each with what is required.

    Raises:
        MmedgeError: See `distribution`.
    """
    found = []
    for name, limits in requirements(extra).items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            found.append(name)
            continue
        if not SpecifierSet(limits).contains(version, prereleases=True):
            found.append(f"{name} {version} ({limits} is required)")
    return found
