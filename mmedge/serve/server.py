"""The process of the server: its socket, slow senders, and its end on SIGTERM.

It stops listening at once, answers what it has accepted, and then ends; a second signal ends it without waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import logging
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Generator
from email.utils import formatdate
from pathlib import Path
from types import FrameType
from typing import Protocol

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmedge.errors import MmedgeError
from mmedge.serve.failures import ApiError
from mmedge.serve.gate import HEADER_BYTES, HEADERS, REST_BYTES, REST_SECONDS
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
        MmedgeError: It cannot be read, or the key is not its own.
    """
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise MmedgeError(f"cannot use the certificate {certificate}: {reason}", "give a PEM file and its --key") from None


def _protocol(seconds: float, most: int) -> type[H11Protocol]:
    """Return uvicorn's protocol, which closes connections that keep the server waiting.

    That is: a head that is not there in time, the rest of a body that was refused, a response that nobody reads.

    Args:
        seconds: How long it waits.
        most: Connections; each beyond takes the place of the one that has been without a request for longest.
    """

    class Timed(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _begun = False  # whether a byte has come
        _since = 0.0  # when it connected, or was answered last
        _rest = 0  # bytes of bodies that were refused
        _stalled = False  # whether the client does not read what is written

        def _watch(self) -> None:
            """Begin to count the time where something is due, or stop."""
            refused = self._is_refused
            head = self.conn.their_state is h11.IDLE and (not self._begun or bool(self.conn.trailing_data[0]))
            if not (head or refused or self._stalled or self.transport.is_closing()):
                self._unset()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(min(seconds, REST_SECONDS) if refused else seconds, self.transport.abort)

        def _unset(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        @property
        def _is_refused(self) -> bool:
            """Whether its request is answered, and its body goes on."""
            return self.conn.their_state is h11.SEND_BODY and self.cycle is not None and self.cycle.response_complete

        @property
        def _is_free(self) -> bool:
            """Whether no request of it is being answered."""
            return not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._since = self.loop.time()
            if len(self.connections) > most:
                free = [one for one in self.connections if one is not self and isinstance(one, Timed) and one._is_free]
                if free:
                    min(free, key=lambda one: one._since).transport.abort()
            self._watch()

        def data_received(self, data: bytes) -> None:
            self._begun = True
            self.server_state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
            if self._is_refused:
                self._rest += len(data)
            if self._rest > REST_BYTES:
                self.transport.abort()
            else:
                super().data_received(data)
                self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._since = self.loop.time()
            self._watch()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._watch()

        def shutdown(self) -> None:
            super().shutdown()
            self._watch()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = True
            self._watch()

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stalled = False
            self._watch()

        def send_400_response(self, msg: str) -> None:
            """Answer what is not HTTP, unless it follows a request that is being answered, or was."""
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.close()
            else:
                if self.conn.our_state is h11.SEND_RESPONSE:  # its head was HTTP, its body is not: this is its answer
                    self.cycle.disconnected = True
                    self.cycle.message_event.set()
                self._refuse()

        def _refuse(self) -> None:
            failure = ApiError(400, "this is not an HTTP request", "invalid_http")
            body = json.dumps(failure.body()).encode()
            headers = HEADERS | {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            headers["Date"] = formatdate(usegmt=True)
            for event in (h11.Response(status_code=400, headers=list(headers.items())), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unset()
            super().connection_lost(exc)

    return Timed


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
    """
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # no traceback in the log: the application tells what there is to tell
    config = uvicorn.Config(
        gate,
        http=_protocol(limits.body_seconds, _allowed(limits.clients + _BESIDE)),
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
