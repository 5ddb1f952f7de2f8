"""Programs for another architecture, run as if they were this machine's own: the kernel gives them to qemu (binfmt_misc).

    with emulated("aarch64"):           undone at the end; what is registered already is used and left as it is
        ...

The interpreter is opened when it is registered (flag F), so it also runs what has another root. Knows nothing of images.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REGISTERED = Path("/proc/sys/fs/binfmt_misc")
ELF_MACHINES = {"x86_64": 62, "aarch64": 183}  # e_machine, in an ELF file's header


class CannotEmulate(Exception):
    """This machine cannot run such programs; says why."""


def _magic(machine: str) -> tuple[bytes, bytes]:
    """Return the first 20 bytes of an architecture's programs, little-endian with 64 bits, and which bits of them count."""
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    kind = (2).to_bytes(2, "little")  # ET_EXEC; ET_DYN, which is 3, where the last bit does not count
    mask = b"\xff" * 7 + b"\x00" + b"\xff" * 8 + b"\xfe\xff\xff\xff"
    return ident + kind + ELF_MACHINES[machine].to_bytes(2, "little"), mask


def _is_registered(magic: bytes) -> bool:
    for entry in REGISTERED.iterdir():
        if entry.name in ("register", "status"):
            continue
        stated = entry.read_text().split("\n")
        flags = next((line.removeprefix("flags: ") for line in stated if line.startswith("flags: ")), "")
        if "enabled" in stated and "F" in flags and f"magic {magic.hex()}" in stated:
            return True
    return False


@contextmanager
def emulated(machine: str) -> Iterator[None]:
    """Let this machine run an architecture's programs, in every root.

    Args:
        machine: The architecture, as `uname -m` names it.

    Raises:
        CannotEmulate: There is no static qemu for it, or the kernel or the rights for it are missing.
    """
    qemu = shutil.which(f"qemu-{machine}-static")
    if qemu is None:
        raise CannotEmulate(f"there is no qemu-{machine}-static (Debian's package qemu-user-static)")
    mounted = (REGISTERED / "register").exists()
    if not mounted and subprocess.run(["mount", "-t", "binfmt_misc", "none", REGISTERED], capture_output=True).returncode:
        raise CannotEmulate("binfmt_misc cannot be mounted: the kernel has none, or it is not allowed")
    entry = REGISTERED / f"mmedge-test-{machine}"
    magic, mask = _magic(machine)
    try:
        if not _is_registered(magic):
            escaped = ["".join(f"\\x{byte:02x}" for byte in part) for part in (magic, mask)]
            try:
                (REGISTERED / "register").write_text(f":{entry.name}:M:0:{escaped[0]}:{escaped[1]}:{qemu}:F")
            except OSError as error:
                raise CannotEmulate(f"binfmt_misc registers nothing: {error.strerror}") from error
        yield
    finally:
        if entry.exists():
            entry.write_text("-1")
        if not mounted:
            subprocess.run(["umount", REGISTERED], check=False)
