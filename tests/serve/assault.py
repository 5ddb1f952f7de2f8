"""A crowd that sends malformed requests, and beside it a client that behaves well: what went wrong for either.

found = assault(running, seed=0, count=300, crowd=12)
assert not found.problems and not found.harmed
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.commands import REPOSITORY
from tests.serve.conftest import T5
from tests.serve.malformed import CLOSED, KEY, exchange, malformed
from tests.serve.running import QUESTION, Running

LATEST = 15.0  # seconds until a malformed request has ended
REVEALING = ("Traceback", 'File "', str(REPOSITORY), sys.prefix, "/site-packages/", "root:", KEY)
ASKED = {"model": T5, "question": QUESTION}


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        problems: Malformed requests that ended otherwise than is right, in words.
        harmed: Answers to the client that behaves well that are not what they should be.
        answered: How many it got.
        longest: The seconds of the slowest of them.
        statuses: How often each status came; 0 is a closed connection.
    """

    problems: list[str] = field(default_factory=list)
    harmed: list[str] = field(default_factory=list)
    answered: int = 0
    longest: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)


def revealed(text: str, *more: str) -> list[str]:
    """Return what a text tells that nobody should learn: tracebacks, paths, keys, and more."""
    return [one for one in (*REVEALING, *more) if one in text]


def assault(running: Running, seed: int, count: int, crowd: int) -> Outcome:
    """Send malformed requests from several threads, and whole ones beside them.

    Args:
        running: The server; its key is `KEY`.
        seed: Of the requests.
        count: How many.
        crowd: From how many threads.
    """
    found, done = Outcome(), threading.Event()
    expected = _answer(running)

    def honest() -> None:
        while not done.is_set():
            started = time.monotonic()
            if (answer := _answer(running)) != expected:
                found.harmed.append(answer)
            found.answered += 1
            found.longest = max(found.longest, time.monotonic() - started)

    def hostile(place: int) -> None:
        for request in malformed(random.Random(seed + place), count // crowd):
            started = time.monotonic()
            try:
                status, said = exchange(running.port, request, LATEST)
            except TimeoutError:
                found.problems.append(f"{request.kind}: no end after {LATEST:g} s: {request.sent[:300]!r}")
                continue
            found.statuses[status] += 1
            seconds = time.monotonic() - started
            told = revealed(said.decode("latin-1"))
            bare = status != CLOSED and b"nosniff" not in said and request.leaves_after is None
            if status not in request.right or seconds > LATEST or told or bare:
                found.problems.append(f"{request.kind}: {status}, {seconds:.1f} s, {told}: {request.sent[:300]!r}: {said[:600]!r}")

    witness = threading.Thread(target=honest)
    witness.start()
    threads = [threading.Thread(target=hostile, args=(place,)) for place in range(crowd)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    done.set()
    witness.join()
    return found


def _answer(running: Running) -> str:
    """Return a well-behaved client's answer, or what it got instead."""
    try:
        reply = running.post("/v1/answer", ASKED)
    except OSError as error:
        return f"no answer: {error!r}"
    return str(reply.json["answer"]) if reply.status == 200 else f"{reply.status}: {reply.body[:200]!r}"
