"""Version 2 of the embedded task: word problems in hundreds of sentence patterns, written by a grammar of frames.

    "Tom had 12 apples and gave 5 to Ann. How many apples does he have now?"                       → 12 - 5
    "My aunt bought two lamps for $30 each. It was a cold day. She also bought a pen for $4.
     How much does she pay in all?"                                                               → ( 2 * 30 ) + 4

A story is of one kind (goods, a crowd, money, …): a source of a quantity, up to two events, and a question; each is a choice of
meaning, of sentence pattern and of words. One to three operations. Patterns are of three groups (`patterns.py`), and all sentences
of a problem are of the group asked for.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from mmedge.tasks.embedded import frames, words
from mmedge.tasks.embedded.patterns import Group, Pattern, grouped
from mmedge.tasks.embedded.plans import COMPARED, KINDS, StoryPlan, draw_numbers, draw_plan
from mmedge.tasks.embedded.problem import DISTRACTOR_SHARE, Problem, SolutionStep

FILLER_SHARE = 0.15


@dataclass(frozen=True)
class _Person:
    name: str
    man: bool


def _people(rng: random.Random, kind: str, count: int) -> list[_Person]:
    """Return different people, most of them by their names."""
    found: list[_Person] = []
    while len(found) < count:
        man = rng.random() < 0.5
        roles = kind != "age" and rng.random() < 0.15
        name = rng.choice((words.MALE_ROLES if man else words.FEMALE_ROLES) if roles else (words.MEN if man else words.WOMEN))
        if all(name != person.name for person in found):
            found.append(_Person(name, man))
    return found


_SLOT = re.compile(r"\{([^{}]+)\}")
_OPTION = re.compile(r"\[([^\[\]]*)\]")


class Teller:
    """Tells a story sentence by sentence: remembers who was mentioned, so that pronouns are clear.

    Args:
        slots: The words of the story by slot.
        people: By slot: A, B, D, E.
        rng: The only source of randomness.
    """

    def __init__(self, slots: dict[str, str], people: dict[str, _Person], rng: random.Random) -> None:
        self.rng = rng
        self.slots = slots
        self.people = people
        self.clear = True  # whether what was counted last is the thing that is asked for
        self.order: dict[int, int] = {}  # the place at which each number is first told
        self._mentioned: list[str] = []
        self._here: set[str] = set()  # who is in the sentence
        self._wordy = rng.random() < 0.25
        self._money = rng.choices(("{} dollars", "${}", "{} euros"), (11, 6, 3))[0]

    def tell(self, pattern: str, numbers: dict[str, int]) -> str:
        """Return the sentence of a pattern."""
        self._here.clear()
        text = _OPTION.sub(lambda match: self.rng.choice((match[1], "")), pattern)
        text = _SLOT.sub(lambda match: self._fill(match[1], numbers), text)
        text = re.sub(r" +([.,?])", r"\1", re.sub(r" +", " ", text)).strip()
        return re.sub(r"(^|[.?] )([a-z])", lambda match: match[1] + match[2].upper(), text)

    def _fill(self, slot: str, numbers: dict[str, int]) -> str:
        name, rest = slot[0], slot[1:]
        if name in self.people and rest in ("", "'s", "o"):
            return self._person(name, rest)
        if name in numbers and rest in ("", "$", "*"):
            return self._number(numbers[name], rest)
        if slot in ("+e", "-e"):
            return self._some(self._number(numbers["e"], ""), gained=slot == "+e")
        thing = self.slots["T"]
        choices: dict[str, Callable[[], tuple[str, ...]]] = {
            "them": lambda: ("them", f"the {thing}") if self.clear else (f"the {thing}",),
            "them,": lambda: ("them", f"the {thing}") if self.clear else (f"the {thing}",),
            "many": lambda: (f"How many {thing}",) * 2 + (("How many",) if self.clear else ()),
            "many,": lambda: (f"how many {thing}",) * 2 + (("how many",) if self.clear else ()),
            "much": lambda: ("How much money", "How much", f"How many {self.money_name}"),
            "much,": lambda: ("how much money", f"how many {self.money_name}"),
            "W": lambda: words.WHENS,
            "W,": lambda: tuple(f"{when}{comma}" for when in words.WHENS for comma in ("", ",")),
            "how long": lambda: ("For how many days", "How many days"),
        }
        if slot in choices:
            return self.rng.choice(choices[slot]())
        if slot.startswith("a "):
            return words.with_article(self.slots[slot[2:]])
        return self.slots[slot]

    @property
    def money_name(self) -> str:
        """What money is counted in."""
        return "euros" if "euros" in self._money else "dollars"

    def _person(self, slot: str, case: str) -> str:
        person = self.people[slot]
        others = [self.people[other] for other in self._mentioned if other != slot]
        known = slot in self._mentioned and all(other.man != person.man for other in others)
        if slot not in self._mentioned:
            self._mentioned.append(slot)
        again, alone = slot in self._here, self._here <= {slot}
        self._here.add(slot)
        if (again and alone and case) or (known and self.rng.random() < (0.8 if case else 0.6)):
            he, his, him = ("he", "his", "him") if person.man else ("she", "her", "her")
            return {"": he, "'s": his, "o": him}[case]
        return person.name + ("'s" if case == "'s" else "")

    def _number(self, value: int, how: str) -> str:
        self.order.setdefault(value, len(self.order))
        if how == "$":
            return self._money.format(value)
        if how == "*" and value == 2 and self.rng.random() < 0.8:
            return "twice"
        word = words.number_word(value) if self._wordy or (how == "*" and self.rng.random() < 0.6) else None
        return (word or str(value)) + (" times" if how == "*" else "")

    def _some(self, number: str, *, gained: bool) -> str:
        """Return so many of the thing, as short as is clear."""
        thing = self.slots["T"]
        if gained:
            choices = [f"{number} more {thing}", f"another {number} {thing}", f"{number} {thing}"]
            return self.rng.choice(choices + ([f"{number} more", f"another {number}"] if self.clear else []))
        choices = [f"{number} {thing}", f"{number} of the {thing}"]
        return self.rng.choice(choices + ([f"{number} of them", number] if self.clear else []))


def _slots(plan: StoryPlan, rng: random.Random) -> tuple[dict[str, str], tuple[tuple[str, str], ...], str]:
    """Return the words of a story, what the frames' capitals stand for, and of whom the thing is, if not of A."""
    goods_name = rng.choices(tuple(words.GOODS), (3, 2, 6, 1))[0] if plan.kind in ("goods", "pair") else "things"
    if plan.kind == "unit":
        goods_name = rng.choice(("fruit", "baked", "things"))
    goods = words.GOODS[goods_name]
    noun, other = rng.choice(goods.nouns), rng.choice(words.GOODS["things"].nouns)
    while other == noun:
        other = rng.choice(words.GOODS["things"].nouns)
    preposition, container = rng.choice(goods.containers).split()
    taker, heap = rng.choice(words.TAKERS), rng.choice(words.HEAPS)
    slots = {"u": other, "c": container, "f": taker, "g": heap, "in": preposition}
    whose = ""
    kind_words = rng.choice(words.KINDS)
    if plan.kind == "crowd":
        noun, slots["here"], slots["come"], slots["go"] = rng.choice(words.CROWDS)
        whose, kind_words = "all", rng.choice(words.SIZES)
    elif plan.kind == "length":
        slots["o"], noun = rng.choice(words.LENGTHS)
    elif plan.kind == "stuff":
        supply, vessels = rng.choice(((words.LIQUIDS, words.VESSELS), (words.SOLIDS, words.SACKS)))
        slots["s"], noun = rng.choice(supply)
        slots["c"], slots["in"] = rng.choice(vessels), "in"
    elif plan.kind == "work":
        slots["v"], slots["V"], slots["vs"], noun, slots["p"] = rng.choice(words.ACTIVITIES)
        slots["ps"] = words.plural(slots["p"])
    elif plan.kind == "part":
        noun, *found = rng.choice(words.PARTS)
        kind_words = (found[0], found[1])
    if plan.kind in ("money", "bill", "price"):
        slots["g"] = rng.choice(words.PRICED)
    else:
        slots["G"] = words.plural(heap)
    slots |= {"t": noun, "T": words.plural(noun), "U": words.plural(other), "C": words.plural(slots["c"]), "F": words.plural(taker)}
    slots["x"], slots["y"] = kind_words
    slots["d1"], slots["d2"] = rng.choice(words.TIMES)
    return slots, (("GAIN", goods.gains), ("LOSS", goods.losses)), whose


def _choose(
    plan: StoryPlan, meaning: str, capitals: tuple[tuple[str, str], ...], group: Group, rng: random.Random
) -> Pattern | None:
    """Return a pattern of a group for a meaning; None where the group has none."""
    listed = KINDS[plan.kind][meaning]
    by_frame = grouped(listed, capitals if plan.kind in ("goods", "pair") else ())[group]
    if plan.source in COMPARED and meaning in ("count", "left"):
        by_frame = tuple(patterns for patterns in by_frame if "{A" in patterns[0].text)
    return rng.choice(rng.choice(by_frame)) if by_frame else None


_PRESENT = re.compile(r"\b(has|owns|keeps|are|is|have|holds|contains|wants|must|buys)\b")


def _same_subject(source: str, event: str) -> bool:
    """Whether both are single sentences in the past about A."""
    past = not _PRESENT.search(source) and not re.match(r"\{A\} (already|buys|cuts)", event)
    return past and source.startswith("{A} ") and event.startswith("{A} ") and ". " not in source + event


def _joined(texts: list[str], rng: random.Random) -> list[str]:
    """Return the sentences with some of them made one: "Tom had 12 apples and gave 5 to Ann.", "If Tom gives …, how many …?"."""
    source, *rest = texts
    if len(rest) > 1 and rng.random() < 0.8 and _same_subject(source, rest[0]):
        link = rng.choice((" and ", " and ", ", then ", " and then "))
        return [source[:-1] + link + rest[0].removeprefix("{A} "), *rest[1:]]
    if len(rest) > 1 and rng.random() < 0.12 and ". " not in rest[-2] + rest[-1] and rest[-2].startswith("{A} "):
        question = re.sub(r"^\{(many|much)\}", r"{\1,}", rest[-1])
        return [*texts[:-2], "If " + rest[-2][:-1] + ", " + question[0].lower() + question[1:]]
    return texts


def generate(rng: random.Random, group: Group, distractors: float = DISTRACTOR_SHARE) -> Problem:
    """Write one problem.

    Args:
        rng: The only source of randomness.
        group: The group of sentence patterns that all its sentences are of.
        distractors: How often there is a number that the answer does not need.
    """
    while True:
        plan = draw_plan(rng)
        numbers = draw_numbers(plan, rng)
        slots, capitals, whose = _slots(plan, rng)
        chosen = [_choose(plan, meaning, capitals, group, rng) for meaning in plan.meanings]
        if numbers is not None and all(chosen):
            break
    patterns = [pattern for pattern in chosen if pattern is not None]
    people = dict(zip("ABDE", _people(rng, plan.kind, 4), strict=True))
    given = {name: value for part in numbers.given for name, value in part.items()}
    teller = Teller(slots, people, rng)
    texts = [pattern.text for pattern in patterns]
    per_sentence = list(numbers.given)
    if len({name for part in per_sentence for name in part}) == sum(len(part) for part in per_sentence):
        texts = _joined(texts, rng)
        per_sentence = [given] * len(texts)
    extra, distractor = _extra(rng, group, distractors, set(given.values()) | {2})
    if extra is not None:
        patterns.append(extra)
    place = _place_of_extra(texts, rng)
    sentences: list[str] = []
    for index, (text, known) in enumerate(zip(texts, per_sentence, strict=True)):
        if extra is not None and index == place:
            said = extra.text if place else extra.text.replace(" also", "")
            sentences.append(teller.tell(said, {} if distractor is None else {"k": distractor}))
            teller.clear = False
        sentences.append(teller.tell(text, known))
    steps = tuple(_in_reading_order(step, teller.order) for step in numbers.steps)
    thing = teller.money_name if plan.kind in ("money", "bill", "price") else slots["T"]
    ids = tuple(pattern.id for pattern in patterns)
    return Problem(" ".join(sentences), steps, thing, whose or people["A"].name, distractor, ids)


def _extra(rng: random.Random, group: Group, share: float, taken: set[int]) -> tuple[Pattern | None, int | None]:
    """Return a sentence that the answer does not need, and its number, if it has one."""
    chance = rng.random()
    if chance >= share + FILLER_SHARE:
        return None, None
    listed = frames.DISTRACTORS if chance < share else frames.FILLERS
    pattern = rng.choice(rng.choice(grouped(listed)[group]))
    number = rng.choice([value for value in range(3, 60) if value not in taken]) if chance < share else None
    return pattern, number


def _place_of_extra(texts: list[str], rng: random.Random) -> int:
    """Return before which sentence another one may stand without making `it` or `they` unclear."""
    place = rng.randrange(len(texts))
    return 0 if any(re.search(r"\b([Ii]t|[Tt]hey)\b", text) for text in texts[place:]) else place


def _in_reading_order(step: SolutionStep, order: dict[int, int]) -> SolutionStep:
    """Return a sum or product of two given numbers with the operand first that the text names first, as people write it."""
    if step.operator not in "+*" or step.left is None or step.right is None or order[step.left] <= order[step.right]:
        return step
    return replace(step, left=step.right, right=step.left)
