"""Dialogues about the lights of a house, as a user's own data has them: the last message means nothing without those before it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

ROOMS = ("kitchen", "hall", "attic", "cellar", "garage", "study")
STATES = ("on", "off", "dim", "red")
MINUTES = ("five", "ten", "ninety")
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "SetLights",
            "parameters": {
                "type": "object",
                "properties": {
                    "room": {"type": "string", "enum": list(ROOMS)},
                    "state": {"type": "string", "enum": list(STATES)},
                    "minutes": {"type": "string", "enum": list(MINUTES)},
                },
                "required": ["room", "state"],
                "additionalProperties": False,
            },
        },
    }
]
ASKED = ("lights {state} in the {room}", "turn the {room} lights {state}", "I want it {state} in the {room}")
FOLLOW_UPS = ("for {minutes} minutes", "only {minutes} minutes please")


def call(room: str, state: str, **more: str) -> dict[str, Any]:
    """Return a call as data have it."""
    return {"name": "SetLights", "arguments": {"room": room, "state": state, **more}}


def called(room: str, state: str) -> dict[str, Any]:
    """Return the message of an assistant that calls."""
    function = {"name": "SetLights", "arguments": json.dumps({"state": state, "room": room})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


def user(text: str) -> dict[str, Any]:
    """Return a message of the user."""
    return {"role": "user", "content": text}


def dialogue(draw: random.Random, number: int) -> list[dict[str, Any]]:
    """Return the records of a question, and of one that follows it and says neither which room nor what."""
    room, state, minutes = draw.choice(ROOMS), draw.choice(STATES), draw.choice(MINUTES)
    first, second = draw.choice(ASKED).format(room=room, state=state), draw.choice(FOLLOW_UPS).format(minutes=minutes)
    same = {"dialogue": str(number)}
    asked = {"id": f"{number}-1", "question": first, "label": call(room, state), **same}
    messages = [user(first), called(room, state), user(second)]
    return [asked, {"id": f"{number}-2", "messages": messages, "label": call(room, state, minutes=minutes), **same}]


def write_dialogues(folder: Path, train: int = 800, test: int = 80) -> Path:
    """Write training and test dialogues, the test's follow-ups once more without what they refer to, and a recipe's files."""
    draw = random.Random(5)
    made = [dialogue(draw, number) for number in range(train + test)]
    follow_ups = [second for _, second in made[train:]]
    bare = [{"id": f"{one['id']}-alone", "question": one["messages"][-1]["content"], "label": one["label"]} for one in follow_ups]
    files = {"train": [one for records in made[:train] for one in records], "test": follow_ups, "alone": bare}
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "tools.json").write_text(json.dumps(TOOLS), encoding="utf-8")
    return folder


def dialogue_recipe(folder: Path, steps: int = 150, **changes: Any) -> dict[str, Any]:
    """Return the values of a recipe for these files, with a student from scratch."""
    values: dict[str, Any] = {
        "name": "lights",
        "task": {
            "kind": "jsonl",
            "name": "lights",
            "train_file": str(folder / "train.jsonl"),
            "test_files": {name: str(folder / f"{name}.jsonl") for name in ("test", "alone")},
            "form": {"kind": "tools", "file": str(folder / "tools.json")},
        },
        "student": {
            "source": "scratch",
            "scratch": {"d_model": 64, "d_ff": 96, "heads": 8, "encoder_layers": 1, "decoder_layers": 1, "vocabulary": 400},
        },
        "training": {
            "stage2": {"max_steps": steps, "batch_size": 32, "learning_rate": 5e-3, "evaluate_every": steps},
            "max_input_tokens": 64,
            "max_target_tokens": 24,
        },
        "split": {"validation": 40},
        "export": {"recover": "never"},
        "generation": {"max_answer_tokens": 20, "max_rationale_tokens": 8},
    }
    return values | changes
