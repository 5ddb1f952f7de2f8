"""Bench: scenarios, limits, rows that say why they are missing, and a report that is as its schema says."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mmedge.bench.bench import bench
from mmedge.bench.energy import EnergyCounters, EnergyMeter
from mmedge.bench.process import Variant
from mmedge.bench.report import page, pareto_front, tables
from mmedge.bench.results import BenchReport
from mmedge.bench.scenarios import poisson_arrivals, spread
from mmedge.bench.settings import BenchSettings, parse_counts, parse_seconds, parse_share, parse_size
from mmedge.bench.watch import OTHER_LOAD, Watch
from mmedge.engines.variants import VariantSpec, find_variants
from mmedge.errors import MmedgeError
from mmedge.load import processor_seconds
from mmedge.progress import Progress
from mmedge.storage import Journal
from tests.conftest import REPOSITORY, Finished, engine_of_int8, is_one_line_error, killed_when_lines_are_there, mmedge

SCHEMA = Draft202012Validator(json.loads((REPOSITORY / "mmedge" / "bench" / "schema.json").read_text()))
EXAMPLE = {"id": "a", "question": "Mara has 6 boxes with 8 plums in each. How many plums are there?", "choices": []}
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def everything(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Finished, Path]:
    """All scenarios, on two bundles, on a student that does not fit, and on a place where there is nothing."""
    out = tmp_path_factory.mktemp("everything")
    places = (tiny_run / "bundle-fp32", tiny_run / "bundle-int8", tiny_run / "student", tiny_run / "nothing")
    much = ("--questions", "3", "--verdicts", "2", "--rounds", "2", "--batches", "1,4", "--server-seconds", "0.2")
    done = mmedge(
        *("bench", *places, "--scenarios", "single,offline,server,accuracy", "--ask", "confidence", "--out", out, *much),
        *("--memory-limit", "200M", "--latency-bound", "100ms", "--cpus", "1"),
    )
    assert done.code == 0, done.err
    return done, out


@pytest.fixture(scope="module")
def report(everything: tuple[Finished, Path]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((everything[1] / "bench.json").read_text())
    return found


def test_a_report_is_as_its_schema_says(report: dict[str, Any]) -> None:
    SCHEMA.check_schema(SCHEMA.schema)
    SCHEMA.validate(report)
    for change in (
        lambda r: r.pop("watch"),
        lambda r: r.update(ask="all"),
        lambda r: r["variants"][0]["latency_ms"].pop("p99"),
        lambda r: r["variants"][0]["samples"]["seconds"].append("1"),
        lambda r: r["variants"][3].pop("problem"),
    ):
        broken = copy.deepcopy(report)
        change(broken)  # type: ignore[no-untyped-call]
        assert not SCHEMA.is_valid(broken)
        with pytest.raises(MmedgeError, match="is not a complete report"):
            BenchReport.from_json(broken, "it")


def test_a_report_is_read_as_it_was_written(report: dict[str, Any]) -> None:
    read = BenchReport.from_json(report, "it")
    assert read.to_json() == report
    assert [variant.shown for variant in read.measured] == ["onnxruntime fp32", f"{engine_of_int8()} int8"]
    assert len(read.failed) == 2 and len(tables(read)) >= 4
    for variant in report["variants"]:
        del variant["label"]  # as in a report of the version before
    assert [variant.shown for variant in BenchReport.from_json(report, "it").measured] == [
        "onnxruntime fp32",
        f"{engine_of_int8()} int8",
    ]


def test_every_scenario_is_measured_and_every_sample_kept(report: dict[str, Any]) -> None:
    for variant in report["variants"][:2]:
        samples = variant["samples"]
        assert variant["latency_ms"]["count"] == len(samples["seconds"]) == 2 * 6 == len(samples["question"])
        assert len(samples["load_seconds"]) == len(samples["warmup_passes"]) == 2  # each round has a process of its own
        assert samples["round"] == [0] * 6 + [1] * 6 and samples["question"] == [*range(6)] * 2
        assert all(0 < first < whole for first, whole in zip(samples["time_to_first_token"], samples["seconds"], strict=True))
        low, high = variant["latency_ms"]["p50_interval_95"]
        assert low <= variant["latency_ms"]["p50"] <= high
        assert [one["batch"] for one in variant["offline"]] == [1, 4]
        for one in variant["offline"]:
            rates = [block["answers"] / block["seconds"] for block in one["blocks"]]
            assert len(rates) == 4 and min(rates) <= one["answers_per_second"]["value"] <= max(rates)
        probes = variant["server"]["probes"]
        assert all(probe["held"] == (probe["p99_ms"] <= 100 and probe["answered"] == probe["arrivals"]) for probe in probes)
        held = [probe["rate"] for probe in probes if probe["held"]]
        assert variant["server"]["answers_per_second"] == (max(held) if held else None)
        assert variant["confidence"]["questions"] == 6 and 0 <= variant["confidence"]["calibration_error"] <= 1
        assert variant["steady_memory_bytes"] <= variant["peak_memory_bytes"] < 200e6
        assert variant["cpus"] == 1
    assert report["variants"][0]["ratio_to_first"] is None
    low, high = report["variants"][1]["ratio_to_first"]["interval_95"]
    assert low <= report["variants"][1]["ratio_to_first"]["value"] <= high


def test_what_does_not_fit_or_is_not_there_is_a_row_that_says_so(everything: tuple[Finished, Path], report: dict[str, Any]) -> None:
    assert [variant["problem"] for variant in report["variants"][:2]] == [None, None]
    assert report["variants"][2]["problem"] == "does not fit in 200 MB"
    assert report["variants"][3]["problem"].startswith("no such folder: ")
    for text in (everything[0].out, (everything[1] / "bench.md").read_text(), (everything[1] / "bench.html").read_text()):
        assert "does not fit in 200 MB" in text and "no such folder" in text
    assert "Traceback" not in everything[0].err


def test_a_sampled_test_set_is_said_to_be(everything: tuple[Finished, Path], report: dict[str, Any]) -> None:
    assert report["questions"] != report["questions_in_set"]
    assert "3 new_combinations (of 12)" in (everything[1] / "bench.md").read_text()


def test_a_bundle_of_another_task_and_a_missing_gpu_are_rows_too(tiny_run: Path, llama_run: Path, tmp_path: Path) -> None:
    import torch

    places = [str(tiny_run / "bundle-int8"), str(llama_run / "bundle-int8"), f"torch-cuda-fp16:{tiny_run / 'student'}"]
    settings = BenchSettings(questions=1, verdicts=0, warmup_questions=1)
    found = bench(places, settings, Progress(quiet=True)).variants
    assert found[0].problem is None
    assert re.match(r"is for the task \w+, not arithmetic$", found[1].problem or "")
    if not torch.cuda.is_available():
        assert found[2].problem == "no CUDA device found"
    with pytest.raises(MmedgeError, match="none of the 2 variants"):
        bench([*places[1:2], str(tmp_path / "none")], settings, Progress(quiet=True), tiny_run / "evaluation.jsonl")


def test_rounds_are_repeated_until_it_is_precise(tiny_run: Path) -> None:
    def measured(precision: float, most: int) -> tuple[bool, int]:
        settings = BenchSettings(questions=4, verdicts=0, timed=4, precision=precision, max_rounds=most, warmup_questions=1)
        found = bench([tiny_run / "bundle-fp32"], settings, Progress(quiet=True))
        assert found.questions == dict.fromkeys(found.questions, 4)  # accuracy is on all that were wanted
        latency = found.measured[0].latency_ms
        assert latency is not None and found.precision_reached is not None
        return found.precision_reached, latency.rounds

    reached, rounds = measured(0.9, 40)
    assert reached and 3 <= rounds < 40
    assert measured(1e-9, 4) == (False, 4)


class _Clock:
    """A counter of joules that counts seconds."""

    name = "clock"

    def start(self) -> None:
        self._started = time.perf_counter()

    def glance(self) -> None:
        pass

    def stop(self) -> float:
        return time.perf_counter() - self._started


def test_energy_is_measured_for_one_variant_at_a_time(tiny_run: Path) -> None:
    settings = BenchSettings(questions=1, verdicts=0, warmup_questions=1, scenarios=("offline", "accuracy"), batches=(2,))
    places = [tiny_run / "bundle-fp32", tiny_run / "bundle-int8"]
    found = bench(places, settings, Progress(quiet=True), energy=EnergyMeter(EnergyCounters((_Clock(),), ())))
    SCHEMA.validate(found.to_json())
    for variant in found.measured:
        assert variant.latency_ms is None and len(variant.offline[0].blocks) == settings.offline_rounds
        for block in variant.offline[0].blocks:
            assert block.energy is not None
            assert block.seconds < block.energy.joules["clock"] < block.seconds + 5
    page(found).text()


def test_a_bench_that_was_killed_between_rounds_continues_with_the_same_answers(tiny_run: Path, tmp_path: Path) -> None:
    arguments = ["bench", tiny_run / "bundle-int8", "--rounds", "3", "--timed", "5", "--verdicts", "0", "--out", tmp_path]
    killed_when_lines_are_there([*arguments, "-q"], tmp_path / ".bench.journal", 8)
    done = mmedge(*arguments)
    assert done.code == 0, done.err
    kept = re.search(r"continuing: (\d+) answers", done.err)
    assert kept and int(kept[1]) >= 7
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["continued"] == int(kept[1]) and found["variants"][0]["latency_ms"]["count"] == 15
    SCHEMA.validate(found)


def test_threads_are_swept(tiny_run: Path) -> None:
    settings = BenchSettings(questions=2, verdicts=0, warmup_questions=1, sweep_threads=(1, 2))
    found = bench([tiny_run / "bundle-fp32"], settings, Progress(quiet=True)).measured
    assert [variant.label for variant in found] == ["onnxruntime fp32, 1 thread", "onnxruntime fp32, 2 threads"]
    assert [(variant.name, variant.threads) for variant in found] == [("onnxruntime fp32", 1), ("onnxruntime fp32", 2)]
    assert found[0].samples.answers == found[1].samples.answers


def test_a_variant_is_called_the_same_whatever_stands_beside_it(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run / "bundle-fp32", tmp_path / "run" / "bundle-fp32")
    settings = BenchSettings(questions=1, verdicts=0, warmup_questions=1, scenarios=("accuracy",))
    places = [tiny_run / "bundle-fp32", tmp_path / "run" / "bundle-fp32"]
    both = bench(places, settings, Progress(quiet=True)).measured
    alone = bench(places[:1], settings, Progress(quiet=True)).measured
    assert [variant.name for variant in (*both, *alone)] == ["onnxruntime fp32"] * 3
    assert both[0].label != both[1].label and all(variant.label.startswith("onnxruntime fp32 (") for variant in both)
    assert alone[0].label == "onnxruntime fp32"


def test_two_benches_at_once_do_not_share_a_journal(tiny_run: Path, tmp_path: Path) -> None:
    with closing(Journal(tmp_path / ".bench.journal", "key")):
        found = mmedge("bench", tiny_run / "bundle-int8", "--questions", "1", "--out", tmp_path, "-q")
    assert is_one_line_error(found) and ".bench.journal" in found.err


def test_plain_questions_with_labels_are_enough(tiny_run: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    data.write_text('{"question": "Ann has 3 apples and buys 4. How many?", "label": "7"}\n{"question": "What is left of 5?"}\n')
    done = mmedge("bench", tiny_run / "bundle-int8", "--data", data, "--json", "-q", "--out", tmp_path)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["questions"] == {"mine": 2} and found["task"] == "arithmetic"
    assert found["variants"][0]["answer_accuracy"]["mine"]["total"] == 1


def test_what_a_command_line_cannot_mean_is_said_in_one_line(tiny_run: Path) -> None:
    for option, wrong in (
        ("--scenarios", "multi"),
        ("--ask", "why"),
        ("--memory-limit", "much"),
        ("--within", "300%"),
        ("--batches", "1,0"),
        ("--latency-bound", "200"),
    ):
        found = mmedge("bench", tiny_run / "bundle-int8", option, wrong)
        assert is_one_line_error(found) and wrong.split(",")[0] in found.err
    cpus = mmedge("bench", tiny_run / "bundle-int8", "--cpus", "4096", "-q")
    assert is_one_line_error(cpus) and "--cpus 4096" in cpus.err


def test_no_student_is_measured_at_what_it_never_learned(labels_run: Path, tmp_path: Path) -> None:
    student = mmedge("bench", labels_run / "student", "--ask", "rationale", "--out", tmp_path)
    assert is_one_line_error(student) and "--ask rationale: this student learned no rationales" in student.err
    few = ("--questions", "1", "--ask", "confidence", "--scenarios", "single")
    both = mmedge("bench", labels_run, *few, "--out", tmp_path, "--json", "-q")
    assert both.code == 0, both.err
    torch_, bundle = json.loads(both.out)["variants"]  # a bundle knows how probable its answers are
    assert "did not learn to judge" in torch_["problem"] and bundle["confidence"]["questions"] == 2


# ------------------------------------------------------------------------------------------------------ limits


def test_one_processor_is_one_processor(tiny_run: Path) -> None:
    variant = Variant(VariantSpec("bundle", tiny_run / "bundle-fp32", threads=2), cpus=1)
    try:
        status = Path(f"/proc/{variant.pid}/status").read_text()
        assert re.search(r"^Cpus_allowed_list:\s+\d+$", status, re.M)
        request = {"examples": [EXAMPLE] * 40, "ask": "rationale", "batch": 8}
        variant.ask(request)
        before, started = processor_seconds(variant.pid), time.monotonic()
        while time.monotonic() - started < 1:
            variant.ask(request)
        used, wall = (processor_seconds(variant.pid) or 0) - (before or 0), time.monotonic() - started
        assert 0 < used <= 1.05 * wall + 0.02  # the kernel counts in hundredths
    finally:
        variant.close()


def test_a_worker_imports_nothing_that_starts_threads_before_it_is_bound() -> None:
    script = "import sys, mmedge.bench.worker; print({'numpy', 'onnxruntime', 'torch'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_memory_and_time_are_what_others_measure(tiny_run: Path, tmp_path: Path) -> None:
    spec = VariantSpec("bundle", tiny_run / "bundle-fp32")
    requests = [{"examples": [EXAMPLE] * 64, "ask": "rationale", "batch": 8}, {"memory": True}]
    script = tmp_path / "outside.py"
    script.write_text(
        "import json, os, subprocess, sys\n"
        "process = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)\n"
        "process.stdin.write(sys.stdin.read()); process.stdin.close()\n"
        "lines = process.stdout.read().splitlines()\n"
        "_, _, usage = os.wait4(process.pid, 0)\n"
        "print(json.dumps([json.loads(lines[-1])['peak_memory_bytes'], usage.ru_maxrss * 1024]))\n"
    )
    command = [sys.executable, str(script), sys.executable, "-m", "mmedge.bench.worker", json.dumps(spec.to_json()), "0"]
    done = subprocess.run(
        command, input="\n".join(map(json.dumps, requests)) + "\n", capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    inside, outside = json.loads(done.stdout)
    assert inside == pytest.approx(outside, rel=0.05)

    variant = Variant(spec)
    try:
        shares = []
        for _ in range(8):  # calls of seconds: the message to and fro is not what is looked at
            started = time.perf_counter()
            seconds = variant.ask({"examples": [EXAMPLE] * 600, "ask": "rationale", "batch": 1})["seconds"]
            shares.append(1 - seconds / (time.perf_counter() - started))
        assert all(share > 0 for share in shares) and min(shares) < 0.02
    finally:
        variant.close()


def test_a_process_that_grows_beyond_its_memory_is_ended(tiny_run: Path) -> None:
    variant = Variant(VariantSpec("bundle", tiny_run / "bundle-fp32"), memory_limit=150_000_000)
    try:
        with pytest.raises(MmedgeError, match="does not fit in 150 MB"):
            for count in (1, 1000, 30_000, 300_000):
                variant.ask({"examples": [EXAMPLE] * count, "ask": "answer", "batch": 4096})
    finally:
        variant.close()
    with pytest.raises(MmedgeError, match="does not fit in 30 MB"):
        Variant(VariantSpec("bundle", tiny_run / "bundle-fp32"), memory_limit=30_000_000)


def test_a_process_that_dies_is_said_to_have(tiny_run: Path) -> None:
    variant = Variant(VariantSpec("bundle", tiny_run / "bundle-fp32"))
    os.kill(variant.pid, 9)
    with pytest.raises(MmedgeError, match="was killed"):
        variant.ask({"memory": True})
    variant.close()


def test_sizes_shares_and_times_are_read_as_people_write_them() -> None:
    assert [parse_size(text, "x") for text in ("300M", "1.5g", "512MiB", "64 MB")] == [
        300_000_000,
        1_500_000_000,
        512 << 20,
        64_000_000,
    ]
    assert (parse_share("3%", "x"), parse_share("0.03", "x")) == (0.03, 0.03)
    assert (parse_seconds("200ms", "x"), parse_seconds("1.5s", "x"), parse_counts("1, 8,8", "x")) == (0.2, 1.5, (1, 8))
    for wrong in ("0M", "M", "-3M", "1e9", "3 apples"):
        with pytest.raises(MmedgeError):
            parse_size(wrong, "--memory-limit")


def test_other_load_makes_a_run_noisy() -> None:
    watch = Watch()
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        watch.look([], force=True)
        deadline = time.monotonic() + 60
        start = processor_seconds(busy.pid) or 0.0
        while (processor_seconds(busy.pid) or 0.0) < start + 0.3 and time.monotonic() < deadline:
            watch.look([])
        watch.look([], force=True)
    finally:
        busy.kill()
        busy.wait()
    found = watch.summary()
    assert found.other_load_cores is not None
    assert found.other_load_cores > OTHER_LOAD and any("other processes" in why for why in found.noisy)


# ------------------------------------------------------------------------------------------------------- parts


def test_arrivals_are_random_moments_at_their_rate() -> None:
    moments = poisson_arrivals(50, 20, seed=1)
    gaps = [after - before for before, after in zip([0.0, *moments], moments, strict=False)]
    mean = sum(gaps) / len(gaps)
    spread_of = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(1 / 50, rel=0.1) and spread_of == pytest.approx(mean, rel=0.15)  # as the exponential's
    assert len(poisson_arrivals(0.1, 1, seed=0)) == 20 and len(poisson_arrivals(1e6, 10, seed=0)) == 2000


def test_a_subset_is_spread_over_the_whole() -> None:
    assert spread(range(10), 5) == [0, 2, 4, 6, 8] and spread(range(3), 5) == [0, 1, 2] == spread(range(3), None)


def test_the_pareto_front_is_what_no_other_beats() -> None:
    assert pareto_front([(3, 0.9), (1, 0.5), (2, 0.4), (2, 0.7), (3, 0.8)]) == [1, 3, 0]
    assert pareto_front([(1, 0.5), (1, 0.5)]) == [0]


def test_variants_are_found_by_kind_and_place(tiny_run: Path, tmp_path: Path) -> None:
    assert [spec.kind for spec in find_variants(tiny_run)] == ["torch", "bundle", "bundle"]
    for name in ("student", "bundle-int8"):  # as a row of a comparison lies there, once exported
        (tmp_path / name).symlink_to(tiny_run / name)
    assert [spec.kind for spec in find_variants(tmp_path)] == ["torch", "bundle"]
    assert find_variants(f"torch-bf16:{tiny_run / 'student'}")[0].kind == "torch-bf16"


def test_a_kind_that_does_not_open_what_is_named_says_what_it_opens(tiny_run: Path) -> None:
    for variant, complaint in (
        ("torch-int3:nowhere", r"unknown kind of variant 'torch-int3'.*\n.*torch \(a student\), .*llama.cpp \(a GGUF file\)"),
        ("torhc:nowhere", "did you mean 'torch'?"),
        ("torch:nowhere", "no such file or folder: nowhere\n.*torch opens a student"),
        (f"torch:{tiny_run / 'bundle-int8'}", f"torch opens a student, and .* is a bundle\n.*torch:{tiny_run / 'student'}"),
        (f"native:{tiny_run}", f"is a run\n.*native:{tiny_run / 'bundle-fp32'}"),
        (f"bundle:{tiny_run / 'evaluation.jsonl'}", "is nothing that mmedge wrote"),
    ):
        with pytest.raises(MmedgeError, match=complaint):
            find_variants(variant)


def test_energy_is_metered_and_a_peer_that_cannot_be_opened_says_why(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "student").symlink_to(tiny_run / "student")
    done = mmedge(
        *("bench", tiny_run / "bundle-fp32", f"llama.cpp:{tmp_path / 'model.gguf'}", "--questions", "2", "--verdicts", "2"),
        *("--scenarios", "offline,accuracy", "--batches", "1", "--out", tmp_path, "--json", "-q"),
    )
    assert done.code == 0, done.err
    ours, peer = json.loads(done.out)["variants"]
    assert "energy" in ours["offline"][0]["blocks"][0] and "joules_per_answer" in ours["offline"][0]
    assert peer["problem"] and "llama" in peer["problem"] and "\n" not in peer["problem"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium to look with")
@pytest.mark.parametrize("width", [1400, 420])
def test_the_page_is_whole_in_a_browser(report: dict[str, Any], tmp_path: Path, width: int) -> None:
    text = page(BenchReport.from_json(report, "it")).text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', text)
    assert policy and "<script" not in text
    (tmp_path / "page.html").write_text(text)
    measuring = "<script>document.title = document.documentElement.scrollWidth + ' ' + innerWidth</script></body>"
    (tmp_path / "measured.html").write_text(text.replace(policy[0], "").replace("</body>", measuring))

    def chromium(*arguments: str) -> str:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        return subprocess.run(
            [*command, f"--window-size={width},3600", *arguments], capture_output=True, text=True, check=True, timeout=120
        ).stdout

    dom = chromium("--dump-dom", f"file://{tmp_path / 'measured.html'}")
    found = re.search(r"<title>(\d+) (\d+)</title>", dom)
    assert found and int(found[1]) <= int(found[2])  # nothing sticks out at the side
    assert dom.count("<svg ") >= 6 and "does not fit in 200 MB" in dom
    for heading in ("Results", "Not measured", "Accuracy and time", "Memory", "What each variant is", "How it was measured"):
        assert f"<h2>{heading}</h2>" in dom
    chromium(f"--screenshot={tmp_path / 'page.png'}", f"file://{tmp_path / 'page.html'}")
    assert (tmp_path / "page.png").stat().st_size > 20_000  # a blank one has a tenth of that
