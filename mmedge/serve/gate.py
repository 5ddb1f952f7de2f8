"""What every request passes: limits, keys, headers, the access log; and what becomes of errors.

Nothing of a request's contents, nor any key, is logged.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import hmac
import ipaddress
import json
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmedge.serve.failures import ApiError
from mmedge.serve.metrics import Metrics
from mmedge.serve.settings import Settings

HEALTH = ("/healthz", "/health", "/readyz")  # the second is where vLLM and llama.cpp have it
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
_OURS = Path(__file__).parent.parent
REST_BYTES = 32 << 20  # of a body that was refused, read so that the client reads why
REST_SECONDS = 1.0
HEADER_BYTES = 32 << 10  # of a request's line and headers
_BETWEEN = 4  # of them stand between a header's name and value, and behind it
_FRAMINGS = {b"content-length", b"transfer-encoding"}
_GONE = 499  # what logs say where the client went away
REFUSED = "refused"  # in a request's state: the status with which its body was refused by what reads HTTP


class Gate:
    """Wraps the application.

    Args:
        app: The routes.
        settings: Keys and limits.
        metrics: Where requests are counted.
        routes: The paths that there are; others are logged as `other`.
        log: Where the access log goes; None for none.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, routes: frozenset[str], log: TextIO | None) -> None:
        self._app, self._limits, self._metrics = app, settings.limits, metrics
        self._routes, self._log = routes, log
        self._keys = [hashlib.sha256(key.encode()).digest() for key in settings.keys]
        self._hosts = settings.hosts
        self._active = 0
        self.draining = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        scope["app"] = self  # the router then raises what it cannot find
        facts: dict[str, Any] = scope.setdefault("state", {}).setdefault("facts", {})
        status = 0

        async def told(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                there = {name.lower() for name, _ in headers}
                for name, value in (HEADERS | {"Content-Security-Policy": CONTENT_POLICY}).items():
                    if name.lower().encode() not in there:
                        headers.append((name.lower().encode(), value.encode()))
            await send(message)

        self._active += 1
        try:
            await self._passed(scope, receive, told)
        except ClientDisconnect:
            self._vanished(scope)
            status = status or _GONE
        except asyncio.CancelledError:
            if not self.draining:
                self._vanished(scope)
                status = status or _GONE
            elif not status:
                await _response(ending())(scope, receive, told)
            raise
        except Exception as error:
            found = failure_of(error)
            if found.status == 500:
                self.tell_bug(error)
            if not status:
                response = _response(found)
                response.headers.update(error.headers or {} if isinstance(error, HTTPException) else {})  # which methods there are
                await response(scope, receive, told)
        finally:
            self._active -= 1
            self._tell(scope, scope["state"].get(REFUSED, status), time.monotonic() - started, facts)

    def _vanished(self, scope: Scope) -> None:
        if REFUSED not in scope["state"]:
            self._metrics.count("mmedge_vanished_total")

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] not in HEALTH:
            if self._active > self._limits.clients:
                raise ApiError(503, "too many requests at once", "overloaded", retry_after=1)
            if self._hosts is not None and not _is_of(_host_of(scope), self._hosts):
                raise ApiError(421, "requests to this name are not answered; start the server with --allow-host NAME", "wrong_host")
            line = len(scope["raw_path"]) + len(scope["query_string"])
            if line + sum(len(name) + len(value) + _BETWEEN for name, value in scope["headers"]) > HEADER_BYTES:
                raise too_large_head()
            if _FRAMINGS.issubset(name for name, _ in scope["headers"]):  # whoever passed it on may have read the other one
                raise ApiError(400, "a request has Content-Length or Transfer-Encoding, not both", "invalid_http")
            scope["state"]["client"] = f"{self._let_in(scope)} {_client_of(scope)}"
        await self._app(scope, receive, send)

    def _let_in(self, scope: Scope) -> int:
        """Return which key a request has; 0 where none is needed.

        Raises:
            ApiError: It has none of them.
        """
        if not self._keys:
            return 0
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, secret = given.partition(b" ")
        if kind.lower() == b"basic":
            try:
                secret = base64.b64decode(secret, validate=True).partition(b":")[2]
            except (binascii.Error, ValueError):
                secret = b""
        elif kind.lower() != b"bearer":
            secret = b""
        digest, found = hashlib.sha256(secret.strip()).digest(), 0
        for place, key in enumerate(self._keys, start=1):  # all of them, so that time tells nothing
            if hmac.compare_digest(digest, key):
                found = place
        if not found:
            raise ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", "invalid_api_key")
        return found

    def _tell(self, scope: Scope, status: int, seconds: float, facts: dict[str, Any]) -> None:
        """Count a request and log it."""
        path = scope["path"]
        route = path if path in self._routes else "/v1/models/…" if path.startswith("/v1/models/") else "other"
        self._metrics.count("mmedge_requests_total", route=route, status=str(status))
        if facts.get("model"):
            self._metrics.observe("mmedge_request_seconds", seconds, model=facts["model"])
        if self._log is None or (route in HEALTH and status == 200):
            return
        line = {
            "client": _client_of(scope),
            "method": scope["method"][:8],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        self._write(_now() | line | facts)

    def tell_refused(self, client: str, status: int) -> None:
        """Count and log what is not a request: it came to no route."""
        self._metrics.count("mmedge_requests_total", route="other", status=str(status))
        self._write(_now() | {"client": client, "route": "other", "status": status})

    def tell_bug(self, error: BaseException | None) -> None:
        """Log what should not have happened: its kind, and the line of mmedge where it did."""
        frames = traceback.extract_tb(error.__traceback__) if error is not None else []
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(_OURS)]
        where = [f"{Path(frame.filename).relative_to(_OURS)}:{frame.lineno}" for frame in own]
        where = where or [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames]
        self._write({"error": type(error).__name__, "where": where[-1] if where else ""})

    def _write(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError):  # nobody reads the log any more, or its disk is full: no client shall suffer
                print(json.dumps(line, ensure_ascii=True), file=self._log, flush=True)


def _now() -> dict[str, Any]:
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def too_large_head() -> ApiError:
    """Return the error of a request whose line and headers are too large."""
    return ApiError(431, f"the request's line and headers are larger than {HEADER_BYTES:,} bytes", "headers_too_large")


def ending() -> ApiError:
    """Return the error of a request that was not answered before the server ended."""
    return ApiError(503, "the server ended before there was an answer", "shutting_down", retry_after=1)


def _client_of(scope: Scope) -> str:
    """Return a client's address; empty where a proxy says something else instead of one."""
    found: str = (scope.get("client") or ("",))[0].partition("%")[0]
    try:
        return str(ipaddress.ip_address(found))
    except ValueError:
        return ""


def _host_of(scope: Scope) -> str:
    """Return the name that a request is addressed to, without its port."""
    host: str = dict(scope["headers"]).get(b"host", b"").decode("latin-1").strip().lower()
    return host.rpartition(":")[0] if re.search(r":\d*$", host) else host


def _is_of(name: str, hosts: frozenset[str]) -> bool:
    """Whether a name is an address, which no other site's page has, or one of these."""
    if name in hosts:
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
    return True


def failure_of(error: BaseException) -> ApiError:
    """Return what a client is told of an error."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        if error.status_code == 405:
            return ApiError(405, "this address takes another method", "method_not_allowed")
        return ApiError(error.status_code, "there is nothing at this address", "not_found")
    return ApiError(500, "the server failed to answer", "internal_error")


def _response(failure: ApiError) -> JSONResponse:
    closing = {"Connection": "close"} if failure.status in (408, 413, 503) or failure.code == "invalid_http" else {}
    found = JSONResponse(failure.body(), failure.status, failure.headers() | closing)
    if failure.status == 401:  # in headers of their own: browsers, which ask for the key because of Basic, read no lists
        found.headers.append("WWW-Authenticate", 'Basic realm="mmedge"')
        found.headers.append("WWW-Authenticate", "Bearer")
    return found


async def body_of(request: Request, most: int, seconds: float) -> bytes:
    """Return a request's JSON body.

    Args:
        request: The request.
        most: Bytes that it may have.
        seconds: Within which it must be there.

    Raises:
        ApiError: It is too large, too slow, or says that it is something else than JSON.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which no page of another site may send without asking
        raise ApiError(415, "the body must be JSON: Content-Type: application/json", "unsupported_media_type")
    try:
        async with asyncio.timeout(seconds):
            stated = request.headers.get("content-length", "")
            parts, size, large = [], 0, stated.isdecimal() and int(stated[:18]) > most
            if large and "expect" in request.headers:
                raise _too_large(most)  # before anything of it is sent
            if not large:
                async for part in request.stream():
                    size += len(part)
                    parts.append(part)
                    if large := size > most:
                        break
    except TimeoutError:
        raise ApiError(408, f"the request was not complete within {seconds:g} s", "timeout") from None
    if large:
        await _discard(request.receive)
        raise _too_large(most)
    return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most:,} bytes", "body_too_large")


async def _discard(receive: Callable[[], Any]) -> None:
    """Read what a client still sends, for a while."""
    left, more = REST_BYTES, True
    try:
        async with asyncio.timeout(REST_SECONDS):
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass
