"""A small folder of the form that `MMEDGE_DATA` names, so that no test and no command of the docs needs the real one.

Same folders, file names and fields as the real data; questions and texts are our own, and as dirty as real ones are: texts that
run on into the next question, that stop in mid-sentence, that state a bare expression, a letter, or nothing.

    python -m tests.small_data FOLDER
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

TRAIN, TEST = 120, 20  # questions of each task

Record = dict[str, Any]


def write_small_data(folder: Path) -> Path:
    """Write all data sets into a folder and return it; the same files each time."""
    draw = random.Random(0)
    for name, question, text, samples in (
        ("svamp", _word_problem, _arithmetic_text, 4),
        ("cqa", _choice_question, _choice_text, 3),
        ("anli", _inference_question, _inference_text, 2),
        ("snips", _request, _call_text, 2),
    ):
        train = [question(draw) | {"id": f"{name}-train-{number:04d}"} for number in range(TRAIN)]
        test = [question(draw) | {"id": f"{name}-test-{number:04d}"} for number in range(TEST)]
        cots = [_cot(record, sample, text, draw) for record in train for sample in range(samples)]
        _write_lines(folder / name / "train.jsonl", map(_public, train))
        _write_lines(folder / name / "test.jsonl", map(_public, test))
        _write_lines(folder / name / "teacher_cots.jsonl", map(_public, cots))
        _write_lines(folder / name / "teacher_evaluations.jsonl", (_evaluation(cot, draw) for cot in cots))
        if name == "svamp":
            _write_releases(folder, train, test, cots, draw)
    _write_json(folder / "snips" / "tools.json", TOOLS)
    shots = (_request(draw) for _ in range(6))
    _write_lines(folder / "snips" / "shots.jsonl", ({"question": shot["question"], "answer": shot["label"]} for shot in shots))
    more = (_public(_request(draw) | {"id": f"snips-more-{number:04d}"}) for number in range(TEST))
    _write_lines(folder / "snips" / "unannotated.jsonl", more)
    return folder


def _public(record: Record) -> Record:
    """Return a record without what only this module needs, its id first."""
    return {"id": record["id"], **{name: value for name, value in record.items() if name != "id" and not name.startswith("_")}}


def _cot(
    record: Record, sample: int, text: Callable[[Record, int, random.Random], tuple[str, bool]], draw: random.Random
) -> Record:
    said, right = text(record, sample, draw)
    return {"id": record["id"], "sample": sample, "teacher": "large-a" if sample == 0 else "large-b", "text": said, "_right": right}


def _evaluation(cot: Record, draw: random.Random) -> Record:
    verdict = "correct" if cot["_right"] else "wrong"
    if draw.random() < 0.05:
        verdict = "uncertain"
    said = {
        "correct": "Each step follows from what the question says, and the answer is the one that it asks for.",
        "wrong": "The last step does not follow from what the question says, so this cannot be the answer.",
        "uncertain": "It stops too early to tell whether the idea behind it would have worked.",
    }[verdict]
    return {"id": cot["id"], "sample": cot["sample"], "evaluation": said, "verdict": verdict}


NAMES = ("Ida", "Malik", "Noor", "Pavel", "Suki", "Tomas", "Wren", "Yara")
THINGS = ("pebbles", "stamps", "lemons", "ribbons", "tickets", "acorns", "buttons", "postcards")


def _word_problem(draw: random.Random) -> Record:
    name, other = draw.sample(NAMES, 2)
    thing = draw.choice(THINGS)
    more, few = draw.randint(30, 99), draw.randint(2, 9)
    question, said, steps = draw.choice(
        [
            (
                f"{name} keeps {more} {thing} in a tin. {other} takes {few} of them\nHow many {thing} are left in the tin?",
                "-",
                "left",
            ),
            (f"{name} has {more} {thing} and finds {few} more on the way.\nHow many {thing} does {name} have now?", "+", "in all"),
            (f"There are {few} shelves with {more} {thing} on each\nHow many {thing} are on the shelves?", "*", "on all of them"),
            (
                f"{name} shares {few * more} {thing} equally among {few} friends.\nHow many {thing} does each friend get?",
                "/",
                "for each",
            ),
        ]
    )
    first = few * more if said == "/" else more
    return {"question": question, "label": f"( {first}.0 {said} {few}.0 )", "_parts": (first, said, few), "_steps": steps}


def _value(first: int, sign: str, second: int) -> int:
    return {"+": first + second, "-": first - second, "*": first * second, "/": first // second}[sign]


def _arithmetic_text(record: Record, sample: int, draw: random.Random) -> tuple[str, bool]:
    first, sign, second = record["_parts"]
    right = draw.random() < 0.75
    if not right:
        sign = {"+": "-", "-": "+", "*": "+", "/": "-"}[sign]
    value, steps = _value(first, sign, second), record["_steps"]
    if sample == 0:  # a model that goes on with a question of its own
        taken = f"{first} {sign} {second}"
        whole = f"There are {first} and {second}. So it is {taken} = {value} {steps}. The answer is ({taken})."
        return whole + "\n\nQ: A barn has 9 stalls, 4 of them empty. How many are taken?\nA: 9 - 4 = 5. The answer is (9 -", right
    ways = [
        (f" Rationale: we take {first} and {second}, so {first} {sign} {second} = {value} {steps}. Answer: {value}", right),
        (f" It is {first} {sign} {second} = {value} {steps}. Hence the answer is {value}.", right),
        (f" {first} {sign} {second} = {value}\n{value} {steps}", right),
        (f" {first}.0 {sign} {second}.0", right),
        (" To find how many there are we look at both and compare them.", False),
        (f" First we take {first} and then we look at what happens with the", False),
    ]
    return ways[min(len(ways) - 1, int(draw.triangular(0, len(ways), 0)))]


PLACES = ("harbour", "attic", "bakery", "tunnel", "meadow", "library", "quarry", "kitchen", "stage", "orchard")
FOUND_IN = {
    "harbour": "a boat", "attic": "an old trunk", "bakery": "fresh rolls", "tunnel": "a loud train", "meadow": "a grazing cow",
    "library": "a borrowed novel", "quarry": "cut stone", "kitchen": "a hot pan", "stage": "an actor", "orchard": "ripe pears",
}  # fmt: skip


def _choice_question(draw: random.Random) -> Record:
    choices = draw.sample(PLACES, 5)
    label = draw.choice(choices)
    asked = draw.choice(("Where would {} most likely come across {}?", "Where does {} expect to see {}?"))
    return {"question": asked.format(draw.choice(NAMES), FOUND_IN[label]), "choices": choices, "label": label}


def _choice_text(record: Record, sample: int, draw: random.Random) -> tuple[str, bool]:
    choices = record["choices"]
    said = record["label"] if draw.random() < 0.75 else draw.choice(choices)
    letter, right = "abcde"[choices.index(said)], said == record["label"]
    if sample == 0:
        whole = f"The answer must be a place for that. Of the above choices, only one fits. So the answer is ({letter}) {said}."
        return whole + "\n\nQ: What keeps rain off?\nAnswer Choices:\n(a) umbrella\n(b) spoon\nA: The answer must be", right
    ways = [
        (f" Rationale: that is found in a {said}. Hence the answer is Answer: ({letter}) {said}", right),
        (f" Rationale: it belongs there. The answer is {letter}.", right),
        (f" {said.capitalize()}.  Nothing else in the list has to do with it.", right),
        (f" It could be a {choices[0]} or a {choices[1]}.", False),
        ("", False),
    ]
    return ways[min(len(ways) - 1, int(draw.triangular(0, len(ways), 0)))]


def _inference_question(draw: random.Random) -> Record:
    name, year, place = draw.choice(NAMES), draw.randint(1850, 1990), draw.choice(PLACES)
    premise = (
        f"{name} Oduya (born {year}) is a painter who works in a former {place}. The first pictures were shown in {year + 30}."
    )
    hypothesis, label = draw.choice(
        [
            (f"{name} Oduya paints.", "entailment"),
            (f"{name} Oduya was born after {year + 5}.", "contradiction"),
            (f"{name} Oduya has two children.", "neutral"),
        ]
    )
    return {"premise": premise, "hypothesis": hypothesis, "label": label}


def _inference_text(record: Record, sample: int, draw: random.Random) -> tuple[str, bool]:
    labels = ("entailment", "neutral", "contradiction")
    said = record["label"] if draw.random() < 0.75 else draw.choice(labels)
    right = said == record["label"]
    if sample == 0:
        run_on = (
            "\n\nPremise: The tower has 40 steps.\nHypothesis: The tower has steps.\nAnswer: The premise says that the tower has 40"
        )
        return f"The premise says who was born when, and what of it was shown. So the answer is {said}.{run_on}", right
    ways = [
        (f" Rationale: this follows from what the premise says. Hence the answer is {said}.", right),
        (f" Rationale: one has to compare both. The answer is (a) {said}", right),
        (" Rationale: the hypothesis is not what the premise is about. The answer is (b)", False),
    ]
    return draw.choice(ways)


def _tool(name: str, description: str, **arguments: str) -> Record:
    properties = {argument: {"type": "string", "description": said} for argument, said in arguments.items()}
    parameters = {"type": "object", "properties": properties, "required": [], "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    _tool("SetTimer", "Start a timer.", duration="how long, as said", purpose="what it is for"),
    _tool("SwitchLight", "Switch a light on or off.", room="where the light is", state="on or off, as said"),
    _tool("BookRestaurant", "Book a table.", party_size_number="how many, as said", restaurant_type="the kind of place"),
    _tool("OrderDrink", "Order something to drink.", drink="the kind of drink", size="how large", party_size="how many, as said"),
]


def _request(draw: random.Random) -> Record:
    minutes, room, drink = (
        draw.choice(("five minutes", "1 hour", "ninety seconds")),
        draw.choice(PLACES),
        draw.choice(("tea", "cocoa", "café au lait")),
    )
    count = draw.choice(("two", "3", "seven"))
    question, name, arguments = draw.choice(
        [
            (f"set a timer for {minutes}", "SetTimer", {"duration": minutes}),
            (f"Time {minutes} for the eggs please", "SetTimer", {"duration": minutes, "purpose": "eggs"}),
            (f"turn the light in the {room} off", "SwitchLight", {"room": room, "state": "off"}),
            (f"a table for {count} at a café", "BookRestaurant", {"party_size_number": count, "restaurant_type": "café"}),
            (f"I'd like {count} large cups of {drink}", "OrderDrink", {"party_size": count, "size": "large", "drink": drink}),
        ]
    )
    return {"question": question, "label": {"name": name, "arguments": arguments}}


def _call_text(record: Record, sample: int, draw: random.Random) -> tuple[str, bool]:
    call = json.loads(json.dumps(record["label"]))
    right = draw.random() < 0.85
    if not right:
        call["arguments"].popitem()
    said = f"The user wants {call['name']}, and each value is copied from the request." if sample else "Nothing is left out."
    return f"{said}\nAnswer: {json.dumps(call, ensure_ascii=False)}", right


def _write_releases(
    folder: Path, train: Sequence[Record], test: Sequence[Record], cots: Sequence[Record], draw: random.Random
) -> None:
    """Write the two recordings of SVAMP's form that others published: tree-of-thought logs, and lists in the questions' order."""
    texts = [cot["text"] for cot in cots if cot["sample"] == 0]
    lists = folder / "step_by_step_release" / "svamp"
    for part, some in enumerate((texts[:70], texts[70:])):
        _write_json(lists / f"train_CoT_{part}.json", some)
    _write_json(lists / "test_CoT_0.json", [_arithmetic_text(record, 0, draw)[0] for record in test])
    release = folder / "minds_mirror_release"
    judged: list[Record] = []
    for split, records in (("train", train[:2]), ("test", test[:2])):
        trees: list[Record] = []
        for record in records:
            said = [
                f"We compute {first} {sign} {second}. The answer is ({first} {sign} {second})."
                for first, sign, second in (record["_parts"],)
            ] * 4
            said.append("We count them one by one. The answer is 1.")
            verdicts = ["correct"] * 4 + ["incorrect"]
            values = [
                [f"Evaluation:\n\nIt was checked.\n\nEvaluation result: the given answer is {verdict}."] * 5 for verdict in verdicts
            ]
            if split == "train":
                judged += [
                    {"input": text, "label": "correct" if verdict == "correct" else "wrong"}
                    for text, verdict in zip(said, verdicts, strict=True)
                    for _ in range(5)
                ]
            x = f'"input":{json.dumps(record["question"])}\n'
            trees.append(
                {"steps": [{"step": 0, "x": x, "ys": [""], "new_ys": said, "value_outputs_list": values}], "idx": len(trees)}
            )
        _write_json(release / "svamp_tree1" / "llm" / f"{split}_CoT_0.json", trees)
        lines = ({"input": record["question"], "label": record["label"]} for record in records)
        _write_lines(release / "svamp_tree1" / f"svamp_tree1_{split}.json", lines)
    _write_lines(release / "svamp_tree2" / "svamp_tree2_train.json", judged)


def _write_lines(path: Path, records: Iterable[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


if __name__ == "__main__":
    write_small_data(Path(sys.argv[1]))
