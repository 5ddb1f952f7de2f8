"""What passes between a collection and those who collect: subjects, requests and their responses, and what they cost.

    RequestRecord(subject, configuration, first=0, wanted=5, …, responses=(Response(0, "stop", "accepted", text),))

Values alone; `collection.py` keeps them, teachers make them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from mmedge.annotations.annotation import Annotation


class Subject(NamedTuple):
    """What is collected together: the chains of thought of one question, or the evaluations of one chain of thought.

    Attributes:
        number: Its place in the order of work.
        example_id: Which question it is about.
        kind: `cot` or `evaluation`.
        sample: Which chain of thought is evaluated; 0 for chains of thought.
        wanted: How many annotations it is to have.
        most: How many responses may be sampled for them at most.
    """

    number: int
    example_id: str
    kind: str
    sample: int
    wanted: int
    most: int


class Response(NamedTuple):
    """One text that came back for a subject, accepted or not; `number` counts the subject's responses from 0."""

    number: int
    finish: str
    outcome: str
    text: str


class RequestRecord(NamedTuple):
    """One request to a teacher and how it ended; times in seconds, cost in the currency of the prices.

    Attributes:
        subject: What it was for.
        configuration: Number of the model, endpoint, parameters and prompt templates, from `configuration`.
        first: Number of the first response that it asks for.
        wanted: How many it asks for.
        seed: The seed that it was sent with.
        prompt_sha256: Hash of the messages.
        started: When it was sent, in seconds since 1970.
        seconds: How long it took.
        status: `ok`, or what went wrong.
        detail: More about what went wrong.
        tokens_estimated: Whether the endpoint did not count tokens.
        responses: The texts that came back.
    """

    subject: Subject
    configuration: int
    first: int
    wanted: int
    seed: int
    prompt_sha256: str
    started: float
    seconds: float
    status: str
    detail: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_estimated: bool = False
    cost: float = 0.0
    responses: tuple[Response, ...] = ()


class Settled(NamedTuple):
    """A subject that needs no more responses: which became annotations, and the evaluations that it now calls for.

    Attributes:
        subject: The subject.
        state: `done`, or `given up` where fewer annotations than wanted could be had.
        annotations: The accepted texts.
        outcomes: What became of every whole text: the number of its response, and `accepted` or `identical`.
        follow_ups: Subjects that now can be collected; they belong to the same collector. Their numbers do not count.
    """

    subject: Subject
    state: str
    annotations: tuple[Annotation, ...]
    outcomes: tuple[tuple[int, str], ...]
    follow_ups: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class Spending:
    """Requests, and what they cost: spent, reserved, or allowed."""

    requests: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class StatusTotal:
    """All requests of one kind that ended in the same way.

    Attributes:
        kind: `cot` or `evaluation`.
        status: `ok`, or what went wrong.
        requests: How many.
        prompt_tokens: Tokens that the model read.
        completion_tokens: Tokens that it wrote.
        tokens_estimated: How many of the requests have estimated token counts.
        cost: What they cost.
        seconds: How long they took, summed.
    """

    kind: str
    status: str
    requests: int
    prompt_tokens: int
    completion_tokens: int
    tokens_estimated: int
    cost: float
    seconds: float


@dataclass(frozen=True)
class TokenMeans:
    """Mean numbers of tokens: of a request's prompt, and of one text."""

    prompt: float
    text: float
