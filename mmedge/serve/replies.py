"""The bodies of responses: OpenAI's chat and completions with mmedge's own field, and `/v1/answer`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from mmedge.runtime import Answer
from mmedge.serve.failures import ApiError
from mmedge.serve.models import Model
from mmedge.serve.requests import Asked
from mmedge.tasks.encoding import PromptEncoder
from mmedge.tasks.forms.structured.values import to_json

_IN_HEADERS = "!#$&'()*+/:;=?@[]"  # besides letters, digits and _.-~


@dataclass(frozen=True)
class Replied:
    """An answer as a client gets it.

    Attributes:
        answer: The answer.
        text: Its text, up to where a stop text begins; JSON where the task's answers are JSON and this is one.
        stopped: Whether a stop text was written.
        degraded: Whether a bigger model should have answered, and could not.
    """

    answer: Answer
    text: str
    stopped: bool
    degraded: bool

    @property
    def finish(self) -> str:
        """Return why it ends, in OpenAI's words."""
        written = self.answer.written
        if written is None or self.stopped or self.answer.source != "student" or self.answer.withheld:
            return "stop"
        return "stop" if written.ended and not written.cut_short else "length"

    @property
    def outcome(self) -> str:
        """Return what became of it, for metrics: `given`, `withheld` or `degraded`."""
        return "degraded" if self.degraded else "withheld" if self.answer.withheld else "given"

    def own(self) -> dict[str, Any]:
        """Return what mmedge says of the answer."""
        found = self.answer.to_json()
        del found["answer"]
        found |= {"source": self.answer.source, "withheld": self.answer.withheld}
        if self.answer.problem is not None:
            found["problem"] = "the bigger model did not answer"  # why is for the log: it names addresses
        return found | ({"degraded": True} if self.degraded else {})


def replied(model: Model, answer: Answer, stop: Sequence[str]) -> Replied:
    """Return an answer as a client gets it: the student's own where a bigger model could not be asked."""
    found = model.degraded(answer)
    degraded = found is not answer
    form = model.student.bundle.form
    whole = found.value if form.respells and found.value is not None else found.text
    text, stopped = cut(whole, stop)
    if stopped:
        found = replace(found, value=form.value_of(text))
    return Replied(found, text, stopped, degraded)


def markers(replies: Sequence[Replied]) -> dict[str, Any]:
    """Return what is said of all answers to a request together: who gave them, and whether one is withheld or degraded."""
    outcomes = {reply.outcome for reply in replies}
    return {"source": ", ".join(_sources(replies))} | {name: True for name in ("withheld", "degraded") if name in outcomes}


def headers_of(replies: Sequence[Replied]) -> dict[str, str]:
    """Return the same as headers; what these cannot hold of a model's name is percent-encoded."""
    source = ", ".join(quote(name, safe=_IN_HEADERS) for name in _sources(replies))
    return {"X-Mmedge-Source": source} | {f"X-Mmedge-{name.capitalize()}": "true" for name in markers(replies) if name != "source"}


def _sources(replies: Sequence[Replied]) -> list[str]:
    return list(dict.fromkeys(reply.answer.source for reply in replies))


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return a text up to where the first stop text begins, and whether there is one."""
    places = [place for place in (text.find(one) for one in stop) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


def usage(replies: Sequence[Replied], samples: int) -> dict[str, Any]:
    """Return how many tokens the student read and wrote; a question with several samples is read once."""
    written = [reply.answer.written for reply in replies]
    read = sum(one.prompt_tokens for place, one in enumerate(written) if one is not None and place % samples == 0)
    reasoning = sum(one.reasoning_tokens for one in written if one is not None)
    made = sum(len(one.tokens) for one in written if one is not None) + reasoning
    return counted(read, made) | {"completion_tokens_details": {"reasoning_tokens": reasoning}}


def counted(read: int, made: int) -> dict[str, Any]:
    """Return how many tokens were read and written."""
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


@dataclass(frozen=True)
class Token:
    """One token of an answer."""

    text: str
    log_probability: float


def tokens_of(reply: Replied, encoder: PromptEncoder) -> list[Token] | None:
    """Return the tokens of an answer's text with their log-probabilities; None where the student did not write it.

    Raises:
        ApiError: The engine gives no log-probabilities.
    """
    written = reply.answer.written
    if written is None or reply.answer.withheld or reply.answer.source != "student":
        return None
    if written.tokens and not written.log_probabilities:
        raise ApiError(400, "logprobs is not supported: this engine gives none", "unsupported_parameter", "logprobs")
    found: list[Token] = []
    before = ""
    for place, value in enumerate(written.log_probabilities[: len(written.tokens)]):
        text = encoder.text(written.tokens[: place + 1])
        new = text[len(before) :] if text.startswith(before) else ""
        if len(text) > len(reply.text) and reply.stopped:
            break
        found.append(Token(new, min(0.0, value)))
        before = text
    return found


def chat_logprobs(tokens: list[Token] | None) -> dict[str, Any] | None:
    """Return tokens as chats give them."""
    if tokens is None:
        return None
    content = [
        {"token": one.text, "logprob": one.log_probability, "bytes": list(one.text.encode()), "top_logprobs": []} for one in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: list[Token] | None) -> dict[str, Any] | None:
    """Return tokens as completions give them."""
    if tokens is None:
        return None
    starts = [sum(len(one.text) for one in tokens[:place]) for place in range(len(tokens))]
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [one.log_probability for one in tokens],
        "top_logprobs": None,
        "text_offset": starts,
    }


class Shape:
    """The bodies of one response, whole or in parts.

    Args:
        asked: The request.
        chat: Whether it is a chat.
    """

    def __init__(self, asked: Asked, chat: bool) -> None:
        self._asked, self._chat = asked, chat
        self._id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())

    def _document(self, choices: list[dict[str, Any]], part: bool = False) -> dict[str, Any]:
        name = ("chat.completion.chunk" if part else "chat.completion") if self._chat else "text_completion"
        common = {"id": self._id, "object": name, "created": self._created, "model": self._asked.model.name}
        return common | {"system_fingerprint": self._asked.model.fingerprint, "choices": choices}

    def _logprobs(self, reply: Replied) -> dict[str, Any] | None:
        if not self._asked.logprobs:
            return None
        tokens = tokens_of(reply, self._asked.model.student.speaker.encoder)
        return chat_logprobs(tokens) if self._chat else completion_logprobs(tokens)

    def whole(self, replies: Sequence[Replied]) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        choices = []
        for place, reply in enumerate(replies):
            content = {"message": {"role": "assistant", **self._message(reply)}} if self._chat else {"text": reply.text}
            ends = {"logprobs": self._logprobs(reply), "finish_reason": self._finish(reply), "mmedge": reply.own()}
            choices.append({"index": place, **content, **ends})
        return self._document(choices) | {"usage": usage(replies, self._asked.samples)}

    def _message(self, reply: Replied) -> dict[str, Any]:
        refusal = _refusal(reply)
        if (call := self.call(reply)) is not None:
            return {"content": None, "refusal": None, "tool_calls": [call]}
        return {"content": None if refusal else reply.text, "refusal": refusal}

    def call(self, reply: Replied) -> dict[str, Any] | None:
        """Return an answer as a tool call; None where none is asked for, or there is none."""
        if not self._asked.calls or reply.answer.withheld or reply.answer.value is None:
            return None
        said = json.loads(reply.answer.value)
        function = {"name": said["name"], "arguments": to_json(said["arguments"])}
        return {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}

    def _finish(self, reply: Replied) -> str:
        calls = self._asked.calls and not reply.answer.withheld and reply.answer.value is not None
        return "tool_calls" if calls else reply.finish

    def begins(self, row: int) -> dict[str, Any] | None:
        """Return what a row of a stream begins with."""
        return self._part(row, {"role": "assistant", "content": ""}, None) if self._chat else None

    def text(self, row: int, text: str, usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return more of a row's text, with how many tokens it has so far where that is asked for."""
        found = self._part(row, {"content": text}, None) if self._chat else self._part(row, {}, None, text=text)
        return found if usage is None else found | {"usage": usage}

    def calls(self, row: int, call: dict[str, Any]) -> list[dict[str, Any]]:
        """Return a tool call in parts: its name, and its arguments."""
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        first = {"index": 0, **call, "function": {"name": name, "arguments": ""}}
        rest = {"index": 0, "function": {"arguments": arguments}}
        return [self._part(row, {"tool_calls": [one]}, None) for one in (first, rest)]

    def ends(self, row: int, reply: Replied) -> dict[str, Any]:
        """Return the end of a row of a stream."""
        refusal = _refusal(reply)
        delta = {"refusal": refusal} if refusal else {}
        found = self._part(row, delta, self._finish(reply), self._logprobs(reply))
        found["choices"][0]["mmedge"] = reply.own()
        return found

    def counted(self, replies: Sequence[Replied]) -> dict[str, Any]:
        """Return how many tokens there were, which ends a stream where it is asked for."""
        return self._document([], part=True) | {"usage": usage(replies, self._asked.samples)}

    def _part(
        self, row: int, delta: dict[str, Any], finish: str | None, logprobs: dict[str, Any] | None = None, text: str = ""
    ) -> dict[str, Any]:
        content: dict[str, Any] = {"delta": delta} if self._chat else {"text": text}
        found = self._document([{"index": row, **content, "logprobs": logprobs, "finish_reason": finish}], part=True)
        return found | ({"usage": None} if self._asked.with_usage else {})


def _refusal(reply: Replied) -> str | None:
    if not reply.answer.withheld:
        return None
    return f"The answer is withheld: {reply.answer.doubt}."


def answer_document(model: Model, reply: Replied, seconds: float) -> dict[str, Any]:
    """Return the body of `/v1/answer`."""
    answer = None if reply.answer.withheld else reply.text
    return {"model": model.name, "answer": answer, **reply.own(), "seconds": round(seconds, 4), "usage": usage([reply], 1)}


def event(document: dict[str, Any], name: str = "") -> bytes:
    """Return one event of a stream."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()
