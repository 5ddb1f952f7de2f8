"""What each new question is asked to be: a label or function, its arguments, a style, a length, and the seeds that are shown.

    synthesized-GetWeather-7    a call of GetWeather with city and day · casual, as in a chat message · about 9 words · 3 seeds

A brief depends on its kind and number, the recipe and the seeds alone: not on how many are wanted, nor on what came back. So a
collection that was killed, or is continued with a larger count, asks for the same. Where seeds are few, up to ten briefs of a
kind show the same ones, so that a server that keeps what it has read of a prompt reads them once.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from mmedge.recipe import SynthesisSection
from mmedge.tasks import Example
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.synthesized import PREFIX

T = TypeVar("T")
MOST_WITH_THE_SAME = 10  # briefs of a kind that show the same seeds
ALL_SHOWN_WITHIN = 30  # so many briefs of a kind


@dataclass(frozen=True)
class Brief:
    """What one new question is asked to be.

    Attributes:
        id: Its id, if it is taken.
        kind: The label or function that it is about; empty where the form has none.
        wish: What its answer must be, in words; may be empty.
        style: How it is worded.
        words: About how long it is.
        seeds: The questions that are shown.
    """

    id: str
    kind: str
    wish: str
    style: str
    words: int
    seeds: tuple[Example, ...]

    def subject(self) -> Example:
        """Return what it is called in the store."""
        return Example(self.id, "")


class Briefs:
    """The briefs of a recipe.

    Args:
        form: What answers look like.
        seeds: The questions to start from, at least one.
        section: The recipe's settings.
    """

    def __init__(self, form: AnswerForm, seeds: Sequence[Example], section: SynthesisSection) -> None:
        self._form, self._section = form, section
        self.kinds = form.kinds() or ("",)
        kinds = [form.kind_of(seed.label) if seed.label is not None else "" for seed in seeds]
        own = {kind: [seed for seed, of in zip(seeds, kinds, strict=True) if of == kind] for kind in self.kinds}
        self._own = {kind: tuple(found) for kind, found in own.items()}
        self._shown = {kind: _shuffled(found or list(seeds), f"{section.seed}/seeds/{kind}") for kind, found in own.items()}
        slugs = [re.sub(r"\W+", "-", kind).strip("-")[:40] for kind in self.kinds]
        double = Counter(slugs)
        self._slugs = {
            kind: f"{slug}-{place}" if double[slug] > 1 else slug
            for place, (kind, slug) in enumerate(zip(self.kinds, slugs, strict=True))
        }

    def shares(self, count: int) -> dict[str, int]:
        """Return how many new questions each kind gets, as equal as can be."""
        whole, more = divmod(count, len(self.kinds))
        return {kind: whole + (place < more) for place, kind in enumerate(self.kinds)}

    def brief(self, kind: str, number: int) -> Brief:
        """Return the `number`-th brief of a kind, from 0."""
        section, shown = self._section, self._shown[kind]
        draw = random.Random(f"{section.seed}/{kind}/{number}")
        styles = _shuffled(section.styles, f"{section.seed}/styles/{kind}/{number // len(section.styles)}")
        length = len(draw.choice(shown).question.split()) * draw.uniform(0.6, 1.6)
        count = min(section.shown, len(shown))
        turn = number // max(1, min(MOST_WITH_THE_SAME, ALL_SHOWN_WITHIN * count // len(shown)))
        seeds = tuple(shown[(turn * count + place) % len(shown)] for place in range(count))
        return Brief(
            id="-".join(filter(None, (PREFIX.rstrip("-"), self._slugs[kind], str(number)))),
            kind=kind,
            wish=self._form.wish(kind, self._own[kind], draw),
            style=styles[number % len(styles)],
            words=max(2, round(length)),
            seeds=seeds,
        )


def _shuffled(values: Sequence[T], seed: str) -> list[T]:
    found = list(values)
    random.Random(seed).shuffle(found)
    return found
