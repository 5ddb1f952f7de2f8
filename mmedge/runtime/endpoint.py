"""A bigger model behind an OpenAI-compatible endpoint, asked from the device.

    Endpoint("https://api.example.org/v1", "big-model", api_key_env="BIG_KEY").ask(example, form)

Standard library only. A module of its own, since an HTTP client takes time and megabytes to import, and most students never
escalate. `mmedge.openai` writes requests and reads replies; this file is the transport.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from mmedge.errors import MmedgeError
from mmedge.openai import LARGEST_REPLY, NO_PRICES, ChatFailure, ChatProtocol, ChatReply, HttpReply, Message, Prices, proxy_for
from mmedge.runtime.escalation import EscalatedAnswer, question_for
from mmedge.tasks.base import Example, Unparsed
from mmedge.tasks.forms import AnswerForm

ESCALATED = "X-Mmedge-Escalated"  # tells a student that serves there not to escalate the question once more
_CHARACTERS = 32  # of a token, at most: endpoints may ignore the limit, and reading a text takes longer than its length
_LONGEST_WAIT = 8.0  # seconds between attempts: a user waits for the answer


@dataclass
class Endpoint:
    """An OpenAI-compatible endpoint that answers what the student is not sure of.

    Attributes:
        base_url: The address, up to and without `/chat/completions`.
        model: What the endpoint calls the model.
        api_key_env: The environment variable that holds the key; the key itself is never stored or shown.
        timeout: Seconds for one attempt, from the look-up of the name to the last byte of the reply.
        attempts: How often it is tried.
        max_tokens: The longest reply.
        prices: Prices of tokens.

    Raises:
        MmedgeError: The address is invalid or carries a secret, or the key is missing or malformed.
    """

    base_url: str
    model: str
    api_key_env: str | None = None
    timeout: float = 60.0
    attempts: int = 3
    max_tokens: int = 512
    prices: Prices = NO_PRICES

    def __post_init__(self) -> None:
        self._chat = ChatProtocol(self.base_url, self.model, self.api_key_env, temperature=0.0)
        self._proxy = proxy_for(self.base_url)

    @property
    def name(self) -> str:
        return self.model

    def ask(self, example: Example, form: AnswerForm) -> EscalatedAnswer:
        """Answer one question.

        Raises:
            MmedgeError: It could not be reached, or its text holds no answer.
        """
        started = time.monotonic()
        reply = self._reply((("user", question_for(example, form)),))
        if reply.completions[0].finish == "refusal":
            raise MmedgeError(f"{self.name} refuses to answer")
        if len(reply.completions[0].text) > _CHARACTERS * self.max_tokens:
            raise MmedgeError(f"{self.name} replied with far more than {self.max_tokens} tokens")
        found = form.read(reply.completions[0].text, example)
        if isinstance(found, Unparsed):
            raise MmedgeError(f"{self.name} replied, but its reply could not be read: {found.value}")
        cost = self.prices.cost(reply.prompt_tokens, reply.completion_tokens)
        seconds = time.monotonic() - started
        return EscalatedAnswer(found.pseudo_label, found.rationale, reply.prompt_tokens, reply.completion_tokens, cost, seconds)

    def _reply(self, messages: tuple[Message, ...]) -> ChatReply:
        attempt = 1
        while True:
            try:
                response = _post(self._chat, self._proxy, self._chat.body(messages, self.max_tokens), self.timeout)
                if (reply := self._chat.read(response, messages)) is not None:
                    return reply
            except ChatFailure as failed:
                if failed.rejected or attempt >= self.attempts:
                    raise MmedgeError(f"{self.base_url}: {failed}", "check that the endpoint is up, and its address") from None
                wait = 2.0**attempt / 2 if failed.retry_after is None else failed.retry_after
                time.sleep(min(_LONGEST_WAIT, wait))
                attempt += 1


def _post(chat: ChatProtocol, proxy: str | None, body: bytes, seconds: float) -> HttpReply:
    """Send a request and return the whole response.

    The exchange runs in a thread of its own, which is abandoned when time is up: a socket's timeout starts again with every
    byte, and name look-up has none.

    Raises:
        ChatFailure: There was no complete response within `seconds`.
        MmedgeError: The certificate is not trusted.
    """
    done: Future[HttpReply] = Future()
    exchange = _Exchange(chat, None if proxy is None else urlsplit(proxy), body, seconds)

    def run() -> None:
        try:
            done.set_result(exchange.run())
        except Exception as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return done.result(seconds)
    except ssl.SSLCertVerificationError as error:
        raise chat.untrusted_certificate(error.verify_message or str(error)) from None
    except TimeoutError:
        exchange.cancel()
        raise ChatFailure("timeout", f"no complete reply within {seconds:g} s") from None
    except (OSError, UnicodeError, http.client.IncompleteRead) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ChatFailure("dropped" if exchange.connected else "unreachable", reason) from None
    except http.client.HTTPException as error:
        raise ChatFailure("garbage", f"not an HTTP response ({type(error).__name__})") from None


class _Exchange:
    """One request on one connection, which another thread can cancel."""

    def __init__(self, chat: ChatProtocol, proxy: SplitResult | None, body: bytes, seconds: float) -> None:
        self._chat, self._proxy, self._body, self._seconds = chat, proxy, body, seconds
        self._sockets: list[socket.socket] = []
        self._cancelled = False
        self.connected = False  # whether the endpoint may have seen the request

    def cancel(self) -> None:
        """Stop the thread from waiting and sending."""
        self._cancelled = True
        for each in self._sockets:
            with contextlib.suppress(OSError, ValueError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)  # of the socket itself, also beneath TLS

    def run(self) -> HttpReply:
        """Send the request and read the response."""
        url = urlsplit(self._chat.url)
        path = f"{url.path}?{url.query}" if url.query else url.path
        headers = self._chat.headers() | {ESCALATED: "1"}
        if self._proxy is not None and url.scheme == "http":
            path = f"http://{url.netloc}{path}"
            headers |= _proxy_credentials(self._proxy)
        connection = http.client.HTTPConnection(url.hostname or "", _port(url))
        connection.sock = self._connect(url)
        with contextlib.closing(connection):
            if self._cancelled:  # while the name was looked up
                raise TimeoutError
            self.connected = True
            connection.request("POST", path, self._body, headers | {"Host": url.netloc})
            with connection.getresponse() as response:
                body = response.read(LARGEST_REPLY + 1)
                if len(body) > LARGEST_REPLY:
                    raise ChatFailure("garbage", f"the reply is larger than {LARGEST_REPLY >> 20} MB")
                return HttpReply(response.status, {name.lower(): value for name, value in response.headers.items()}, body)

    def _connect(self, url: SplitResult) -> socket.socket:
        """Return a connection to the endpoint, through the proxy and encrypted if need be."""
        nearest = self._proxy or url
        found = socket.create_connection((nearest.hostname or "", _port(nearest)), self._seconds)
        self._sockets.append(found)
        if url.scheme == "http":
            return found
        if self._proxy is not None:
            _open_tunnel(found, f"{url.hostname}:{_port(url)}", _proxy_credentials(self._proxy))
        context = ssl.create_default_context()
        secure = context.wrap_socket(found, server_hostname=url.hostname, do_handshake_on_connect=False)
        self._sockets.append(secure)
        secure.do_handshake()
        return secure


def _port(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def _open_tunnel(connected: socket.socket, authority: str, headers: dict[str, str]) -> None:
    """Ask a proxy for a tunnel."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connected.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{lines}\r\n".encode("latin-1"))
    said = b""
    while not said.endswith(b"\r\n\r\n"):  # byte by byte: what follows is not from the proxy
        byte = connected.recv(1)
        if not byte or len(said) > 65536:
            raise ConnectionError("the proxy closed the connection")
        said += byte
    if said.split(maxsplit=2)[1:2] != [b"200"]:
        raise ConnectionError(f"the proxy says {said.splitlines()[0][:60].decode('latin-1')}")


def _proxy_credentials(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
