"""A real sshd on loopback, as the current user, with keys of its own, and a proxy in front of it that can be cut.

Started by tests; everything lies in one folder. What a login finds on its PATH, and its TMPDIR, are what the test says.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """Return a port of loopback that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        folder: Where its files are.
        port: Of loopback.
        temporary: The TMPDIR of those who log in.
        config: An ssh configuration that knows it as `board`, with the right key.
    """

    folder: Path
    port: int
    temporary: Path
    config: Path

    def client(self, name: str, **settings: object) -> Path:
        """Write an ssh configuration that differs from the right one in some settings."""
        right = {
            "HostName": "127.0.0.1",
            "Port": self.port,
            "User": getpass.getuser(),
            "IdentityFile": self.folder / "key",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "StrictHostKeyChecking": "yes",
        }
        path = self.folder / f"{name}.config"
        path.write_text("Host board\n" + "".join(f"  {key} {value}\n" for key, value in (right | settings).items()))
        return path


def new_key(path: Path) -> Path:
    """Make a key pair without a passphrase; return the private half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, stdin=subprocess.DEVNULL)
    return path


@contextmanager
def ssh_server(folder: Path, path: str, temporary: Path) -> Iterator[Server]:
    """Run a server whose logins have this PATH and this TMPDIR."""
    assert SSHD is not None
    folder.mkdir(exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd as root will not start without it
    port = free_port()
    host, _ = new_key(folder / "host"), new_key(folder / "key")
    (folder / "authorized").write_text((folder / "key.pub").read_text())
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    login = folder / "login"  # in place of what the user's own shell sets at its start
    login.write_text(f'#!/bin/sh\nexport PATH="{path}" TMPDIR="{temporary}"\nexec /bin/sh -c "$SSH_ORIGINAL_COMMAND"\n')
    login.chmod(0o755)
    (folder / "sshd.config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {host}\nAuthorizedKeysFile {folder / 'authorized'}\nPidFile none\n"
        "UsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"ForceCommand {login}\n"
    )
    with open(folder / "sshd.log", "wb") as log:
        process = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd.config"], stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "sshd.log").read_text()
            time.sleep(0.02)
        server = Server(folder, port, temporary, folder / "right.config")
        server.client("right")
        yield server
    finally:
        process.terminate()
        process.wait()


class Cable:
    """A proxy in front of a port; `cut` closes what goes through it, both ways at once."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Cut it."""
        self._listener.close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
