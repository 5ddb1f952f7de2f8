"""The process of the server: its socket, slow senders, and its end on SIGTERM.

It stops listening at once, answers what it has accepted, and then ends; a second signal ends it without waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Protocol

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmedge.errors import MmedgeError
from mmedge.serve.settings import Limits

_HEADER_BYTES = 32 << 10
_KEEP_ALIVE = 30  # seconds that an idle connection stays open
_BACKLOG = 1024
_BESIDE = 64  # connections beyond the limit of clients, which are told that there are too many


class Application(Protocol):
    """An ASGI application that is told when the server is about to end."""

    draining: bool

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Args:
        host: A name or an address.
        port: 0 for any that is free.

    Raises:
        MmedgeError: Another program listens there, or it is not allowed.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio lets small packets wait
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MmedgeError(f"port {port} of {host} is in use", "choose another with --port") from None
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise MmedgeError(f"this machine has no address {host}", "use 127.0.0.1, or 0.0.0.0 for all") from None
        raise MmedgeError(f"cannot listen at {host}:{port}: {error.strerror}", "choose a port above 1023") from None
    return found


def check_certificate(certificate: Path, key: Path) -> None:
    """Check that a certificate can be used.

    Raises:
        MmedgeError: It cannot be read, or the key is not its own.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise MmedgeError(f"cannot use the certificate {certificate}: {reason}", "give a PEM file and its --key") from None


def _protocol(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol, which closes connections whose headers are not there in time."""

    class Timed(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._deadline = self.loop.call_later(seconds, transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            incomplete = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            if not incomplete and self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
            elif incomplete and self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

    return Timed


class _Server(uvicorn.Server):
    """Ends with exit code 0 when it is told to end, and says so to the gate."""

    def __init__(self, config: uvicorn.Config, gate: Application, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._gate, self._ready = gate, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._gate.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(
    gate: Application,
    listener: socket.socket,
    limits: Limits,
    ready: Callable[[], None],
    certificate: Path | None = None,
    key: Path | None = None,
) -> None:
    """Serve until a signal ends it.

    Args:
        gate: The application.
        listener: Where clients come.
        limits: Its limits.
        ready: Called when requests are answered, and a signal ends the server in order.
        certificate: For TLS; None for none.
        key: Of the certificate.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the gate tells what there is to tell
    config = uvicorn.Config(
        gate,
        http=_protocol(limits.body_seconds),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(limits.drain)),
        limit_concurrency=limits.clients + _BESIDE,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    _Server(config, gate, ready).run([listener])
