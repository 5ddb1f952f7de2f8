"""The image recipe, built without a daemon on images of Debian's packages, and run as it is meant to be.

Needs root, mmdebstrap, buildah and the network. The images that the recipe names by default are not used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.serve.heavy.conftest import needed
from tests.serve.running import JSON, QUESTION

LARGEST = 420  # megabytes
PORT = 18091
LEAN = [f"--dpkgopt=path-exclude=/usr/share/{part}/*" for part in ("doc", "man", "locale")]
RUN = """
set -e
mkdir -p "$1/bundle"
mount --bind "$1" "$1"; mount --bind "$2" "$1/bundle"
mount -o remount,bind,ro "$1/bundle"; mount -o remount,bind,ro "$1"
mount -t proc proc "$1/proc"
exec chroot "$1" setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs --bounding-set=-all \\
    env -i PYTHONDONTWRITEBYTECODE=1 /opt/mmedge/bin/mmedge serve --host 127.0.0.1 --port "$3" /bundle
"""


def _done(*command: object) -> str:
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, cwd=REPOSITORY, timeout=1200)
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout.strip()


def _debian(folder: Path, name: str, *packages: str) -> None:
    """Make an image of Debian's packages."""
    variant = "minbase" if "python3-venv" in packages else "essential"
    tar = folder / f"{name}.tar"
    _done("mmdebstrap", f"--variant={variant}", f"--include={','.join(packages)}", *LEAN, "bookworm", tar)
    container = _done("buildah", "from", "scratch")
    _done("buildah", "add", container, tar, "/")
    _done("buildah", "commit", container, f"localhost/{name}")
    _done("buildah", "rm", container)
    tar.unlink()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root of the image."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("needs root on Linux, to build without a daemon")
    for program in ("mmdebstrap", "buildah", "unshare"):
        needed(program)
    folder = tmp_path_factory.mktemp("image")
    _debian(folder, "mmedge-test-build", "python3", "python3-venv", "ca-certificates")
    _debian(folder, "mmedge-test-base", "python3", "libstdc++6")
    seen = [f"--volume={place}:{place}:ro" for place in ("/etc/ssl/certs", "/etc/pip.conf") if Path(place).exists()]
    arguments = ["--build-arg=BUILD=localhost/mmedge-test-build", "--build-arg=BASE=localhost/mmedge-test-base"]
    built = ["--isolation=chroot", *arguments, *seen, "-f", "docs/deploy/Dockerfile", "-t", "localhost/mmedge-test"]
    _done("buildah", "bud", *built, ".")
    container = _done("buildah", "from", "localhost/mmedge-test")
    yield Path(_done("buildah", "mount", container))
    _done("buildah", "rm", container)
    _done("buildah", "rmi", "localhost/mmedge-test", "localhost/mmedge-test-build", "localhost/mmedge-test-base")


def test_the_image_is_small(image: Path) -> None:
    size = int(_done("du", "-sm", image).split()[0])
    assert size < LARGEST, f"{size} MB"
    stated = json.loads(_done("buildah", "inspect", "--type", "image", "localhost/mmedge-test"))["OCIv1"]["config"]
    assert stated["User"] == "65534:65534" and stated["StopSignal"] == "SIGTERM"
    assert not any(image.glob("opt/mmedge/lib/*/site-packages/torch")) and not (image / "source").exists()


def test_it_answers_as_nobody_with_nothing_to_write_to(image: Path, tiny_run: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", RUN, "run", image, bundle, PORT]
    process = subprocess.Popen([str(one) for one in command], stderr=subprocess.PIPE, text=True)
    try:
        body = json.dumps({"question": QUESTION}).encode()
        deadline = time.monotonic() + 60
        while True:
            try:
                asked = urllib.request.Request(f"http://127.0.0.1:{PORT}/v1/answer", body, JSON)
                found = json.loads(urllib.request.urlopen(asked, timeout=10).read())
                break
            except urllib.error.URLError:
                assert time.monotonic() < deadline and process.poll() is None, process.stderr.read() if process.stderr else ""
                time.sleep(0.2)
        assert found["answer"]
        (inner,) = [int(one) for one in _done("pgrep", "-f", f"/opt/mmedge/bin/mmedge serve .*--port {PORT}").split()][-1:]
        status = Path(f"/proc/{inner}/status").read_text()
        assert "Uid:\t65534\t65534" in status and "CapEff:\t0000000000000000" in status and "NoNewPrivs:\t1" in status
        (root,) = [line for line in Path(f"/proc/{inner}/mountinfo").read_text().splitlines() if line.split()[4] == "/"]
        assert root.split()[5].startswith("ro")
        os.kill(inner, 15)
        assert process.wait(30) == 0
        assert process.stderr is not None and process.stderr.read().count("\n") == 1, "it says where it serves, and no more"
    finally:
        if process.poll() is None:
            process.kill()
