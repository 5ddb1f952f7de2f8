"""Function calls learned from SNIPS: what labels, chains of thought and evaluations are each worth, and the time against llama.cpp.

    python benchmarks/structured.py train --rows labels_700      hours of a CPU for all rows; continues after a kill
    python benchmarks/structured.py measure                      export, bench and evaluate the rows that are trained
    python benchmarks/structured.py labels                       time of an answer, by the number of labels
    python benchmarks/structured.py peer --llama PROGRAM         time of an answer, against llama-server

Needs MMEDGE_DATA and `make weights`. Every row is recipes/snips.yaml with other settings (`ROWS`), of the same student
(SmolLM2-135M). The test requests are asked once, at the end.

    labels_700        human labels of 700 requests
    cots_700          two chains of thought each of the same requests, and no human label
    evaluations_700   the same with evaluations: the setting that recipes/ablation-evaluation.yaml found best
    filter_700        chains of thought that the teacher judged correct, and nothing else of its evaluations
    exchanged_700     evaluations_700 with its evaluations exchanged at random (the filter still reads the true ones)
    labels_4200       human labels of 3,500 more requests
    cots_4200         chains of thought of 700 requests, human labels of all 4,200
    json_700          human labels of 700 requests, in full JSON
    json_4200         human labels of 4,200 requests, in full JSON
    frames            which of 164 frames (a function and the names of its arguments) a request is: one label of many
    frames_short      the same with `spelling: short`: a label is two letters
    five_functions    human labels of 500 requests; what calls the two other functions is out of scope, and never seen in training

`labels` compares the time of an answer of `frames` and `frames_short` among their 164 labels and among the ten most frequent
ones, and both with each other. `labels --weights ROW` does so with the weights of another row, which has learned no labels: what is
written is as good as random, but as long as a label.
`measure` writes structured.json and structured.md. `peer` asks test requests in turn: the bundle of labels_4200 (int8), and the
student of json_4200 as GGUF (Q8_0) behind llama-server, with the schema as its grammar and not in the prompt (`--few`: labels_700
and json_700).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import FILE_NAME as EVALUATION
from mmedge.tasks.evaluation_set import read_evaluation_set, read_example
from mmedge.tasks.forms.choice import LabelForm

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "snips.yaml"
PRECISIONS = ("fp32", "int8", "int4")
_CHOSEN = "{inline_verdict: {share: 0.5}, evaluator: {share: 0.5, evaluations: 0.3}}"
_LABELS = ["teacher=null", "method={labels: human, rationales: false, self_evaluation: false}"]
_COTS = "labels: {labels}, keep: {keep}, alpha: 0.8, self_evaluation: false, cots_per_visit: 1"
_JUDGED = _COTS.format(labels="pseudo", keep="judged_correct")
_ALL = ["task.train_file={place}/all.jsonl", "split={validation: 160, verdict_test: 0}"]
_FRAMES = [
    *_LABELS,
    "task.train_file={place}/of_frames/train.jsonl",
    "task.test_files={test: {place}/of_frames/test.jsonl}",
    "generation.max_answer_tokens=48",
]
LEAST_OF_A_FRAME = 5  # requests
_FEW, _MANY = 220, 640  # steps of 16 questions

ROWS: dict[str, tuple[int, list[str]]] = {
    "labels_700": (_FEW, _LABELS),
    "cots_700": (_FEW, ["method={" + _COTS.format(labels="pseudo", keep="all") + "}"]),
    "evaluations_700": (_FEW, ["method={" + _JUDGED + ", objectives: " + _CHOSEN + "}"]),
    "filter_700": (_FEW, ["method={" + _JUDGED + "}"]),
    "exchanged_700": (_FEW, ["method={" + _JUDGED + ", shuffle_evaluations: true, objectives: " + _CHOSEN + "}"]),
    "labels_4200": (_MANY, [*_LABELS, *_ALL]),
    "cots_4200": (_MANY, ["method={" + _COTS.format(labels="human", keep="all") + "}", *_ALL]),
    "json_700": (_FEW, [*_LABELS, "task.form.spelling=json"]),
    "json_4200": (_MANY, [*_LABELS, *_ALL, "task.form.spelling=json"]),
    "frames": (_FEW, [*_FRAMES, "task.form=FRAMES"]),
    "frames_short": (_FEW, [*_FRAMES, "task.form=SHORT"]),
    "five_functions": (
        110,
        [
            *_LABELS,
            "task.train_file={place}/of_five/train.jsonl",
            "task.test_files={test: {place}/of_five/test.jsonl}",
            "task.form.file={place}/of_five/tools.json",
        ],
    ),
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
    form = {"kind": "label", "labels": list(frames(LEAST_OF_A_FRAME))}
    forms = {"FRAMES": json.dumps(form), "SHORT": json.dumps(form | {"spelling": "short"})}
    changes = [one.replace("{place}", str(place)) for one in changes]
    changes = [name + "=" + forms.get(value, value) for name, _, value in (one.partition("=") for one in changes)]
    everything = ["split={validation: 80, verdict_test: 0}", stage, *changes, *more]
    mmedge("distill", RECIPE, "--out", place / row, *(part for one in everything for part in ("--set", one)))


def write_all(place: Path) -> None:
    """Write the 700 requests with chains of thought and the 3,500 with labels alone into one file."""
    write_text(place / "all.jsonl", "".join((data() / f"{name}.jsonl").read_text() for name in ("train", "unannotated")))


def write_five(place: Path) -> None:
    """Write the requests that call five of the seven functions, drawn at random; test requests of the others are out of scope."""
    tools = json.loads((data() / "tools.json").read_text())
    named = {entry.get("function", entry)["name"]: entry for entry in tools}
    outside = set(random.Random(0).sample(sorted(named), 2))
    write_text(
        place / "of_five" / "tools.json", json.dumps([entry for name, entry in named.items() if name not in outside], indent=1)
    )
    for name in ("train", "test"):
        records = [record for _, record in iterate_jsonl(data() / f"{name}.jsonl")]
        kept = [record for record in records if record["label"]["name"] not in outside]
        others = [one for one in records if one["label"]["name"] in outside] if name == "test" else []
        strange = [{"id": one["id"], "question": one["question"], "out_of_scope": True} for one in others]
        write_text(place / "of_five" / f"{name}.jsonl", "".join(json.dumps(one) + "\n" for one in (*kept, *strange)))


def frame(label: dict[str, Any]) -> str:
    """Return a call's function and the names of its arguments."""
    return " ".join([label["name"], *sorted(label["arguments"])])


def frames(least: int) -> dict[str, int]:
    """Return the frames of the 4,200 training requests that occur at least so often, the most frequent first."""
    records = [record for name in ("train", "unannotated") for _, record in iterate_jsonl(data() / f"{name}.jsonl")]
    counts = Counter(frame(record["label"]) for record in records)
    return {name: count for name, count in counts.most_common() if count >= least}


def write_frames(place: Path) -> None:
    """Write the requests of frequent frames, with the frame as the label; test requests of other frames are out of scope."""
    known = frames(LEAST_OF_A_FRAME)
    for target, sources in (("train", ("train", "unannotated")), ("test", ("test",))):
        lines = []
        for record in (record for name in sources for _, record in iterate_jsonl(data() / f"{name}.jsonl")):
            name = frame(record["label"])
            said = {"id": record["id"], "question": record["question"]}
            if name in known:
                lines.append(json.dumps(said | {"label": name}))
            elif target == "test":
                lines.append(json.dumps(said | {"out_of_scope": True}))
        write_text(place / "of_frames" / f"{target}.jsonl", "".join(line + "\n" for line in lines))


# ------------------------------------------------------------------------------------------------- measuring


def measure(row: str, place: Path, precisions: Sequence[str]) -> dict[str, Any]:
    """Export a row's student, and measure its bundles on the test requests."""
    run = place / row
    for precision in precisions:
        if not (run / f"bundle-{precision}").is_dir():
            mmedge("export", run, f"--{precision}")
    bundles = [run / f"bundle-{precision}" for precision in precisions]
    mmedge("bench", *bundles, "--verdicts", "0", "--timed", "60", "--rounds", "3", "--out", run / "measured")
    mmedge("evaluate", run / "bundle-int8", "--samples", "0", "--out", run / "measured")
    report = BenchReport.read(run / "measured" / "bench.json")
    form = Student.load(bundles[0]).bundle.form
    labels = {one.id: one.label for one in read_evaluation_set(run / EVALUATION).questions["test"] if one.label is not None}
    variants = {one.precision: _of_variant(one, form, labels) for one in report.measured}
    evaluated = EvaluationReport.model_validate_json((run / "measured" / "evaluate-int8.json").read_text())
    judged, outside = evaluated.splits["test"], evaluated.out_of_scope
    found = {"row": row, "variants": variants, "confidence": judged.model_dump(mode="json", include={"signals", "fields"})}
    return found | ({"out_of_scope": outside.model_dump(mode="json")} if outside is not None else {})


def _test(form: Any) -> list[Any]:
    path = data() / "test.jsonl"
    return [read_example(record, path, number, form) for number, record in iterate_jsonl(path)]


def _of_variant(found: MeasuredVariant, form: Any, labels: dict[str, str]) -> dict[str, Any]:
    """Return what a variant's answers and times come to."""
    answers = dict(zip(found.samples.ids["test"], found.samples.answers["test"], strict=True))
    pairs = [(form.canonical(answer) or answer, labels[name]) for name, answer in answers.items() if name in labels]
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
        ("evaluations_700", "labels_700"),
        ("evaluations_700", "filter_700"),
        ("evaluations_700", "exchanged_700"),
        ("cots_4200", "labels_4200"),
        ("labels_4200", "labels_700"),
        ("json_700", "labels_700"),
        ("json_4200", "labels_4200"),
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
    strange = []
    for one in found:
        if "out_of_scope" in one:
            said = one["out_of_scope"]
            area = next(iter(said["auroc"].values()))
            strange.append([one["row"], said["questions"], said["in_scope"], number(area and area["value"], 3)])
    outside = [Table("Out of scope, int8", ["row", "out of scope", "in scope", "AUROC"], strange)] if strange else []
    return [
        *outside,
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


def peer(place: Path, rows: tuple[str, str], program: str, engine: str) -> dict[str, Any]:
    """Ask a bundle and llama.cpp's server the test requests in turn, and return times and accuracies.

    Args:
        place: The folder of the rows' runs.
        rows: Whose bundle is asked, and whose student llama.cpp asks.
        program: llama-server.
        engine: The bundle's engine.
    """
    from mmedge.export.gguf import write_gguf

    compact, full = rows
    gguf = place / full / "q8_0.gguf"
    if not gguf.is_file():
        write_gguf(place / full / "student", gguf)
    os.environ["MMEDGE_ENGINE"] = engine
    ours, theirs = (Student.load(place / row / "bundle-int8") for row in rows)
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
        "rows": [compact, full],
        "engine": engine,
        "ratio": ratio.to_json(),
        "ms": {name: 1000 * percentile(times, 50) for name, times in seconds.items()},
        "exact": {name: proportion(found).to_json() for name, found in right.items()},
        "machine": machine(),
    }


def in_turn(asked: dict[str, Student], examples: Sequence[Example]) -> dict[str, Any]:
    """Ask two students the same requests in turn, and return the times, their ratio, and how many answers are right.

    Args:
        asked: The students by name; the time of the second is what the first's is divided by.
        examples: Requests with the label's own text as the label.
    """
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    right: dict[str, list[bool]] = {name: [] for name in asked}
    for place in range(-5, len(examples)):  # the first five warm up
        for name, one in asked.items():
            started = time.perf_counter()
            answer = one.answer(examples[place], constrained=True)
            taken = time.perf_counter() - started
            if place >= 0:
                seconds[name].append(taken)
                right[name].append(one.bundle.form.agrees(answer.text, examples[place].label or ""))
    first, base = (np.array(found) for found in seconds.values())
    ratio = bootstrap(lambda places: float(first[places].sum() / base[places].sum()), len(first))
    assert ratio is not None
    return {
        "ratio": ratio.to_json(),
        "ms": {name: 1000 * percentile(times, 50) for name, times in seconds.items()},
        "right": {name: proportion(found).to_json() for name, found in right.items()},
    }


def labelled(folder: Path, names: Sequence[str]) -> tuple[Student, list[Example]]:
    """Return a bundle's student and the test requests whose label is one of some, with the label's own text."""
    student = Student.load(folder)
    form = student.bundle.form
    asked = read_evaluation_set(folder.parent / EVALUATION).questions["test"]
    examples = [replace(one, label=form.readable(one.label)) for one in asked if one.label is not None]
    return student, [one for one in examples if one.label in names]


def many_labels(place: Path, few: int = 10) -> dict[str, Any]:
    """Compare times among all labels and among the most frequent ones alone, and whole labels with short ones."""
    names = list(frames(LEAST_OF_A_FRAME))
    folders = {row: folder for row in ("frames", "frames_short") if (folder := place / row / "bundle-int8").is_dir()}
    found: dict[str, Any] = {"machine": machine()}
    for row, folder in folders.items():
        student, examples = labelled(folder, names[:few])
        form = student.bundle.form
        assert isinstance(form, LabelForm)
        found[row] = in_turn(
            {f"{count} labels": choosing(student, names[:count], form.spelling) for count in (len(names), few)}, examples
        )
    if len(folders) == 2:
        whole, examples = labelled(folders["frames"], names)
        found["short against whole"] = in_turn({"short": Student.load(folders["frames_short"]), "whole": whole}, examples)
    return found


def choosing(student: Student, labels: Sequence[str], spelling: str) -> Student:
    """Return a student of the same weights whose answers are labels."""
    form = LabelForm(tuple(labels), spelling)
    return Student(replace(student.bundle, form=form), replace(student.speaker, form=form))


def untrained_labels(folder: Path, few: int = 10, most: int = 200) -> dict[str, Any]:
    """Compare the same times with weights that have learned no labels."""
    names = list(frames(LEAST_OF_A_FRAME))
    student = Student.load(folder)
    examples = [replace(one, label=names[0]) for one in read_evaluation_set(folder.parent / EVALUATION).questions["test"][:most]]
    asked = {
        f"{count} labels, {spelling}": choosing(student, names[:count], spelling)
        for count in (len(names), few)
        for spelling in ("short", "whole")
    }
    many, ten = (f"{count} labels, " for count in (len(names), few))
    pairs = ((many + "short", ten + "short"), (many + "whole", ten + "whole"), (many + "short", many + "whole"))
    found = {f"{one} against {base}": in_turn({one: asked[one], base: asked[base]}, examples) for one, base in pairs}
    for one in found.values():
        del one["right"]  # by chance alone
    return {"machine": machine(), **found}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("verb", choices=("train", "measure", "labels", "peer"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--place", type=Path, default=Path("runs/structured"), help="folder of the rows' runs")
    parser.add_argument("--set", action="append", default=[], help="further settings of every row's recipe")
    parser.add_argument(
        "--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="what measure exports, int8 among them"
    )
    parser.add_argument("--llama", help="path of llama-server")
    parser.add_argument("--engine", choices=("native", "onnx"), default="native", help="engine of the bundle that the peer meets")
    parser.add_argument("--weights", choices=ROWS, metavar="ROW", help="labels is measured with the weights of this row")
    parser.add_argument("--few", action="store_true", help="the peer meets the students of 700 labels")
    given = parser.parse_args()
    if given.verb == "train":
        write_all(given.place)
        write_five(given.place)
        write_frames(given.place)
        for row in given.rows:
            train(row, given.place, given.set)
        return
    if given.verb == "labels":
        untrained = given.weights and given.place / given.weights / "bundle-int8"
        compared = untrained_labels(untrained) if untrained else many_labels(given.place)
        write_json(given.place / "labels.json", compared)
        print(json.dumps(compared, indent=1))
        return
    if given.verb == "peer":
        if not given.llama or not Path(given.llama).is_file():
            parser.error("peer needs --llama, the path of llama-server")
        pair = ("labels_700", "json_700") if given.few else ("labels_4200", "json_4200")
        if missing := [row for row in pair if not (given.place / row / "bundle-int8").is_dir()]:
            raise SystemExit(f"{given.place / missing[0]} has no bundle-int8; train and measure that row first")
        found = peer(given.place, pair, given.llama, given.engine)
        write_json(given.place / "peer.json", found)
        print(json.dumps(found, indent=1))
        return
    rows = [measure(row, given.place, given.precisions) for row in given.rows if (given.place / row / "student").is_dir()]
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
