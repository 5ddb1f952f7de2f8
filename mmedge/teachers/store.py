"""The store of annotations: one SQLite file per run that keeps every raw text with its origin.

Parsing happens when it is read: `read_annotations` returns what a task understands, and counts what it does not and why.
A kill at any moment leaves a store that opens and is continued; nothing is stored twice.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Task, Unparsed
from mmedge.tasks.reading import read_self_evaluation
from mmedge.teachers.base import Annotation

MIGRATIONS = (
    """
    CREATE TABLE annotations (
        example_id TEXT NOT NULL,
        kind TEXT NOT NULL CHECK (kind IN ('cot', 'evaluation')),
        sample INTEGER NOT NULL,
        evaluation INTEGER NOT NULL,
        text TEXT NOT NULL,
        verdict TEXT,
        teacher TEXT NOT NULL,
        origin TEXT NOT NULL,
        PRIMARY KEY (example_id, kind, sample, evaluation)
    ) WITHOUT ROWID;
    CREATE TABLE collections (fingerprint TEXT PRIMARY KEY, finished INTEGER NOT NULL);
    """,
)


@dataclass(frozen=True)
class EvaluatedCot:
    """A parsed chain of thought with its parsed self-evaluations."""

    sample: int
    cot: ChainOfThought
    evaluations: tuple[SelfEvaluation, ...]


@dataclass(frozen=True)
class AnnotatedExample:
    """An example with everything about it that could be read."""

    example: Example
    cots: tuple[EvaluatedCot, ...]


@dataclass
class ReadingReport:
    """How much of a store could be read.

    Attributes:
        cots: Counts of chains of thought by `parsed` or by the reason why not.
        evaluations: The same for self-evaluations, whatever became of the chain of thought that they judge.
    """

    cots: Counter[str] = field(default_factory=Counter)
    evaluations: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, dict[str, int]]:
        return {"cots": dict(self.cots), "evaluations": dict(self.evaluations)}


class AnnotationStore:
    """A SQLite file of annotations.

    Raises:
        MmedgeError: The file is no store, or was written by a newer version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._migrate()
        except (sqlite3.Error, OSError) as error:
            raise MmedgeError(f"cannot open the annotation store {path}: {error}", "remove the file to collect anew") from None

    def _migrate(self) -> None:
        with self._transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version > len(MIGRATIONS):
                raise MmedgeError(f"{self.path} was written by a newer mmedge", "update mmedge")
            for migration in MIGRATIONS[version:]:
                for statement in filter(str.strip, migration.split(";")):
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise MmedgeError(f"cannot write {self.path}: {error}", "what was stored is kept; run it again") from None
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Close the file, its log merged into it."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.close()

    def __enter__(self) -> AnnotationStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, annotations: Iterable[Annotation]) -> None:
        """Store annotations in one transaction; those that are there already stay as they are."""
        rows = [tuple(map(_storable, vars(annotation).values())) for annotation in annotations]
        with self._transaction():
            self._connection.executemany("INSERT OR IGNORE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def annotations(self, kind: str) -> Iterator[Annotation]:
        """Yield all annotations of one kind, by example, sample and number."""
        order = "SELECT * FROM annotations WHERE kind = ? ORDER BY example_id, sample, evaluation"
        for row in self._connection.execute(order, (kind,)):
            yield Annotation(*row)

    def count(self, kind: str) -> int:
        """Return how many annotations of one kind there are."""
        query = "SELECT COUNT(*) FROM annotations WHERE kind = ?"
        return int(self._connection.execute(query, (kind,)).fetchone()[0])

    def begin(self, fingerprint: str) -> bool:
        """Note that a teacher starts collecting; return whether it had finished before.

        Raises:
            MmedgeError: Another teacher's annotations are in this store.
        """
        rows = self._connection.execute("SELECT fingerprint, finished FROM collections").fetchall()
        if any(row[0] != fingerprint for row in rows):
            raise MmedgeError(
                f"{self.path} holds another teacher's annotations (or its files have changed)", "choose another --out folder"
            )
        if rows:
            return bool(rows[0][1])
        with self._transaction():
            self._connection.execute("INSERT INTO collections VALUES (?, 0)", (fingerprint,))
        return False

    def finish(self, fingerprint: str) -> None:
        """Note that a teacher has written everything that was asked of it."""
        with self._transaction():
            self._connection.execute("UPDATE collections SET finished = 1 WHERE fingerprint = ?", (fingerprint,))


def _storable(value: object) -> object:
    """Return a value as SQLite takes it: an unpaired surrogate is no text and becomes a question mark."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def read_annotations(
    store: AnnotationStore, task: Task, examples: Sequence[Example]
) -> tuple[list[AnnotatedExample], ReadingReport]:
    """Read everything a store holds about some examples.

    Returns:
        The examples in their order with what could be read of them, and the counts of what could not.
    """
    report = ReadingReport()
    known = {example.id: example for example in examples}
    evaluations: dict[tuple[str, int], list[SelfEvaluation]] = {}
    for annotation in store.annotations("evaluation"):
        if annotation.example_id in known:
            evaluation = read_self_evaluation(annotation.text, annotation.verdict)
            if isinstance(evaluation, Unparsed):
                report.evaluations[evaluation.value] += 1
            else:
                report.evaluations["parsed"] += 1
                evaluations.setdefault((annotation.example_id, annotation.sample), []).append(evaluation)
    cots: dict[str, list[EvaluatedCot]] = {}
    for annotation in store.annotations("cot"):
        if annotation.example_id in known:
            cot = task.parse_chain_of_thought(annotation.text, known[annotation.example_id])
            if isinstance(cot, Unparsed):
                report.cots[cot.value] += 1
            else:
                report.cots["parsed"] += 1
                judged = tuple(evaluations.get((annotation.example_id, annotation.sample), ()))
                cots.setdefault(annotation.example_id, []).append(EvaluatedCot(annotation.sample, cot, judged))
    return [AnnotatedExample(example, tuple(cots.get(example.id, ()))) for example in examples], report
