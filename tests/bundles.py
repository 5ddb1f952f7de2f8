"""Bundles that are nothing but graphs, for tests of the engines that decode these: those that benchmarks measure."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

from mmedge.bundle import Bundle

_SCRIPT = Path(__file__).parent.parent / "benchmarks" / "bare_bundle.py"
bundle_of: Callable[..., Bundle] = runpy.run_path(str(_SCRIPT))["bundle_of"]
