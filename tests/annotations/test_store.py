"""The store: raw texts, nothing twice, older and foreign files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.schema import MIGRATIONS
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError


def _annotation(text: str = "The answer is 4.", sample: int = 0) -> Annotation:
    return Annotation("a", "cot", sample, 0, text, None, "t", "f:1")


def test_the_store_keeps_the_raw_text_and_nothing_twice(tmp_path: Path) -> None:
    raw = "  spaces\n\nQ: and run-on \u0000 with a zero byte"
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        store.add([_annotation(raw)])
        store.add([_annotation("another text for the same sample"), _annotation("second", 1)])
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        assert [annotation.text for annotation in store.annotations("cot")] == [raw, "second"]


def test_a_store_of_another_teacher_is_refused(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        assert store.begin("one") is False
        store.finish("one")
        assert store.begin("one") is True
        with pytest.raises(MmedgeError, match="another teacher"):
            store.begin("two")


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite").write_text("this is no database, but a text of some length" * 100)
    with pytest.raises(MmedgeError, match="cannot open the annotation store"):
        AnnotationStore(tmp_path / "s.sqlite")


def test_a_store_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    AnnotationStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    with pytest.raises(MmedgeError, match="written by a newer mmedge"):
        AnnotationStore(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS) + 1


def test_a_store_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    with sqlite3.connect(path) as connection:
        for statement in filter(str.strip, MIGRATIONS[0].split(";")):
            connection.execute(statement)
        connection.execute("INSERT INTO annotations VALUES ('a', 'cot', 0, 0, 'The answer is 4.', NULL, 't', 'f:1')")
        connection.execute("PRAGMA user_version = 1")
    with AnnotationStore(path) as store:
        assert [annotation.text for annotation in store.annotations("cot")] == ["The answer is 4."]
        assert store.stale("key") == ["a"]


def test_a_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "annotations.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(MmedgeError, match="a database of another program"):
        AnnotationStore(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
