"""Small real things that many tests share: runs of both student families, trained for a few steps and exported."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from filelock import FileLock

from tests.commands import kill_when, start
from tests.small_data import write_small_data

REPOSITORY = Path(__file__).parent.parent
REAL_DATA = Path(os.environ["MMEDGE_DATA"]).resolve() if os.environ.get("MMEDGE_DATA") else None

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several tests run at once; each with every core would slow all of them


@dataclass(frozen=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


def mmedge(
    *arguments: object, stdin: str | None = None, cwd: Path | None = None, timeout: float = 300, fresh: bool = False
) -> Finished:
    """Run the command line in a process of its own; `fresh` in a new interpreter."""
    with tempfile.TemporaryDirectory() as name:
        given, out, err = (Path(name) / part for part in ("in", "out", "err"))
        given.write_text(stdin or "", encoding="utf-8")
        started = start(arguments, cwd=cwd or REPOSITORY, stdin=given, stdout=out, stderr=err, fresh=fresh)
        return Finished(started.wait(timeout), out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def is_one_line_error(found: Finished) -> bool:
    """Whether a command failed as it should: exit code, one line of error, at most one line of advice, no traceback."""
    lines = found.err.strip().splitlines()
    shown = [line for line in lines if not line.startswith("  →")]
    return found.code != 0 and "Traceback" not in found.err and len(shown) >= 1 and shown[-1].startswith("error: ")


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asserts facts of the real data; skip what needs optimum or ray where they are not installed."""
    optimum, ray = (importlib.util.find_spec(name) is not None for name in ("optimum", "ray"))
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        if not optimum and item.get_closest_marker("optimum"):
            item.add_marker(pytest.mark.skip("no optimum here: make test-optimum"))
        if not ray and item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.skip("no ray here: make test-cluster"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real questions and annotations, for tests that assert facts of it; they are skipped where it is absent."""
    if REAL_DATA is None:
        pytest.skip("no real data: set MMEDGE_DATA")
    return REAL_DATA


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of questions and annotations: the real one, or where it is absent a small one of the same form."""
    return REAL_DATA or made_once(tmp_path_factory, "data", write_small_data)


def killed_when_lines_are_there(arguments: Sequence[object], path: Path, lines: int) -> None:
    """Start a command and kill it with SIGKILL once a file has so many lines."""
    kill_when(arguments, lambda: path.is_file() and path.read_bytes().count(b"\n") >= lines)


TINY_SCRATCH = {
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "vocabulary": 500,
}


def tiny_recipe(**changes: object) -> dict[str, object]:
    """Return the values of a recipe that trains in seconds."""
    values: dict[str, object] = {
        "name": "tiny",
        "task": {"kind": "arithmetic", "train": 160, "test": 12},
        "teacher": {"kind": "embedded", "cots_per_question": 2},
        "student": {"source": "scratch", "scratch": TINY_SCRATCH},
        "method": {"cots_per_visit": 1, "rehearsal": 0.25},
        "training": {
            "stage1": {"max_steps": 6, "batch_size": 8, "learning_rate": 2e-3, "evaluate_every": 3},
            "stage2": {"max_steps": 12, "batch_size": 8, "learning_rate": 2e-3, "evaluate_every": 4},
            "max_input_tokens": 160,
            "max_target_tokens": 72,
        },
        "split": {"validation": 16, "verdict_test": 12},
        "generation": {"max_answer_tokens": 12, "max_rationale_tokens": 24},
    }
    return values | changes


def write_recipe(path: Path, values: dict[str, object]) -> Path:
    """Write a recipe and return its path."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that is made once and shared by all of pytest's processes.

    MMEDGE_MADE may name a folder where it is made already (by `python -m tests.conftest FOLDER`), for where there is no torch.
    """
    if os.environ.get("MMEDGE_MADE") and (made := Path(os.environ["MMEDGE_MADE"]).resolve() / name).is_dir():
        return made
    base = factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    place.mkdir(exist_ok=True)
    folder, finished = place / name, place / f"{name}.made"
    with FileLock(place / f"{name}.lock"):
        if not finished.exists():
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder


def distilled(recipe: Path, run: Path, *options: str) -> None:
    """Distil and export through the command line."""
    for command in (["distill", recipe, "--out", run, "-q"], ["export", run, "-q", *options]):
        done = mmedge(*command)
        assert done.code == 0, done.err


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of an encoder-decoder from scratch, distilled and exported through the command line."""
    return made_once(tmp_path_factory, "tiny", _write_tiny_run) / "run"


def _write_tiny_run(folder: Path) -> None:
    distilled(write_recipe(folder / "tiny.yaml", tiny_recipe()), folder / "run")


@pytest.fixture(scope="session")
def labels_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a student that learned labels alone, distilled and exported in float32."""
    return made_once(tmp_path_factory, "labels", _write_labels_run) / "run"


def _write_labels_run(folder: Path) -> None:
    values = tiny_recipe(method={"labels": "human", "rationales": False, "self_evaluation": False}, split={"validation": 16})
    recipe = {name: value for name, value in values.items() if name != "teacher"}
    distilled(write_recipe(folder / "labels.yaml", recipe), folder / "run", "--fp32")


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random Llama: grouped attention, tied head, byte-level tokenizer."""
    return made_once(tmp_path_factory, "llama", _write_tiny_llama)


def _write_tiny_llama(folder: Path) -> None:
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["predict: explain: correct wrong uncertain solution: answer: how many apples"], trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(fast) + 7,  # no round number: padding of blocks is exercised
        hidden_size=64,
        intermediate_size=112,  # no multiple of the quantization block
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=0,
        bos_token_id=0,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)


@pytest.fixture(scope="session")
def own_task(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A user's own task in JSON lines, with recorded chains of thought and self-evaluations."""
    folder = made_once(tmp_path_factory, "own", _write_own_task)
    return {path.stem: path for path in folder.glob("*.jsonl")}


def _write_own_task(folder: Path) -> None:
    from mmedge.tasks.embedded.problems import ArithmeticTask
    from mmedge.teachers.embedded import EmbeddedTeacher

    task = ArithmeticTask(train=80, test=8)
    splits = task.load()
    teacher = EmbeddedTeacher(task, cots_per_question=2)
    cots = list(teacher.chains_of_thought(splits.train))
    by_id = {example.id: example for example in splits.train}
    evaluations = teacher.self_evaluations([(by_id[cot.example_id], cot) for cot in cots])
    files: dict[str, list[dict[str, object]]] = {
        "train": [{"id": e.id, "question": e.question, "label": e.label} for e in splits.train],
        "test": [{"id": e.id, "question": e.question, "label": e.label} for e in splits.tests["new_combinations"]],
        "cots": [{"id": c.example_id, "sample": c.sample, "teacher": "t", "text": c.text} for c in cots],
        "evaluations": [{"id": e.example_id, "sample": e.sample, "evaluation": e.text, "verdict": e.verdict} for e in evaluations],
    }
    for name, records in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def own_recipe(own_task: dict[str, Path], student: Path) -> dict[str, object]:
    """Return a recipe of a user's own task with recorded annotations and a student from a folder."""
    return tiny_recipe(
        name="own",
        task={
            "kind": "jsonl",
            "train_file": str(own_task["train"]),
            "test_files": {"test": str(own_task["test"])},
            "form": "expression",
        },
        teacher={"kind": "recorded", "cots": str(own_task["cots"]), "evaluations": str(own_task["evaluations"])},
        student={"source": str(student)},
        split={"validation": 8, "verdict_test": 8},
    )


@pytest.fixture(scope="session")
def llama_run(tmp_path_factory: pytest.TempPathFactory, own_task: dict[str, Path], tiny_llama: Path) -> Path:
    """A run of a decoder-only student from a folder, on a user's own task with recorded annotations."""

    def make(folder: Path) -> None:
        _write_llama_run(folder, own_task, tiny_llama)

    return made_once(tmp_path_factory, "llama_run", make) / "run"


def _write_llama_run(folder: Path, own_task: dict[str, Path], student: Path) -> None:
    distilled(write_recipe(folder / "own.yaml", own_recipe(own_task, student)), folder / "run", "--max-accuracy-drop", "100")


if __name__ == "__main__":
    made = Path(sys.argv[1]).resolve()
    for name in ("tiny", "llama", "own", "llama_run"):
        (made / name).mkdir(parents=True)
    _write_tiny_run(made / "tiny")
    _write_tiny_llama(made / "llama")
    _write_own_task(made / "own")
    _write_llama_run(made / "llama_run", {path.stem: path for path in (made / "own").glob("*.jsonl")}, made / "llama")


def engine_of_int8() -> str:
    """Return what reports call the engine that quantized bundles run on here."""
    from mmedge.engines.native import library

    return "native" if library.instruction_set() not in (None, "portable") else "onnxruntime"
