"""Handing a question on to a bigger model behind an OpenAI-compatible endpoint, with what that costs.

Standard library only: the device needs nothing more than the runtime has.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from mmedge.errors import MmedgeError
from mmedge.tasks.base import Example, Unparsed
from mmedge.tasks.judges import AnyJudge
from mmedge.tasks.prompts import render_question
from mmedge.tasks.reading import read_task_text

_LARGEST_REPLY = 4_000_000  # bytes
_AGAIN = (408, 409, 429, 500, 502, 503, 504)
_FORMS = {
    "expression": "an arithmetic expression over the numbers of the question, such as ( 12 - 5 ) * 2",
    "choice": "one of the choices, word for word",
    "exact": "a short phrase",
}


@dataclass(frozen=True)
class Escalated:
    """What a bigger model answered.

    Attributes:
        text: The answer in the task's form.
        rationale: Its reasoning.
        prompt_tokens: Tokens that it read.
        completion_tokens: Tokens that it wrote.
        cost: In the currency of the endpoint's prices; 0 where none are given.
        seconds: From the question to the answer, attempts that failed included.
    """

    text: str
    rationale: str
    prompt_tokens: int
    completion_tokens: int
    cost: float
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost": round(self.cost, 8),
            "seconds": round(self.seconds, 3),
        }


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: it would carry the key to another host."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


class BiggerModel(Protocol):
    """Something that answers what the student had better not; called from several threads at once."""

    @property
    def name(self) -> str:
        """What answers call it."""
        ...

    def ask(self, example: Example, judge: AnyJudge) -> Escalated:
        """Answer one question.

        Raises:
            MmedgeError: It could not be reached, or its text holds no answer.
        """
        ...


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

    def ask(self, example: Example, judge: AnyJudge) -> Escalated:
        started = time.monotonic()
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question_for(example, judge)}],
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
        found = read_task_text(text if isinstance(text, str) else "", example, judge)
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
            try:
                deadline = time.monotonic() + self.timeout
                with _OPENER.open(request, timeout=self.timeout) as response:
                    reply = json.loads(_read(response, deadline))
                if isinstance(reply, dict):
                    return reply
                problem = "the reply is no JSON object"
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}"
                if error.code not in _AGAIN:
                    break
            except urllib.error.URLError as error:
                problem = f"cannot be reached ({error.reason})"
            except (TimeoutError, http.client.HTTPException, ConnectionError) as error:
                problem = f"the connection broke ({type(error).__name__})"
            except (ValueError, RecursionError):
                problem = "the reply is no JSON"
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


def _read(response: http.client.HTTPResponse, deadline: float) -> bytes:
    """Read a reply, at most `_LARGEST_REPLY` bytes of it.

    Raises:
        TimeoutError: It is not whole at the deadline (of `time.monotonic`), however steadily it drips.
    """
    found = bytearray()
    while len(found) < _LARGEST_REPLY:
        piece = response.read1(min(65536, _LARGEST_REPLY - len(found)))
        if not piece:
            break
        found += piece
        if time.monotonic() > deadline:
            raise TimeoutError
    return bytes(found)


def question_for(example: Example, judge: AnyJudge) -> str:
    """Return what a bigger model is asked."""
    labels = getattr(judge, "labels", ())
    form = f"one of: {', '.join(labels)}" if labels else _FORMS[judge.name]
    return (
        f"{render_question(example)}\n\nReason in one or two sentences. Then end with a line of its own: "
        f"'The answer is: ' and {form}."
    )


def escalated_all(bigger: BiggerModel, examples: list[Example], judge: AnyJudge, at_once: int = 8) -> list[Escalated | str]:
    """Ask a bigger model several questions at once; for those that fail, the reason.

    Args:
        bigger: The model.
        examples: The questions.
        judge: Of the task.
        at_once: How many are in flight.
    """
    from concurrent.futures import ThreadPoolExecutor

    def asked(example: Example) -> Escalated | str:
        try:
            return bigger.ask(example, judge)
        except MmedgeError as error:
            return str(error).splitlines()[0]

    ask: Callable[[Example], Escalated | str] = asked
    if len(examples) <= 1:
        return [ask(example) for example in examples]
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, examples))
