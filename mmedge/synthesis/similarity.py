"""How similar two questions are: the Jaccard similarity of their character trigrams, and an index that finds similar ones.

    similarity("add the tune to my chill hits", "Add the album to my Club Hits")     0.49

A text's trigrams are those of its words in lower case, single spaces between and around them, without punctuation. For sets A and
B the Jaccard similarity is |A ∩ B| / |A ∪ B|, 1 for the same and 0 for none in common (Jaccard 1912). Sets with a similarity of at
least t share one of the first |A| - ⌈t |A|⌉ + 1 elements of each, in any fixed order; with the rarest first few candidates are left
(prefix filtering: Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

_WORD = re.compile(r"\w+")

Grams = frozenset[str]


def words_of(text: str) -> str:
    """Return the words of a text in lower case, without punctuation."""
    return " ".join(_WORD.findall(text.casefold()))


def grams(text: str) -> Grams:
    """Return the character trigrams of a text's words; the text itself where it has no words."""
    words = f" {words_of(text)} "
    return frozenset(words[at : at + 3] for at in range(len(words) - 2)) or frozenset((text.strip(),))


def jaccard(left: Grams, right: Grams) -> float:
    """Return the Jaccard similarity of two sets."""
    both = len(left & right)
    return both / (len(left) + len(right) - both) if both else 0.0


def similarity(left: str, right: str) -> float:
    """Return the similarity of two texts, from 0 to 1."""
    return jaccard(grams(left), grams(right))


class SimilarTexts:
    """Texts, and the most similar of them to another, where it is similar enough.

    Args:
        threshold: From which similarity on two texts count as similar; above 0.
        common: Texts that say which trigrams are frequent; any will do, those of the same language make it quick.
    """

    def __init__(self, threshold: float, common: Iterable[str] = ()) -> None:
        self._threshold = threshold
        self._frequency = Counter(gram for text in common for gram in grams(text))
        self._sets: list[tuple[Grams, str]] = []
        self._by_gram: defaultdict[str, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._sets)

    def add(self, text: str, name: str) -> None:
        """Add a text; `name` is what it is found by."""
        found = grams(text)
        for gram in self._prefix(found):
            self._by_gram[gram].append(len(self._sets))
        self._sets.append((found, name))

    def nearest(self, text: str) -> tuple[float, str] | None:
        """Return the largest similarity of a text to one of these, if it reaches the threshold, and that one's name."""
        wanted = grams(text)
        candidates = {number for gram in self._prefix(wanted) for number in self._by_gram.get(gram, ())}
        best: tuple[float, str] | None = None
        for number in sorted(candidates):
            other, name = self._sets[number]
            found = jaccard(wanted, other)
            if found >= self._threshold and (best is None or found > best[0]):
                best = found, name
        return best

    def _prefix(self, found: Grams) -> list[str]:
        ordered = sorted(found, key=lambda gram: (self._frequency[gram], gram))
        least = math.ceil(self._threshold * len(ordered) - 1e-9)
        return ordered[: len(ordered) - least + 1]
