"""A proxy of the tests' own between a collector and an endpoint that lets three of ten requests go wrong, each in another way.

with FaultyProxy(endpoint.port, share=0.3, seed=1) as proxy:
    …  proxy.url  proxy.faults
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

from tests.teachers.endpoint import ThreadedServer

FAULTS = ("429", "500", "reset", "stall", "half response", "garbage")


@dataclass
class FaultyProxy(ThreadedServer):
    """A proxy; every connection carries one request.

    Attributes:
        port_behind: The endpoint's port on this machine.
        share: The share of requests that go wrong.
        seed: Decides which, and how.
        stall: Seconds that a stalled request takes.
        faults: How often each fault was made.
        passed: How many requests were passed on whole.
    """

    port_behind: int
    share: float = 0.3
    seed: int = 0
    stall: float = 30.0
    faults: Counter[str] = field(default_factory=Counter)
    passed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length"))
            body = await reader.readexactly(length)
            fault = self._random.choice(FAULTS) if self._random.random() < self.share else ""
            if fault:
                self.faults[fault] += 1
            if fault == "429":
                writer.write(
                    b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 0.05\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
                )
            elif fault == "500":
                writer.write(b"HTTP/1.1 500 Broken\r\nContent-Length: 6\r\nConnection: close\r\n\r\nbroken")
            elif fault == "reset":
                writer.transport.abort()
            elif fault == "stall":
                await asyncio.sleep(self.stall)
            else:
                await self._pass_on(head, body, writer, fault)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _pass_on(self, head: bytes, body: bytes, writer: asyncio.StreamWriter, fault: str) -> None:
        """Ask the endpoint, which so has worked (and is paid) for it, and give its answer whole, by half, or spoilt."""
        behind_reader, behind = await asyncio.open_connection("127.0.0.1", self.port_behind, limit=1 << 22)
        try:
            kept = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
            behind.write(b"\r\n".join([*kept, b"Connection: close", b"", b""]) + body)
            answer = await behind_reader.read()
        finally:
            behind.close()
        answered, _, content = answer.partition(b"\r\n\r\n")
        if fault == "half response":
            writer.write(answered + b"\r\n\r\n" + content[: len(content) // 2])
        elif fault == "garbage":
            middle = len(content) // 3
            spoilt = content[:middle] + bytes(self._random.randrange(256) for _ in range(40)) + content[middle + 40 :]
            writer.write(answered + b"\r\n\r\n" + spoilt)
        else:
            self.passed += 1
            writer.write(answer)
