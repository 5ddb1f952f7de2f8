"""Files that are never half there, and errors that name the line."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest

from mmedge.errors import MmedgeError
from mmedge.statistics import balanced_accuracy, percentile, proportion
from mmedge.storage import (
    Journal,
    atomic_file,
    atomic_folder,
    hash_files,
    iterate_jsonl,
    locked,
    read_json,
    remove_leftovers,
    text_field,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(MmedgeError, match="a device or a pipe"):
            write_text(path, "new")
    assert stat.S_ISFIFO(pipe.stat().st_mode) and sorted(tmp_path.iterdir()) == [link, pipe]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text(content)
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        (temporary / "file").write_text("three")
        raise RuntimeError
    assert (target / "file").read_text() == "two"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".x.12345678.tmp").mkdir()
    (tmp_path / ".y.12345678.tmp").write_text("half")
    (tmp_path / "kept").write_text("whole")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_full_disk_is_one_error_with_advice(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(MmedgeError, match="free some disk space"),
        atomic_file(tmp_path / "x"),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 10000)
        full.flush()


def test_a_cut_off_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n\n{"a": ')
    with pytest.raises(MmedgeError, match=r"x\.jsonl:3: not a complete JSON object"):
        list(iterate_jsonl(path))


def test_text_that_is_no_utf8_and_broken_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff\xfe")
    with pytest.raises(MmedgeError, match="not valid UTF-8"):
        list(iterate_jsonl(tmp_path / "x"))
    (tmp_path / "y").write_text("{\n 1")
    with pytest.raises(MmedgeError, match="y:2:2: not valid JSON"):
        read_json(tmp_path / "y")


@pytest.mark.parametrize(
    ("text", "complaint"), [("[" * 100_000, "nested too deeply"), ('{"a": ' + "9" * 5000 + "}", "too many digits")]
)
def test_json_that_python_cannot_hold_is_one_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    for read in (read_json, lambda path: list(iterate_jsonl(path))):
        with pytest.raises(MmedgeError, match=complaint) as raised:
            read(path)
        assert raised.value.hint


@pytest.mark.parametrize("value", ["null", "false", "[true, null]", "1e3"])
def test_values_are_shown_as_json_spells_them(tmp_path: Path, value: str) -> None:
    path = tmp_path / "x"
    path.write_text(f'{{"a": {value}}}\n{value}')
    lines = iterate_jsonl(path)
    shown = "1000.0" if value == "1e3" else value
    with pytest.raises(MmedgeError, match=re.escape(f"field 'a' must be non-empty text, found {shown}")):
        text_field(next(lines)[1], "a", path, 1)
    with pytest.raises(MmedgeError, match=re.escape(f"expected a JSON object, found {shown}")):
        next(lines)


def test_infinity_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", {"a": float("inf")})
    assert not (tmp_path / "x.json").exists()


def test_a_journal_belongs_to_one_process_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".work.journal"
    journal = Journal(path, "key")
    journal.put("a", 1)
    with pytest.raises(MmedgeError, match="another process is writing"):
        Journal(path, "key")
    journal.close()
    again = Journal(path, "key")
    assert (len(again), again.get("a")) == (1, 1)
    again.remove()
    assert list(tmp_path.iterdir()) == []
    other = Journal(path, "another key")
    assert other.get("a") is None
    other.remove()


def test_a_folder_that_cannot_be_locked_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MmedgeError, match="cannot write"), locked(tmp_path / "file"):
        pass
    (tmp_path / ".lock").write_text("something else " * 100)
    with pytest.raises(MmedgeError, match=r"cannot lock .*\n.*remove"), locked(tmp_path):
        pass


def test_names_in_hashes_are_the_same_on_every_platform(tmp_path: Path) -> None:
    write_text(tmp_path / "sub" / "a.txt", "one\ntwo\n")
    assert list(hash_files(tmp_path, "manifest.json")) == ["sub/a.txt"]
    assert (tmp_path / "sub" / "a.txt").read_bytes() == b"one\ntwo\n"


def test_the_interval_is_wilsons() -> None:
    low, high = proportion([True] * 8 + [False] * 2).interval  # Wilson 1927, as statsmodels gives it
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert proportion([]).interval == (0, 1)
    assert proportion([True] * 5).interval[1] == 1


def test_always_saying_the_same_is_balanced_at_a_half() -> None:
    assert balanced_accuracy([True] * 10, [True] * 9 + [False]) == 0.5
    assert balanced_accuracy([True, False], [True, True]) is None
    assert percentile([1, 2, 3, 4], 50) == 2.5
