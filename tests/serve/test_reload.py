"""A bundle that is replaced takes over, and no request is lost; one that is damaged does not."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmedge.engines.native.library import problem
from mmedge.serve.models import open_models, opened_again
from mmedge.serve.reload import Reloader
from tests.serve.running import QUESTION, Running, serving

NAME = "tiny/bundle"
ASKED = {"model": NAME, "prompt": QUESTION}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _replace(folder: Path, by: Path) -> None:
    """Put a copy of another bundle in a bundle's place, as a deployment does."""
    shutil.copytree(by, folder.with_name("new"))
    folder.rename(folder.with_name("old"))
    folder.with_name("new").rename(folder)
    shutil.rmtree(folder.with_name("old"))


def _fingerprint(running: Running) -> str:
    return str(running.post("/v1/completions", ASKED).json["system_fingerprint"])


def test_a_replaced_bundle_takes_over_and_a_damaged_one_does_not(tmp_path: Path, tiny_run: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle-int8", folder)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_run / "bundle-fp32", damaged)
    weights = damaged / "weights.data"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    with serving(tmp_path, [folder], "--max-clients", 200) as running:
        statuses, done = list[int](), threading.Event()

        def ask() -> None:
            while not done.is_set():
                statuses.append(running.post("/v1/completions", ASKED).status)

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        first = _fingerprint(running)
        _replace(folder, tiny_run / "bundle-fp32")
        _until(lambda: running.metric("mmedge_reloads_total") == 1)
        second = _fingerprint(running)
        assert second != first and running.get(f"/v1/models/{NAME}").json["mmedge"]["precision"] == "fp32"
        _replace(folder, damaged)
        _until(lambda: running.metric("mmedge_reloads_total") == 2)
        assert _fingerprint(running) == second
        (folder / "manifest.json").unlink()  # half gone
        _until(lambda: running.metric("mmedge_reloads_total") == 3)
        assert _fingerprint(running) == second
        _replace(folder, tiny_run / "bundle-int8")
        _until(lambda: _fingerprint(running) == first)
        done.set()
        for client in clients:
            client.join()
        assert len(statuses) > 50 and set(statuses) == {200}
        said = running.err.read_text(encoding="utf-8").splitlines()[1:]
        assert [line.startswith(f"{NAME}: the new bundle is ") for line in said] == [True] * 4
        assert "refused" in said[1] and "refused" in said[2] and "served" in said[0] and "served" in said[3]
        assert "error" not in running.out.read_text(encoding="utf-8")


def test_a_bundle_that_is_deleted_goes_on_and_is_told_of_once(tmp_path: Path, tiny_run: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle-int8", folder)
    with serving(tmp_path, [folder]) as running:

        def warnings() -> list[str]:
            return [line for line in running.err.read_text(encoding="utf-8").splitlines() if line.startswith("warning: ")]

        first = _fingerprint(running)
        shutil.rmtree(folder)
        _until(lambda: bool(warnings()))
        time.sleep(2.5)
        (line,) = warnings()
        assert NAME in line and "is gone" in line and _fingerprint(running) == first
        shutil.copytree(tiny_run / "bundle-fp32", folder)
        _until(lambda: _fingerprint(running) != first)
        shutil.rmtree(folder)
        _until(lambda: len(warnings()) == 2)


def _truncated(folder: Path) -> None:
    weights = folder / "weights.data"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _manifest(text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "manifest.json").write_bytes(text)


def _without_weights(folder: Path) -> None:
    (folder / "weights.data").unlink()


def _emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _of_another_kind(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated weights": _truncated,
    "empty weights": lambda folder: (folder / "weights.data").write_bytes(b""),
    "no weights": _without_weights,
    "empty manifest": _manifest(b""),
    "manifest of nonsense": _manifest(b"\xff\x00"),
    "manifest of another shape": _manifest(b"[]"),
    "deep manifest": _manifest(b"[" * 100_000),
    "empty tokenizer": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "folder for a file": _of_another_kind,
    "empty folder": _emptied,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_whatever_is_damaged_the_old_bundle_goes_on(damage: str, tmp_path: Path, tiny_run: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle-int8", folder)
    models = open_models([folder])
    (name,) = models
    model, answer, told, gone = models[name], models[name].student.answer(QUESTION).text, list[str | None](), list[str]()
    reloader = Reloader(models, opened_again, lambda _, problem: told.append(problem), gone.append)
    reloader.look()
    shutil.copytree(folder, tmp_path / "new")
    DAMAGE[damage](tmp_path / "new")
    folder.rename(tmp_path / "old")
    (tmp_path / "new").rename(folder)
    for _ in range(3):
        reloader.look()
    assert len(told) == 1 and told[0], "it is tried once, and refused"
    assert models[name] is model and model.student.answer(QUESTION).text == answer
    folder.rename(tmp_path / "bad")
    for seen in (0, 1, 1):  # it may be about to be replaced
        reloader.look()
        assert len(gone) == seen and models[name] is model, "while there is none, it goes on too"
    (tmp_path / "old").rename(folder)
    for _ in range(3):
        reloader.look()
    assert gone == [name] and told[1:] == [None]
    assert models[name] is not model and models[name].student.answer(QUESTION).text == answer


@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_files_that_are_overwritten_in_place_harm_nobody(
    engine: str, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their weights would otherwise be mapped, and a mapped file that shrinks ends the process."""
    if engine == "native" and (why := problem()) is not None:
        pytest.skip(why)
    monkeypatch.setenv("MMEDGE_ENGINE", engine)
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_run / "bundle-int8", folder)
    weights = folder / "weights.data"
    size = weights.stat().st_size
    with serving(tmp_path, [folder]) as running:

        def answer() -> tuple[object, object]:
            found = running.post("/v1/completions", {**ASKED, "logprobs": 0, "n": 1}).json
            return found["system_fingerprint"], found["choices"]

        first = answer()
        for refused, wrong in enumerate((weights.read_bytes()[: size // 2], b"", bytes(size)), start=1):
            weights.write_bytes(wrong)
            assert answer() == first
            _until(lambda refused=refused: running.metric("mmedge_reloads_total") == refused)  # type: ignore[misc]
            assert answer() == first
        shutil.copytree(tiny_run / "bundle-fp32", folder, dirs_exist_ok=True)  # file by file, into the files that are there
        _until(lambda: answer()[0] != first[0])
        assert running.process.poll() is None
