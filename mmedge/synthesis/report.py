"""What a synthesis brought: how many questions, of which kinds, why others were refused, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmedge.annotations.bill import Bill
from mmedge.reports.formats import share
from mmedge.reports.tables import Table
from mmedge.synthesis.similarity import grams, jaccard
from mmedge.tasks.synthesized import NewQuestion

LOOKED_AT = 500  # questions whose nearest neighbour is looked for


@dataclass(frozen=True)
class SynthesisReport:
    """A run's new questions.

    Attributes:
        recipe: Its name.
        wanted: How many questions were wanted.
        taken: How many there are.
        kinds: How many of each label or function; empty where the form has none.
        refused: Why texts were not taken, and how many, the most frequent first.
        nearest: The mean similarity of a new question to the most similar other one; None for fewer than two.
        complete: Whether nothing is left to ask for.
        stopped: The limit at which it stopped, or empty.
        postponed: Requests that failed too often and are left for the next run.
        bill: What it cost; None where nobody was asked.
        examples: Some of the questions.
    """

    recipe: str
    wanted: int
    taken: int
    kinds: dict[str, int]
    refused: dict[str, int]
    nearest: float | None
    complete: bool
    stopped: str
    postponed: int
    bill: Bill | None
    examples: tuple[str, ...]

    @property
    def scarcest(self) -> str:
        """The kind with the fewest questions; empty without kinds."""
        return min(self.kinds, key=lambda kind: self.kinds[kind], default="")

    @property
    def falls_short(self) -> bool:
        """Whether a kind, or all of them together, got less than half of the questions that were wanted."""
        scarce = bool(self.kinds) and 2 * self.kinds[self.scarcest] < self.wanted // len(self.kinds)
        return scarce or 2 * self.taken < self.wanted

    def to_json(self) -> dict[str, Any]:
        bill = None
        if self.bill is not None:
            bill = self.bill.to_json()
            bill["texts"] = self.bill.texts["cot"]
        return {
            "recipe": self.recipe,
            "wanted": self.wanted,
            "taken": self.taken,
            "kinds": self.kinds,
            "refused": self.refused,
            "similarity_to_the_nearest": self.nearest,
            "complete": self.complete,
            "stopped": self.stopped,
            "postponed": self.postponed,
            "bill": bill,
            "examples": list(self.examples),
        }

    def table(self) -> Table:
        """Return it as a table."""
        rows = [["new questions", f"{self.taken} of {self.wanted}", share(self.taken / self.wanted)]]
        rows += [[f"of which {kind}", str(count), share(count / max(1, self.taken))] for kind, count in self.kinds.items()]
        rows += [[f"refused: {reason}", str(count), ""] for reason, count in self.refused.items()]
        if self.nearest is not None:
            rows.append(["mean similarity to the most similar other one", f"{self.nearest:.2f}", ""])
        if self.bill is not None:
            rows.append(["requests", f"{self.bill.requests:,}", ""])
            rows += [[f"requests failed: {status}", f"{count:,}", ""] for status, count in self.bill.failed.items()]
            if self.bill.currency:
                rows.append(["cost", f"{self.bill.cost:.4f} {self.bill.currency}", ""])
        return Table("Synthesis", ["", "", ""], rows)


def nearest_similarity(questions: Sequence[NewQuestion]) -> float | None:
    """Return the mean similarity of questions to the most similar other one, from 0 to 1; of the first few hundred."""
    sets = [grams(each.question) for each in questions[:LOOKED_AT]]
    if len(sets) < 2:
        return None
    best = [0.0] * len(sets)
    for place, one in enumerate(sets):
        for other in range(place):
            found = jaccard(one, sets[other])
            best[place], best[other] = max(best[place], found), max(best[other], found)
    return sum(best) / len(best)
