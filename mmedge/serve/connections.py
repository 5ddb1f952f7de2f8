"""One connection to a client: what is no HTTP, and whoever keeps the server waiting.

    protocol_of(seconds=10, most=1088, refused=gate.tell_refused)      uvicorn's protocol, with a time for everything

What is not a request never reaches the application, and is answered here. Knows no route and no student.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mmedge.serve.failures import ApiError
from mmedge.serve.gate import HEADERS, REFUSED, REST_BYTES, REST_SECONDS, too_large_head

Refused = Callable[[str, int], None]  # a client's address, the status


def protocol_of(seconds: float, most: int, refused: Refused) -> type[H11Protocol]:
    """Return uvicorn's protocol, which closes connections that keep the server waiting.

    That is: a head that is not there in time, the rest of a body that was refused, a response that nobody reads.

    Args:
        seconds: How long it waits.
        most: Connections; each beyond takes the place of the one that has been without a request for longest.
        refused: Called for each head that is answered here: it is no HTTP, too large or too slow.
    """

    class Timed(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _begun = False  # whether a byte has come
        _since = 0.0  # when it connected, or was answered last
        _rest = 0  # bytes of what was refused
        _stalled = False  # whether the client does not read what is written
        _over = False  # whether it has got its last response

        def _watch(self) -> None:
            """Begin to count the time where something is due, or stop."""
            if self._over:
                return
            refused = self._is_refused
            head = self.conn.their_state is h11.IDLE and (not self._begun or bool(self.conn.trailing_data[0]))
            if not (head or refused or self._stalled or self.transport.is_closing()):
                self._unset()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(min(seconds, REST_SECONDS) if refused else seconds, self._end)

        def _unset(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _end(self) -> None:
            """End the connection, with a word where a head has begun."""
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0] and not self._stalled:
                self._refuse(ApiError(408, f"the request's head was not complete within {seconds:g} s", "timeout"))
            else:
                self.transport.abort()

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
            if self._is_refused or self._over:
                self._rest += len(data)
            if self._rest > REST_BYTES:
                self.transport.abort()
            elif not self._over:
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
            if self.conn.our_state is h11.IDLE:
                error = sys.exception()
                large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
                self._refuse(too_large_head() if large else ApiError(400, "this is not an HTTP request", "invalid_http"))
            elif self.conn.our_state is h11.SEND_RESPONSE:  # its head was HTTP, its body is not: this is its answer
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                self._refuse(ApiError(400, "the request's body is not sent as HTTP sends one", "invalid_http"))
            else:
                self.transport.close()

        def _refuse(self, failure: ApiError) -> None:
            """Send the last response, and read for a while what the client still sends, or it would not get to read why."""
            if self.conn.our_state is h11.IDLE:
                refused(self.client[0] if self.client else "", failure.status)
            else:
                self.scope["state"][REFUSED] = failure.status  # whoever answers the request knows of it
            body = json.dumps(failure.body()).encode()
            headers = HEADERS | {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
            headers["Date"] = formatdate(usegmt=True)
            reason = HTTPStatus(failure.status).phrase.encode()
            response = h11.Response(status_code=failure.status, reason=reason, headers=list(headers.items()))
            events = (response, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            self._unset()
            self._over = True
            if self.transport.can_write_eof():
                with contextlib.suppress(OSError):  # the client is gone
                    self.transport.write_eof()
            self._deadline = self.loop.call_later(REST_SECONDS, self.transport.abort)
            self.flow.resume_reading()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unset()
            super().connection_lost(exc)

    return Timed
