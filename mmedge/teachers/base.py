"""What a teacher must be able to do: write annotations by itself, or be sampled, prompt by prompt.

    for annotation in teacher.chains_of_thought(examples): …                                       recorded, embedded
    reply = await teacher.sample(SampleRequest(messages, wanted=5, seed=17, max_tokens=512))        endpoint, local model

A sampled teacher knows nothing about questions or stores; one that writes by itself knows nothing about prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from mmedge.annotations.annotation import Annotation
from mmedge.openai import ChatReply, Message
from mmedge.tasks import Example


class WritingTeacher(Protocol):
    """A source of raw annotations; they are parsed when they are read from the store."""

    def fingerprint(self) -> str:
        """Return a hash of everything that decides what this teacher writes."""
        ...

    def chains_of_thought(self, examples: Sequence[Example]) -> Iterator[Annotation]:
        """Yield m chains of thought for every example, in any order.

        Raises:
            MmedgeError: The teacher's record is missing or broken.
        """
        ...

    def self_evaluations(self, cots: Sequence[tuple[Example, Annotation]]) -> Iterator[Annotation]:
        """Yield n self-evaluations for every chain of thought, in any order."""
        ...


class SampleRequest(NamedTuple):
    """A prompt and what is wanted for it.

    Attributes:
        messages: The chat messages.
        wanted: How many texts are wanted; fewer may come.
        seed: For sampling, where the teacher accepts one.
        max_tokens: The longest text.
    """

    messages: tuple[Message, ...]
    wanted: int
    seed: int
    max_tokens: int


class SampledTeacher(Protocol):
    """A model that writes texts for prompts."""

    @property
    def name(self) -> str:
        """What annotations call it."""
        ...

    @property
    def parallel(self) -> tuple[int, int]:
        """How many requests at a time it takes: initially, and at most."""
        ...

    def most_tokens(self, messages: tuple[Message, ...]) -> int:
        """Return how many tokens a prompt has at most."""
        ...

    async def sample(self, request: SampleRequest) -> ChatReply:
        """Return texts for a prompt.

        Raises:
            ChatFailure: There are none; another attempt may succeed.
            MmedgeError: No attempt will succeed: the key is wrong, or the model unknown.
        """
        ...

    async def __aenter__(self) -> SampledTeacher: ...

    async def __aexit__(self, *_: object) -> None: ...
