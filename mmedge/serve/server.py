"""The process of the server: its socket, and its end on SIGTERM.

It stops listening at once, answers what it has accepted, and then ends; a second signal ends it without waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from pathlib import Path
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import Receive, Scope, Send

from mmedge.errors import MmedgeError
from mmedge.serve.connections import Refused, protocol_of
from mmedge.serve.gate import HEADER_BYTES
from mmedge.serve.settings import ServerLimits

_KEEP_ALIVE = 30  # seconds that an idle connection stays open
_BACKLOG = 1024
_BESIDE = 64  # connections beyond the limit of clients, which are told that there are too many
_FILES = 128  # that are open besides connections to clients


def _allowed(connections: int) -> int:
    """Return how many of these connections this process may have open, after its limit of files is raised as far as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    if soft < connections + _FILES:
        soft = connections + _FILES if hard == resource.RLIM_INFINITY else min(hard, connections + _FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(connections, soft - _FILES))


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
        MmedgeError: It cannot be read, the key is not its own, or is encrypted.
    """

    def encrypted() -> str:  # or OpenSSL would ask for the passphrase, and a server has nobody to ask
        raise MmedgeError(f"the key {key} is encrypted", "give it without a passphrase: openssl pkey -in KEY -out PLAIN_KEY")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, encrypted)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise MmedgeError(f"cannot use the certificate {certificate}: {reason}", "give a PEM file and its --key") from None


class _Server(uvicorn.Server):
    """Ends with exit code 0 when it is told to end, and says so to the application."""

    def __init__(
        self,
        config: uvicorn.Config,
        app: Application,
        ready: Callable[[], None],
        bug: Callable[[BaseException | None], None],
        handshake: float,
    ) -> None:
        super().__init__(config)
        self._app, self._ready, self._bug, self._handshake = app, ready, bug, handshake
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen as uvicorn does, with a time for TLS's handshake, and without tracebacks in the log."""
        loop, config = asyncio.get_running_loop(), self.config
        loop.set_exception_handler(lambda _, context: self._bug(context.get("exception")))
        await self.lifespan.startup()

        def connected() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        seconds = self._handshake if config.ssl else None  # asyncio would let it last a minute
        self.servers = [
            await loop.create_server(
                connected,
                sock=one,
                ssl=config.ssl,
                backlog=_BACKLOG,
                ssl_handshake_timeout=seconds,
                ssl_shutdown_timeout=seconds,
            )
            for one in sockets or []
        ]
        gc.freeze()  # what is there now stays, and is not searched for garbage again and again: that took 4 % of the time
        self.started = True
        self._ready()

    async def main_loop(self) -> None:
        """Sleep until a signal ends it; uvicorn would look ten times a second, and set the date."""
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._told.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.draining = True
        self.force_exit = self.should_exit
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._told.set)


def serve(
    gate: Application,
    listener: socket.socket,
    limits: ServerLimits,
    ready: Callable[[], None],
    certificate: Path | None = None,
    key: Path | None = None,
    bug: Callable[[BaseException | None], None] = lambda _: None,
    refused: Refused = lambda client, status: None,
) -> None:
    """Serve until a signal ends it.

    Args:
        gate: The application.
        listener: Where clients come.
        limits: Its limits.
        ready: Called when requests are answered, and a signal ends the server in order.
        certificate: For TLS; None for none.
        key: Of the certificate.
        bug: Called with what should not have happened beneath the application; by default nobody is told, and it goes on.
        refused: Called with a client's address and the status of what is not a request, and so does not reach the application.
    """
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # no traceback in the log: the application tells what there is to tell
    config = uvicorn.Config(
        gate,
        http=protocol_of(limits.body_seconds, _allowed(limits.clients + _BESIDE), refused),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,  # each connection sets it
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(limits.drain)),
        h11_max_incomplete_event_size=HEADER_BYTES,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    _Server(config, gate, ready, bug, limits.body_seconds).run([listener])
