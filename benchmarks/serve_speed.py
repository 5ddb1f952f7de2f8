"""What serving costs: one client against the same student in this process, and 8 and 200 clients at once.

    python benchmarks/serve_speed.py runs/quickstart/bundle-int8 [--questions 400] [--out serve-speed.json]
    python benchmarks/serve_speed.py t5-small [--place FOLDER]       a student of that shape, or quickstart's, with random weights
    python benchmarks/serve_speed.py smollm2 --student FOLDER --llama llama-server --gguf Q8_0.gguf
    python benchmarks/serve_speed.py BUNDLE --processor              processor time alone, which a busy machine disturbs little
    python benchmarks/serve_speed.py BUNDLE --start                  from the start to the first answer, and where the time goes

`--engine native` runs student and server on mmedge's own engine.
Server and clients share the machine's cores, as on a device. Prints one JSON document: milliseconds for an answer (p50, p99),
answers a second, and ratios of them. One client is alternated with the process's own answers, so that a busy machine slows both;
crowds of two servers take turns. llama.cpp's server is given the same student and its own prompts, as tokens, and 8 slots. Both
keep what they have read: every crowd asks questions that are new, and those of 8 clients are then asked again (`8_clients_again`).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from mmedge import Student
from mmedge.engines.batching import BatchingEngine
from mmedge.engines.engine import Engine
from mmedge.engines.joining import JoiningEngine
from mmedge.machine import machine
from mmedge.tasks.base import Example

SLOTS = 8  # of llama.cpp's server, and clients of both
MANY = 200  # clients of ours
WARM = 20  # questions before anything is timed
ROUNDS = 3  # that crowds take turns
IDLE = 10.0  # seconds without a request
STARTS = 5
TEMPLATE = "Ann has {} apples. Ben gives Ann {} more apples. How many are there now?"
SHAPES = {
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6},
    "quickstart": {
        "d_model": 128,
        "d_kv": 16,
        "d_ff": 384,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 8,
        "vocab_size": 1200,
    },
}
ANSWER = 12  # tokens of an answer of a shape


class Client:
    """One connection that asks."""

    def __init__(self, port: int, path: str) -> None:
        self._connection, self._path = http.client.HTTPConnection("127.0.0.1", port, timeout=300), path

    def ask(self, body: bytes) -> tuple[float, Any]:
        """Return the seconds of an answer, and the reply."""
        started = time.perf_counter()
        self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        text = response.read()
        seconds = time.perf_counter() - started
        if response.status != 200:
            raise RuntimeError(f"status {response.status}: {text[:200]!r}")
        return seconds, json.loads(text)


def questions(count: int, first: int = 0) -> list[str]:
    """Return so many questions from the n-th on; 7,200 are different."""
    return [TEMPLATE.format(3 + number % 90, 4 + (number // 90 + 7 * number) % 80) for number in range(first, first + count)]


class Fresh:
    """Questions that nobody has asked before: servers keep what they have read.

    Args:
        first: How many have been asked.
    """

    def __init__(self, first: int) -> None:
        self._next = first

    def take(self, count: int) -> list[str]:
        found = questions(count, self._next)
        self._next += count
        return found


def times(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles, in milliseconds."""
    ordered = sorted(1000 * one for one in seconds)
    return {"p50_ms": round(statistics.median(ordered), 3), "p99_ms": round(ordered[int(0.99 * (len(ordered) - 1))], 3)}


# -------------------------------------------------------------------------------------------------- what is measured


def alternated(student: Student, client: Client, asked: Sequence[str], bodies: Sequence[bytes]) -> dict[str, Any]:
    """Ask every question in this process and over HTTP, in turns."""
    inside, outside = [], []
    for question, body in zip(asked, bodies, strict=True):
        started = time.perf_counter()
        student.answer(question)
        inside.append(time.perf_counter() - started)
        outside.append(client.ask(body)[0])
    found: dict[str, Any] = {"in_process": times(inside), "one_client": times(outside)}
    found["one_client_per_second"] = round(len(asked) / sum(outside), 1)
    found["ratio_of_p50"] = round(statistics.median(outside) / statistics.median(inside), 3)
    found["difference_of_p50_ms"] = round(1000 * (statistics.median(outside) - statistics.median(inside)), 3)
    return found


def crowded(port: int, path: str, clients: int, bodies: Sequence[bytes]) -> tuple[list[float], float]:
    """Let many clients ask at once, each the same number of questions; return their seconds, and those of the whole."""
    each = max(2, len(bodies) // clients)
    found: list[float] = []
    begin = threading.Barrier(clients + 1)

    def work(place: int) -> None:
        client = Client(port, path)
        begin.wait()
        found.extend([client.ask(bodies[(place * each + number) % len(bodies)])[0] for number in range(each)])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    if len(found) < clients * each:
        raise RuntimeError("some clients got no answer")
    return found, time.perf_counter() - started


Asking = tuple[int, str, Callable[[str], bytes]]  # a server's port and path, and what makes a body of a question


def crowds(servers: Mapping[str, Asking], clients: int, asked: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Let crowds ask the servers in turn, the same questions in each of several rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    rates: dict[str, list[float]] = {name: [] for name in servers}
    for some in asked:
        for name, (port, path, body) in servers.items():
            found, whole = crowded(port, path, clients, [body(question) for question in some])
            seconds[name] += found
            rates[name].append(len(found) / whole)
    return {name: times(seconds[name]) | {"per_second": round(statistics.median(rates[name]), 1)} for name in servers}


def idle(pid: int) -> float:
    """Return the milliseconds of one core that a server uses in `IDLE` seconds while nobody asks."""
    before = _on_cores(pid)
    time.sleep(IDLE)
    return round(1000 * (_on_cores(pid) - before), 2)


def _on_cores(pid: int) -> float:
    """Return the seconds that a process's threads have been on a core, finer than the ticks of its times (Linux)."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def starts(bundle: Path) -> dict[str, Any]:
    """Return seconds from a start to the first answer, several times, and what the imports of one more start take."""
    found = []
    for _ in range(STARTS):
        with ours(bundle) as (_, _, pid, seconds):
            found.append({"first_answer_seconds": round(seconds, 3), "processor_seconds": round(_on_cores(pid), 3)})
    code = "import mmedge.cli, mmedge.serve.app, mmedge.serve.server, mmedge.serve.cascade, onnxruntime"
    said = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True).stderr
    packages: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", said):
        packages[name.partition(".")[0]] += int(own)
    most = {name: round(time_ / 1000, 1) for name, time_ in packages.most_common(12)}
    return {"starts": found, "import_ms": {"all": round(packages.total() / 1000, 1), **most}}


def processor_time(bundle: Path, asked: Sequence[str]) -> dict[str, Any]:
    """Return milliseconds of one core for an answer: alone, in batches, and by threads whose rows join or are batched."""
    student = Student.load(bundle, 1)
    settled, examples = student.settled(), [Example(str(place), text) for place, text in enumerate(asked)]
    engine: Any = student.speaker.engine

    def cost(work: Callable[[], object], count: int) -> float:
        started = time.process_time()
        work()
        return round(1000 * (time.process_time() - started) / count, 2)

    def shared(engine: Engine, threads: int) -> float:
        asked_of = copy(student)
        asked_of.speaker = student.speaker.on(engine)
        with ThreadPoolExecutor(threads) as pool:
            return cost(lambda: list(pool.map(lambda one: asked_of.answered([one], settled), examples)), len(examples))

    found: list[dict[str, float]] = []
    for _ in range(2):
        few = asked[: len(asked) // 4]
        row = {"alone": cost(lambda few=few: [student.answer(one) for one in few], len(few))}  # type: ignore[misc]
        row["batches of 16"] = cost(lambda: student.answer_all(asked), len(asked))
        for threads in (8, 16):
            row[f"{threads} threads, joined"] = shared(JoiningEngine(engine, [engine.rows(16, 512 << 20)]), threads)
            row[f"{threads} threads, batched"] = shared(BatchingEngine(engine, 1, 16), threads)
        found.append(row)
    return {"bundle": bundle.name, "questions": len(asked), "processor_ms_per_answer": found}


# ------------------------------------------------------------------------------------------------------------ servers


@contextmanager
def ours(bundle: Path) -> Iterator[tuple[str, int, int, float]]:
    """Serve a bundle; yield its name, port and process, and the seconds from start to first answer."""
    command = [sys.executable, "-m", "mmedge", "serve", str(bundle), "--port", "0", "--no-access-log"]
    began = time.perf_counter()
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        said = re.search(r"serving (\S+) at http://\S+:(\d+)", server.stderr.readline())
        if said is None:
            raise RuntimeError("the server did not start")
        Client(int(said[2]), "/v1/chat/completions").ask(body_for(said[1], questions(1)[0]))
        yield said[1], int(said[2]), server.pid, time.perf_counter() - began
    finally:
        server.terminate()
        server.wait()


@contextmanager
def llama(program: Path, gguf: Path, port: int = 18173) -> Iterator[int]:
    """Run llama.cpp's server on a student."""
    command = [program, "-m", gguf, "--port", port, "-np", SLOTS, "-c", SLOTS * 512, "-t", psutil.cpu_count(), "--no-webui"]
    server = subprocess.Popen([str(one) for one in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _is_healthy(port):
            if time.monotonic() > deadline or server.poll() is not None:
                raise RuntimeError("llama.cpp's server did not start")
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait()


def _is_healthy(port: int) -> bool:
    """Whether a server says that it is ready: it answers before it has loaded its model, with 503."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def body_for(model: str, question: str) -> bytes:
    return json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}).encode()


def tokens_for(student: Student, question: str) -> bytes:
    """Return the same question for llama.cpp's server: the student's prompt, as tokens."""
    prompt = student.speaker.prompt("predict", student.speaker.encoder.prompts.reasoning_context(question))
    fields = {"prompt": [*prompt.context, *prompt.begun], "max_tokens": student.speaker.max_answer_tokens, "temperature": 0}
    return json.dumps({"model": "student", **fields}).encode()


# ------------------------------------------------------------------------------------------------- students of a shape


def shaped(shape: str, place: Path, student: Path | None) -> Path:
    """Write an int8 bundle of a shape: with random weights and a tokenizer of nearly as many words, or of a student."""
    from mmedge.export.graphs import fused_linears, write_fused
    from mmedge.export.quantization.precisions import PRECISIONS
    from mmedge.export.quantization.quantizer import BundleQuantizer

    bundle = place / f"bundle-{shape}"
    if (bundle / "manifest.json").is_file():
        return bundle
    bundle.mkdir(parents=True, exist_ok=True)
    source = student or _random(shape, place / shape)
    static = [] if student else [name for name in fused_linears(source) if name.startswith(("encoder.", "cross.kv"))]
    written = write_fused(source, bundle, BundleQuantizer(PRECISIONS["int8"], ranges=dict.fromkeys(static, (-4.0, 4.5))))
    (bundle / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
    eos = json.loads((source / "config.json").read_text())["eos_token_id"]
    _seal(bundle, "decoder-only" if student else "encoder-decoder", eos, written.plan)
    return bundle


def _random(shape: str, folder: Path) -> Path:
    """Write a T5 of a shape with random weights, and a tokenizer of words."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    shape_: dict[str, Any] = {
        "vocab_size": 32128,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        **SHAPES[shape],
        **special,
    }
    transformers.T5ForConditionalGeneration(transformers.T5Config(**shape_)).save_pretrained(folder)
    sentence = TEMPLATE.replace("{}", "").replace(".", " .").replace("?", " ?")
    words = ["<pad>", "</s>", "<unk>", *map(str, range(100)), *sentence.split()]
    words += ["predict", "explain", "question", "solution", "answer", "correct", "wrong", "uncertain", ":"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    vocabulary |= {f"w{number}": number for number in range(len(vocabulary), shape_["vocab_size"] - 128)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _seal(bundle: Path, family: Any, eos: int, plan: Mapping[str, Any] | None) -> None:
    from bare_bundle import bundle_of

    from mmedge.bundle import seal
    from mmedge.tasks.encoding import SpecialTokens

    special = SpecialTokens(eos=eos, pad=0, start=0 if family == "encoder-decoder" else None)
    bare = bundle_of(bundle, special, family, longest=256).manifest
    seal(bundle, replace(bare, recipe="shape", precision="int8", plan=plan, max_answer_tokens=ANSWER, max_rationale_tokens=64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", help="a bundle, or the name of a shape")
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--place", type=Path, help="folder for students of a shape, kept from run to run")
    parser.add_argument("--student", type=Path, help="folder of the student to export for smollm2, in Hugging Face format")
    parser.add_argument("--llama", type=Path, help="llama.cpp's server")
    parser.add_argument("--gguf", type=Path, help="the same student for it")
    parser.add_argument("--processor", action="store_true", help="measure processor time of the engines alone, without a server")
    parser.add_argument("--start", action="store_true", help="measure starts alone")
    parser.add_argument(
        "--engine", choices=("onnx", "native"), help="what student and server run on; by default what MMEDGE_ENGINE says"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    place = arguments.place or Path(tempfile.mkdtemp())
    named = arguments.bundle in (*SHAPES, "smollm2")
    bundle = shaped(arguments.bundle, place, arguments.student) if named else Path(arguments.bundle)
    if arguments.engine:
        os.environ["MMEDGE_ENGINE"] = arguments.engine
    if arguments.start:
        found = {"bundle": bundle.name, **starts(bundle)}
    elif arguments.processor:
        found = processor_time(bundle, questions(arguments.questions))
    else:
        found = served(bundle, questions(arguments.questions), arguments.llama, arguments.gguf)
    text = json.dumps(found | {"machine": machine()}, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


def served(bundle: Path, asked: list[str], other: Path | None, gguf: Path | None) -> dict[str, Any]:
    """Measure one client, crowds, and the server when nobody asks.

    Args:
        bundle: The student.
        asked: The questions.
        other: llama.cpp's server; None for none.
        gguf: The same student for it.
    """
    with ours(bundle) as (model, port, pid, started):
        student = Student.load(bundle)
        bodies = [body_for(model, question) for question in asked]
        client = Client(port, "/v1/chat/completions")
        fresh = Fresh(len(asked))
        for question in fresh.take(WARM):
            student.answer(question)
            client.ask(body_for(model, question))
        found: dict[str, Any] = {"bundle": model, "engine": type(student.speaker.engine).__name__}
        found |= {"first_answer_seconds": round(started, 2)} | alternated(student, client, asked, bodies)
        began = time.perf_counter()
        student.answer_all(asked)
        found["offline_per_second"] = round(len(asked) / (time.perf_counter() - began), 1)
        ours_: Asking = (port, "/v1/chat/completions", lambda question: body_for(model, question))
        servers: dict[str, Asking] = {"ours": ours_}
        with ExitStack() as stack:
            if other is not None and gguf is not None:
                at = stack.enter_context(llama(other, gguf))
                servers["llama.cpp"] = (at, "/v1/completions", lambda question: tokens_for(student, question))
                found["same_answers"] = _alike(student, Client(at, "/v1/completions"), fresh.take(50))
            rounds = [fresh.take(len(asked)) for _ in range(ROUNDS)]
            found[f"{SLOTS}_clients"] = crowds(servers, SLOTS, rounds)
            found[f"{SLOTS}_clients_again"] = crowds(servers, SLOTS, rounds[-1:] * ROUNDS)
            if "llama.cpp" in servers:
                theirs = {"llama.cpp": servers["llama.cpp"]}
                found["llama.cpp_one_client"] = crowds(theirs, 1, [fresh.take(len(asked)) for _ in range(ROUNDS)])["llama.cpp"]
        many = [fresh.take(max(2 * MANY, len(asked))) for _ in range(ROUNDS)]
        found[f"{MANY}_clients"] = crowds({"ours": ours_}, MANY, many)
        found["idle_ms_of_a_core"] = idle(pid)
    return found | {"ratios": ratios(found)}


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Return what the figures are held to, as ratios."""
    few, many = found[f"{SLOTS}_clients"], found[f"{MANY}_clients"]["ours"]
    result = {
        "p50 of one client to in-process": found["ratio_of_p50"],
        f"rate of {SLOTS} clients to one": few["ours"]["per_second"] / found["one_client_per_second"],
        f"rate of {MANY} clients to offline": many["per_second"] / found["offline_per_second"],
        f"p99 of {MANY} clients to their p50": many["p99_ms"] / many["p50_ms"],
    }
    if "llama.cpp" in few:
        again = found[f"{SLOTS}_clients_again"]
        result[f"rate of {SLOTS} clients to llama.cpp"] = few["ours"]["per_second"] / few["llama.cpp"]["per_second"]
        result["the same, asked again"] = again["ours"]["per_second"] / again["llama.cpp"]["per_second"]
    return {name: round(value, 3) for name, value in result.items()}


def _alike(student: Student, client: Client, asked: Sequence[str]) -> float:
    """Return the share of answers that llama.cpp writes as the student does."""
    right = 0
    for question in asked:
        theirs = client.ask(tokens_for(student, question))[1]["choices"][0]["text"]
        right += student.answer(question).text == theirs.strip()
    return right / len(asked)


if __name__ == "__main__":
    main()
