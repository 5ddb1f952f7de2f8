"""The image recipe, built without a daemon on images of Debian's packages, and run as it is meant to be, on amd64 and ARM64.

Needs root, mmdebstrap, buildah and the network; for another architecture than this machine's, qemu-user-static and binfmt_misc too.
The images that the recipe names by default are not used.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.serve.heavy.conftest import needed
from tests.serve.heavy.emulation import ELF_MACHINES, CannotEmulate, emulated
from tests.serve.running import JSON, QUESTION

LARGEST = 420  # megabytes
PORT = 18091
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}  # Debian's name, and the kernel's
PROCESSOR = "cortex-a76"  # that qemu emulates
SLOWER = 20  # times, under emulation, at most
LIBRARIES = {"native": "/libmmedge-native.so", "onnx": "/onnxruntime_pybind11_state"}  # what an engine is in
LEAN = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")]
RUN = """
set -e
mkdir -p "$1/bundle"
mount --bind "$1" "$1"; mount --bind "$2" "$1/bundle"
mount -o remount,bind,ro "$1/bundle"; mount -o remount,bind,ro "$1"
mount -t proc proc "$1/proc"
exec chroot "$1" setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all \\
    env -i PYTHONDONTWRITEBYTECODE=1 "MMEDGE_ENGINE=$4" "QEMU_CPU=$5" \\
    /opt/mmedge/bin/mmedge serve --host 127.0.0.1 --port "$3" /bundle
"""


@dataclass(frozen=True)
class Image:
    """An image that was built.

    Attributes:
        root: Its files.
        name: What buildah calls it.
        machine: Its architecture, as `uname -m` names it.
    """

    root: Path
    name: str
    machine: str

    @property
    def is_emulated(self) -> bool:
        return self.machine != platform.machine()

    @property
    def patience(self) -> float:
        """How many times longer it may take than on a processor of its own."""
        return SLOWER if self.is_emulated else 1


def _done(*command: object) -> str:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, cwd=REPOSITORY, timeout=3600)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.strip()


def _debian(folder: Path, name: str, architecture: str, *packages: str) -> None:
    """Make an image of Debian's packages."""
    variant = "minbase" if "python3-venv" in packages else "essential"
    tar = folder / f"{name}.tar"
    included = f"--include={','.join(packages)}"
    _done("mmdebstrap", f"--architectures={architecture}", f"--variant={variant}", included, *LEAN, "bookworm", tar)
    container = _done("buildah", "from", "--arch", architecture, "scratch")
    try:
        _done("buildah", "add", container, tar, "/")
        _done("buildah", "commit", container, f"localhost/{name}")
    finally:
        _done("buildah", "rm", container)
    tar.unlink()


@pytest.fixture(scope="module", params=list(MACHINES))
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image for an architecture."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to build without a daemon")
    for program in ("mmdebstrap", "buildah", "unshare"):
        needed(program)
    architecture: str = request.param
    name = f"mmedge-test-{architecture}"
    with ExitStack() as undone:
        if MACHINES[architecture] != platform.machine():
            try:
                undone.enter_context(emulated(MACHINES[architecture]))
            except CannotEmulate as why:
                pytest.skip(f"{architecture} cannot be emulated: {why}")
        folder = tmp_path_factory.mktemp("image")
        for part, *packages in (("build", "python3", "python3-venv", "ca-certificates"), ("base", "python3", "libstdc++6")):
            _debian(folder, f"{name}-{part}", architecture, *packages)
            undone.callback(_done, "buildah", "rmi", f"localhost/{name}-{part}")
        seen = [f"--volume={place}:{place}:ro" for place in ("/etc/ssl/certs", "/etc/pip.conf") if Path(place).exists()]
        arguments = [f"--build-arg={part.upper()}=localhost/{name}-{part}" for part in ("build", "base")]
        built = ["--isolation=chroot", "--arch", architecture, *arguments, *seen]
        _done("buildah", "bud", *built, "-f", "docs/deploy/Dockerfile", "-t", f"localhost/{name}", ".")
        undone.callback(_done, "buildah", "rmi", f"localhost/{name}")
        container = _done("buildah", "from", "--arch", architecture, f"localhost/{name}")
        undone.callback(_done, "buildah", "rm", container)
        yield Image(Path(_done("buildah", "mount", container)), f"localhost/{name}", MACHINES[architecture])


def test_the_image_is_small(image: Image) -> None:
    size = int(_done("du", "-sm", image.root).split()[0])
    print(f"{image.machine}: {size} MB")
    assert size < LARGEST, f"{size} MB"
    stated = json.loads(_done("buildah", "inspect", "--type", "image", image.name))["OCIv1"]
    assert MACHINES[stated["architecture"]] == image.machine
    assert stated["config"]["User"] == "65534:65534" and stated["config"]["StopSignal"] == "SIGTERM"
    assert not any(image.root.glob("opt/mmedge/lib/*/site-packages/torch")) and not (image.root / "source").exists()


def test_it_has_the_native_engine_and_nothing_that_compiled_it(image: Image) -> None:
    (library,) = image.root.glob("opt/mmedge/lib/*/site-packages/mmedge/engines/native/compiled/*")
    assert int.from_bytes(library.read_bytes()[18:20], "little") == ELF_MACHINES[image.machine]
    assert not [*image.root.glob("usr/bin/*g++*"), *image.root.glob("usr/lib/gcc/*/*/cc1plus")]


def _answer(process: subprocess.Popen[str], patience: float) -> Any:
    """Ask until the server answers."""
    body = json.dumps({"question": QUESTION}).encode()
    deadline = time.monotonic() + 60 * patience
    while True:
        try:
            asked = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/answer", body, JSON)
            return json.loads(urllib.request.urlopen(asked, timeout=10 * patience).read())
        except urllib.error.URLError:
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read() if process.stderr else ""
            time.sleep(0.2)


@pytest.mark.parametrize("engine", ["native", "onnx"])
def test_it_answers_as_nobody_with_nothing_to_write_to(image: Image, engine: str, tiny_run: Path) -> None:
    shell = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", RUN, "run"]
    command = [*shell, image.root, tiny_run / "bundle-int8", PORT, engine, PROCESSOR]
    process = subprocess.Popen([str(one) for one in command], stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert _answer(process, image.patience)["answer"]
        (inner,) = [int(one) for one in _done("pgrep", "-f", f"/opt/mmedge/bin/mmedge serve .*--port {PORT}").split()][-1:]
        status = Path(f"/proc/{inner}/status").read_text()
        assert "Uid:\t65534\t65534" in status and "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
        (root,) = [line for line in Path(f"/proc/{inner}/mountinfo").read_text().splitlines() if line.split()[4] == "/"]
        assert root.split()[5].startswith("ro")
        maps = Path(f"/proc/{inner}/maps").read_text()
        assert [name for name in LIBRARIES if LIBRARIES[name] in maps] == [engine], "the library of the engine that answers"
        os.kill(inner, signal.SIGTERM)
        assert process.wait(30 * image.patience) == 0
        assert process.stderr is not None
        said = process.stderr.read().splitlines()
        if engine == "onnx" and image.machine != platform.machine():  # it speaks of the processor, which is emulated
            said = [line for line in said if "cpuinfo" not in line and "onnxruntime" not in line]
        assert len(said) == 1, f"it says where it serves, and no more: {said}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # setpriv has made the server outlive unshare
            process.wait()
