"""What a teacher that is asked must be able to do: write texts for a prompt, and say how it failed when it could not.

    reply = await writer.write(Call(messages, wanted=5, seed=17, max_tokens=512))

Implemented by `chat.py` (an endpoint) and `local.py` (a model on this machine). Knows nothing of questions or stores.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from mmedge.teachers.prompting import Message


class Call(NamedTuple):
    """A prompt and what is wanted for it.

    Attributes:
        messages: The chat.
        wanted: How many texts are wanted; fewer may come.
        seed: For sampling, where the teacher takes one.
        max_tokens: The longest text.
    """

    messages: tuple[Message, ...]
    wanted: int
    seed: int
    max_tokens: int


class Text(NamedTuple):
    """One text and how it ended: `stop`, `length`, `content_filter`, `refusal`, or whatever else was said."""

    text: str
    finish: str


class Reply(NamedTuple):
    """The texts that came, and the tokens they took; `estimated` where nobody counted them."""

    texts: tuple[Text, ...]
    prompt_tokens: int
    completion_tokens: int
    estimated: bool


class AskingFailed(Exception):
    """A call that brought no text.

    Attributes:
        status: What happened, in a few words that are counted: `rate limited`, `server error`, `timeout`, …
        detail: More about it.
        retry_after: Seconds that the endpoint asks to wait, or None.
        overloaded: Whether fewer calls at a time may help.
        rejected: Whether this very call would be answered so again, however often.
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


class Writer(Protocol):
    """Whoever writes texts for prompts."""

    @property
    def name(self) -> str:
        """Who it is, for the annotations that it writes."""
        ...

    @property
    def parallel(self) -> tuple[int, int]:
        """How many calls at a time it takes at first, and at most."""
        ...

    def tokens(self, messages: tuple[Message, ...]) -> int:
        """Return how many tokens a prompt has at most."""
        ...

    async def write(self, call: Call) -> Reply:
        """Return texts for a prompt.

        Raises:
            AskingFailed: It brought none; another attempt may.
            MmedgeError: No attempt will: the key is wrong, the model unknown.
        """
        ...

    async def __aenter__(self) -> Writer: ...

    async def __aexit__(self, *_: object) -> None: ...
