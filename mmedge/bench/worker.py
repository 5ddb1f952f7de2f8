"""One variant in a process of its own, so that its memory and its failures are its own.

Speaks JSON lines over standard input and output: a request in, a reply out, in turn. Started by `process.py` as

    python -m mmedge.bench.worker '{"kind": "bundle", "place": "bundle-int8", "threads": null}' CPUS

The first line it writes says how it opened: engine, load time, size. Then `{"examples": […], "ask": "answer", "batch": 1}` is
timed and answered, `{"examples": […], "cot": {…}}` judged, `{"serve": {…}}` answers questions as they arrive, and
`{"memory": true}` tells the memory of the process. Times are taken around the call alone: reading requests and writing replies
costs no sample anything. Nothing heavy is imported before the process is bound to its processors: threads that a library starts
while it is imported would keep all of them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

from mmedge.errors import MmedgeError
from mmedge.load import peak_memory, resident_memory
from mmedge.machine import use_cores

if TYPE_CHECKING:
    from mmedge.bench.asker import Asker
    from mmedge.engines.entry import OpenedVariant
    from mmedge.engines.variants import VariantSpec


def _verdict(request: dict[str, Any], opened: OpenedVariant) -> dict[str, Any]:
    from mmedge.tasks.base import ChainOfThought

    (example,) = _examples(request)
    cot = ChainOfThought(request["cot"]["rationale"], request["cot"]["pseudo_label"])
    return {"verdict": opened.speaker.judge([example], [cot])[0].verdict}


def _examples(request: dict[str, Any]) -> list[Any]:
    from mmedge.tasks.base import Example, Turn

    return [
        Example(one["id"], one["question"], None, tuple(one["choices"]), tuple(Turn(*turn) for turn in one.get("turns", ())))
        for one in request["examples"]
    ]


def _served(request: dict[str, Any], asker: Asker) -> dict[str, Any]:
    """Answer questions as they arrive, one at a time and in order, those that must wait included.

    Returns:
        Seconds from each arrival to its answer, and how long all took.
    """
    examples, wish = _examples(request), request["serve"]
    latencies: list[float] = []
    started = time.perf_counter()
    for number, arrival in enumerate(wish["arrivals"]):
        left = started + arrival - time.perf_counter()
        if left > 0:
            time.sleep(left)
        asker.ask([examples[number % len(examples)]], request["ask"], 1)
        latencies.append(time.perf_counter() - started - arrival)
        if latencies[-1] > wish["give_up_seconds"]:
            break  # the queue only grows
    return {"latencies": latencies, "seconds": time.perf_counter() - started}


def _reply(request: dict[str, Any], opened: OpenedVariant, asker: Asker) -> dict[str, Any]:
    if "memory" in request:
        return {"peak_memory_bytes": peak_memory(), "resident_memory_bytes": resident_memory()}
    if "cot" in request:
        try:
            return _verdict(request, opened)
        except MmedgeError as error:  # some peers give no logits; their answers are worth measuring all the same
            return {"verdict": None, "why": error.what}
    if "serve" in request:
        return _served(request, asker)
    return asdict(asker.ask(_examples(request), request["ask"], request["batch"]))


def serve(
    spec: VariantSpec,
    requests: TextIO,
    replies: TextIO,
    begun: float | None = None,
    make_asker: Callable[[OpenedVariant], Asker] | None = None,
) -> None:
    """Answer requests until the input ends.

    Args:
        spec: The variant.
        requests: Where requests come from, one a line.
        replies: Where replies go.
        begun: When loading began, by `time.perf_counter`; by default now.
        make_asker: What asks the opened variant; by default `Asker`.
    """
    begun = time.perf_counter() if begun is None else begun

    def say(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value) + "\n")
        replies.flush()

    from mmedge.bench.asker import Asker
    from mmedge.engines.variants import open_variant

    try:
        opened = open_variant(spec)
    except MmedgeError as error:
        say({"error": error.what, "hint": error.hint})
        return
    asker = (make_asker or Asker)(opened)
    say(
        {
            "engine": opened.engine_name,
            "precision": opened.precision,
            "threads": opened.threads,
            "device": opened.device,
            "kernels": opened.kernels,
            "task": opened.task,
            "load_seconds": time.perf_counter() - begun,
            "bytes_on_disk": opened.bytes_on_disk,
            "work": opened.work,
            "asks": asker.asks(),
        }
    )
    for line in requests:
        try:
            say(_reply(json.loads(line), opened, asker))
        except MmedgeError as error:
            say({"error": error.what, "hint": error.hint})
        except MemoryError:
            say({"error": "it ran out of memory", "hint": ""})


def main(make_asker: Callable[[OpenedVariant], Asker] | None = None) -> None:
    """Start from the command line; standard output carries replies only."""
    begun = time.perf_counter()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to standard error
    processors = int(sys.argv[2])
    if processors:
        try:
            use_cores(processors)
        except MmedgeError as error:
            replies.write(json.dumps({"error": error.what, "hint": error.hint}) + "\n")
            replies.flush()
            return
    from mmedge.engines.variants import VariantSpec

    serve(VariantSpec.from_json(json.loads(sys.argv[1])), sys.stdin, replies, begun, make_asker)


if __name__ == "__main__":
    main()
