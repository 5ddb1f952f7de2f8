"""Whether every constrained answer is valid: schemas of real shapes, any weights, temperatures 0 and 1, judged by jsonschema.

    python benchmarks/validity.py BUNDLE --answers 10000         a bundle of any student; what it learned does not matter

Schemas are records as products have them (orders, bookings, tickets, contacts, devices …): fields of `FIELDS`, some required,
nested, in lists, behind `$ref`, or one of several (`anyOf`). Each is asked for in both spellings, `json` and `compact`, at both
temperatures, in batches, with token limits from the shortest that fits upwards. Every answer is read as a user reads it, and judged
by the package jsonschema (format assertions included), not by mmedge's own code. What is not valid is printed, and is an error.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmedge import Student
from mmedge.engines.speaker import Sampling, Wanted
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.storage import write_json
from mmedge.tasks.base import Example
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.forms.structured import values
from mmedge.tasks.forms.structured.guided import GuidedConstrainer

try:
    import jsonschema
except ImportError:
    sys.exit("this needs the package jsonschema: pip install '.[dev]'")

Schema = dict[str, Any]
BATCH = 16

FIELDS: dict[str, Schema] = {
    "id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4,8}$"},
    "uuid": {"type": "string", "format": "uuid"},
    "title": {"type": "string", "minLength": 1, "maxLength": 60},
    "description": {"type": "string", "maxLength": 200},
    "first_name": {"type": "string", "minLength": 1},
    "last_name": {"type": "string", "minLength": 1},
    "email": {"type": "string", "format": "email"},
    "phone": {"type": "string", "pattern": "^\\+?[0-9 ]{6,16}$"},
    "website": {"type": "string", "pattern": "^https?://[a-z0-9.-]+(/[a-z0-9/-]*)?$"},
    "ip": {"type": "string", "format": "ipv4"},
    "date": {"type": "string", "format": "date"},
    "due": {"type": ["string", "null"], "format": "date"},
    "created_at": {"type": "string", "format": "date-time"},
    "opens": {"type": "string", "format": "time"},
    "status": {"enum": ["open", "in progress", "done", "cancelled"]},
    "priority": {"type": "integer", "minimum": 1, "maximum": 5},
    "currency": {"enum": ["EUR", "USD", "GBP", "CHF", "JPY"]},
    "amount": {"type": "number", "minimum": 0, "maximum": 100000},
    "tax_rate": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
    "quantity": {"type": "integer", "minimum": 1},
    "temperature": {"type": "number", "minimum": -40, "maximum": 125},
    "latitude": {"type": "number", "minimum": -90, "maximum": 90},
    "longitude": {"type": "number", "minimum": -180, "maximum": 180},
    "rating": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 10}, {"enum": ["none"]}]},
    "verified": {"type": "boolean"},
    "version": {"const": 2},
    "kind": {"const": "record"},
    "parent": {"type": ["string", "null"], "maxLength": 20},
    "tags": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 15}, "maxItems": 5},
    "scores": {"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 1, "maxItems": 4},
    "position": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "items": False, "minItems": 2},
    "weekdays": {"type": "array", "items": {"enum": ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]}, "maxItems": 7},
    "notes": {"type": "string"},
    "color": {"type": "string", "pattern": "^#[0-9a-f]{6}$"},
    "language": {"type": "string", "pattern": "^[a-z]{2}(-[A-Z]{2})?$"},
    "naïve_reading": {"allOf": [{"type": "integer"}, {"minimum": -999, "maximum": 999}]},
}
FORMATS = ("date", "date-time", "email", "ipv4", "time", "uuid")
NESTED = ("address", "customer", "device", "item", "location", "payment", "contact", "period")


def record(draw: random.Random, depth: int = 0) -> Schema:
    """Return the schema of a record; records in records have fewer fields."""
    names = draw.sample(list(FIELDS), draw.randint(1, 9 if not depth else 4))
    fields = {name: FIELDS[name] for name in names}
    if depth < 2:
        for name in draw.sample(NESTED, draw.choice([0, 0, 1, 2])):
            inner = record(draw, depth + 1)
            fields[name] = draw.choice(
                [
                    inner,
                    {"type": "array", "items": inner, "minItems": draw.randint(0, 1), "maxItems": draw.randint(1, 4)},
                    {"anyOf": [inner, {"type": "null"}]},
                ]
            )
    found: Schema = {"type": "object", "properties": fields, "additionalProperties": False}
    required = [name for name in fields if draw.random() < 0.6]
    return found | ({"required": required} if required else {})


def schema(draw: random.Random) -> Schema:
    """Return a schema: mostly a record; some with a definition that is used twice, a choice of records, or a list of them."""
    kind = draw.random()
    if kind < 0.6:
        return record(draw)
    if kind < 0.75:
        inner, outer = record(draw, 1), record(draw, 1)
        outer["properties"] = outer["properties"] | {"from": {"$ref": "#/$defs/part"}, "to": {"$ref": "#/$defs/part"}}
        return outer | {"$defs": {"part": inner}}
    if kind < 0.9:
        return {"anyOf": [{**record(draw, 1)} for _ in range(draw.randint(2, 3))]}
    return {"type": "array", "items": record(draw, 1), "minItems": 1, "maxItems": 3}


def judged(document: Schema, form: SchemaForm, text: str) -> str | None:
    """Return why the value that a student wrote is not valid, by jsonschema; None where it is."""
    try:
        value = json.loads(values.to_json(form.value(text)))
    except ValueError as error:
        return str(error)
    checker = jsonschema.Draft202012Validator(document, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    return next((error.message for error in checker.iter_errors(value)), None)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    given = parser.parse_args()
    if missing := sorted(set(FORMATS) - jsonschema.Draft202012Validator.FORMAT_CHECKER.checkers.keys()):
        sys.exit(f"jsonschema does not check {', '.join(missing)} here: pip install '.[dev]'")
    try:
        student = Student.load(given.bundle, threads=given.threads)
    except MmedgeError as error:
        sys.exit(f"error: {error}\n  → {error.hint}")
    draw, started = random.Random(given.seed), time.monotonic()
    documents = [schema(draw) for _ in range(given.schemas)]
    ways = list(itertools.product(documents, ("json", "compact"), (0.0, 1.0)))
    each = -(-given.answers // len(ways))
    wrong: list[tuple[str, str]] = []
    done = tokens = 0
    with Progress().task("answers", each * len(ways)) as progress:
        for place, (document, spelling, temperature) in enumerate(ways):
            form = SchemaForm(document, spelling)
            speaker = replace(student.speaker, form=form)
            constrainer = speaker.constrainer
            assert isinstance(constrainer, GuidedConstrainer)
            least = constrainer.least_limit()
            asked = [Example(f"{place}/{number}", f"Request {place * each + number}: please note this.") for number in range(each)]
            for first in range(0, each, BATCH):
                speaker = replace(speaker, max_answer_tokens=least + draw.choice([0, 3, 20, 60]))
                speaker.__dict__["constrainer"] = constrainer
                sampling = Sampling(temperature, draw.randrange(2**31), BATCH) if temperature else None
                batch = asked[first : first + BATCH]
                for thought in speaker.thoughts(batch, Wanted(constrained=True, sampling=sampling)):
                    assert thought.written is not None
                    tokens += len(thought.written.tokens)
                    if problem := judged(document, form, thought.text):
                        wrong.append((thought.text, problem))
                done += len(batch)
                progress.advance(len(batch))
    for text, problem in wrong[:20]:
        print(f"not valid: {problem:.200}: {text:.200}")
    found = {
        "answers": done, "valid": done - len(wrong), "schemas": given.schemas, "tokens": tokens,
        "seconds": time.monotonic() - started, "student": student.bundle.manifest.recipe,
        "engine": type(student.speaker.engine).__name__, "machine": machine(),
    }  # fmt: skip
    print(f"{done - len(wrong):,} of {done:,} answers valid, {given.schemas} schemas, {tokens:,} tokens")
    if given.out is not None:
        write_json(given.out, found)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
