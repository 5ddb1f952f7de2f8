"""From frames to sentence patterns: which there are, and which are trained on, calibrate confidence, or are held out.

    "{A} <gave|handed> {-e} to {B}."      two patterns, `{A} gave {-e} to {B}.` and `{A} handed {-e} to {B}.`

Angle brackets are choices that make different patterns; square brackets are choices within a pattern. `GAIN` and `LOSS` stand for
the verbs of a kind of thing. Slots in braces are filled by `stories.py`: numbers (`{n}`, in money `{n$}`, how often `{b*}`), people
(`{A}`, whose `{A's}`, whom `{Ao}`), things (`{T}`, one `{t}`, `{a t}`), and `{them}`, `{many}`, `{-e}`, `{+e}` as fits what was
said before. A pattern's group depends on its own text alone, whatever the seed, and not on which number or person stands in it, so
that kinds of stories that share a sentence agree about it.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Group = Literal["trained", "calibration", "held_out"]

HELD_OUT, CALIBRATION = 25, 17  # per cent of all patterns

_CHOICE = re.compile(r"<([^<>]*)>")
_ANYONE = re.compile(r"\{[ABDE](?=[}'o])")
_ANY_NUMBER = re.compile(r"\{[nmbekq](?=[}$*])")


@dataclass(frozen=True)
class Pattern:
    """A sentence, or two, with slots.

    Attributes:
        id: Hash of its text.
        text: With slots and square brackets.
        group: What its questions are for.
    """

    id: str
    text: str
    group: Group


@cache
def patterns_of(frame: str, words: tuple[tuple[str, str], ...] = ()) -> tuple[Pattern, ...]:
    """Return every pattern that a frame makes.

    Args:
        frame: The frame.
        words: What the frame's capitals stand for: alternatives with `|`.
    """
    for name, alternatives in words:
        frame = re.sub(rf"\b{name}\b", alternatives, frame)
    parts = _CHOICE.split(frame)  # text, choices, text, choices, … text
    made = []
    for chosen in itertools.product(*(part.split("|") if index % 2 else (part,) for index, part in enumerate(parts))):
        text = re.sub(r" +", " ", "".join(chosen))
        digest = hashlib.sha256(_ANYONE.sub("{P", _ANY_NUMBER.sub("{N", text)).encode()).hexdigest()
        share = int(digest[:8], 16) % 100
        group: Group = "held_out" if share < HELD_OUT else "calibration" if share < HELD_OUT + CALIBRATION else "trained"
        made.append(Pattern(digest[:12], text, group))
    return tuple(made)


@cache
def grouped(frames: tuple[str, ...], words: tuple[tuple[str, str], ...] = ()) -> Mapping[Group, tuple[tuple[Pattern, ...], ...]]:
    """Return the patterns of several frames by group and frame; a frame that has none in a group is left out there."""
    found: dict[Group, tuple[tuple[Pattern, ...], ...]] = {}
    groups: tuple[Group, ...] = ("trained", "calibration", "held_out")
    for group in groups:
        by_frame = (tuple(p for p in patterns_of(frame, words) if p.group == group) for frame in frames)
        found[group] = tuple(patterns for patterns in by_frame if patterns)
    return found
