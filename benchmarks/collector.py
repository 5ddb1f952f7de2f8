"""How fast texts are collected, and how fast a large store is summed up.

    python benchmarks/collector.py throughput            512 in flight against a server that answers after 200 ms
    python benchmarks/collector.py throughput --peers    the same requests by the `openai` package and by aiohttp, where installed
    python benchmarks/collector.py summary               `mmedge review` on a store of a million annotations

The ideal rate of the first is 512 / 0.2 s = 2,560 requests a second; `steady` is the median second, without start and end.
Server and collector are processes of their own; the collector's processor time is that of its whole process, storing, reading and
judging every text included. The peers throw the answers away: aiohttp's row is what the collector's transport costs by itself. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.store import AnnotationStore
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.recipe import Recipe, validate, write_recipe
from mmedge.tasks import build_task
from mmedge.teachers.collect import annotate

IN_FLIGHT, DELAY = 512, 0.2
IDEAL = IN_FLIGHT / DELAY


def recipe(url: str, questions: int, cots: int, evaluations: int) -> Recipe:
    """Return a recipe whose teacher is the local server."""
    teacher = {
        "kind": "openai",
        "base_url": url,
        "model": "local",
        "api_key_env": None,
        "concurrency": IN_FLIGHT,
        "choices_per_request": 1,
        "cots_per_question": cots,
        "evaluations_per_cot": evaluations,
    }
    stage = {"max_steps": 1}
    values = {
        "name": "collector-benchmark",
        "task": {"kind": "arithmetic", "train": questions, "test": 10},
        "teacher": teacher,
        "student": {"source": "scratch"},
        "training": {"stage1": stage, "stage2": stage},
    }
    return validate(values, "benchmark")


# ------------------------------------------------------------------------------------------------ the server


class _Answers(asyncio.Protocol):
    """Answers every request after a delay, with as little work as can be: it must not be what limits."""

    count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self._received) < end + 4 + length:
                return
            body, self._received = self._received[end + 4 : end + 4 + length], self._received[end + 4 + length :]
            _Answers.count += 1
            left, right = _Answers.count % 97 + 2, _Answers.count % 89 + 2
            if b"Verdict:" in body:
                text = f"{left} and {right} is what has to be put together, and the sum is right.\\nVerdict: correct"
            else:
                text = (
                    f"There are {left} of the first kind and {right} of the second, and both count. "
                    f"{left} + {right} = {left + right}. The answer is ({left} + {right})."
                )
            answer = (
                '{"id":"x","object":"chat.completion","created":1,"model":"local","choices":[{"index":0,"message":{"role":'
                f'"assistant","content":"{text}"}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":412,'
                '"completion_tokens":40,"total_tokens":452}}'
            ).encode()
            reply = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer
            asyncio.get_running_loop().call_later(DELAY, self._write, reply)

    def _write(self, reply: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(reply)


def _serve(port: Any) -> None:
    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(_Answers, "127.0.0.1", 0, backlog=2048)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(serve())


class Server:
    """The server in a process of its own."""

    def __enter__(self) -> str:
        port = multiprocessing.get_context("spawn").Value("i", 0)
        self._process = multiprocessing.get_context("spawn").Process(target=_serve, args=(port,), daemon=True)
        self._process.start()
        while not port.value:
            time.sleep(0.01)
        return f"http://127.0.0.1:{port.value}/v1"

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.join()


# ------------------------------------------------------------------------------------------------ throughput


def throughput(questions: int) -> dict[str, Any]:
    """Collect four texts for each question and return rate and processor time."""
    with Server() as url, tempfile.TemporaryDirectory() as folder:
        plan = recipe(url, questions, cots=2, evaluations=1)
        task = build_task(plan.task.model_dump())
        examples = task.load().train
        with AnnotationStore(Path(folder) / "annotations.sqlite") as store:
            wall, processor = time.perf_counter(), time.process_time()
            found = annotate(plan, task, examples, store, Progress(quiet=True))
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            assert found is not None and found.complete and not found.errors
            stored = store.count("cot") + store.count("evaluation")
            finished = [row[0] for row in store.query("SELECT started + seconds FROM requests")]
    seconds = Counter(int(moment - min(finished)) for moment in finished)
    steady = statistics.median(seconds[second] for second in range(2, max(seconds)))
    return {
        "requests": found.requests,
        "annotations": stored,
        "seconds": round(wall, 2),
        "requests_per_second": round(found.requests / wall, 1),
        "share_of_ideal": round(found.requests / wall / IDEAL, 3),
        "steady_requests_per_second": steady,
        "steady_share_of_ideal": round(steady / IDEAL, 3),
        "cores_used": round(processor / wall, 3),
        "microseconds_per_request": round(1e6 * processor / found.requests, 1),
    }


async def _peer(name: str, url: str, requests: int) -> dict[str, Any]:
    from mmedge.tasks import Example
    from mmedge.teachers.prompting import load_prompts

    task = build_task({"kind": "arithmetic", "train": 10, "test": 10})
    messages = [
        {"role": role, "content": text}
        for role, text in load_prompts(task, None, None).about_question(Example("x", "How many plums are there now?"))
    ]
    wanted: dict[str, Any] = {"model": "local", "messages": messages, "temperature": 0.7, "max_tokens": 512, "seed": 1}
    left = requests
    if name == "openai":
        import openai
        from openai import DefaultAioHttpClient

        client = openai.AsyncOpenAI(api_key="x", base_url=url, http_client=DefaultAioHttpClient(), max_retries=0)

        async def ask() -> None:
            answer = await client.chat.completions.with_raw_response.create(**wanted)
            json.loads(answer.content)

    else:
        import aiohttp

        session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=IN_FLIGHT))

        async def ask() -> None:
            async with session.post(f"{url}/chat/completions", data=json.dumps(wanted).encode()) as answer:
                json.loads(await answer.read())

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await ask()

    wall, processor = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    await (client.close() if name == "openai" else session.close())
    return {
        "requests_per_second": round(requests / wall, 1),
        "cores_used": round(processor / wall, 3),
        "microseconds_per_request": round(1e6 * processor / requests, 1),
    }


def peers(requests: int) -> dict[str, Any]:
    """Send the same requests, and do nothing with the answers, by the usual clients."""
    found: dict[str, Any] = {}
    for name in ("openai", "aiohttp"):
        try:
            __import__(name)
        except ImportError:
            found[name] = "not installed"
            continue
        with Server() as url:
            found[name] = asyncio.run(_peer(name, url, requests))
    return found


# --------------------------------------------------------------------------------------------------- summary


def summary(annotations: int) -> dict[str, Any]:
    """Fill a store, sum it up once (which reads every text), and measure the command on it."""
    per_question = 15  # 5 chains of thought, 2 evaluations of each
    questions = annotations // per_question
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        run.mkdir()
        plan = recipe("http://127.0.0.1:9/v1", questions, 5, 2)
        write_recipe(plan, run / "recipe.yaml")
        task = build_task(plan.task.model_dump())
        with AnnotationStore(run / "annotations.sqlite") as store:
            batch: list[Annotation] = []
            for number, example in enumerate(task.load().train):
                for sample in range(5):
                    left, right = (number + sample) % 9 + 1, sample % 3 + 2
                    text = f"Both count, so {left} + {right} = {left + right}. The answer is {left + right}."
                    batch.append(Annotation(example.id, "cot", sample, 0, text, None, "local", "draw 0"))
                    for evaluation in range(2):
                        judged = f"The two are put together.\nVerdict: {'correct' if number % 3 else 'wrong'}"
                        batch.append(Annotation(example.id, "evaluation", sample, evaluation, judged, None, "local", "draw 0"))
                if len(batch) > 20000:
                    store.add(batch)
                    batch = []
            store.add(batch)
        command = [sys.executable, "-m", "mmedge", "review", str(run), "--json", "--quiet"]
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            shown = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(time.perf_counter() - begun)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        size = sum(file.stat().st_size for file in run.iterdir())
        found = json.loads(shown.stdout)
    return {
        "annotations": found["cots"]["stored"] + found["evaluations"]["stored"],
        "questions": questions,
        "store_mb": round(size / 1e6),
        "first_time_seconds": round(times[0], 2),
        "seconds": [round(each, 2) for each in times[1:]],
        "peak_memory_mb": round(peak),
    }


def main() -> None:
    """Run one of the measurements and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "summary"))
    parser.add_argument("--questions", type=int, default=10000, help="for throughput; four requests each")
    parser.add_argument("--annotations", type=int, default=1_000_000, help="for summary")
    parser.add_argument("--peers", action="store_true")
    chosen = parser.parse_args()
    result: dict[str, Any]
    if chosen.what == "throughput":
        result = {"ideal": IDEAL, "mmedge": throughput(chosen.questions)}
        if chosen.peers:
            result |= peers(chosen.questions)
    else:
        result = summary(chosen.annotations)
    for name, value in result.items():
        print(f"{name:22} {value}")
    print(json.dumps({"benchmark": chosen.what, **result, "machine": machine(), "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
