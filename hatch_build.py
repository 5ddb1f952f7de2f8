"""The wheel's build hook: compiles the native engine where a C++ compiler is at hand; without one the wheel is pure Python.

pip install .                              with the native engine, if it compiles
MMEDGE_NATIVE=0 pip install .              without
MMEDGE_NATIVE=1 pip wheel .                fails if it does not compile
"""

from __future__ import annotations

import os
import platform
import runpy
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


def library_platform() -> str:
    """Return the platform that the library is for, as wheels name it; a Mac's Python of two architectures compiles it for one."""
    name = sysconfig.get_platform()
    if name.endswith("universal2"):
        name = f"macosx-11.0-{platform.machine()}"
    return name.replace("-", "_").replace(".", "_")


class NativeEngineHook(BuildHookInterface[Any]):
    """Adds the library to a wheel, or puts it beside the sources of an editable installation."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        wanted = os.environ.get("MMEDGE_NATIVE", "")
        if self.target_name != "wheel" or wanted == "0":
            return
        folder = Path(self.root) / "mmedge" / "engines" / "native"
        build = runpy.run_path(str(folder / "build.py"))
        try:
            library = build["build"]()
        except build["CannotCompile"] as error:
            if wanted == "1":
                raise
            self.app.display_warning(f"without the native engine: {error}")
            return
        if version == "editable":
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{library_platform()}"
        build_data["force_include"][str(library)] = f"mmedge/engines/native/compiled/{library.name}"
