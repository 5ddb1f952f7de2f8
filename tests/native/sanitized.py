"""Compiles the native engine and `stress.cpp` with sanitizers, and runs it: address and undefined behaviour, then threads.

python -m tests.native.sanitized            models and lies by the hundred; minutes
python -m tests.native.sanitized 20 300     fewer
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from mmedge.engines.native.build import EMULATED, SOURCES, compiler, sources

COMMON = ("-std=c++20", "-O1", "-g", "-ffp-contract=off", "-fno-sanitize-recover=all", "-pthread", f"-I{SOURCES}")
SANITIZERS = {"-fsanitize=address,undefined": 1, "-fsanitize=thread": 10}  # by what the numbers are divided, since it is so slow


def run(sanitizer: str, models: int, lies: int) -> int:
    """Return the exit status of the stress program under a sanitizer."""
    cxx = compiler()
    if cxx is None:
        print("there is no C++ compiler")
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        files = [(SOURCES / name, flags) for name, flags in sources()]
        everything = [*files, (Path(__file__).with_name("stress.cpp"), ())]
        common: tuple[str, ...] = COMMON
        if any(flags for _, flags in files):  # x86
            everything.append((SOURCES / EMULATED[0], EMULATED[1]))
            common = (*COMMON, "-DMMEDGE_EMULATED")
        objects: list[str] = []
        for path, flags in everything:
            objects.append(str(Path(temporary) / f"{len(objects)}.o"))
            subprocess.run([cxx, *common, sanitizer, *flags, "-c", str(path), "-o", objects[-1]], check=True)
        program = str(Path(temporary) / "stress")
        subprocess.run([cxx, sanitizer, "-pthread", *objects, "-o", program], check=True)
        return subprocess.run([program, str(models), str(lies)], check=False).returncode


def main() -> int:
    """Run under every sanitizer; return 0 where all are content."""
    models, lies = (int(text) for text in (sys.argv[1:3] if len(sys.argv) > 2 else ("200", "5000")))
    worst = 0
    for sanitizer, share in SANITIZERS.items():
        print(sanitizer, flush=True)
        worst = max(worst, abs(run(sanitizer, max(1, models // share), max(1, lies // share))))
    return worst


if __name__ == "__main__":
    sys.exit(main())
