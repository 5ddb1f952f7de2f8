"""How a server is set up: where it listens, whom it lets in, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.runtime import AnswerOptions


@dataclass(frozen=True)
class ServerLimits:
    """The limits of a server.

    Attributes:
        body: Bytes of a request.
        body_seconds: Seconds within which a request must be there.
        seconds: Seconds from request to response.
        clients: Requests at once, waiting ones included.
        waiting: Requests that wait for their turn.
        rows: Requests that are answered at once.
        drain: Seconds that requests have to finish when the server is told to stop.
        cache: Bytes that each bundle keeps of what its requests have read.
    """

    body: int = 1 << 20
    body_seconds: float = 10.0
    seconds: float = 60.0
    clients: int = 1024
    waiting: int = 512
    rows: int = 16
    drain: float = 30.0
    cache: int = 512 << 20


@dataclass(frozen=True)
class Settings:
    """A server.

    Attributes:
        keys: The keys that let a client in; everyone is let in if there are none.
        limits: Its limits.
        options: What is asked of a student where a request does not say.
        hosts: The names in addresses that are answered, besides those of this machine; None for all. Where a server is for its own
            machine alone, a page of another site can make its own name lead here (DNS rebinding), and no browser would mind.
    """

    keys: tuple[str, ...] = ()
    limits: ServerLimits = field(default_factory=ServerLimits)
    options: AnswerOptions = field(default_factory=AnswerOptions)
    hosts: frozenset[str] | None = None


def read_keys(path: Path) -> tuple[str, ...]:
    """Read a file of keys, one a line; empty lines and those that begin with # are left out.

    Raises:
        MmedgeError: The file does not exist or holds no key, or a key could not be sent.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise MmedgeError(f"cannot read the keys in {path}", "name a text file with one key a line") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise MmedgeError(f"{path} holds no key", "write one key a line")
    if any(not "!" <= character <= "~" for key in keys for character in key):
        raise MmedgeError(f"a key in {path} has spaces or characters beyond ASCII", "write one word a line")
    return keys
