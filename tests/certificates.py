"""A certificate that nobody trusts until a test says so."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


def certificate_in(folder: Path) -> Path:
    """Make a certificate for localhost that signs itself."""
    path = folder / "localhost.pem"
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command here to make a certificate with")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(path), "-out", str(folder / "c.pem")]
    names = ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, *names], capture_output=True, check=True)
    path.write_bytes(path.read_bytes() + (folder / "c.pem").read_bytes())
    return path
