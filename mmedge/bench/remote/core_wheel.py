"""The core as a wheel, made from the package that is running, without a network and without a build tool.

A wheel is a zip of the package's files with three text files beside them (PyPA, "Binary distribution format"). mmedge is Python
alone, so what runs here, an installed package or a checkout, is all that there is to pack.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zipfile
from importlib import metadata
from pathlib import Path

import mmedge
from mmedge.errors import MmedgeError

_WHEN = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say: the same files make the same wheel
_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[^\]]*\])?\s*([^;]*)(?:;(.*))?$")


def metadata_text() -> str:
    """Return the METADATA of the installed package.

    Raises:
        MmedgeError: mmedge is not installed, only lies there.
    """
    try:
        text = metadata.distribution("mmedge").read_text("METADATA")
    except metadata.PackageNotFoundError:
        text = None
    if not text:
        raise MmedgeError("mmedge is not installed here, so what it requires is not known", "pip install . (or -e .)")
    return text


def extras() -> list[str]:
    """Return the names of the package's extras.

    Raises:
        MmedgeError: See `metadata_text`.
    """
    return re.findall(r"^Provides-Extra: (\S+)$", metadata_text().split("\n\n", 1)[0], re.MULTILINE)


def requirements(extra: str | None = None) -> dict[str, str]:
    """Return what the core, or one extra, requires: package names with their version limits, as `numpy: >=1.26`.

    Args:
        extra: An extra's name; its own alone, `mmedge[...]` among them where it includes another.

    Raises:
        MmedgeError: See `metadata_text`.
    """
    found: dict[str, str] = {}
    for line in metadata_text().splitlines():
        if not line:
            break  # the description begins
        name, _, value = line.partition(":")
        match = _REQUIREMENT.match(value) if name == "Requires-Dist" else None
        if match is None:
            continue
        wanted = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", match[4] or "")
        if (wanted[1] if wanted else None) == extra:
            found[match[1] + (match[2] or "")] = match[3].strip().strip("()").replace(" ", "")
    return found


def write_core_wheel(folder: Path) -> Path:
    """Write the wheel of the running package and return its path.

    Args:
        folder: An existing folder.

    Raises:
        MmedgeError: See `metadata_text`.
    """
    about = metadata_text()
    name, info = f"mmedge-{mmedge.__version__}", f"mmedge-{mmedge.__version__}.dist-info"
    path = folder / f"{name}-py3-none-any.whl"
    package = Path(mmedge.__file__).resolve().parent
    contents = {
        f"mmedge/{file.relative_to(package).as_posix()}": file.read_bytes()
        for file in sorted(package.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    }
    contents[f"{info}/METADATA"] = about.encode()
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: mmedge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/entry_points.txt"] = b"[console_scripts]\nmmedge = mmedge.cli:main\n"
    record = "".join(f"{place},sha256={_digest(data)},{len(data)}\n" for place, data in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, data in contents.items():
            entry = zipfile.ZipInfo(place, _WHEN)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, data)
    return path


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
