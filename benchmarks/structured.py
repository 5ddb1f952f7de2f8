"""Function calls learned from SNIPS: what labels, chains of thought and evaluations are each worth, and the time against llama.cpp.

    python benchmarks/structured.py train --rows labels_700      hours of a CPU for all rows; continues after a kill
    python benchmarks/structured.py measure                      export, bench and evaluate the rows that are trained
    python benchmarks/structured.py peer --llama PROGRAM         time of an answer, against llama-server

Needs MMEDGE_DATA and `make weights`. Every row is recipes/snips.yaml with other settings (`ROWS`), of the same student
(SmolLM2-135M). The test requests are asked once, at the end.

    labels_700        human labels of 700 requests
    cots_700          two chains of thought each of the same requests, and no human label
    evaluations_700   the same with evaluations: the setting that recipes/ablation-evaluation.yaml found best
    labels_4200       human labels of 3,500 more requests
    cots_4200         chains of thought of 700 requests, human labels of all 4,200
    json_4200         human labels of 4,200 requests, in full JSON

`measure` writes structured.json and structured.md. `peer` asks test requests in turn: the bundle of labels_4200 (int8), and the
student of json_4200 as GGUF (Q8_0) behind llama-server, with the schema as its grammar and not in the prompt.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmedge import Student
from mmedge.bench.evaluation_results import EvaluationReport
from mmedge.bench.results import BenchReport, MeasuredVariant
from mmedge.machine import machine
from mmedge.reports.formats import number
from mmedge.reports.tables import Table
from mmedge.statistics import bootstrap, paired_difference, percentile, proportion
from mmedge.storage import iterate_jsonl, write_json, write_text
from mmedge.tasks.evaluation_set import read_example

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "snips.yaml"
PRECISIONS = ("fp32", "int8", "int4")
_CHOSEN = "{inline_verdict: {share: 0.5}, evaluator: {share: 0.5, evaluations: 0.3}}"
_LABELS = ["teacher=null", "method={labels: human, rationales: false, self_evaluation: false}"]
_COTS = "labels: {labels}, keep: {keep}, alpha: 0.8, self_evaluation: false, cots_per_visit: 1"
_ALL = ["task.train_file={place}/all.jsonl", "split={validation: 160, verdict_test: 0}"]
_FEW, _MANY = 220, 640  # steps of 16 questions

ROWS: dict[str, tuple[int, list[str]]] = {
    "labels_700": (_FEW, _LABELS),
    "cots_700": (_FEW, ["method={" + _COTS.format(labels="pseudo", keep="all") + "}"]),
    "evaluations_700": (
        _FEW,
        ["method={" + _COTS.format(labels="pseudo", keep="judged_correct") + ", objectives: " + _CHOSEN + "}"],
    ),
    "labels_4200": (_MANY, [*_LABELS, *_ALL]),
    "cots_4200": (_MANY, ["method={" + _COTS.format(labels="human", keep="all") + "}", *_ALL]),
    "json_4200": (_MANY, [*_LABELS, *_ALL, "task.form.spelling=json"]),
}  # fmt: skip


def data() -> Path:
    """Return the folder of SNIPS's files.

    Raises:
        SystemExit: It is not there.
    """
    found = Path(os.environ.get("MMEDGE_DATA", "")) / "snips"
    if not (found / "tools.json").is_file():
        raise SystemExit(f"no tools.json in {found}: set MMEDGE_DATA to the folder that holds snips (docs/data.md)")
    return found


def mmedge(*arguments: str | Path) -> None:
    """Run a command of mmedge's; it shows its own progress.

    Raises:
        SystemExit: It failed, and has said why.
    """
    if subprocess.run([sys.executable, "-m", "mmedge", *map(str, arguments)]).returncode:
        raise SystemExit(f"mmedge {' '.join(map(str, arguments[:2]))} failed; the same command continues")


# ------------------------------------------------------------------------------------------------- training


def train(row: str, place: Path, more: Sequence[str]) -> None:
    """Train a row's student, or go on with it."""
    steps, changes = ROWS[row]
    stage = f"training.stage2={{max_steps: {steps}, batch_size: 16, learning_rate: 3.0e-4, evaluate_every: {steps // 4}}}"
    everything = ["split={validation: 80, verdict_test: 0}", stage, *(one.replace("{place}", str(place)) for one in changes), *more]
    mmedge("distill", RECIPE, "--out", place / row, *(part for one in everything for part in ("--set", one)))


def write_all(place: Path) -> None:
    """Write the 700 requests with chains of thought and the 3,500 with labels alone into one file."""
    write_text(place / "all.jsonl", "".join((data() / f"{name}.jsonl").read_text() for name in ("train", "unannotated")))


# ------------------------------------------------------------------------------------------------- measuring


def measure(row: str, place: Path) -> dict[str, Any]:
    """Export a row's student, and measure its bundles on the test requests."""
    run = place / row
    for precision in PRECISIONS:
        if not (run / f"bundle-{precision}").is_dir():
            mmedge("export", run, f"--{precision}")
    bundles = [run / f"bundle-{precision}" for precision in PRECISIONS]
    mmedge("bench", *bundles, "--verdicts", "0", "--timed", "60", "--rounds", "3", "--out", run / "measured")
    mmedge("evaluate", run / "bundle-int8", "--samples", "0", "--out", run / "measured")
    report = BenchReport.read(run / "measured" / "bench.json")
    form = Student.load(bundles[0]).bundle.form
    labels = {one.id: one.label or "" for one in _test(form)}
    variants = {one.precision: _of_variant(one, form, labels) for one in report.measured}
    judged = EvaluationReport.model_validate_json((run / "measured" / "evaluate-int8.json").read_text()).splits["test"]
    return {"row": row, "variants": variants, "confidence": judged.model_dump(mode="json", include={"signals", "fields"})}


def _test(form: Any) -> list[Any]:
    path = data() / "test.jsonl"
    return [read_example(record, path, number, form) for number, record in iterate_jsonl(path)]


def _of_variant(found: MeasuredVariant, form: Any, labels: dict[str, str]) -> dict[str, Any]:
    """Return what a variant's answers and times come to."""
    answers = dict(zip(found.samples.ids["test"], found.samples.answers["test"], strict=True))
    pairs = [(answers[name], labels[name]) for name in answers]
    functions = [form.kind_of(answer) == form.kind_of(label) for answer, label in pairs]
    assert found.latency_ms is not None
    return {
        "exact": found.answer_accuracy["test"].model_dump(mode="json"),
        "right": found.samples.correct["test"],
        "functions": proportion(functions).to_json(),
        "arguments_f1": arguments_f1(form, pairs),
        "valid": found.answer_scores["test"].valid,
        "p50_ms": found.latency_ms.p50,
        "p50_interval_95": found.latency_ms.p50_interval_95,
        "bytes_on_disk": found.bytes_on_disk,
        "peak_memory_bytes": found.peak_memory_bytes,
    }


def arguments_f1(form: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Return the F1 of arguments over all answers and their labels; those of another function are all wrong."""
    right = written = wanted = 0
    for answer, label in pairs:
        expected = {name for name in form.fields(form.value(label)) if name != "name"}
        try:
            found = {name for name in form.fields(form.value(answer)) if name != "name"}
        except ValueError:
            found = set()
        same = form.fields_right(answer, label) if found else {}
        right += sum(same.get(name, False) for name in found & expected)
        written, wanted = written + len(found), wanted + len(expected)
    return 2 * right / (written + wanted)


def tables(found: Sequence[dict[str, Any]]) -> list[Table]:
    """Return the rows' answers and times, their differences, and what their confidence is worth."""
    lines = [
        [
            one["row"], precision, _share(of["exact"]), _share(of["functions"]), number(of["arguments_f1"], 3),
            number(of["p50_ms"]), number(of["bytes_on_disk"] / 1e6, 0), number(of["peak_memory_bytes"] / 1e6, 0),
        ]
        for one in found
        for precision, of in one["variants"].items()
    ]  # fmt: skip
    heads = [
        "row",
        "precision",
        "exactly right calls",
        "right functions",
        "F1 of arguments",
        "ms an answer",
        "MB on disk",
        "MB peak",
    ]
    right = {one["row"]: one["variants"]["int8"]["right"] for one in found}
    pairs = [
        ("cots_700", "labels_700"),
        ("evaluations_700", "cots_700"),
        ("cots_4200", "labels_4200"),
        ("labels_4200", "labels_700"),
    ]
    differences = []
    for new, base in pairs:
        if new in right and base in right:
            by = paired_difference([[float(one) for one in right[new]]], [[float(one) for one in right[base]]])
            differences.append([f"{new} against {base}", f"{100 * by.value:+.1f} [{100 * by.low:+.1f}, {100 * by.high:+.1f}]"])
    confidences = []
    for one in found:
        name, signal = next(iter(one["confidence"]["signals"].items()))
        fields, gain = one["confidence"]["fields"], signal["gain_at"].get("0.7")
        auroc = signal["auroc"]
        confidences.append(
            [
                one["row"],
                name,
                number(auroc and auroc["value"], 3),
                number(fields and fields["auroc"] and fields["auroc"]["value"], 3),
                "" if gain is None else f"{100 * gain['value']:+.1f}",
            ]
        )
    return [
        Table("Test requests", heads, lines),
        Table("Exactly right calls, int8: differences in points, paired over requests", ["rows", "difference"], differences),
        Table(
            "Confidence, int8",
            ["row", "signal", "AUROC, whole calls", "AUROC, fields", "points gained by the most confident 70 %"],
            confidences,
        ),
    ]


def _share(found: dict[str, Any]) -> str:
    low, high = found["interval_95"]
    return f"{100 * found['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


# ------------------------------------------------------------------------------------------------- the peer


def call_schema(tools: Path) -> dict[str, Any]:
    """Return the JSON Schema of a call of one of the functions."""
    functions = [entry.get("function", entry) for entry in json.loads(tools.read_text())]
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": one["name"]}, "arguments": one["parameters"]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for one in functions
    ]
    return {"anyOf": calls}


@contextmanager
def llama_server(program: str, gguf: Path, port: int = 18177) -> Iterator[http.client.HTTPConnection]:
    """Run llama.cpp's server on a student, with one slot and all cores, and give a connection to it."""
    command = [program, "-m", str(gguf), "--port", str(port), "-np", "1", "-c", "1024", "-t", str(os.cpu_count()), "--no-webui"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().read() and server.poll() is None:
                    break
            except OSError:
                pass
            if time.monotonic() > deadline or server.poll() is not None:
                raise SystemExit(f"{program} did not start; run it by hand to see why")
            time.sleep(0.2)
        time.sleep(1)
        yield http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    finally:
        server.terminate()
        server.wait()


def peer(place: Path, program: str, engine: str) -> dict[str, Any]:
    """Ask a bundle and llama.cpp's server the test requests in turn, and return times and accuracies."""
    from mmedge.export.gguf import write_gguf

    gguf = place / "json_4200" / "q8_0.gguf"
    if not gguf.is_file():
        write_gguf(place / "json_4200" / "student", gguf)
    os.environ["MMEDGE_ENGINE"] = engine
    ours, theirs = Student.load(place / "labels_4200" / "bundle-int8"), Student.load(place / "json_4200" / "bundle-int8")
    schema, examples = call_schema(data() / "tools.json"), _test(ours.bundle.form)
    seconds: dict[str, list[float]] = {"mmedge": [], "llama.cpp": []}
    right: dict[str, list[bool]] = {"mmedge": [], "llama.cpp": []}
    with llama_server(program, gguf) as connection:
        for example in examples:
            prompt = theirs.speaker.prompt("predict", theirs.speaker.encoder.prompts.reasoning_context(example))
            body = {
                "prompt": [*prompt.context, *prompt.begun],
                "n_predict": theirs.speaker.max_answer_tokens,
                "temperature": 0,
                "json_schema": schema,
                "cache_prompt": True,
            }
            started = time.perf_counter()
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            said = json.loads(connection.getresponse().read())
            seconds["llama.cpp"].append(time.perf_counter() - started)
            started = time.perf_counter()
            answer = ours.answer(example)
            seconds["mmedge"].append(time.perf_counter() - started)
            right["llama.cpp"].append(theirs.bundle.form.agrees(said["content"], example.label or ""))
            right["mmedge"].append(ours.bundle.form.agrees(answer.text, example.label or ""))
    for times in seconds.values():
        del times[:5]  # the first answers warm up
    new, base = np.array(seconds["mmedge"]), np.array(seconds["llama.cpp"])
    ratio = bootstrap(lambda places: float(new[places].sum() / base[places].sum()), len(new))
    assert ratio is not None
    return {
        "engine": engine,
        "ratio": ratio.to_json(),
        "ms": {name: 1000 * percentile(times, 50) for name, times in seconds.items()},
        "exact": {name: proportion(found).to_json() for name, found in right.items()},
        "machine": machine(),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("train", "measure", "peer"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--place", type=Path, default=Path("runs/structured"), help="folder of the rows' runs")
    parser.add_argument("--set", action="append", default=[], help="further settings of every row's recipe")
    parser.add_argument("--llama", help="path of llama-server")
    parser.add_argument("--engine", choices=("native", "onnx"), default="native", help="engine of the bundle that the peer meets")
    given = parser.parse_args()
    if given.verb == "train":
        write_all(given.place)
        for row in given.rows:
            train(row, given.place, given.set)
        return
    if given.verb == "peer":
        if not given.llama or not Path(given.llama).is_file():
            parser.error("peer needs --llama, the path of llama-server")
        if missing := [row for row in ("labels_4200", "json_4200") if not (given.place / row / "bundle-int8").is_dir()]:
            raise SystemExit(f"{given.place / missing[0]} has no bundle-int8; train and measure that row first")
        found = peer(given.place, given.llama, given.engine)
        write_json(given.place / "peer.json", found)
        print(json.dumps(found, indent=1))
        return
    rows = [measure(row, given.place) for row in given.rows if (given.place / row / "student").is_dir()]
    if not rows:
        raise SystemExit(
            f"no row is trained in {given.place}; train some first: python benchmarks/structured.py train --rows labels_700"
        )
    write_json(given.place / "structured.json", {"machine": machine(), "rows": rows})
    text = "\n\n".join(table.markdown() for table in tables(rows))
    write_text(given.place / "structured.md", text)
    print(text)


if __name__ == "__main__":
    main()
