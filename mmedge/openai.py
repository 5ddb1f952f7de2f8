"""The chat protocol of OpenAI-compatible endpoints as implementations really behave: address, key, request, reply, prices.

    POST {base_url}/chat/completions  {"model": …, "messages": […], "n": 5, "seed": 17, …}

A reply counts if it is complete: a JSON document with texts, or an event stream that ends as it should. Servers that
ignore `n` return fewer texts than asked; those that refuse a parameter (`seed`, `n`, `max_tokens`) are asked without it or by its
newer name; those that stream although told not to are read as streams. What an endpoint says when it refuses is repeated in errors,
without the key. Sends nothing: collector (`teachers/endpoint.py`) and device (`runtime/endpoint.py`) each bring a transport.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mmedge.errors import MmedgeError

LARGEST_REPLY = 32 << 20  # bytes; a reply of 100,000 tokens is far below
_LONGEST_WAIT = 600.0  # seconds; an endpoint that asks for more is asked again after that
_OPTIONAL = ("seed", "n", "top_p", "stop")
_SECRET_PARAMETER = re.compile(r"(?:^|&)[^=&]*(?:key|token|secret|password|sig)[^=&]*=", re.IGNORECASE)
_WORD = re.compile(r"\S+")
_MASKED = re.compile(r"(?:\*{2,}|\.{3,}|…)\S{2,}")  # within a word
_NO_MODEL = re.compile(
    r"model_not_found|(?:model|deployment)\b.{0,80}\b(?:not exist|not found|unknown|not supported|not available)"
)

Message = tuple[str, str]  # role, content


class Completion(NamedTuple):
    """One text and how it ended: `stop`, `length`, `content_filter`, `refusal`, or whatever else the endpoint says."""

    text: str
    finish: str


class ChatReply(NamedTuple):
    """The texts of a reply (at least one) and the tokens they took; `estimated` if the endpoint did not count them."""

    completions: tuple[Completion, ...]
    prompt_tokens: int
    completion_tokens: int
    estimated: bool


class HttpReply(NamedTuple):
    """A whole HTTP response: its status, its headers with names in lower case, its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class ChatFailure(Exception):
    """A request that returned no text; another attempt may.

    Attributes:
        status: What happened, in a few words that are counted: `rate limited`, `unreachable`, `timeout`, `dropped`, `garbage`, …
        detail: Details.
        retry_after: Seconds that the endpoint asks to wait, or None.
        overloaded: Whether fewer requests at a time may help.
        rejected: Whether this request would always fail.
    """

    def __init__(
        self, status: str, detail: str, retry_after: float | None = None, *, overloaded: bool = False, rejected: bool = False
    ) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
        self.retry_after = retry_after
        self.overloaded = overloaded
        self.rejected = rejected


@dataclass(frozen=True)
class Prices:
    """What a million tokens cost, in any one currency.

    Attributes:
        input: Of tokens that the model reads.
        output: Of tokens that it writes.
    """

    input: float = 0.0
    output: float = 0.0

    @property
    def known(self) -> bool:
        return self.input > 0 or self.output > 0

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what a request costs."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


NO_PRICES = Prices()


def base_url_problem(url: str) -> str:
    """Return what is wrong with the address of an endpoint, or an empty string; a secret in it is not repeated."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.path.isascii()
        valid = valid and url.isprintable() and " " not in url
    except ValueError:
        return "invalid base URL"
    if parts.username or parts.password or _SECRET_PARAMETER.search(parts.query):
        return "the base URL carries a password or key, which would be stored and shown"
    return "" if valid else f"invalid base URL {url!r:.80}"


def proxy_for(url: str) -> str | None:
    """Return the proxy that the environment names for an address (`HTTPS_PROXY`, `NO_PROXY`, …), or None.

    Raises:
        MmedgeError: It is not an HTTP proxy.
    """
    import urllib.request  # costs milliseconds, and most processes send nothing

    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    address = urllib.request.getproxies().get(parts.scheme)
    if not address:
        return None
    address = address if "//" in address else f"http://{address}"
    proxy = urlsplit(address)
    if proxy.scheme != "http" or not proxy.hostname:
        raise MmedgeError(f"unsupported proxy in {parts.scheme}_proxy: {proxy.scheme}://…", "only http:// proxies are supported")
    return address


class ChatProtocol:
    """How one endpoint is asked and its replies are read. Learns which parameters the endpoint does not accept.

    The key is read from the environment whenever it is needed, and neither stored nor shown.

    Args:
        base_url: The address, up to and without `/chat/completions`.
        model: What the endpoint calls the model.
        api_key_env: The environment variable that holds the key, or None to send none.
        temperature: Sampling temperature; 0 is greedy.
        top_p: Nucleus sampling: the share of probability to sample from.
        stop: Strings that end a text.
        extra: Further fields of every request.

    Raises:
        MmedgeError: The address is invalid or carries a secret, or the key is missing or malformed.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        *,
        temperature: float = 0.7,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if problem := base_url_problem(base_url):
            raise MmedgeError(problem, "write it as http://HOST:PORT/v1; a key belongs in an environment variable")
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self._temperature, self._top_p, self._stop, self._extra = temperature, top_p, list(stop), dict(extra or {})
        self._refused: set[str] = set()  # parameters that the endpoint does not accept
        self._max_tokens_name = "max_tokens"
        key = self._key
        if api_key_env and not key:
            raise MmedgeError(
                f"the environment variable {api_key_env} is not set; it must hold the key for {base_url}",
                f"export {api_key_env}=…; if the endpoint needs no key, api_key_env: null in the recipe",
            )
        if any(not " " < character < "\x7f" for character in key):
            raise MmedgeError(
                f"the key in {api_key_env} contains characters that are not allowed in a key", "set it again, without line breaks"
            )

    @property
    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""

    @property
    def url(self) -> str:
        """Where requests are sent."""
        path, mark, query = self.base_url.partition("?")
        return f"{path.rstrip('/')}/chat/completions{mark}{query}"

    def headers(self) -> dict[str, str]:
        """Return the headers of a request."""
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        headers["User-Agent"] = "mmedge"
        if key := self._key:
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def body(self, messages: Sequence[Message], max_tokens: int, *, n: int = 1, seed: int | None = None) -> bytes:
        """Return the body of a request.

        Args:
            messages: The chat.
            max_tokens: The longest text, in tokens.
            n: How many texts.
            seed: For sampling, or None to send none.
        """
        fields: dict[str, Any] = {
            "model": self.model,
            "temperature": self._temperature,
            self._max_tokens_name: max_tokens,
            "stream": False,
        }
        optional = {
            "n": n if n > 1 else None,
            "seed": seed,
            "top_p": self._top_p if self._top_p < 1 else None,
            "stop": self._stop or None,
        }
        fields |= {name: value for name, value in optional.items() if value is not None and name not in self._refused}
        fields |= self._extra
        fields["messages"] = [{"role": role, "content": content} for role, content in messages]
        return json.dumps(fields).encode()

    def read(self, reply: HttpReply, messages: Sequence[Message]) -> ChatReply | None:
        """Return what an endpoint answered, or None if the same request is to be sent again, written as the endpoint wants it.

        Args:
            reply: What came back.
            messages: What had been sent; where the endpoint counts no tokens, they are estimated at four characters each.

        Raises:
            ChatFailure: It contains no complete text; another attempt may.
            MmedgeError: No attempt will succeed: the key is wrong, or the model unknown.
        """
        if reply.status == 200:
            try:
                return _chat_reply(reply, sum(len(content) for _, content in messages))
            except ChatFailure as failed:
                raise ChatFailure(failed.status, self.clean(failed.detail)) from None
        if reply.status in (400, 422) and self._adapt(reply.body):
            return None
        raise self._failure(reply)

    def untrusted_certificate(self, detail: str) -> MmedgeError:
        """Return the error for a certificate that is not trusted."""
        return MmedgeError(f"{self.base_url}: its certificate is not trusted: {detail}", "check the address, or SSL_CERT_FILE")

    def clean(self, text: str) -> str:
        """Return text from an endpoint without the key, and without characters that could write over a terminal."""
        key = self._key
        hidden = text.replace(key, "[key]") if key else text
        hidden = _WORD.sub(lambda word: "[key]" if _MASKED.search(word[0]) else word[0], hidden)  # some repeat the key's ends
        return "".join(character if character.isprintable() else " " for character in hidden)

    # ------------------------------------------------------------------------------------------- refusals

    def _adapt(self, body: bytes) -> bool:
        """Leave out, or rename, the parameter that the endpoint does not accept; return whether there was one."""
        text = body[:4000].decode("utf-8", "replace").lower()
        if "max_completion_tokens" in text and self._max_tokens_name == "max_tokens":
            self._max_tokens_name = "max_completion_tokens"
            return True
        parameter = _error_field(body, "param")
        for name in _OPTIONAL:
            named = parameter == name or any(quoted in text for quoted in (f"'{name}'", f'"{name}"', f"`{name}`", f"{name} must"))
            if named and name not in self._refused:
                self._refused.add(name)
                return True
        return False

    def _failure(self, reply: HttpReply) -> ChatFailure | MmedgeError:
        status, said, again = reply.status, self._said(reply), "run the same command again"
        if status in (401, 403):
            source = f"the key in {self.api_key_env}" if self.api_key_env else "requests without a key"
            return MmedgeError(f"{self.base_url} refuses {source} (status {status}): {said}", f"set the right key and {again}")
        unknown_model = status in (400, 422) and _NO_MODEL.search(f"{_error_field(reply.body, 'code')} {said}".lower())
        if status in (404, 405, 410) or unknown_model:
            return MmedgeError(
                f"{self.base_url} does not know the model {self.model!r}, or has no /chat/completions: {said}",
                "check the model's name and the base URL (most end in /v1)",
            )
        if 300 <= status < 400:
            where = self.clean(reply.headers.get("location", "elsewhere")[:100])
            return MmedgeError(
                f"{self.base_url} redirects to {where} (status {status}); mmedge follows no redirects: they would carry the key",
                "use that address as the base URL",
            )
        if status == 402 or (status == 429 and "quota" in said.lower()):
            return MmedgeError(f"{self.base_url}: {said}", f"the account has no credit left; add some and {again}")
        wait = _retry_after(reply.headers)
        if status in (429, 503, 529):
            return ChatFailure("rate limited" if status == 429 else f"server error {status}", said, wait, overloaded=True)
        if status >= 500 or status in (408, 409, 425):
            return ChatFailure(f"server error {status}", said, wait)
        if status in (400, 413, 422):
            return ChatFailure(f"rejected {status}", said, rejected=True)
        return ChatFailure(f"status {status}", said, wait)

    def _said(self, reply: HttpReply) -> str:
        message = _error_field(reply.body, "message") or reply.body[:200].decode("utf-8", "replace")
        return self.clean(" ".join(message.split()))[:200] or f"status {reply.status}"


# ----------------------------------------------------------------------------------------------------- replies


def _chat_reply(reply: HttpReply, characters: int) -> ChatReply:
    """Return the texts and token counts of a successful response; `characters` is the length of what had been sent."""
    body = reply.body
    if "event-stream" in reply.headers.get("content-type", "") or body.lstrip()[:5] == b"data:":
        document = _document_of_stream(body)
    else:
        try:
            document = json.loads(body.decode("utf-8"))
        except (ValueError, RecursionError):
            raise ChatFailure("garbage", "the reply is not valid JSON") from None
    completions = _completions(document)
    usage = document.get("usage")
    prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    if prompt is None or completion is None:
        written = sum(len(each.text) for each in completions)
        return ChatReply(completions, prompt or -(-characters // 4), completion or -(-written // 4), True)
    return ChatReply(completions, prompt, completion, False)


def _completions(document: Any) -> tuple[Completion, ...]:
    """Return the texts of a reply.

    Raises:
        ChatFailure: There are none, or not the whole of them.
    """
    if said := _error_message(document):
        raise ChatFailure("server error", said)  # with status 200, as some do
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        raise ChatFailure("garbage", "the reply has no choices")
    found: list[Completion] = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise ChatFailure("garbage", "a choice has no message")
        content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        if isinstance(content, list):  # parts, as some servers give them
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(content, (str, type(None))) or not isinstance(finish, (str, type(None))):
            raise ChatFailure("garbage", "a choice has no text")
        if isinstance(refusal, str) and refusal and not content:
            found.append(Completion(_whole(refusal), "refusal"))
        else:
            found.append(Completion(_whole(content or ""), _finish(finish)))
    return tuple(found)


def _whole(text: str) -> str:
    """Return text with halves of characters (lone surrogates) replaced, which JSON may escape but no file can hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _finish(reason: str | None) -> str:
    if reason in (None, "", "stop", "eos", "eos_token", "stop_sequence", "end_turn"):
        return "stop"
    return "length" if reason in ("length", "max_tokens") else str(reason)[:40]


def _document_of_stream(body: bytes) -> dict[str, Any]:
    """Put an event stream together into the document that was asked for.

    Raises:
        ChatFailure: It does not end as a stream ends.
    """
    contents: dict[int, list[str]] = {}
    finishes: dict[int, str | None] = {}
    usage, ended = None, False
    for line in body.decode("utf-8", "replace").splitlines():
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            ended = True
            continue
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise ChatFailure("garbage", "an event of the stream is not valid JSON") from None
        if said := _error_message(event):
            raise ChatFailure("server error", said)
        if not isinstance(event, dict) or not isinstance(event.get("choices"), list):
            raise ChatFailure("garbage", "an event of the stream has no choices")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            index = choice.get("index", 0) if isinstance(choice, dict) else None
            if not isinstance(index, int):
                raise ChatFailure("garbage", "an event of the stream has no index")
            contents.setdefault(index, [])
            part = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(part, str):
                contents[index].append(part)
            if choice.get("finish_reason"):
                finishes[index] = str(choice["finish_reason"])
    if not contents or not (ended or len(finishes) == len(contents)):
        raise ChatFailure("garbage", "the stream ended early")
    choices = [
        {"message": {"content": "".join(parts)}, "finish_reason": finishes.get(index)} for index, parts in sorted(contents.items())
    ]
    return {"choices": choices, "usage": usage}


def _error_message(document: Any) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return " ".join(error.split())[:200] if isinstance(error, str) else ""


def _error_field(body: bytes, name: str) -> str:
    """Return a field of an error as the endpoints give it: `{"error": {"message": …}}`, `{"detail": …}`, `{"message": …}`."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(document, dict):
        return ""
    error = document.get("error", document)
    value = error.get(name) if isinstance(error, dict) else error if name == "message" else None
    if value is None and name == "message":
        value = document.get("detail")
        value = json.dumps(value) if isinstance(value, (list, dict)) else value
    return value if isinstance(value, str) else ""


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9 else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds an endpoint asks to wait, given as seconds, milliseconds or a date."""
    import email.utils

    value = headers.get("retry-after-ms")
    try:
        if value is not None:
            return min(_LONGEST_WAIT, max(0.0, float(value) / 1000))
        value = headers.get("retry-after")
        if value is None:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        return min(_LONGEST_WAIT, max(0.0, seconds)) if seconds == seconds else None
    except (ValueError, TypeError, OverflowError):
        return None
