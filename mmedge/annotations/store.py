"""The store of annotations: one SQLite file per run that keeps every raw text with its origin, and what it cost.

    annotations   the texts that were accepted: chains of thought, self-evaluations
    subjects      what is to be collected: a question's chains of thought, or one chain's evaluations; who works on it
    requests      every request to a teacher: model and parameters, prompt hash, tokens, time, cost, how it ended
    responses     every text that came back, with how it finished and what became of it
    decisions     what people decided about questions and texts: every decision, and every one that was taken back
    summaries     what the texts of a question say, kept so that a report over a million of them takes a second

This file is what all teachers' annotations need; `collection.py` is what is to be collected, by whom, and at what price. Raw texts
are stored and parsed when they are read (`reading.py`). A kill at any moment leaves a store that opens and can be
continued; nothing is stored twice. Knows nothing about prompts, endpoints or models.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.schema import MIGRATIONS
from mmedge.errors import MmedgeError


class AnnotationStore:
    """A SQLite file of annotations.

    One object may be used from several threads, one at a time; several processes may have the same file open.

    Raises:
        MmedgeError: The file is not a store, cannot be written, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise MmedgeError(f"cannot open the annotation store {path}: {error}", _advice(error)) from None

    def _migrate(self) -> None:
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version == len(MIGRATIONS):
            return
        with self.transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                raise MmedgeError(f"{self.path} is a database of another program", "move it away, or choose another --out")
            if version > len(MIGRATIONS):
                raise MmedgeError(f"{self.path} was written by a newer mmedge", "update mmedge")
            for migration in MIGRATIONS[version:]:
                for statement in filter(str.strip, migration.split(";")):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write everything within the block, or nothing.

        Raises:
            MmedgeError: It cannot be written; the message says what to do.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise MmedgeError(f"cannot write {self.path}: {error}", _advice(error)) from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back itself
                self._connection.execute("ROLLBACK")

    def rows(self, statement: str, values: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query that reads.

        Raises:
            MmedgeError: The file cannot be read.
        """
        try:
            yield from self._connection.execute(statement, tuple(values))
        except sqlite3.Error as error:
            raise MmedgeError(f"cannot read {self.path}: {error}", _advice(error)) from None

    def query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a query that reads."""
        return list(self.rows(statement, values))

    def close(self) -> None:
        """Close the file, its log merged into it."""
        # where another process reads it, or the disk is full, the log stays beside the file and is merged later
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def __enter__(self) -> AnnotationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ annotations

    def add(self, annotations: Iterable[Annotation]) -> None:
        """Store annotations in one transaction; those that are there already stay as they are."""
        with self.transaction() as connection:
            insert_annotations(connection, annotations)

    def annotations(self, kind: str, example_ids: Sequence[str] | None = None) -> Iterator[Annotation]:
        """Yield the annotations of one kind, of all or of some questions, by example, sample and number."""
        order = "ORDER BY example_id, sample, evaluation"
        if example_ids is None:
            for row in self.rows(f"SELECT * FROM annotations WHERE kind = ? {order}", (kind,)):
                yield Annotation(*row)
            return
        for start in range(0, len(example_ids), 500):
            part = sorted(example_ids)[start : start + 500]
            places = ", ".join("?" * len(part))
            query = f"SELECT * FROM annotations WHERE example_id IN ({places}) AND kind = ? {order}"
            for row in self.rows(query, (*part, kind)):
                yield Annotation(*row)

    def count(self, kind: str) -> int:
        """Return how many annotations of one kind there are."""
        return int(self.query("SELECT COUNT(*) FROM annotations WHERE kind = ?", (kind,))[0][0])

    def counts(self, kind: str, samples: int, evaluations: int = 1) -> dict[str, int]:
        """Return how many annotations of one kind each question has, of its first `samples` chains of thought.

        Args:
            kind: `cot` or `evaluation`.
            samples: How many chains of thought count.
            evaluations: How many evaluations of each count.
        """
        where = "kind = ? AND sample < ? AND evaluation < ?"
        query = f"SELECT example_id, COUNT(*) FROM annotations WHERE {where} GROUP BY example_id"
        return dict(self.query(query, (kind, samples, evaluations)))

    def begin(self, fingerprint: str, *, replace_unfinished: bool = False) -> bool:
        """Note that a teacher starts collecting; return whether it had finished before.

        Args:
            fingerprint: Says who it is.
            replace_unfinished: Remove what another one had left unfinished; for teachers that cost nothing.

        Raises:
            MmedgeError: Another teacher's annotations are in this store.
        """
        rows = self.query("SELECT fingerprint, finished FROM collections")
        sampled = self.query("SELECT EXISTS (SELECT 1 FROM requests)")[0][0]
        if replace_unfinished and rows and rows[0][0] != fingerprint and not rows[0][1] and not sampled:
            with self.transaction() as connection:
                for table in ("annotations", "collections", "stale", "summaries"):
                    connection.execute(f"DELETE FROM {table}")
            rows = []
        if any(row[0] != fingerprint for row in rows):
            raise MmedgeError(
                f"{self.path} holds another teacher's annotations (or its files have changed)",
                "choose another --out folder",
            )
        if rows:
            return bool(rows[0][1])
        with self.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO collections VALUES (?, 0)", (fingerprint,))
        return False

    def finish(self, fingerprint: str) -> None:
        """Note that a teacher has written everything that was asked of it."""
        with self.transaction() as connection:
            connection.execute("UPDATE collections SET finished = 1 WHERE fingerprint = ?", (fingerprint,))

    # -------------------------------------------------------------------------------------------- summaries

    def stale(self, key: str) -> list[str]:
        """Return the questions whose summary is missing, or was not made by the reader that `key` names."""
        if self.query("SELECT key FROM readings") != [(key,)]:
            with self.transaction() as connection:
                connection.execute("DELETE FROM readings")
                connection.execute("DELETE FROM summaries")
                connection.execute("INSERT OR IGNORE INTO stale SELECT DISTINCT example_id FROM annotations")
                connection.execute("INSERT INTO readings VALUES (?)", (key,))
        return [row[0] for row in self.query("SELECT example_id FROM stale ORDER BY example_id")]

    def put_summaries(self, summaries: Iterable[tuple[str, str]]) -> None:
        """Store the summaries of some questions (id, content)."""
        with self.transaction() as connection:
            for id_, content in summaries:
                connection.execute("INSERT OR REPLACE INTO summaries VALUES (?, ?)", (id_, content))
                connection.execute("DELETE FROM stale WHERE example_id = ?", (id_,))

    def summaries(self) -> Iterator[tuple[Any, ...]]:
        """Yield the summaries of all questions (id, content), by id."""
        yield from self.rows("SELECT example_id, content FROM summaries ORDER BY example_id")


def insert_annotations(connection: sqlite3.Connection, annotations: Iterable[Annotation]) -> None:
    """Insert annotations that are not there yet, and note that the summaries of their questions are out of date."""
    rows = [
        (a.example_id, a.kind, a.sample, a.evaluation, storable(a.text), storable(a.verdict), a.teacher, a.origin)
        for a in annotations
    ]
    connection.executemany("INSERT OR IGNORE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.executemany("INSERT OR IGNORE INTO stale VALUES (?)", {(row[0],) for row in rows})


def storable(value: str | None) -> str | None:
    """Return text as SQLite takes it: an unpaired surrogate becomes a question mark."""
    if value is None or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode("utf-8")


def _advice(error: Exception) -> str:
    """Return what to do about a failure of the store."""
    text = str(error).lower()
    if "full" in text or "no space" in text:
        return "free some disk space and run the same command again; what was stored is kept"
    if "readonly" in text or "read-only" in text or "permission" in text or "unable to open" in text:
        return "it must be in a folder that you may write to; choose another --out, or copy the run"
    if "locked" in text or "busy" in text:
        return "another process holds it; run the same command again when that has ended"
    if "not a database" in text or "malformed" in text:
        return "move the file away to collect again"
    return "what was stored is kept; run the same command again"
