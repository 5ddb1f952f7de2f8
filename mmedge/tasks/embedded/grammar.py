"""The sentences of the embedded arithmetic task: patterns, words, and how they expand.

A pattern is a sentence with slots in braces and alternatives in brackets:

    "{A} [has|owns] {b} [boxes|bags] with {n} {T} in each."

Slots are filled from the problem; alternatives are chosen at random and count as the same sentence pattern. Patterns after
`HELD_OUT` appear in the test split of held-out patterns only, never in training. Knows nothing about numbers or answers.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

NAMES = [
    "Ada",
    "Amir",
    "Anna",
    "Ben",
    "Bilal",
    "Carla",
    "Chen",
    "Dina",
    "Diego",
    "Emma",
    "Eli",
    "Farah",
    "Finn",
    "Grace",
    "Hugo",
    "Ines",
    "Ivan",
    "Jana",
    "Jonas",
    "Kofi",
    "Lara",
    "Leo",
    "Lina",
    "Mara",
    "Milo",
    "Mira",
    "Nadia",
    "Noah",
    "Nora",
    "Omar",
    "Paula",
    "Pedro",
    "Rosa",
    "Ravi",
    "Sara",
    "Samir",
    "Tara",
    "Theo",
    "Uma",
    "Vera",
    "Wanda",
    "Yara",
    "Yusuf",
    "Zoe",
]
THINGS = [
    "apples",
    "pears",
    "marbles",
    "stickers",
    "pencils",
    "books",
    "cookies",
    "shells",
    "stones",
    "stamps",
    "coins",
    "cards",
    "flowers",
    "eggs",
    "lemons",
    "candles",
    "buttons",
    "balloons",
    "ribbons",
    "badges",
    "peaches",
    "plums",
    "nuts",
    "carrots",
    "muffins",
    "toys",
    "beads",
    "leaves",
    "tickets",
    "photos",
]
CONTAINERS = ("boxes", "bags", "baskets", "trays", "jars", "crates", "drawers", "packets")


@dataclass(frozen=True)
class Patterns:
    """The sentence patterns of one part of a problem: those seen in training, and those held out of it."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]


# Where a quantity comes from. `n`, `m`, `b` are numbers, `A`, `B` people, `T` the thing, `C` a kind of container.
SOURCES: dict[str, Patterns] = {
    "direct": Patterns(
        (
            "{A} has {n} {T}.",
            "There are {n} {T} on {A}'s [table|shelf|desk].",
            "{A} [found|picked|collected] {n} {T} [this morning|yesterday|on Monday].",
            "{A} [starts the day|begins] with {n} {T}.",
            "In {A}'s [room|kitchen|garden] there are {n} {T}.",
        ),
        ("{A} keeps a collection of {n} {T}.", "Somebody left {n} {T} for {A}."),
    ),
    "product": Patterns(
        (
            "{A} has {b} {C} with {n} {T} in each.",
            "{A} fills {b} {C} and puts {n} {T} into [each|every one].",
            "There are {b} {C} [at|in] {A}'s [house|shop]. Each holds {n} {T}.",
            "{A} [bought|ordered] {b} {C} of {T}. Every one contains {n} {T}.",
            "For {b} days {A} [collects|gathers] {n} {T} [a|each] day.",
        ),
        ("{T} come in {C} of {n}, and {A} owns {b} of these {C}.", "{A} arranges {T} in {b} rows of {n}."),
    ),
    "sum": Patterns(
        (
            "{A} has {n} red {T} and {m} blue {T}.",
            "{A} has {n} {T} at home and {m} {T} at school.",
            "{A} [found|picked] {n} {T} on Monday and {m} {T} on Tuesday.",
            "{A} gets {n} {T} from {B} and {m} {T} from [a neighbour|an aunt].",
        ),
        ("Of {A}'s {T}, {n} are old and {m} are new.", "{A} puts {n} large {T} beside {m} small {T}."),
    ),
    "more_than": Patterns(
        (
            "{B} has {n} {T}. {A} has {m} more {T} than {B}.",
            "{B} [found|picked] {n} {T}, and {A} [found|picked] {m} more than {B}.",
            "{A} has {m} {T} more than {B}, who has {n}.",
        ),
        ("{B} counts {n} {T}; {A} counts as many and another {m}.",),
    ),
    "times_as_many": Patterns(
        (
            "{B} has {n} {T}. {A} has {b} times as many {T} as {B}.",
            "{B} [found|picked] {n} {T}, and {A} [found|picked] {b} times as many.",
            "{A} has {b} times the number of {T} that {B} has. {B} has {n} {T}.",
        ),
        ("For each of {B}'s {n} {T}, {A} has {b} {T}.",),
    ),
}

# What then happens to it, with `k` of the things.
EVENTS: dict[str, Patterns] = {
    "none": Patterns(("",), ("",)),
    "gain": Patterns(
        (
            "{B} gives {A} {k} more {T}.",
            "Then {A} [buys|finds|gets] {k} [more|other] {T}.",
            "Later {A} receives {k} {T} [as a present|from {B}].",
            "After that, {k} {T} are added.",
        ),
        ("{B} adds {k} {T} to what {A} has.", "Another {k} {T} arrive for {A}."),
    ),
    "loss": Patterns(
        (
            "{A} gives {k} {T} to {B}.",
            "Then {A} [loses|sells|throws away] {k} {T}.",
            "{B} takes {k} of the {T} [away|home].",
            "Later {k} of the {T} [break|are lost|are sold].",
        ),
        ("{A} parts with {k} {T}.", "By evening {k} of {A}'s {T} are gone."),
    ),
}

# What is asked. `k` is a new number, `T` the thing.
QUESTIONS: dict[str, Patterns] = {
    "count": Patterns(
        (
            "How many {T} does {A} have [now|in all|altogether]?",
            "What is the number of {T} that {A} has [now|in the end]?",
            "How many {T} are there [now|in total]?",
        ),
        ("Count {A}'s {T}: how many are they?",),
    ),
    "share": Patterns(
        (
            "{A} shares [them|the {T}] equally among {k} [friends|children]. How many {T} does each [of them|one] get?",
            "If {k} [friends|people] divide [them|the {T}] equally, how many {T} does each [get|receive]?",
            "{A} puts [them|the {T}] into {k} equal piles. How many {T} are in each pile?",
        ),
        ("All of the {T} are dealt out fairly to {k} guests. What is the share of one guest?",),
    ),
    "pack": Patterns(
        (
            "{A} packs [them|the {T}] into bundles of {k}. How many bundles are there?",
            "If {k} {T} fit into one bag, how many bags does {A} need [for all of them|in all]?",
            "How many groups of {k} {T} can {A} make?",
        ),
        ("{A} always ties {k} {T} together. How many ties are needed?",),
    ),
    "price": Patterns(
        (
            "Each [of the {T}|one] costs {k} dollars. How many dollars do all of them cost?",
            "{A} sells all the {T} for {k} dollars each. How many dollars does {A} [get|earn]?",
            "If every one of the {T} weighs {k} grams, how many grams do they weigh together?",
        ),
        ("At {k} dollars apiece, what are all of the {T} worth in dollars?",),
    ),
    "more": Patterns(
        (
            "{D} has {k} {T}. How many more {T} does {A} have than {D}?",
            "How many {T} more than {D} does {A} have, if {D} has {k}?",
            "{D} has only {k} {T}. How many fewer {T} does {D} have than {A}?",
        ),
        ("What must {D}, who has {k} {T}, still find to have as many as {A}?",),
    ),
    "gained": Patterns(
        (
            "Now {A} has {k} {T}. How many {T} did {A} get [since then|in the meantime]?",
            "{A} wants to have {k} {T}. How many more {T} does {A} need?",
            "After [buying some|finding some] more, {A} has {k} {T}. How many were [added|new]?",
        ),
        ("What is missing until {A} reaches {k} {T}?",),
    ),
    "lost": Patterns(
        (
            "Now {A} has only {k} {T} left. How many {T} did {A} lose?",
            "After giving some away, {A} has {k} {T}. How many {T} did {A} give away?",
            "In the end {k} {T} are left. How many {T} are gone?",
        ),
        ("When {A} looks again, {k} {T} remain. What has disappeared?",),
    ),
}

# Numbers that the answer does not need: `k`, another person `D`, another thing `U`.
DISTRACTORS = Patterns(
    (
        "{A} also has {k} {U}.",
        "{D} has {k} {U}.",
        "{A} is {k} years old.",
        "The walk [home|to school] takes {k} minutes.",
        "There are {k} [chairs|windows] in the room.",
        "{D} read {k} pages [last night|of a book].",
    ),
    ("It is {k} degrees outside.", "{D}'s house has the number {k}."),
)

_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([A-Za-z])\}")


def expand(pattern: str, slots: dict[str, str], rng: random.Random) -> str:
    """Return the sentence of a pattern: alternatives chosen, slots filled, the first letter capitalized."""
    text = _ALTERNATIVES.sub(lambda match: rng.choice(match[1].split("|")), pattern)
    text = _SLOT.sub(lambda match: slots[match[1]], text)
    return text[:1].upper() + text[1:]
