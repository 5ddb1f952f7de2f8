"""What people decided about questions and a teacher's texts: accepted, mended or dropped, by whom and when.

    decisions = Decisions(store)
    decisions.decide(Item("svamp-train-0003", "question"), "mend", "ann", label="84 / 2")
    decisions.decide(Item("svamp-train-0003", "cot", 1), "drop", "ann")
    decisions.undo(Item("svamp-train-0003", "cot", 1), "ann")
    decisions.current()      {Item("svamp-train-0003", "question"): Decision(…)}

Rows are added and never changed: an undo is a row as well. What is decided last about an item holds.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from mmedge.annotations.store import AnnotationStore, storable

What = Literal["accept", "mend", "drop"]
ACTIONS: tuple[What, ...] = ("accept", "mend", "drop")
KINDS = ("question", "cot", "evaluation")
UNDO = "undo"
_COLUMNS = "number, example_id, kind, sample, evaluation, what, question, label, text, verdict, who, time"


class Item(NamedTuple):
    """What a decision is about: a question, a chain of thought of it, or an evaluation of that.

    Attributes:
        example_id: Which question.
        kind: `question`, `cot` or `evaluation`.
        sample: The number of the chain of thought; 0 for a question.
        evaluation: The number of its evaluation; 0 for the others.
    """

    example_id: str
    kind: str
    sample: int = 0
    evaluation: int = 0


@dataclass(frozen=True)
class Decision:
    """A decision.

    Attributes:
        what: `accept`, `mend` or `drop`.
        who: Who decided.
        time: When, in seconds since 1970.
        question: The wording of a question that was mended, or None.
        label: The human label of a question, or None.
        text: What a text becomes, or None.
        verdict: What the verdict of an evaluation becomes, or None.
    """

    what: What
    who: str
    time: float
    question: str | None = None
    label: str | None = None
    text: str | None = None
    verdict: str | None = None

    def content(self) -> tuple[Any, ...]:
        """Return what it says, without by whom and when."""
        return self.what, self.question, self.label, self.text, self.verdict


class Decisions:
    """The decisions in a store.

    Args:
        store: The store.
    """

    def __init__(self, store: AnnotationStore) -> None:
        self._store = store

    def current(self, example_ids: Iterable[str] | None = None) -> dict[Item, Decision]:
        """Return the decisions that hold, of all or of some questions."""
        wanted = None if example_ids is None else set(example_ids)
        found: dict[Item, list[Decision]] = {}
        for _, *item, what, question, label, text, verdict, who, at in self._rows():
            if wanted is not None and item[0] not in wanted:
                continue
            made = found.setdefault(Item(*item), [])
            if what != UNDO:
                made.append(Decision(what, who, at, question, label, text, verdict))
            elif made:
                made.pop()
        return {item: made[-1] for item, made in found.items() if made}

    def decide(self, item: Item, what: What, who: str, **content: str | None) -> Decision:
        """Add a decision; see `Decision` for what it may contain."""
        return self.decide_all([(item, Decision(what, who, time.time(), **content))])[0]

    def decide_all(self, made: Iterable[tuple[Item, Decision]]) -> list[Decision]:
        """Add decisions, all or none."""
        rows = list(made)
        with self._store.transaction() as connection:
            for item, decision in rows:
                values = asdict(decision)
                texts = [storable(values[name]) for name in ("question", "label", "text", "verdict")]
                connection.execute(
                    f"INSERT INTO decisions ({_COLUMNS}) VALUES (NULL{', ?' * 11})",
                    (*item, decision.what, *texts, storable(decision.who), decision.time),
                )
                connection.execute("INSERT OR IGNORE INTO stale VALUES (?)", (item.example_id,))
        return [decision for _, decision in rows]

    def undo(self, item: Item, who: str) -> bool:
        """Take back what was decided last about an item; return whether there was anything."""
        if item not in self.current([item.example_id]):
            return False
        with self._store.transaction() as connection:
            connection.execute(
                f"INSERT INTO decisions ({_COLUMNS}) VALUES (NULL, ?, ?, ?, ?, ?, NULL, NULL, NULL, NULL, ?, ?)",
                (*item, UNDO, storable(who), time.time()),
            )
            connection.execute("INSERT OR IGNORE INTO stale VALUES (?)", (item.example_id,))
        return True

    def last(self) -> Item | None:
        """Return the item of the newest decision that was not taken back."""
        made: list[Item] = []
        for _, *item, what, _question, _label, _text, _verdict, _who, _time in self._rows():
            found = Item(*item)
            if what != UNDO:
                made.append(found)
            elif found in made:
                del made[len(made) - 1 - made[::-1].index(found)]
        return made[-1] if made else None

    def _rows(self) -> Iterable[tuple[Any, ...]]:
        return self._store.query(f"SELECT {_COLUMNS} FROM decisions ORDER BY number")


def dropped(decisions: Mapping[Item, Decision]) -> set[str]:
    """Return the questions that people dropped."""
    return {item.example_id for item, decision in decisions.items() if item.kind == "question" and decision.what == "drop"}
