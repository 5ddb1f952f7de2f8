"""The teacher behind an OpenAI-compatible chat endpoint, as its many implementations really behave.

    POST {base_url}/chat/completions  {"model": …, "messages": […], "n": 5, "seed": 17, …}

An answer counts when it is there in full: a JSON document with texts, or an event stream that ends as it should. Servers that
ignore `n` give fewer texts than asked; that refuse a parameter (`seed`, `n`, `max_tokens`) are asked without it, or by its newer
name; that stream although they were told not to are read as streams. What an endpoint says when it refuses is repeated in errors,
without the key.
"""

from __future__ import annotations

import email.utils
import json
import os
import re
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from mmedge.errors import MmedgeError
from mmedge.teachers.asking import AskingFailed, Call, Reply, Text
from mmedge.teachers.http import HttpClient, HttpFailure, HttpResponse, parse_url
from mmedge.teachers.prompting import Message

_OPTIONAL = ("seed", "n", "top_p", "stop", "temperature")
_MASKED = re.compile(r"\S*(?:\*{2,}|\.{3,}|…)\S{2,}")
_NO_MODEL = re.compile(
    r"model_not_found|(?:model|deployment)\b.{0,80}\b(?:not exist|not found|unknown|not supported|not available)"
)
_LONGEST_WAIT = 600.0  # seconds; an endpoint that asks for more is asked again after that


@dataclass
class ChatEndpoint:
    """A `Writer` that asks an endpoint.

    Attributes:
        base_url: The address up to and without `/chat/completions`.
        model: What it calls the model.
        api_key_env: The environment variable with the key, or None where none is sent.
        temperature: For sampling.
        top_p: For sampling.
        stop: Where texts end.
        extra: Further fields of every request.
        concurrency: The most calls at a time.
        timeout: Seconds until an answer must be there.
    """

    base_url: str
    model: str
    api_key_env: str | None
    temperature: float = 0.7
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    concurrency: int = 64
    timeout: float = 300.0

    def __post_init__(self) -> None:
        parse_url(self.base_url)
        self._key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        self._http = HttpClient(self.base_url)
        self._dropped: set[str] = set()  # parameters that the endpoint does not take
        self._max_tokens_name = "max_tokens"
        self._fields: dict[tuple[int, int], str] = {}  # by count and longest text, until what the endpoint takes changes
        self._most_per_character = 0.0

    @property
    def name(self) -> str:
        return self.model

    @property
    def parallel(self) -> tuple[int, int]:
        return min(self.concurrency, max(32, self.concurrency // 4)), self.concurrency

    async def __aenter__(self) -> ChatEndpoint:
        if self.api_key_env and not self._key:
            raise MmedgeError(
                f"the environment variable {self.api_key_env} is not set: it must hold the key for {self.base_url}",
                f"export {self.api_key_env}=…, or set teacher.api_key_env to null where no key is needed",
            )
        if any(not " " < character < "\x7f" for character in self._key):
            raise MmedgeError(f"the key in {self.api_key_env} has characters that no key has", "set it again, without line breaks")
        self._headers = f"Authorization: Bearer {self._key}\r\n" if self._key else ""
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.__aexit__()

    def tokens(self, messages: tuple[Message, ...]) -> int:
        """Return how many tokens a prompt has at most: its bytes, or by the largest share seen in this run, and a tenth more."""
        if self._most_per_character:
            return int(_characters(messages) * self._most_per_character * 1.1) + 8
        return sum(len(content.encode("utf-8", "replace")) + 8 for _, content in messages)

    def _body(self, call: Call) -> bytes:
        fields = self._fields.get((call.wanted, call.max_tokens))
        if fields is None:
            fields = self._fields[call.wanted, call.max_tokens] = json.dumps(self._wanted(call))[:-1]
        seed = "" if "seed" in self._dropped or "seed" in self.extra else f', "seed": {call.seed}'
        beginning = _json_of_beginning(call.messages[:-1])
        return f'{fields}{seed}, "messages": [{beginning}{_json_of(call.messages[-1])}]}}'.encode()

    def _wanted(self, call: Call) -> dict[str, Any]:
        """Return the fields of a request that are the same for many of them."""
        wanted: dict[str, Any] = {
            "model": self.model,
            "temperature": self.temperature,
            self._max_tokens_name: call.max_tokens,
            "stream": False,
        }
        if call.wanted > 1:
            wanted["n"] = call.wanted
        if self.top_p < 1:
            wanted["top_p"] = self.top_p
        if self.stop:
            wanted["stop"] = list(self.stop)
        for name in self._dropped:
            wanted.pop(name, None)
        wanted.update(self.extra)
        return wanted

    async def write(self, call: Call) -> Reply:
        while True:
            try:
                response = await self._http.post("/chat/completions", self._headers, self._body(call), self.timeout)
            except HttpFailure as failure:
                if failure.kind == "certificate":
                    raise MmedgeError(
                        f"{self.base_url}: its certificate is not trusted: {failure}", "check the address, or SSL_CERT_FILE"
                    ) from None
                raise AskingFailed(failure.kind, self._clean(str(failure)), overloaded=failure.kind == "timeout") from None
            if response.status == 200:
                try:
                    return self._read(call, response)
                except AskingFailed as failed:
                    raise AskingFailed(failed.status, self._clean(failed.detail)) from None
            if response.status in (400, 422) and self._adapt(response):
                self._fields.clear()
                continue
            raise self._failure(response)

    def _adapt(self, response: HttpResponse) -> bool:
        """Leave out, or rename, the parameter that the endpoint does not take; return whether there was one."""
        text = response.body[:4000].decode("utf-8", "replace").lower()
        if "max_completion_tokens" in text and self._max_tokens_name == "max_tokens":
            self._max_tokens_name = "max_completion_tokens"
            return True
        parameter = _field(response.body, "param")
        for name in _OPTIONAL:
            named = parameter == name or f"'{name}'" in text or f'"{name}"' in text or f"`{name}`" in text or f"{name} must" in text
            if named and name not in self._dropped and name != "temperature":
                self._dropped.add(name)
                return True
        return False

    def _failure(self, response: HttpResponse) -> AskingFailed | MmedgeError:
        status, said = response.status, self._said(response)
        if status in (401, 403):
            source = (
                f"the key in {self.api_key_env}" if self.api_key_env else "a request without a key (teacher.api_key_env is null)"
            )
            return MmedgeError(f"{self.base_url} refuses {source}: {said}", "set the right key and run the same command again")
        if status in (404, 405, 410) or (
            status in (400, 422) and _NO_MODEL.search(f"{_field(response.body, 'code')} {said}".lower())
        ):
            return MmedgeError(
                f"{self.base_url} does not know the model {self.model!r}, or has no /chat/completions: {said}",
                "check teacher.model and teacher.base_url (most end in /v1)",
            )
        if 300 <= status < 400:
            where = response.headers.get("location", "elsewhere")[:100]
            return MmedgeError(
                f"{self.base_url} points to {self._clean(where)}; mmedge does not follow", "set teacher.base_url to it"
            )
        wait = _retry_after(response.headers)
        if status == 429 and "quota" in said.lower():
            return MmedgeError(f"{self.base_url}: {said}", "the account has no credit left; run the same command again when it has")
        if status in (429, 503, 529):
            return AskingFailed("rate limited" if status == 429 else f"server error {status}", said, wait, overloaded=True)
        if status in (402,):
            return MmedgeError(f"{self.base_url}: {said}", "the account must be paid; run the same command again when it is")
        if status >= 500 or status in (408, 409, 425):
            return AskingFailed(f"server error {status}", said, wait)
        if status in (400, 413, 422):
            return AskingFailed(f"rejected {status}", said, rejected=True)
        return AskingFailed(f"status {status}", said, wait)

    def _said(self, response: HttpResponse) -> str:
        message = _field(response.body, "message") or response.body[:200].decode("utf-8", "replace")
        return self._clean(" ".join(message.split()))[:200] or f"status {response.status}"

    def _clean(self, text: str) -> str:
        """Return text without the key, and without signs that could write over a terminal."""
        hidden = text.replace(self._key, "[key]") if self._key else text
        hidden = _MASKED.sub("[key]", hidden)  # some repeat the key's ends
        return "".join(character if character.isprintable() else " " for character in hidden)

    # ------------------------------------------------------------------------------------------- answers

    def _read(self, call: Call, response: HttpResponse) -> Reply:
        body = response.body
        kind = response.headers.get("content-type", "")
        if "event-stream" in kind or body.lstrip()[:5] == b"data:":
            document = _document_of_stream(body)
        else:
            try:
                document = json.loads(body.decode("utf-8"))
            except (ValueError, RecursionError):
                raise AskingFailed("garbage", "the answer is no JSON") from None
        texts = _texts(document)
        usage = document.get("usage") if isinstance(document, dict) else None
        prompt, completion = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        characters = _characters(call.messages)
        if prompt is None or completion is None:
            written = sum(len(text.text) for text in texts)
            return Reply(texts, prompt or -(-characters // 4), completion or -(-written // 4), True)
        if characters:
            self._most_per_character = max(self._most_per_character, prompt / characters)
        return Reply(texts, prompt, completion, False)


def _json_of(message: Message) -> str:
    return json.dumps({"role": message[0], "content": message[1]})


@lru_cache(maxsize=256)
def _json_of_beginning(messages: tuple[Message, ...]) -> str:
    """Return the messages that are the same in thousands of requests as JSON, each with its comma."""
    return "".join(f"{_json_of(message)}, " for message in messages)


@lru_cache(maxsize=256)
def _characters_of_beginning(messages: tuple[Message, ...]) -> int:
    return sum(len(content) for _, content in messages)


def _characters(messages: tuple[Message, ...]) -> int:
    return _characters_of_beginning(messages[:-1]) + len(messages[-1][1])


def _texts(document: Any) -> tuple[Text, ...]:
    """Return the texts of an answer.

    Raises:
        AskingFailed: It is none, or not whole.
    """
    if said := _error_message(document):
        raise AskingFailed("server error", said)  # with status 200, as some do
    choices = document.get("choices") if isinstance(document, dict) else None
    if not isinstance(choices, list) or not choices:
        raise AskingFailed("garbage", "the answer has no choices")
    found: list[Text] = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if not isinstance(message, dict):
            raise AskingFailed("garbage", "a choice has no message")
        content, refusal, finish = message.get("content"), message.get("refusal"), choice.get("finish_reason")
        if isinstance(content, list):  # parts, as some servers give them
            parts = [part.get("text") for part in content if isinstance(part, dict)]
            content = "".join(part for part in parts if isinstance(part, str))
        if not isinstance(content, (str, type(None))) or not isinstance(finish, (str, type(None))):
            raise AskingFailed("garbage", "a choice has no text")
        if isinstance(refusal, str) and refusal and not content:
            found.append(Text(refusal, "refusal"))
        else:
            found.append(Text(content or "", _finish(finish)))
    return tuple(found)


def _finish(reason: str | None) -> str:
    if reason in (None, "", "stop", "eos", "eos_token", "stop_sequence", "end_turn"):
        return "stop"
    return "length" if reason in ("length", "max_tokens") else str(reason)[:40]


def _document_of_stream(body: bytes) -> dict[str, Any]:
    """Put an event stream together into the document that was asked for.

    Raises:
        AskingFailed: It does not end as a stream ends.
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
            raise AskingFailed("garbage", "an event of the stream is no JSON") from None
        if said := _error_message(event):
            raise AskingFailed("server error", said)
        if not isinstance(event, dict) or not isinstance(event.get("choices"), list):
            raise AskingFailed("garbage", "an event of the stream has no choices")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            delta = choice.get("delta") if isinstance(choice, dict) else None
            index = choice.get("index", 0) if isinstance(choice, dict) else None
            if not isinstance(index, int):
                raise AskingFailed("garbage", "an event of the stream has no index")
            contents.setdefault(index, [])
            piece = delta.get("content") if isinstance(delta, dict) else None
            if isinstance(piece, str):
                contents[index].append(piece)
            if choice.get("finish_reason"):
                finishes[index] = str(choice["finish_reason"])
    if not contents or not (ended or len(finishes) == len(contents)):
        raise AskingFailed("garbage", "the stream ended early")
    choices = [
        {"message": {"content": "".join(pieces)}, "finish_reason": finishes.get(index)}
        for index, pieces in sorted(contents.items())
    ]
    return {"choices": choices, "usage": usage}


def _error_message(document: Any) -> str:
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return " ".join(error.split())[:200] if isinstance(error, str) else ""


def _field(body: bytes, name: str) -> str:
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


def _retry_after(headers: dict[str, str]) -> float | None:
    """Return how many seconds an endpoint asks to wait, given as seconds or as a date."""
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
