"""A bigger model behind an OpenAI-compatible endpoint.

Standard library only: the device needs nothing more than the runtime has. A module of its own, since what speaks HTTP takes
time and megabytes to import, and most students never hand anything on.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

from mmedge.errors import MmedgeError
from mmedge.runtime.escalation import Escalated, question_for
from mmedge.tasks.base import Example, Unparsed
from mmedge.tasks.forms import AnswerForm

_LARGEST_REPLY = 4_000_000  # bytes
_AGAIN = (408, 409, 429, 500, 502, 503, 504)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would carry the key to another host."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


class _Deadline:
    """Ends a request that takes too long, whatever it waits for: a socket's own timeout starts anew with every byte."""

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def watch(self, connected: socket.socket) -> None:
        self._sockets.append(connected)
        if self.passed:
            self._end()

    def _end(self) -> None:
        self.passed = True
        for connected in self._sockets:
            with contextlib.suppress(OSError, ValueError):
                socket.socket.shutdown(connected, socket.SHUT_RDWR)  # of the socket itself, also beneath TLS


def _opener(deadline: _Deadline) -> urllib.request.OpenerDirector:
    """Return what opens addresses, its connections watched by a deadline."""

    class Plain(http.client.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            deadline.watch(self.sock)

    class Secure(http.client.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            deadline.watch(self.sock)

    class PlainHandler(urllib.request.HTTPHandler):
        def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Plain, request)

    class SecureHandler(urllib.request.HTTPSHandler):
        def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(Secure, request)

    return urllib.request.build_opener(_NoRedirects, PlainHandler, SecureHandler)


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: Up to and with `/v1`.
        model: Its name there.
        key_variable: The environment variable that holds the key; the key itself is never kept or shown.
        timeout: Seconds for one attempt, the whole reply included.
        attempts: How often it is tried.
        max_tokens: The longest reply.
        price_input: Of a million tokens read.
        price_output: Of a million tokens written.
    """

    url: str
    model: str
    key_variable: str | None = None
    timeout: float = 60.0
    attempts: int = 3
    max_tokens: int = 512
    price_input: float = 0.0
    price_output: float = 0.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise MmedgeError(f"{self.url!r} is no address of an endpoint", "it begins with http:// or https:// and ends in /v1")
        parts = _parts(self.url)
        if parts is None:
            raise MmedgeError("the address of the endpoint cannot be read", "write it as http://HOST:PORT/v1")
        if parts.username is not None or parts.password is not None:  # it would be shown with the address
            raise MmedgeError("the address of the endpoint holds a user or a password", "give the key by an environment variable")
        if self.key_variable:
            key = os.environ.get(self.key_variable)
            if not key:
                raise MmedgeError(f"the environment variable {self.key_variable} is not set", "it must hold the endpoint's key")
            if not (key.isascii() and key.isprintable()):
                raise MmedgeError(f"the environment variable {self.key_variable} holds what no key has", "is a line break in it?")

    @property
    def name(self) -> str:
        return self.model

    def ask(self, example: Example, form: AnswerForm) -> Escalated:
        started = time.monotonic()
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question_for(example, form)}],
            "temperature": 0,
            "max_tokens": self.max_tokens,
        }
        reply = self._post(json.dumps(body).encode())
        try:
            text = reply["choices"][0]["message"]["content"]
            usage = reply.get("usage") or {}
            read, written = (max(0, int(usage.get(name) or 0)) for name in ("prompt_tokens", "completion_tokens"))
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            raise MmedgeError(f"{self.url}: the reply is no chat completion") from None
        found = form.read(text if isinstance(text, str) else "", example)
        if isinstance(found, Unparsed):
            raise MmedgeError(f"{self.name}'s reply was read, and {found.value}")
        cost = (read * self.price_input + written * self.price_output) / 1e6
        return Escalated(found.pseudo_label, found.rationale, read, written, cost, time.monotonic() - started)

    def _post(self, body: bytes) -> dict[str, Any]:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key_variable:
            headers["Authorization"] = f"Bearer {os.environ.get(self.key_variable, '')}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", body, headers)
        problem = ""
        for attempt in range(self.attempts):
            if attempt:
                time.sleep(min(8.0, 0.5 * 2**attempt))
            deadline = _Deadline(self.timeout)
            try:
                with deadline, _opener(deadline).open(request, timeout=self.timeout) as response:
                    reply = json.loads(_read(response))
                if isinstance(reply, dict):
                    return reply
                problem = "the reply is no JSON object"
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}"
                if error.code not in _AGAIN:
                    break
            except urllib.error.URLError as error:
                problem = f"cannot be reached ({error.reason})"
            except (OSError, http.client.HTTPException) as error:
                problem = f"the connection broke ({type(error).__name__})"
            except (ValueError, RecursionError):
                problem = "the reply is no JSON"
            if deadline.passed:
                problem = f"no whole reply within {self.timeout:g} s"
        raise MmedgeError(f"{self.url}: {problem}", "is the endpoint up, and is the key right?")


def _parts(url: str) -> urllib.parse.SplitResult | None:
    """Return an address in its parts; None where it has no host, an impossible port, or signs that no address has."""
    if not url.isprintable() or " " in url:
        return None
    try:
        parts = urllib.parse.urlsplit(url)
        return parts if parts.hostname and parts.port != 0 and parts.path.isascii() else None
    except ValueError:
        return None


def _read(response: http.client.HTTPResponse) -> bytes:
    """Read a reply, at most `_LARGEST_REPLY` bytes of it."""
    found = bytearray()
    while len(found) < _LARGEST_REPLY:
        piece = response.read1(min(65536, _LARGEST_REPLY - len(found)))
        if not piece:
            break
        found += piece
    return bytes(found)
