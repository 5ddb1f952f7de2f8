"""Streaming text while it is written, in a thread of its own, which stops when the stream is abandoned."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from mmedge.runtime.answers import Answer, Piece
from mmedge.tasks.encoding import PromptEncoder

OnPartToken = Callable[[str, int, int], None]  # part, row, token


class _NobodyReads(Exception):
    """The stream was abandoned."""


class GrowingText:
    """Text that grows token by token; an incomplete character is held back until it is complete."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder, self._shown = encoder, ""
        self._tokens: list[int] = []

    def with_token(self, token: int) -> str:
        """Return the new text after one more token."""
        self._tokens.append(token)
        text = self._encoder.text(self._tokens)
        if text.endswith("\N{REPLACEMENT CHARACTER}") or not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new

    def rest(self) -> str:
        """Return what was held back."""
        text = self._encoder.text(self._tokens)
        return text[len(self._shown) :] if text.startswith(self._shown) else ""


def streamed(answered: Callable[[OnPartToken], Answer], encoder: PromptEncoder) -> Iterator[Piece | Answer]:
    """Yield text while an answer is written; the whole answer comes last.

    Abandoning the iteration stops the writing before the next token.

    Args:
        answered: Answers, and calls back for each token of each part.
        encoder: Decodes tokens.
    """
    queue: SimpleQueue[Piece | Answer | BaseException] = SimpleQueue()
    given_up = threading.Event()
    texts: dict[str, GrowingText] = {}

    def told(part: str, _: int, token: int) -> None:
        if given_up.is_set():
            raise _NobodyReads
        new = texts.setdefault(part, GrowingText(encoder)).with_token(token)
        if new:
            queue.put(Piece(part, new))

    def work() -> None:
        try:
            queue.put(answered(told))
        except _NobodyReads:
            pass
        except BaseException as error:  # raised to the caller
            queue.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, Answer):
                for part, text in texts.items():
                    if rest := text.rest():
                        yield Piece(part, rest)
            yield item
            if isinstance(item, Answer):
                return
    finally:
        given_up.set()
        thread.join()
