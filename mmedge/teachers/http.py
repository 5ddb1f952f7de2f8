"""HTTP/1.1 for hundreds of requests in flight: one connection each, kept open, read by `httptools`.

    async with HttpClient("http://127.0.0.1:8000/v1") as http:
        response = await http.post("/chat/completions", headers, body, timeout=60.0)

Why not one of the usual clients: on two cores, 512 requests in flight against a server that answers after 0.2 s (2,560 a
second at best), the `openai` package reached 130 requests a second with its own transport and 600 with aiohttp's, at a full
core; aiohttp alone 1,990 at 290 µs of processor each; this 2,400 at 98 µs (63 with uvloop). `benchmarks/collector.py` measures
it. Proxies named in the environment (HTTPS_PROXY, NO_PROXY …) are used, TLS certificates are checked, redirects are not
followed (a key is sent to the endpoint that the recipe names, and to no other). Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import urllib.request
from collections import deque
from typing import Any, NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import httptools

from mmedge.errors import MmedgeError

MAX_BODY = 32 << 20  # bytes of a response that are read; a whole answer of 100,000 tokens is far below


class HttpFailure(Exception):
    """A request that brought no whole response.

    Attributes:
        kind: `unreachable` (no connection), `dropped` (the connection ended early), `timeout`, `garbage` (no HTTP).
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class HttpResponse(NamedTuple):
    """A whole response: its status, its headers with names in lower case, its body."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Connection(asyncio.Protocol):
    """One connection that carries one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.heard = False  # whether anything came back for the request that it carries
        self._waiter: asyncio.Future[HttpResponse] | None = None
        self._only_head = False
        self._reusable = True

    def send(self, data: bytes, waiter: asyncio.Future[HttpResponse], only_head: bool = False) -> None:
        assert self.transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter, self._only_head, self.heard = waiter, only_head, False
        self._begin()
        self.transport.write(data)

    def _begin(self) -> None:
        self._status, self._headers = 0, dict[str, str]()
        self._parts: list[bytes] = []
        self._size = 0
        self._has_length = False

    @property
    def usable(self) -> bool:
        """Whether another request can be sent on it."""
        return self._reusable and self.transport is not None and not self.transport.is_closing() and self._waiter is None

    def close(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:  # nobody asked: what is said here belongs to no request
            self.close()
            return
        self.heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail("garbage", f"no HTTP: {str(error)[:80]}")

    def connection_lost(self, error: Exception | None) -> None:
        if self._waiter is not None and error is None and self._status and not self._has_length and not self._only_head:
            self._finish()  # a body without a length ends with the connection
            return
        self._fail("dropped", str(error) if error else "the server closed the connection")

    # what httptools calls

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        self._headers[key] = value.decode("latin-1").strip()
        if key in ("content-length", "transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        if self._only_head:
            self._finish()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY:
            self._fail("garbage", f"the response is larger than {MAX_BODY >> 20} MB")
            return
        self._parts.append(body)

    def on_message_complete(self) -> None:
        if self._status < 200:  # `100 Continue` and the like: the answer follows
            self._begin()
        elif self._waiter is None:
            self._reusable = False  # a second answer to one request
        else:
            self._finish()

    def _finish(self) -> None:
        waiter, self._waiter = self._waiter, None
        self._reusable = self._has_length and self._parser.should_keep_alive()
        if waiter is not None and not waiter.done():
            waiter.set_result(HttpResponse(self._status, self._headers, b"".join(self._parts)))

    def _fail(self, kind: str, detail: str) -> None:
        waiter, self._waiter = self._waiter, None
        self._reusable = False
        self.close()
        if waiter is not None and not waiter.done():
            waiter.set_exception(HttpFailure(kind, detail))


class HttpClient:
    """Connections to one endpoint.

    Args:
        base_url: Where paths are appended; `http` or `https`.
        connect_timeout: Seconds that opening a connection may take.

    Raises:
        MmedgeError: The address is none.
    """

    def __init__(self, base_url: str, connect_timeout: float = 15.0) -> None:
        self._url = parse_url(base_url)
        self._connect_timeout = connect_timeout
        self._idle: deque[_Connection] = deque()
        self._tls = ssl.create_default_context() if self._url.scheme == "https" else None
        self._proxy = _proxy_for(self._url)
        host = self._url.hostname or ""
        shown = f"[{host}]" if ":" in host else host
        self._authority = f"{shown}:{self._port}"
        self._host_header = shown if self._port in (80, 443) else self._authority
        path = self._url.path.rstrip("/")
        through_proxy = self._proxy is not None and self._tls is None
        self._prefix = f"http://{self._authority}{path}" if through_proxy else path
        self._query = f"?{self._url.query}" if self._url.query else ""
        self._fixed = (
            f" HTTP/1.1\r\nHost: {self._host_header}\r\nContent-Type: application/json\r\nAccept: application/json\r\n"
            f"User-Agent: mmedge\r\n{_proxy_credentials(self._proxy) if through_proxy else ''}"
        )

    @property
    def _port(self) -> int:
        return self._url.port or (443 if self._url.scheme == "https" else 80)

    async def __aenter__(self) -> HttpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)

    async def post(self, path: str, headers: str, body: bytes, timeout: float) -> HttpResponse:
        """Send a request and wait for the whole response.

        Args:
            path: What follows the base URL.
            headers: Further header lines, each with its `\\r\\n`.
            body: JSON.
            timeout: Seconds until the whole response must be there.

        Raises:
            HttpFailure: There was no whole response.
        """
        head = f"POST {self._prefix}{path}{self._query}{self._fixed}{headers}Content-Length: {len(body)}\r\n\r\n"
        data = head.encode("latin-1", "replace") + body
        loop = asyncio.get_running_loop()
        while True:
            connection, fresh = self._reused(), False
            if connection is None:
                connection, fresh = await self._connect(), True
            waiter: asyncio.Future[HttpResponse] = loop.create_future()
            alarm = loop.call_later(timeout, _time_out, waiter, timeout)
            connection.send(data, waiter)
            try:
                response = await waiter
            except HttpFailure as failure:
                connection.close()
                if failure.kind == "dropped" and not fresh and not connection.heard:
                    continue  # the server had closed an idle connection: it never saw this request
                raise
            except asyncio.CancelledError:
                connection.close()
                raise
            finally:
                alarm.cancel()
            if connection.usable:
                self._idle.append(connection)
            else:
                connection.close()
            return response

    def _reused(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        try:
            return await asyncio.wait_for(self._open(), self._connect_timeout)
        except TimeoutError:
            raise HttpFailure("unreachable", f"no connection within {self._connect_timeout:.0f} s") from None
        except ssl.SSLCertVerificationError as error:
            raise HttpFailure("certificate", error.verify_message or str(error)) from None
        except (OSError, UnicodeError) as error:
            raise HttpFailure("unreachable", getattr(error, "strerror", None) or str(error)) from None

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._proxy is None:
            _, connection = await loop.create_connection(_Connection, self._url.hostname or "", self._port, ssl=self._tls)
            return connection
        port = self._proxy.port or 8080
        _, connection = await loop.create_connection(_Connection, self._proxy.hostname or "", port)
        if self._tls is None:
            return connection
        credentials = _proxy_credentials(self._proxy)
        ask = f"CONNECT {self._authority} HTTP/1.1\r\nHost: {self._authority}\r\n{credentials}\r\n"
        waiter: asyncio.Future[HttpResponse] = loop.create_future()
        connection.send(ask.encode("latin-1"), waiter, only_head=True)
        try:
            response = await waiter
        except HttpFailure as failure:
            raise HttpFailure("unreachable", f"the proxy: {failure}") from None
        if response.status != 200 or connection.transport is None:
            connection.close()
            raise HttpFailure("unreachable", f"the proxy says {response.status}")
        inner = _Connection()
        transport: Any = await loop.start_tls(connection.transport, inner, self._tls, server_hostname=self._url.hostname)
        inner.connection_made(transport)
        return inner


def _time_out(waiter: asyncio.Future[HttpResponse], seconds: float) -> None:
    if not waiter.done():
        waiter.set_exception(HttpFailure("timeout", f"no whole response within {seconds:.0f} s"))


def parse_url(url: str) -> SplitResult:
    """Return the parts of an endpoint's address.

    Raises:
        MmedgeError: It is no http(s) address, or it carries a password.
    """
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError:
        parts, port_is_fine = urlsplit(""), False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine or set(url) & set(" \r\n\t"):
        raise MmedgeError(f"teacher.base_url: {url!r:.80} is no http or https address", "such as http://127.0.0.1:8000/v1")
    if parts.username or parts.password:
        raise MmedgeError(
            "teacher.base_url: a password in the address would be written into the run",
            "put the key into the environment variable that teacher.api_key_env names",
        )
    return parts


def _proxy_for(url: SplitResult) -> SplitResult | None:
    if urllib.request.proxy_bypass(url.hostname or ""):
        return None
    address = urllib.request.getproxies().get(url.scheme)
    if not address:
        return None
    proxy = urlsplit(address if "//" in address else f"http://{address}")
    return proxy if proxy.scheme == "http" and proxy.hostname else None


def _proxy_credentials(proxy: SplitResult | None) -> str:
    if proxy is None or not proxy.username:
        return ""
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
