"""The store of annotations: one SQLite file per run that keeps every raw text with its origin, and what it cost.

    annotations   the texts that were accepted: chains of thought, self-evaluations
    subjects      what is to be collected: a question's chains of thought, or one chain's evaluations; who works on it
    requests      every request to a teacher: model and parameters, prompt hash, tokens, time, cost, how it ended
    responses     every text that came back, with how it finished and what became of it
    summaries     what the texts of a question say, kept so that a report over a million of them takes a second

Raw texts are stored; what they say is found out when they are read (`reading.py`).
A kill at any moment leaves a store that opens and is continued; nothing is stored twice. Several processes may work on one
store: each claims subjects before it works on them, and the claims of one that died are free again. Knows nothing of prompts,
endpoints or models.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.schema import ACCEPTED, MIGRATIONS, WHOLE
from mmedge.errors import MmedgeError


class Subject(NamedTuple):
    """What is collected together: the chains of thought of one question, or the evaluations of one chain of thought.

    Attributes:
        number: Its place in the order of work.
        example_id: Which question it is about.
        kind: `cot` or `evaluation`.
        sample: Which chain of thought is evaluated; 0 for chains of thought.
        wanted: How many annotations it is to have.
        draws: How many texts may be drawn for them at most.
    """

    number: int
    example_id: str
    kind: str
    sample: int
    wanted: int
    draws: int


class Draw(NamedTuple):
    """One text that came back for a subject, whatever became of it."""

    draw: int
    finish: str
    outcome: str
    text: str


class RequestRecord(NamedTuple):
    """One request to a teacher and how it ended; times in seconds, cost in the currency of the price table.

    Attributes:
        subject: What was asked for.
        configuration: Number of the model, endpoint, parameters and prompt templates, from `configuration`.
        first_draw: The first of the texts that it asks for.
        wanted: How many it asks for.
        seed: The seed that it was sent with.
        prompt_sha256: Hash of the messages.
        started: When it was sent, in seconds since 1970.
        seconds: How long it took.
        status: `ok`, or what went wrong.
        detail: More about what went wrong.
        tokens_estimated: Whether the endpoint said nothing of tokens.
        draws: The texts that came back.
    """

    subject: Subject
    configuration: int
    first_draw: int
    wanted: int
    seed: int
    prompt_sha256: str
    started: float
    seconds: float
    status: str
    detail: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tokens_estimated: bool = False
    cost: float = 0.0
    draws: tuple[Draw, ...] = ()


class Settled(NamedTuple):
    """A subject that needs no more texts: which draws became annotations, and the evaluations that it now calls for.

    Attributes:
        subject: The subject.
        state: `done`, or `given up` where fewer annotations than wanted could be had.
        annotations: The accepted texts.
        became: What became of every whole text: the number of its draw, and `accepted` or `identical`.
        follow_ups: Subjects that now can be collected; they belong to the same collector. Their numbers do not count.
    """

    subject: Subject
    state: str
    annotations: tuple[Annotation, ...]
    became: tuple[tuple[int, str], ...]
    follow_ups: tuple[Subject, ...] = ()


@dataclass(frozen=True)
class Reservation:
    """What a collector may have in flight: requests, and their cost at worst."""

    requests: int
    cost: float


POSTPONED = -1  # stands for the collector of a subject that is left for the next run
DEAD_SECONDS = 90.0  # on another machine, one that was not seen for so long is taken for dead


class AnnotationStore:
    """A SQLite file of annotations.

    One object may be used from several threads, one at a time.

    Raises:
        MmedgeError: The file is no store, cannot be written, or was written by a newer version.
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
        with self._transaction():
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0 and self._connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
                raise MmedgeError(f"{self.path} is a database of another program", "move it away, or choose another --out")
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
            self._roll_back()
            raise MmedgeError(f"cannot write {self.path}: {error}", _advice(error)) from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back itself
                self._connection.execute("ROLLBACK")

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

    def add(self, annotations: Iterable[Annotation]) -> None:
        """Store annotations in one transaction; those that are there already stay as they are."""
        with self._transaction():
            self._add(annotations)

    def _add(self, annotations: Iterable[Annotation]) -> None:
        rows = [
            (a.example_id, a.kind, a.sample, a.evaluation, _storable(a.text), _storable(a.verdict), a.teacher, a.origin)
            for a in annotations
        ]
        self._connection.executemany("INSERT OR IGNORE INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._connection.executemany("INSERT OR IGNORE INTO stale VALUES (?)", {(row[0],) for row in rows})

    def annotations(self, kind: str, example_ids: Sequence[str] | None = None) -> Iterator[Annotation]:
        """Yield the annotations of one kind, of all or of some questions, by example, sample and number."""
        order = "ORDER BY example_id, sample, evaluation"
        if example_ids is None:
            for row in self._connection.execute(f"SELECT * FROM annotations WHERE kind = ? {order}", (kind,)):
                yield Annotation(*row)
            return
        for start in range(0, len(example_ids), 500):
            part = sorted(example_ids)[start : start + 500]
            places = ", ".join("?" * len(part))
            query = f"SELECT * FROM annotations WHERE example_id IN ({places}) AND kind = ? {order}"
            for row in self._connection.execute(query, (*part, kind)):
                yield Annotation(*row)

    def count(self, kind: str) -> int:
        """Return how many annotations of one kind there are."""
        query = "SELECT COUNT(*) FROM annotations WHERE kind = ?"
        return int(self._connection.execute(query, (kind,)).fetchone()[0])

    def begin(self, fingerprint: str, *, replace_unfinished: bool = False) -> bool:
        """Note that a teacher starts collecting; return whether it had finished before.

        Args:
            fingerprint: Says who it is.
            replace_unfinished: Remove what another one had left unfinished; for teachers that cost nothing.

        Raises:
            MmedgeError: Another teacher's annotations are in this store.
        """
        rows = self._connection.execute("SELECT fingerprint, finished FROM collections").fetchall()
        asked = self._connection.execute("SELECT EXISTS (SELECT 1 FROM requests)").fetchone()[0]
        if replace_unfinished and rows and rows[0][0] != fingerprint and not rows[0][1] and not asked:
            with self._transaction():
                for table in ("annotations", "collections", "stale", "summaries"):
                    self._connection.execute(f"DELETE FROM {table}")
            rows = []
        if any(row[0] != fingerprint for row in rows):
            raise MmedgeError(
                f"{self.path} holds another teacher's annotations (or its files have changed)",
                "choose another --out folder",
            )
        if rows:
            return bool(rows[0][1])
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO collections VALUES (?, 0)", (fingerprint,))
        return False

    def finish(self, fingerprint: str) -> None:
        """Note that a teacher has written everything that was asked of it."""
        with self._transaction():
            self._connection.execute("UPDATE collections SET finished = 1 WHERE fingerprint = ?", (fingerprint,))

    # ------------------------------------------------------------------------------------------- collecting

    def configuration(self, content: str) -> int:
        """Return the number of a description of model, endpoint, parameters and prompts, stored once."""
        with self._transaction():
            self._connection.execute("INSERT OR IGNORE INTO configurations (content) VALUES (?)", (content,))
            query = "SELECT id FROM configurations WHERE content = ?"
            return int(self._connection.execute(query, (content,)).fetchone()[0])

    def join(self) -> int:
        """Note that this process collects, and return its number."""
        with self._transaction():
            now = time.time()
            return int(
                self._connection.execute(
                    "INSERT INTO collectors (host, process, started, seen) VALUES (?, ?, ?, ?) RETURNING id",
                    (socket.gethostname(), _process(os.getpid()), now, now),
                ).fetchone()[0]
            )

    def leave(self, collector: int) -> None:
        """Note that a collector has ended: what it claimed is free, what it reserved and did not spend too."""
        with self._transaction():
            self._free(collector)
            self._connection.execute("UPDATE collectors SET reserved_requests = 0, reserved_cost = 0 WHERE id = ?", (collector,))

    def _free(self, collector: int) -> None:
        self._connection.execute("UPDATE subjects SET collector = NULL WHERE collector = ?", (collector,))
        self._connection.execute("UPDATE collectors SET ended = ? WHERE id = ?", (time.time(), collector))

    def bury_dead(self, collector: int) -> int:
        """Free what dead collectors had claimed; return how many others are alive.

        What a killed collector had reserved stays reserved: its requests may have been served, and paid.
        """
        with self._transaction():
            now, host, alive = time.time(), socket.gethostname(), 0
            self._connection.execute("UPDATE collectors SET seen = ? WHERE id = ?", (now, collector))
            query = "SELECT id, host, process, seen FROM collectors WHERE ended IS NULL AND id <> ?"
            for other, where, process, seen in self._connection.execute(query, (collector,)).fetchall():
                here = where == host
                if (here and not _is_alive(process)) or (not here and now - seen > DEAD_SECONDS):
                    self._free(other)
                else:
                    alive += 1
            return alive

    def plan(
        self, example_ids: Sequence[str], cots: int, cot_draws: int, evaluations: int, evaluation_draws: int
    ) -> tuple[int, int]:
        """Note what is to be collected, beside what is already, and return how many subjects are open, and annotations missing.

        More annotations than before may be asked for; what is there stays.
        """
        run = self._connection.execute
        with self._transaction():
            run("UPDATE subjects SET collector = NULL WHERE collector = ?", (POSTPONED,))
            run("CREATE TEMP TABLE IF NOT EXISTS chosen (example_id TEXT PRIMARY KEY) WITHOUT ROWID")
            run("DELETE FROM chosen")
            self._connection.executemany("INSERT INTO chosen VALUES (?)", [(id_,) for id_ in example_ids])
            insert = (
                "INSERT OR IGNORE INTO subjects (example_id, kind, sample, wanted, draws, state) VALUES (?, 'cot', 0, ?, ?, 'open')"
            )
            self._connection.executemany(insert, [(id_, cots, cot_draws) for id_ in example_ids])
            if evaluations:
                run(
                    "INSERT OR IGNORE INTO subjects (example_id, kind, sample, wanted, draws, state) "
                    "SELECT example_id, 'evaluation', sample, ?, ?, 'open' FROM annotations "
                    "WHERE kind = 'cot' AND sample < ? AND example_id IN chosen",
                    (evaluations, evaluation_draws, cots),
                )
            for kind, wanted, draws in (("cot", cots, cot_draws), ("evaluation", evaluations, evaluation_draws)):
                run(
                    "UPDATE subjects SET wanted = MAX(wanted, ?), draws = MAX(draws, ?), state = 'open' WHERE kind = ? "
                    "AND example_id IN chosen AND (wanted < ? OR (state = 'given up' AND draws < ?))",
                    (wanted, draws, kind, wanted, draws),
                )
        return self.open_work()

    def open_work(self) -> tuple[int, int]:
        """Return how many planned subjects are open, and how many annotations they ask for."""
        query = "SELECT COUNT(*), COALESCE(SUM(wanted), 0) FROM subjects WHERE state = 'open' AND example_id IN chosen"
        row = self.query(query)[0]
        return int(row[0]), int(row[1])

    def postpone(self, subject: Subject) -> None:
        """Leave a subject for the next collection."""
        with self._transaction():
            self._connection.execute("UPDATE subjects SET collector = ? WHERE number = ?", (POSTPONED, subject.number))

    def claimed_by_others(self, collector: int) -> int:
        """Return how many planned subjects others work on."""
        query = "SELECT COUNT(*) FROM subjects WHERE collector IS NOT NULL AND collector NOT IN (?, ?) AND example_id IN chosen"
        return int(self.query(query, (collector, POSTPONED))[0][0])

    def given_up(self) -> int:
        """Return how many planned subjects have fewer annotations than wanted, and will not get more."""
        query = "SELECT COUNT(*) FROM subjects WHERE state = 'given up' AND example_id IN chosen"
        return int(self.query(query)[0][0])

    def claim(self, collector: int, count: int) -> list[tuple[Subject, tuple[Draw, ...]]]:
        """Claim up to `count` open subjects that nobody works on, with what was drawn for them before."""
        with self._transaction():
            self._connection.execute("UPDATE collectors SET seen = ? WHERE id = ?", (time.time(), collector))
            free = (
                "SELECT number FROM subjects INDEXED BY free_subjects WHERE state = 'open' AND collector IS NULL "
                "AND example_id IN chosen ORDER BY number LIMIT ?"
            )
            rows = self._connection.execute(
                f"UPDATE subjects SET collector = ? WHERE number IN ({free}) "
                "RETURNING number, example_id, kind, sample, wanted, draws",
                (collector, count),
            ).fetchall()
            begun = {
                row[0]
                for row in self._connection.execute(
                    "SELECT number FROM subjects s WHERE number IN (SELECT value FROM json_each(?)) AND EXISTS (SELECT 1 "
                    "FROM responses r WHERE r.example_id = s.example_id AND r.kind = s.kind AND r.sample = s.sample)",
                    (json.dumps([row[0] for row in rows]),),
                )
            }
        subjects = [Subject(*row) for row in sorted(rows)]
        return [(subject, self.draws(subject) if subject.number in begun else ()) for subject in subjects]

    def draws(self, subject: Subject) -> tuple[Draw, ...]:
        """Return what was drawn for a subject before; accepted texts included."""
        rows = self._connection.execute(
            "SELECT r.draw, r.finish, r.outcome, r.text FROM responses r "
            "WHERE r.example_id = ? AND r.kind = ? AND r.sample = ? ORDER BY r.draw",
            (subject.example_id, subject.kind, subject.sample),
        ).fetchall()
        if not any(row[2] == ACCEPTED for row in rows):
            return tuple(Draw(*row) for row in rows)
        texts = dict(self._accepted_texts(subject, rows))
        return tuple(Draw(draw, finish, outcome, texts.get(draw, text)) for draw, finish, outcome, text in rows)

    def _accepted_texts(self, subject: Subject, rows: Sequence[tuple[int, str, str, str]]) -> Iterator[tuple[int, str]]:
        """Yield the texts of accepted draws: they stand in `annotations`, in the order in which they were drawn."""
        accepted = [row[0] for row in rows if row[2] == ACCEPTED]
        where = "example_id = ? AND kind = ?" + (" AND sample = ?" if subject.kind == "evaluation" else "")
        values = (subject.example_id, subject.kind, *((subject.sample,) if subject.kind == "evaluation" else ()))
        query = f"SELECT text FROM annotations WHERE {where} ORDER BY sample, evaluation"
        yield from zip(accepted, (row[0] for row in self._connection.execute(query, values)), strict=False)

    def record(self, collector: int, requests: Sequence[RequestRecord], settled: Sequence[Settled]) -> list[Subject]:
        """Store how requests ended and which subjects are settled, in one transaction; return the follow-up subjects."""
        many = self._connection.executemany
        final = {(item.subject.number, draw): became for item in settled for draw, became in item.became}
        totals: dict[tuple[str, str], list[float]] = {}
        outcomes: Counter[tuple[str, str]] = Counter()
        with self._transaction():
            next_id = 1 + self._connection.execute("SELECT COALESCE(MAX(id), 0) FROM requests").fetchone()[0]
            request_rows, response_rows = [], []
            for id_, request in enumerate(requests, start=next_id):
                subject = request.subject
                place = (subject.example_id, subject.kind, subject.sample)
                estimated = int(request.tokens_estimated)
                sums = (1, request.prompt_tokens, request.completion_tokens, estimated, request.cost, request.seconds)
                request_rows.append(
                    (
                        *(id_, collector, request.configuration, *place, request.first_draw, request.wanted, request.seed),
                        *(request.prompt_sha256, request.started, request.seconds, request.status, _storable(request.detail)),
                        *sums[1:5],
                    )
                )
                total = totals.setdefault((subject.kind, request.status), [0.0] * len(sums))
                for index, number in enumerate(sums):
                    total[index] += number
                for draw in request.draws:
                    became = final.pop((subject.number, draw.draw), None) or draw.outcome
                    text = "" if became == ACCEPTED else _storable(draw.text)  # an accepted one stands in `annotations`
                    response_rows.append((*place, draw.draw, id_, _storable(draw.finish), became, text))
                    outcomes[subject.kind, became] += 1
            many(f"INSERT INTO requests VALUES ({', '.join('?' * 18)})", request_rows)
            many("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", response_rows)
            follow_ups = self._settle(collector, settled, final, outcomes)
            many(
                "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
                "completion_tokens = completion_tokens + excluded.completion_tokens, "
                "tokens_estimated = tokens_estimated + excluded.tokens_estimated, cost = cost + excluded.cost, "
                "seconds = seconds + excluded.seconds",
                [(*key, *sums) for key, sums in totals.items()],
            )
            many(
                "INSERT INTO outcomes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                [(*key, count) for key, count in outcomes.items()],
            )
        return follow_ups

    def _settle(
        self,
        collector: int,
        settled: Sequence[Settled],
        earlier: dict[tuple[int, int], str],
        outcomes: Counter[tuple[str, str]],
    ) -> list[Subject]:
        """Write the annotations of settled subjects, their state, and the subjects that follow from them.

        Args:
            collector: Who settled them.
            settled: The subjects.
            earlier: What became of whole texts that were stored before, by subject number and draw.
            outcomes: Counts to be kept right.
        """
        if not settled:
            return []
        run, many = self._connection.execute, self._connection.executemany
        self._add(annotation for item in settled for annotation in item.annotations)
        by_number = {item.subject.number: item.subject for item in settled} if earlier else {}
        for (number, draw), became in earlier.items():
            subject = by_number[number]
            text = ", text = ''" if became == ACCEPTED else ""
            where = "example_id = ? AND kind = ? AND sample = ? AND draw = ? AND outcome = ?"
            values = (became, subject.example_id, subject.kind, subject.sample, draw, WHOLE)
            if run(f"UPDATE responses SET outcome = ?{text} WHERE {where}", values).rowcount:
                outcomes[subject.kind, became] += 1
                outcomes[subject.kind, WHOLE] -= 1
        states = [(item.state, item.subject.number) for item in settled]
        many("UPDATE subjects SET state = ?, collector = NULL WHERE number = ?", states)
        following = [follow_up for item in settled for follow_up in item.follow_ups]
        if not following:
            return []
        first = 1 + run("SELECT COALESCE(MAX(number), 0) FROM subjects").fetchone()[0]
        numbered = {first + index: subject._replace(number=first + index) for index, subject in enumerate(following)}
        many(
            "INSERT OR IGNORE INTO subjects VALUES (?, ?, ?, ?, ?, ?, 'open', ?)",
            [
                (number, each.example_id, each.kind, each.sample, each.wanted, each.draws, collector)
                for number, each in numbered.items()
            ],
        )
        there = run("SELECT number FROM subjects WHERE number >= ? ORDER BY number", (first,)).fetchall()
        return [numbered[row[0]] for row in there]

    def reserve(self, collector: int, wanted: Reservation, limits: Reservation | None) -> tuple[Reservation, Reservation]:
        """Reserve requests and cost for what a collector may have in flight, as far as the limits allow.

        Args:
            collector: Who reserves; what it had reserved before is replaced.
            wanted: What it would like.
            limits: The most that all collections of this store together may send and spend.

        Returns:
            What is granted, and what all collections have sent and spent.
        """
        run = self._connection.execute
        with self._transaction():
            spent_requests, spent_cost = run("SELECT COALESCE(SUM(requests), 0), COALESCE(SUM(cost), 0) FROM totals").fetchone()
            others = "SELECT COALESCE(SUM(reserved_requests), 0), COALESCE(SUM(reserved_cost), 0) FROM collectors WHERE id <> ?"
            other_requests, other_cost = run(others, (collector,)).fetchone()
            spent = Reservation(int(spent_requests), float(spent_cost))
            granted = wanted
            if limits is not None:
                left = Reservation(
                    max(0, limits.requests - spent.requests - int(other_requests)),
                    max(0.0, limits.cost - spent.cost - float(other_cost)),
                )
                granted = Reservation(min(wanted.requests, left.requests), min(wanted.cost, left.cost))
            run(
                "UPDATE collectors SET reserved_requests = ?, reserved_cost = ?, seen = ? WHERE id = ?",
                (granted.requests, granted.cost, time.time(), collector),
            )
        return granted, spent

    def spent(self) -> Reservation:
        """Return how many requests were sent, and what they cost."""
        row = self.query("SELECT COALESCE(SUM(requests), 0), COALESCE(SUM(cost), 0) FROM totals")[0]
        return Reservation(int(row[0]), float(row[1]))

    def unsettled(self) -> Reservation:
        """Return the requests that killed collectors may have had in flight, and what they may have cost, at most."""
        query = (
            "SELECT COALESCE(SUM(reserved_requests), 0), COALESCE(SUM(reserved_cost), 0) FROM collectors WHERE ended IS NOT NULL"
        )
        row = self.query(query)[0]
        return Reservation(int(row[0]), float(row[1]))

    def token_means(self) -> dict[str, tuple[int, float, float]]:
        """Return, by kind, of how many answered requests and texts this is the mean: prompt tokens per request, tokens per text."""
        found = {}
        texts = dict(self._connection.execute("SELECT kind, SUM(count) FROM outcomes GROUP BY kind").fetchall())
        query = "SELECT kind, requests, prompt_tokens, completion_tokens FROM totals WHERE status = 'ok'"
        for kind, requests, prompt_tokens, completion_tokens in self._connection.execute(query).fetchall():
            count = texts.get(kind) or 0
            if requests and count:
                found[kind] = (int(requests), prompt_tokens / requests, completion_tokens / count)
        return found

    def query(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a reading query."""
        try:
            return self._connection.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise MmedgeError(f"cannot read {self.path}: {error}", _advice(error)) from None

    # -------------------------------------------------------------------------------------------- summaries

    def stale(self, key: str) -> list[str]:
        """Return the questions whose summary is missing, or was not made by the reader that `key` names."""
        if [row[0] for row in self._connection.execute("SELECT key FROM readings")] != [key]:
            with self._transaction():
                self._connection.execute("DELETE FROM readings")
                self._connection.execute("DELETE FROM summaries")
                self._connection.execute("INSERT OR IGNORE INTO stale SELECT DISTINCT example_id FROM annotations")
                self._connection.execute("INSERT INTO readings VALUES (?)", (key,))
        return [row[0] for row in self._connection.execute("SELECT example_id FROM stale ORDER BY example_id")]

    def put_summaries(self, summaries: Iterable[tuple[str, str]]) -> None:
        """Store the summaries of some questions (id, content)."""
        with self._transaction():
            for id_, content in summaries:
                self._connection.execute("INSERT OR REPLACE INTO summaries VALUES (?, ?)", (id_, content))
                self._connection.execute("DELETE FROM stale WHERE example_id = ?", (id_,))

    def summaries(self) -> Iterator[tuple[str, str]]:
        """Yield the summaries of all questions (id, content)."""
        yield from self._connection.execute("SELECT example_id, content FROM summaries")


def _advice(error: Exception) -> str:
    """Return what to do about a failure of the store."""
    text = str(error).lower()
    if "full" in text or "no space" in text:
        return "free some disk space and run the same command again; what was stored is kept"
    if "readonly" in text or "read-only" in text or "permission" in text or "unable to open" in text:
        return "it must be in a folder that you may write to: choose another --out, or copy the run"
    if "locked" in text or "busy" in text:
        return "another process holds it; run the same command again when that has ended"
    if "not a database" in text or "malformed" in text:
        return "move the file away to collect anew"
    return "what was stored is kept; run the same command again"


def _process(number: int) -> str:
    """Return what names a process for good: its number, and when it started (numbers are used again)."""
    try:
        started = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = ""
    return f"{number} {started}"


def _is_alive(process: str) -> bool:
    number = int(process.split()[0])
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return _process(number) == process


def _storable(value: str | None) -> str | None:
    """Return text as SQLite takes it: an unpaired surrogate is no text and becomes a question mark."""
    if value is None or value.isascii():
        return value
    return value.encode("utf-8", "replace").decode("utf-8")
