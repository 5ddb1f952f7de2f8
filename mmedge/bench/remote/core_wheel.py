"""The core as a wheel, made from the package that is running, without a network and without a build tool.

A wheel is a zip of the package's files with three text files beside them (PyPA, "Binary distribution format"). What runs here, an
installed package or a checkout, is all that there is to pack, but for what the native engine was compiled to: that is for this
machine's architecture alone.
"""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

import mmedge
from mmedge.engines.native.build import LIBRARY
from mmedge.installation import distribution

_WHEN = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip can say: the same files make the same wheel


def write_core_wheel(folder: Path) -> Path:
    """Write the wheel of the running package and return its path.

    Args:
        folder: An existing folder.

    Raises:
        MmedgeError: See `installation.distribution`.
    """
    about = distribution().read_text("METADATA") or ""
    name, info = f"mmedge-{mmedge.__version__}", f"mmedge-{mmedge.__version__}.dist-info"
    path = folder / f"{name}-py3-none-any.whl"
    package = Path(mmedge.__file__).resolve().parent
    contents = {
        f"mmedge/{file.relative_to(package).as_posix()}": file.read_bytes()
        for file in sorted(package.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts and LIBRARY.parent not in file.parents
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
