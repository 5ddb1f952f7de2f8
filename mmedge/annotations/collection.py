"""What is to be collected into a store, by which process, and at what price: the bookkeeping behind sampled teachers.

    collection = Collection(store)
    collection.plan(example_ids, cots=(5, 15), evaluations=(1, 3))          5 wanted, of at most 15 responses
    number = collection.join()
    for subject, responses, cot in collection.claim(number, 64): …
    follow_ups = collection.record(number, requests, settled)

Several processes may work on one store: each claims subjects before it works on them, and the claims of a dead one are free
again. What a collector may have in flight is reserved first, so that no limit is exceeded and no kill hides what was spent.
"""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import psutil

from mmedge.annotations.records import RequestRecord, Response, Settled, Spending, StatusTotal, Subject, TokenMeans
from mmedge.annotations.schema import ACCEPTED, WHOLE
from mmedge.annotations.store import AnnotationStore, insert_annotations, storable

POSTPONED = -1  # stands for the collector of a subject that is left for the next run
DEAD_SECONDS = 90.0  # on another machine, a collector that was not seen for this long counts as dead


class Collection:
    """The bookkeeping of one store.

    Args:
        store: The store.
    """

    def __init__(self, store: AnnotationStore) -> None:
        self._store = store

    # ------------------------------------------------------------------------------------------------ who and what

    def configuration(self, content: str) -> int:
        """Return the number of a description of model, endpoint, parameters and prompts, stored once."""
        with self._store.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO configurations (content) VALUES (?)", (content,))
            return int(connection.execute("SELECT id FROM configurations WHERE content = ?", (content,)).fetchone()[0])

    def configurations(self) -> list[str]:
        """Return all descriptions of model, endpoint, parameters and prompts."""
        return [row[0] for row in self._store.query("SELECT content FROM configurations ORDER BY id")]

    def join(self) -> int:
        """Note that this process collects, and return its number."""
        now = time.time()
        with self._store.transaction() as connection:
            insert = "INSERT INTO collectors (host, process, started, seen) VALUES (?, ?, ?, ?) RETURNING id"
            return int(connection.execute(insert, (socket.gethostname(), _process(os.getpid()), now, now)).fetchone()[0])

    def leave(self, collector: int) -> None:
        """Note that a collector has ended: what it claimed is free, and so is what it reserved and did not spend."""
        with self._store.transaction() as connection:
            _free(connection, collector)
            connection.execute("UPDATE collectors SET reserved_requests = 0, reserved_cost = 0 WHERE id = ?", (collector,))

    def release_dead(self, collector: int) -> int:
        """Free what dead collectors had claimed; return how many others are alive.

        What a killed collector had reserved stays reserved: its requests may have been served, and paid.
        """
        with self._store.transaction() as connection:
            now, host, alive = time.time(), socket.gethostname(), 0
            connection.execute("UPDATE collectors SET seen = ? WHERE id = ?", (now, collector))
            query = "SELECT id, host, process, seen FROM collectors WHERE ended IS NULL AND id <> ?"
            for other, where, process, seen in connection.execute(query, (collector,)).fetchall():
                here = where == host
                if (here and not _is_alive(process)) or (not here and now - seen > DEAD_SECONDS):
                    _free(connection, other)
                else:
                    alive += 1
            return alive

    # ------------------------------------------------------------------------------------------------ subjects

    def plan(self, example_ids: Sequence[str], cots: tuple[int, int], evaluations: tuple[int, int]) -> None:
        """Note what is to be collected, beside what is there; more than before may be wanted, and what is there stays.

        Args:
            example_ids: The questions.
            cots: How many chains of thought each is to have, and how many responses may be sampled for them at most.
            evaluations: The same for the evaluations of each chain of thought.
        """
        with self._store.transaction() as connection:
            run, many = connection.execute, connection.executemany
            run("UPDATE subjects SET collector = NULL WHERE collector = ?", (POSTPONED,))
            run("CREATE TEMP TABLE IF NOT EXISTS chosen (example_id TEXT PRIMARY KEY) WITHOUT ROWID")
            run("DELETE FROM chosen")
            many("INSERT INTO chosen VALUES (?)", [(id_,) for id_ in example_ids])
            insert = "INSERT OR IGNORE INTO subjects (example_id, kind, sample, wanted, draws, state)"
            many(f"{insert} VALUES (?, 'cot', 0, ?, ?, 'open')", [(id_, *cots) for id_ in example_ids])
            if evaluations[0]:
                run(
                    f"{insert} SELECT example_id, 'evaluation', sample, ?, ?, 'open' FROM annotations "
                    "WHERE kind = 'cot' AND sample < ? AND example_id IN chosen",
                    (*evaluations, cots[0]),
                )
            for kind, (wanted, most) in (("cot", cots), ("evaluation", evaluations)):
                run(
                    "UPDATE subjects SET wanted = MAX(wanted, ?), draws = MAX(draws, ?), state = 'open' WHERE kind = ? "
                    "AND example_id IN chosen AND (wanted < ? OR (state = 'given up' AND draws < ?))",
                    (wanted, most, kind, wanted, most),
                )

    def missing(self, evaluations: int) -> int:
        """Return how many annotations are to come: those of open subjects, and the evaluations that will follow from them.

        Args:
            evaluations: How many follow from each chain of thought.
        """
        query = (
            "SELECT COALESCE(SUM(CASE kind WHEN 'cot' THEN wanted * ? ELSE wanted END), 0) FROM subjects "
            "WHERE state = 'open' AND example_id IN chosen"
        )
        return int(self._store.query(query, (1 + evaluations,))[0][0])

    def in_state(self, state: str) -> int:
        """Return how many planned subjects are `open`, `done`, or `given up` (with fewer annotations than wanted)."""
        return int(self._store.query("SELECT COUNT(*) FROM subjects WHERE state = ? AND example_id IN chosen", (state,))[0][0])

    def planned(self) -> dict[str, str]:
        """Return the state of every question whose chains of thought were ever to be collected, by its id."""
        return dict(self._store.query("SELECT example_id, state FROM subjects WHERE kind = 'cot'"))

    def postpone(self, subject: Subject) -> None:
        """Leave a subject for the next collection."""
        with self._store.transaction() as connection:
            connection.execute("UPDATE subjects SET collector = ? WHERE number = ?", (POSTPONED, subject.number))

    def claimed_by_others(self, collector: int) -> int:
        """Return how many planned subjects others work on."""
        query = "SELECT COUNT(*) FROM subjects WHERE collector IS NOT NULL AND collector NOT IN (?, ?) AND example_id IN chosen"
        return int(self._store.query(query, (collector, POSTPONED))[0][0])

    def claim(self, collector: int, count: int) -> list[tuple[Subject, tuple[Response, ...], str]]:
        """Claim up to `count` open subjects that nobody works on.

        Returns:
            Each with what was sampled for it before, and with the chain of thought that is to be evaluated, or an empty text.
        """
        with self._store.transaction() as connection:
            connection.execute("UPDATE collectors SET seen = ? WHERE id = ?", (time.time(), collector))
            free = (
                "SELECT number FROM subjects INDEXED BY free_subjects WHERE state = 'open' AND collector IS NULL "
                "AND example_id IN chosen ORDER BY number LIMIT ?"
            )
            rows = connection.execute(
                f"UPDATE subjects SET collector = ? WHERE number IN ({free}) "
                "RETURNING number, example_id, kind, sample, wanted, draws",
                (collector, count),
            ).fetchall()
            begun = connection.execute(
                "SELECT number FROM subjects s WHERE number IN (SELECT value FROM json_each(?)) AND EXISTS (SELECT 1 "
                "FROM responses r WHERE r.example_id = s.example_id AND r.kind = s.kind AND r.sample = s.sample)",
                (json.dumps([row[0] for row in rows]),),
            )
            numbers = {row[0] for row in begun}
        subjects = [Subject(*row) for row in sorted(rows)]
        return [(each, self._responses(each) if each.number in numbers else (), self._cot_of(each)) for each in subjects]

    def _cot_of(self, subject: Subject) -> str:
        if subject.kind == "cot":
            return ""
        query = "SELECT text FROM annotations WHERE example_id = ? AND kind = 'cot' AND sample = ?"
        return str(self._store.query(query, (subject.example_id, subject.sample))[0][0])

    def _responses(self, subject: Subject) -> tuple[Response, ...]:
        """Return what was sampled for a subject before; accepted texts included."""
        rows = self._store.query(
            "SELECT draw, finish, outcome, text FROM responses WHERE example_id = ? AND kind = ? AND sample = ? ORDER BY draw",
            (subject.example_id, subject.kind, subject.sample),
        )
        accepted = [row[0] for row in rows if row[2] == ACCEPTED]
        if not accepted:
            return tuple(Response(*row) for row in rows)
        # accepted texts stand in `annotations`, in the order in which they were sampled
        where = "example_id = ? AND kind = ?" + (" AND sample = ?" if subject.kind == "evaluation" else "")
        values = (subject.example_id, subject.kind, *((subject.sample,) if subject.kind == "evaluation" else ()))
        stored = self._store.query(f"SELECT text FROM annotations WHERE {where} ORDER BY sample, evaluation", values)
        texts = dict(zip(accepted, (row[0] for row in stored), strict=False))
        return tuple(Response(number, finish, outcome, texts.get(number, text)) for number, finish, outcome, text in rows)

    # ------------------------------------------------------------------------------------------------ what came back

    def record(self, collector: int, requests: Sequence[RequestRecord], settled: Sequence[Settled]) -> list[Subject]:
        """Store how requests ended and which subjects are settled, in one transaction; return the follow-up subjects."""
        final = {(item.subject.number, number): outcome for item in settled for number, outcome in item.outcomes}
        outcomes: Counter[tuple[str, str]] = Counter()
        with self._store.transaction() as connection:
            _insert_requests(connection, collector, requests, final, outcomes)
            follow_ups = _settle(connection, collector, settled, final, outcomes)
            connection.executemany(
                "INSERT INTO outcomes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count",
                [(*key, count) for key, count in outcomes.items()],
            )
        return follow_ups

    # ------------------------------------------------------------------------------------------------ money

    def reserve(self, collector: int, wanted: Spending, limits: Spending | None) -> tuple[Spending, Spending]:
        """Reserve requests and cost for what a collector may have in flight, as far as the limits allow.

        Args:
            collector: Who reserves; what it had reserved before is replaced.
            wanted: What it would like.
            limits: The most that all collections of this store together may send and spend; None for no limits.

        Returns:
            What is granted, and what all collections have sent and spent.
        """
        with self._store.transaction() as connection:
            spent = self.spent()
            others = "SELECT COALESCE(SUM(reserved_requests), 0), COALESCE(SUM(reserved_cost), 0) FROM collectors WHERE id <> ?"
            other_requests, other_cost = connection.execute(others, (collector,)).fetchone()
            granted = wanted
            if limits is not None:
                requests = max(0, limits.requests - spent.requests - int(other_requests))
                cost = max(0.0, limits.cost - spent.cost - float(other_cost))
                granted = Spending(min(wanted.requests, requests), min(wanted.cost, cost))
            connection.execute(
                "UPDATE collectors SET reserved_requests = ?, reserved_cost = ?, seen = ? WHERE id = ?",
                (granted.requests, granted.cost, time.time(), collector),
            )
        return granted, spent

    def spent(self) -> Spending:
        """Return how many requests were sent, and what they cost."""
        row = self._store.query("SELECT COALESCE(SUM(requests), 0), COALESCE(SUM(cost), 0) FROM totals")[0]
        return Spending(int(row[0]), float(row[1]))

    def unaccounted(self) -> Spending:
        """Return the requests that killed collectors may have had in flight, and what they may have cost, at most."""
        sums = "COALESCE(SUM(reserved_requests), 0), COALESCE(SUM(reserved_cost), 0)"
        row = self._store.query(f"SELECT {sums} FROM collectors WHERE ended IS NOT NULL")[0]
        return Spending(int(row[0]), float(row[1]))

    def totals(self) -> list[StatusTotal]:
        """Return the sums over all requests, by kind and status."""
        columns = "kind, status, requests, prompt_tokens, completion_tokens, tokens_estimated, cost, seconds"
        return [StatusTotal(*row) for row in self._store.query(f"SELECT {columns} FROM totals")]

    def outcomes(self) -> dict[str, dict[str, int]]:
        """Return, by kind, what became of all responses and of how many, the most frequent first."""
        found: dict[str, dict[str, int]] = {"cot": {}, "evaluation": {}}
        rows = self._store.query("SELECT kind, outcome, count FROM outcomes WHERE count > 0 ORDER BY count DESC")
        for kind, outcome, count in rows:
            found[kind][outcome] = count
        return found

    def token_means(self) -> dict[str, TokenMeans]:
        """Return, by kind, the mean tokens of all requests that were answered; kinds without any are left out."""
        texts = {kind: sum(outcomes.values()) for kind, outcomes in self.outcomes().items()}
        return {
            total.kind: TokenMeans(total.prompt_tokens / total.requests, total.completion_tokens / texts[total.kind])
            for total in self.totals()
            if total.status == "ok" and total.requests and texts[total.kind]
        }


def _insert_requests(
    connection: sqlite3.Connection,
    collector: int,
    requests: Sequence[RequestRecord],
    final: dict[tuple[int, int], str],
    outcomes: Counter[tuple[str, str]],
) -> None:
    """Write requests, their responses and their sums.

    Args:
        connection: Within a transaction.
        collector: Who sent them.
        requests: The requests.
        final: What became of whole texts, by subject number and response; those that are written here are removed.
        outcomes: Counts to be kept right.
    """
    next_id = 1 + connection.execute("SELECT COALESCE(MAX(id), 0) FROM requests").fetchone()[0]
    totals: dict[tuple[str, str], list[float]] = {}
    request_rows, response_rows = [], []
    for id_, request in enumerate(requests, start=next_id):
        subject = request.subject
        place = (subject.example_id, subject.kind, subject.sample)
        estimated = int(request.tokens_estimated)
        sums = (1, request.prompt_tokens, request.completion_tokens, estimated, request.cost, request.seconds)
        request_rows.append(
            (
                *(id_, collector, request.configuration, *place, request.first, request.wanted, request.seed),
                *(request.prompt_sha256, request.started, request.seconds, request.status, storable(request.detail)),
                *sums[1:5],
            )
        )
        total = totals.setdefault((subject.kind, request.status), [0.0] * len(sums))
        for index, value in enumerate(sums):
            total[index] += value
        for response in request.responses:
            outcome = final.pop((subject.number, response.number), None) or response.outcome
            text = "" if outcome == ACCEPTED else storable(response.text)  # an accepted one stands in `annotations`
            response_rows.append((*place, response.number, id_, storable(response.finish), outcome, text))
            outcomes[subject.kind, outcome] += 1
    connection.executemany(f"INSERT INTO requests VALUES ({', '.join('?' * 18)})", request_rows)
    connection.executemany("INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?)", response_rows)
    connection.executemany(
        "INSERT INTO totals VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
        "requests = requests + excluded.requests, prompt_tokens = prompt_tokens + excluded.prompt_tokens, "
        "completion_tokens = completion_tokens + excluded.completion_tokens, "
        "tokens_estimated = tokens_estimated + excluded.tokens_estimated, cost = cost + excluded.cost, "
        "seconds = seconds + excluded.seconds",
        [(*key, *sums) for key, sums in totals.items()],
    )


def _settle(
    connection: sqlite3.Connection,
    collector: int,
    settled: Sequence[Settled],
    earlier: dict[tuple[int, int], str],
    outcomes: Counter[tuple[str, str]],
) -> list[Subject]:
    """Write the annotations of settled subjects, their state, and the subjects that follow from them.

    Args:
        connection: Within a transaction.
        collector: Who settled them.
        settled: The subjects.
        earlier: What became of whole texts that were stored before, by subject number and response.
        outcomes: Counts to be kept right.
    """
    if not settled:
        return []
    run, many = connection.execute, connection.executemany
    insert_annotations(connection, (annotation for item in settled for annotation in item.annotations))
    by_number = {item.subject.number: item.subject for item in settled} if earlier else {}
    for (number, response), outcome in earlier.items():
        subject = by_number[number]
        text = ", text = ''" if outcome == ACCEPTED else ""
        where = "example_id = ? AND kind = ? AND sample = ? AND draw = ? AND outcome = ?"
        values = (outcome, subject.example_id, subject.kind, subject.sample, response, WHOLE)
        if run(f"UPDATE responses SET outcome = ?{text} WHERE {where}", values).rowcount:
            outcomes[subject.kind, outcome] += 1
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
        [(*each, collector) for each in numbered.values()],
    )
    there = run("SELECT number FROM subjects WHERE number >= ? ORDER BY number", (first,)).fetchall()
    return [numbered[row[0]] for row in there]


def _free(connection: sqlite3.Connection, collector: int) -> None:
    connection.execute("UPDATE subjects SET collector = NULL WHERE collector = ?", (collector,))
    connection.execute("UPDATE collectors SET ended = ? WHERE id = ?", (time.time(), collector))


def _process(number: int) -> str:
    """Return what names a process for good: its number, and when it started (numbers are used again)."""
    try:  # ticks since the system started, which no correction of the clock changes
        started = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        try:
            started = str(psutil.Process(number).create_time())
        except psutil.Error:
            started = ""
    return f"{number} {started}"


def _is_alive(process: str) -> bool:
    number = int(process.split()[0])
    return psutil.pid_exists(number) and _process(number) == process
