"""An OpenAI-compatible endpoint of the tests' own: what it answers depends on prompt and seed alone, and it counts what it served.

with Endpoint(delay=0.0) as endpoint:
    …  endpoint.url  endpoint.served
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Handler = Callable[[dict[str, Any]], "tuple[int, dict[str, str], bytes] | None"]


def completion(*contents: str, finish: str = "stop", **fields: Any) -> bytes:
    """Return the body of a chat completion."""
    choices = [
        {"index": index, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
        for index, content in enumerate(contents)
    ]
    usage = {"prompt_tokens": 100, "completion_tokens": 20 * len(contents), "total_tokens": 100 + 20 * len(contents)}
    return json.dumps({"object": "chat.completion", "choices": choices, "usage": usage, **fields}).encode()


def text_for(messages: list[dict[str, str]], seed: int) -> str:
    """Return a chain of thought, an evaluation or a new question that only prompt and seed decide; some cannot be read."""
    digest = hashlib.sha256(f"{json.dumps(messages)}/{seed}".encode()).digest()
    rng = random.Random(digest)
    if messages[0]["content"].startswith("You write what people send"):
        return question_for(rng)
    if "The labels are:" in messages[0]["content"] and "Verdict:" not in messages[0]["content"]:
        labels = messages[0]["content"].split("The labels are: ")[1].split(". ")[0].split(", ")
        return f"Its {rng.choice(('first', 'second', 'third', 'last'))} word decides it. The answer is {rng.choice(labels)}."
    if "Verdict:" in messages[0]["content"]:
        return rng.choice(["It fits.\nVerdict: correct", "It adds where it must divide.\nVerdict: wrong", "Hard to say."])
    if rng.random() < 0.1:
        return "There is no telling what is asked here."
    left, right = rng.randint(1, 6), rng.randint(1, 6)  # few enough that some texts are the same
    return f"First {left}, then {right}. {left} + {right} = {left + right}. The answer is ({left} + {right})."


def question_for(rng: random.Random) -> str:
    """Return a new question of random words; one in ten cannot be read."""
    if rng.random() < 0.1:
        return "I'm sorry, but I can't write that."
    words = ["".join(rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(rng.randint(1, 3))) for _ in range(7)]
    return rng.choice(("Question: {}", "Input: {}", 'Sure, here is one:\n\n**Question:** "{}"\nAnswer: none')).format(
        " ".join(words)
    )


async def _end_all() -> None:
    """End everything that a server still does."""
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    await asyncio.sleep(0)


class ThreadedServer(ABC):
    """A server in a thread of its own, at a port that is free."""

    port = 0

    def __enter__(self) -> Any:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._connection, "127.0.0.1", 0, backlog=1024, limit=1 << 22)
            self.port = server.sockets[0].getsockname()[1]
            started.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(serve())
            self._loop.run_forever()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()
        started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(_end_all(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @abstractmethod
    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None: ...


@dataclass
class Endpoint(ThreadedServer):
    """An endpoint.

    Attributes:
        handler: Answers a request; None for the usual answer.
        delay: Seconds until it answers.
        knows_n: Whether it gives as many texts as `n` asks for.
        served: Every request that was answered.
    """

    handler: Handler | None = None
    delay: float = 0.0
    knows_n: bool = True
    served: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length"))
                asked = json.loads(await reader.readexactly(length))
                asked["_head"] = head
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    await asyncio.sleep(self.delay)
                    answer = self.handler(asked) if self.handler else None
                finally:
                    self.in_flight -= 1
                if answer is None:
                    count = asked.get("n", 1) if self.knows_n else 1
                    contents = [text_for(asked["messages"], asked.get("seed", 0) + index) for index in range(count)]
                    answer = 200, {}, completion(*contents)
                self.served.append(asked)
                status, headers, body = answer
                lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
                if "connection: close" in head.lower():
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
