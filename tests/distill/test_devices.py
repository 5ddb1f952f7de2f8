"""Several processes learn what one learns, killed and resumed too; precisions, adapters and small memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmedge.distill.batches import share_out
from mmedge.distill.lessons import Lesson, Target
from mmedge.distill.streams import LessonStream
from mmedge.errors import MmedgeError
from mmedge.recipe import StageSection
from mmedge.students.encoded import EncodedLesson
from mmedge.tasks.prompts import Context
from tests.conftest import REPOSITORY, TINY_SCRATCH, is_one_line_error, mmedge, tiny_recipe, write_recipe
from tests.distill.given import Given, small_student, trainer_of


def _torchrun(*arguments: object, module: str = "mmedge") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _ended(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output[-3000:]
    return output


def _kill(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 150
    try:
        while not reached():
            assert process.poll() is None, process.stdout and process.stdout.read()[-3000:]
            assert time.monotonic() < deadline, "it never came so far"
            time.sleep(0.01)
    finally:
        listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout.split("\n")[1:]
        children = [int(line.split()[0]) for line in listed if line.split() and int(line.split()[1]) == process.pid]
        for pid in (process.pid, *children):
            if Path(f"/proc/{pid}").exists():
                os.kill(pid, signal.SIGKILL)
        process.wait()
        if process.stdout:
            process.stdout.close()


def _losses(run: Path) -> list[tuple[str, int, float]]:
    found = []
    for stage in ("stage1", "stage2"):
        for line in (run / stage / "metrics.jsonl").read_text().splitlines():
            entry = json.loads(line)
            if "loss" in entry:
                found.append((stage, entry["step"], entry["loss"]))
    return found


def _weights(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = load_file(run / "student" / "model.safetensors")
    return found


@pytest.fixture(scope="module")
def long_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    values = tiny_recipe()
    training = dict(values["training"])  # type: ignore[call-overload]
    training |= {"checkpoint_minutes": 0, "stage2": {"max_steps": 40, "batch_size": 8, "learning_rate": 2e-3, "evaluate_every": 20}}
    return write_recipe(tmp_path_factory.mktemp("recipe") / "r.yaml", values | {"training": training})


@pytest.fixture(scope="module")
def alone(long_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("alone") / "run"
    done = mmedge("distill", long_recipe, "--out", run, "-q")
    assert done.code == 0, done.err
    return run


@pytest.mark.parametrize("module", ["mmedge", pytest.param("tests.fsdp_on_cpu", marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_learns_killed_and_resumed_too(
    long_recipe: Path, alone: Path, tmp_path: Path, module: str
) -> None:
    run = tmp_path / "run"
    command = ["distill", long_recipe, "--out", run]

    def far_enough() -> bool:
        path = run / "stage2" / "checkpoint" / "state.json"
        try:
            return bool(json.loads(path.read_text())["step"] >= 10)
        except (OSError, ValueError):
            return False

    _kill(_torchrun(*command, module=module), far_enough)
    assert not (run / "student").exists()
    output = _ended(_torchrun(*command, module=module))
    assert "stage2: continuing from step" in output
    assert ("FSDP" if module == "tests.fsdp_on_cpu" else "DDP") in output
    one, two = _losses(alone), _losses(run)
    assert [entry[:2] for entry in one] == [entry[:2] for entry in two] and len(one) == 5
    assert [entry[2] for entry in two] == pytest.approx([entry[2] for entry in one], rel=1e-3)
    assert max(float((_weights(alone)[name] - tensor).abs().max()) for name, tensor in _weights(run).items()) < 5e-3
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["stages"]["stage2"]["steps"] == 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "setting", "word"),
    [("1", "seed=0", "set fsdp_version: 2"), ("2", "training.optimizer=muon", "muon needs whole matrices")],
)
def test_what_sharded_weights_cannot_do_is_said(
    long_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, setting: str, word: str
) -> None:
    monkeypatch.setenv("FSDP_VERSION", version)
    process = _torchrun("distill", long_recipe, "--out", tmp_path / "run", "--set", setting, module="tests.fsdp_on_cpu")
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and word in output and not (tmp_path / "run" / "stage1").exists()


@pytest.mark.slow
def test_adapters_with_sharded_weights(tmp_path: Path) -> None:
    student = {"source": "scratch", "scratch": TINY_SCRATCH, "lora": {"rank": 4}}
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(student=student))
    done = mmedge("distill", recipe, "--out", tmp_path / "one", "-q")
    assert done.code == 0, done.err
    _ended(_torchrun("distill", recipe, "--out", tmp_path / "two", module="tests.fsdp_on_cpu"))
    one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert [entry[2] for entry in two] == pytest.approx([entry[2] for entry in one], rel=1e-3)


def test_lessons_are_shared_out_so_that_all_processes_have_as_much_to_do() -> None:
    groups = [(EncodedLesson(tuple(range(length)), ()),) for length in (50, 3, 20, 31, 8, 40, 12, 25)]
    for count in (1, 2, 3, 8, 11):
        shares = share_out(groups, count)
        assert len(shares) == count
        assert sorted(one.tokens for share in shares for (one,) in share) == sorted(one.tokens for (one,) in groups)
    loads = [sum(lesson.tokens for (lesson,) in share) for share in share_out(groups, 2)]
    assert max(loads) - min(loads) <= 50 - 40


def test_adapters_are_trained_and_merged(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    student = {"source": "scratch", "scratch": TINY_SCRATCH, "lora": {"rank": 4}}
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(student=student))
    run = tmp_path / "run"
    done = mmedge("distill", recipe, "--out", run, "-q")
    assert done.code == 0, done.err
    trained = load_file(run / "stage2" / "best" / "model.safetensors")
    assert trained and all("lora_" in name for name in trained)
    whole = _weights(run)
    assert not any("lora" in name for name in whole) and "shared.weight" in whole
    exported = mmedge("export", run, "--fp32", "-q")
    assert exported.code == 0, exported.err


def test_adapters_for_layers_that_do_not_exist_are_one_line(tmp_path: Path) -> None:
    student = {"source": "scratch", "scratch": TINY_SCRATCH, "lora": {"targets": ["no_such_layer"]}}
    done = mmedge("distill", write_recipe(tmp_path / "r.yaml", tiny_recipe(student=student)), "--out", tmp_path / "run", "-q")
    assert is_one_line_error(done) and "student.lora.targets" in done.err


@pytest.mark.parametrize("settings", [{"precision": "bfloat16"}, {"gradient_checkpointing": True, "micro_batch_tokens": 300}])
def test_other_ways_to_compute_learn_nearly_the_same(
    tmp_path: Path, alone: Path, long_recipe: Path, settings: dict[str, Any]
) -> None:
    overrides = [word for name, value in settings.items() for word in ("--set", f"training.{name}={value}")]
    done = mmedge("distill", long_recipe, "--out", tmp_path / "run", "-q", *overrides)
    assert done.code == 0, done.err
    precise = "precision" not in settings
    one, other = _losses(alone), _losses(tmp_path / "run")
    assert [entry[2] for entry in other] == pytest.approx([entry[2] for entry in one], rel=1e-3 if precise else 0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize(("setting", "word"), [("training.precision=float16", "float16"), ("training.device=cuda", "CUDA")])
def test_what_this_machine_cannot_do_is_one_line(tmp_path: Path, long_recipe: Path, setting: str, word: str) -> None:
    done = mmedge("distill", long_recipe, "--out", tmp_path / "run", "--set", setting)
    assert is_one_line_error(done) and word in done.err


def test_a_pass_that_does_not_fit_is_halved(tmp_path: Path) -> None:
    lessons = [Lesson(Context(f"what is {n} and {n}"), (Target.of("predict", str(2 * n)),)) for n in range(16)]
    seen: list[int] = []

    def trained(folder: str, most: int) -> None:
        """Train a student on a machine whose memory takes so many tokens at once."""

        def small_memory(module: Any, inputs: Any) -> None:
            seen.append(inputs[0].numel())
            if inputs[0].numel() > most:
                raise torch.cuda.OutOfMemoryError("out of memory")

        student = small_student("what is 1 and 2")
        student.model.get_input_embeddings().register_forward_pre_hook(small_memory)
        stream = LessonStream("given", Given(lessons), 16, 1.0)
        trainer_of(student, [stream], StageSection(max_steps=2), tmp_path / folder).run()

    trained("a", 100)
    assert max(seen) > 100 and max(seen[-3:]) <= 100
    with pytest.raises(MmedgeError, match=r"a single lesson of .* does not fit"):
        trained("b", 3)


def test_streams_in_one_pass_learn_what_streams_apart_do(tmp_path: Path) -> None:
    """As on a GPU, which wants few, full passes."""
    sums = [Lesson(Context(f"what is {n} and {n}"), (Target.of("predict", str(2 * n)),)) for n in range(8)]
    chains = [Lesson(Context(f"{n} more than 3"), (Target.of("explain", f"3 + {n} = {3 + n}", 0.5),)) for n in range(8)]
    found = {}
    for joins in (False, True):
        student = small_student("what is 1 and 2 more than 3")
        streams = [LessonStream("sums", Given(sums), 4, 0.3, "evaluation "), LessonStream("chains", Given(chains, 0.2), 5, 0.7)]
        trainer = trainer_of(student, streams, StageSection(max_steps=6, learning_rate=1e-3), tmp_path / str(joins))
        trainer.runner.joins_streams = joins
        trainer.run()
        log = [json.loads(line) for line in (tmp_path / str(joins) / "metrics.jsonl").read_text().splitlines()]
        losses = {key: value for line in log for key, value in line.items() if key.endswith("loss")}
        found[joins] = losses, student.model.state_dict()
    assert found[True][0] == pytest.approx(found[False][0], rel=1e-4) and len(found[True][0]) == 3
    for name, weight in found[False][1].items():
        torch.testing.assert_close(found[True][1][name], weight, rtol=1e-3, atol=1e-5)
