"""Dialogues of two turns from SNIPS: a request with its call, and a request that refers back, with the whole call that it asks for.

    python benchmarks/dialogues.py build --out runs/snips-dialogues-data
    mmedge distill recipes/snips-dialogues.yaml && mmedge export runs/snips-dialogues --int8
    python benchmarks/dialogues.py measure runs/snips-dialogues/bundle-int8 --data runs/snips-dialogues-data --out runs/dialogues

    user       book a table for two at the bar      {"name": "BookRestaurant", "arguments": {"party_size_number": "two", …}}
    user       and for eight people too             the same call, party_size_number "eight"

Needs MMEDGE_DATA. The second request changes one argument of the first call in words (`FOLLOW_UPS`), adds one, or leaves one open;
what it contradicts goes, everything else stays. New values are those of other requests of the same file and function. Training
dialogues come from training requests alone (700, and 3,500 more with labels), test dialogues from test requests; everything follows
from the seed. `build` writes

    train.jsonl         every training request by itself, and dialogues that begin with it
    test.jsonl          100 dialogues, functions in turn, in wordings that training dialogues have, too
    new_wordings.jsonl  100 dialogues in wordings that no training dialogue has
    alone.jsonl         the last messages of test.jsonl without what they refer to: no student can know the call

`measure` asks a bundle for all of them, and the test dialogues once more with the student's own first answer in place of the label.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge import Student
from mmedge.machine import machine
from mmedge.reports.formats import share_of
from mmedge.reports.tables import Table
from mmedge.statistics import Proportion, proportion
from mmedge.storage import iterate_jsonl, write_json, write_text
from mmedge.tasks.evaluation_set import read_example

TESTS = 100
Record = dict[str, Any]


@dataclass(frozen=True)
class FollowUp:
    """A way to refer back to a call.

    Attributes:
        function: Whose calls it refers to.
        argument: What it sets; empty where it only leaves something open.
        without: What it contradicts, and so removes.
        wordings: What is said, `{}` in place of the value; the last one is for the split of new wordings alone.
    """

    function: str
    argument: str
    without: tuple[str, ...]
    wordings: tuple[str, ...]

    @property
    def known(self) -> tuple[str, ...]:
        """The wordings that training and test dialogues have."""
        return self.wordings[:-1]

    def call(self, first: Record, value: str) -> Record | None:
        """Return the whole call; None where it is not about the first, or keeps nothing of it."""
        before: Record = first["arguments"]
        gone = {self.argument, *self.without}
        kept = {name: said for name, said in before.items() if name not in gone}
        if first["name"] != self.function or not kept or before.get(self.argument) == value:
            return None
        if not self.argument and kept == before:
            return None
        return {"name": self.function, "arguments": kept | ({self.argument: value} if self.argument else {})}


_TABLE_PLACE = ("city", "state", "country", "poi", "spatial_relation")
_WEATHER_PLACE = ("city", "state", "country", "geographic_poi", "current_location", "spatial_relation")
_MUSIC = ("track", "album", "playlist")
FOLLOW_UPS = (
    FollowUp(
        "BookRestaurant",
        "party_size_number",
        ("party_size_description",),
        ("and for {} people too", "the same for {} people", "make it {} people instead", "no, for {}", "we will be {} after all"),
    ),
    FollowUp(
        "BookRestaurant",
        "timeRange",
        (),
        ("the same for {}", "make it {}", "and what about {}", "can we do {} instead", "{} suits us better"),
    ),
    *(
        FollowUp(
            "BookRestaurant",
            place,
            _TABLE_PLACE,
            ("the same in {}", "and one in {} as well", "no, in {}", "what about {}", "I would rather go to {}"),
        )
        for place in ("city", "state", "country")
    ),
    FollowUp(
        "BookRestaurant",
        "restaurant_type",
        ("restaurant_name",),
        ("make that a {}", "the same at a {}", "no, at a {}", "can it be a {}", "we would like a {} better"),
    ),
    FollowUp(
        "BookRestaurant",
        "served_dish",
        ("cuisine",),
        ("it should serve {}", "one that has {}", "and they must have {}", "with {} on the menu", "we want to eat {} there"),
    ),
    FollowUp("BookRestaurant", "", ("timeRange",), ("any time is fine", "forget the time", "the time does not matter", "whenever")),
    FollowUp("BookRestaurant", "", _TABLE_PLACE, ("anywhere is fine", "forget the place", "wherever there is one", "in any place")),
    FollowUp(
        "GetWeather",
        "timeRange",
        (),
        ("and {}", "what about {}", "the same for {}", "and how will it be {}", "I meant {}"),
    ),
    *(
        FollowUp(
            "GetWeather",
            place,
            _WEATHER_PLACE,
            ("and in {}", "what about {}", "the same for {}", "no, in {}", "how is it in {}"),
        )
        for place in ("city", "state", "country", "geographic_poi")
    ),
    FollowUp(
        "GetWeather",
        "condition_description",
        ("condition_temperature",),
        ("and any {}", "is there a chance of {}", "will there be {}", "what about {}", "should I be ready for {}"),
    ),
    FollowUp(
        "GetWeather",
        "condition_temperature",
        ("condition_description",),
        ("and will it be {}", "is it going to get {}", "or {}", "how about {}", "does it get {} as well"),
    ),
    FollowUp(
        "PlayMusic",
        "artist",
        _MUSIC,
        ("something by {} instead", "no, by {}", "and now {}", "the same by {}", "let me hear {}"),
    ),
    FollowUp(
        "PlayMusic",
        "service",
        (),
        ("on {} please", "use {} instead", "the same on {}", "no, play it on {}", "I prefer {} for that"),
    ),
    FollowUp(
        "PlayMusic", "year", (), ("make it from {}", "the same from {}", "no, from {}", "something from {}", "I like {} more")
    ),
    FollowUp("PlayMusic", "sort", (), ("the {} please", "no, the {}", "only the {}", "the {} of them", "I would like the {}")),
    FollowUp("PlayMusic", "", ("service",), ("on any service", "never mind the service", "no matter where", "anywhere will do")),
    FollowUp(
        "AddToPlaylist",
        "playlist",
        (),
        ("and to {} too", "also put it on {}", "the same for {}", "no, on {}", "it would fit on {}"),
    ),
    FollowUp(
        "AddToPlaylist",
        "artist",
        ("entity_name",),
        ("and one by {}", "no, by {}", "something by {} instead", "the same with {}", "I also want {} there"),
    ),
    FollowUp(
        "AddToPlaylist",
        "entity_name",
        ("artist", "music_item"),
        ("and {} too", "add {} as well", "no, {}", "{} instead", "{} belongs there"),
    ),
    FollowUp("RateBook", "rating_value", (), ("make it {}", "no, {}", "actually give it {}", "change that to {}", "{} is fairer")),
    FollowUp(
        "RateBook",
        "object_name",
        ("object_select", "object_type", "object_part_of_series_type"),
        ("the same for {}", "and {} too", "give {} the same", "no, I meant {}", "{} gets that as well"),
    ),
    FollowUp(
        "SearchCreativeWork",
        "object_name",
        (),
        ("and {}", "what about {}", "no, {}", "find {} too", "now look for {}"),
    ),
    FollowUp(
        "SearchCreativeWork",
        "object_type",
        (),
        ("the {} please", "I meant the {}", "no, the {}", "is there a {} of it", "show me the {} of that name"),
    ),
    FollowUp(
        "SearchScreeningEvent",
        "timeRange",
        (),
        ("and {}", "what about {}", "the same for {}", "no, {}", "I have time {}"),
    ),
    FollowUp(
        "SearchScreeningEvent",
        "location_name",
        ("object_location_type", "spatial_relation"),
        ("and at {}", "the same at {}", "what about {}", "no, at {}", "I would rather go to {}"),
    ),
    FollowUp(
        "SearchScreeningEvent",
        "movie_name",
        ("movie_type", "object_type"),
        ("and {}", "is {} on too", "the same for {}", "no, {}", "I would like to see {}"),
    ),
)


class Dialogues:
    """Dialogues that begin with the requests of one file.

    Args:
        requests: Records of SNIPS.
        seed: Decides everything with the requests.
    """

    def __init__(self, requests: Sequence[Record], seed: int) -> None:
        self._seed = seed
        self._values: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for request in requests:
            for name, value in request["label"]["arguments"].items():
                self._values[request["label"]["name"], name].append(value)

    def of(self, request: Record, count: int, *, new_wordings: bool = False) -> Iterator[Record]:
        """Yield up to so many dialogues that begin with a request, each with another way to refer back.

        Args:
            request: The request.
            count: The most.
            new_wordings: Whether they have the wordings that are kept for the test.
        """
        draw = random.Random(f"{self._seed}/{request['id']}/{new_wordings}")
        name = request["label"]["name"]
        ways = [way for way in FOLLOW_UPS if way.function == name and (not way.argument or (name, way.argument) in self._values)]
        draw.shuffle(ways)
        made = 0
        for way in ways:
            value = draw.choice(self._values[way.function, way.argument]) if way.argument else ""
            said = way.wordings[-1] if new_wordings else draw.choice(way.known)
            call = way.call(request["label"], value)
            if call is None or made == count:
                continue
            made += 1
            yield _record(f"{request['id']}-{made}{'n' if new_wordings else ''}", request, said.format(value), call)


def _record(id_: str, request: Record, said: str, call: Record) -> Record:
    name, arguments = request["label"]["name"], json.dumps(request["label"]["arguments"], ensure_ascii=False)
    function = {"name": name, "arguments": arguments}
    messages = [
        {"role": "user", "content": request["question"]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]},
        {"role": "user", "content": said},
    ]
    return {"id": id_, "dialogue": request["id"], "messages": messages, "label": call}


def _read(name: str) -> list[Record]:
    folder = os.environ.get("MMEDGE_DATA")
    if not folder:
        raise SystemExit("MMEDGE_DATA must name the folder of the data; docs/data.md says how to get SNIPS")
    return [record for _, record in iterate_jsonl(Path(folder) / "snips" / f"{name}.jsonl")]


def training_records(requests: Sequence[Record], per_request: int, seed: int) -> list[Record]:
    """Return every request by itself, and the dialogues that begin with it."""
    dialogues = Dialogues(requests, seed)
    found: list[Record] = []
    for request in requests:
        found += [request | {"dialogue": request["id"]}, *dialogues.of(request, per_request)]
    return found


def test_records(requests: Sequence[Record], count: int, seed: int, *, new_wordings: bool) -> list[Record]:
    """Return so many dialogues that begin with test requests, functions in turn."""
    dialogues, draw = Dialogues(requests, seed), random.Random(f"{seed}/tests")
    by_function: defaultdict[str, list[Record]] = defaultdict(list)
    for request in draw.sample(requests, len(requests)):
        by_function[request["label"]["name"]] += dialogues.of(request, 1, new_wordings=new_wordings)
    turns = (by_function[name][place] for place in range(count) for name in sorted(by_function) if place < len(by_function[name]))
    return [record for record, _ in zip(turns, range(count), strict=False)]


def without_what_was_said(records: Sequence[Record]) -> list[Record]:
    """Return the last messages of dialogues by themselves."""
    return [{"id": f"{one['id']}-alone", "question": one["messages"][-1]["content"], "label": one["label"]} for one in records]


def build(out: Path, per_request: int, seed: int) -> dict[str, int]:
    """Write all files, and return how many records each has."""
    test = _read("test")
    referring = test_records(test, TESTS, seed, new_wordings=False)
    files = {
        "train": training_records([*_read("train"), *_read("unannotated")], per_request, seed),
        "test": referring,
        "new_wordings": test_records(test, TESTS, seed, new_wordings=True),
        "alone": without_what_was_said(referring),
    }
    for name, records in files.items():
        write_text(out / f"{name}.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
    return {name: len(records) for name, records in files.items()}


# ----------------------------------------------------------------------------------------------------------- measuring


def measure(bundle: Path, data: Path) -> dict[str, Proportion]:
    """Return the share of exactly right calls of a bundle, by split; `own_first_answer` is `test` after its own first answers."""
    student = Student.load(bundle)
    found: dict[str, Proportion] = {}
    for split in ("test", "new_wordings", "alone"):
        path = data / f"{split}.jsonl"
        examples = [read_example(record, path, number, student.bundle.form) for number, record in iterate_jsonl(path)]
        found[split] = _right(student, examples, [one.label for one in examples])
    records = [record for _, record in iterate_jsonl(data / "test.jsonl")]
    firsts = student.answer_all([record["messages"][0]["content"] for record in records])
    own = [
        [record["messages"][0], {"role": "assistant", "content": first.text}, record["messages"][-1]]
        for record, first in zip(records, firsts, strict=True)
    ]
    found["own_first_answer"] = _right(student, own, [json.dumps(record["label"]) for record in records])
    return found


def _right(student: Student, questions: Sequence[Any], labels: Sequence[str | None]) -> Proportion:
    answers = student.answer_all(questions)
    pairs = zip(answers, labels, strict=True)
    return proportion([student.bundle.form.agrees(answer.text, label or "") for answer, label in pairs])


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    making = verbs.add_parser("build", help="write training and test dialogues")
    making.add_argument("--out", type=Path, default=Path("runs/snips-dialogues-data"))
    making.add_argument("--per-request", type=int, default=2, help="training dialogues that begin with each request, at most")
    making.add_argument("--seed", type=int, default=0)
    measuring = verbs.add_parser("measure", help="ask a bundle")
    measuring.add_argument("bundle", type=Path)
    measuring.add_argument("--data", type=Path, default=Path("runs/snips-dialogues-data"), help="what build wrote")
    measuring.add_argument("--out", type=Path, help="folder for dialogues.json and dialogues.md")
    given = parser.parse_args()
    if given.verb == "build":
        for name, count in build(given.out, given.per_request, given.seed).items():
            print(f"{given.out / name}.jsonl: {count:,} records")
        return
    found = measure(given.bundle, given.data)
    table = Table("Exactly right calls", ["split", "right"], [[name, share_of(value)] for name, value in found.items()])
    print(table.markdown())
    if given.out is not None:
        shares = {name: value.to_json() for name, value in found.items()}
        write_json(given.out / "dialogues.json", {"bundle": given.bundle.name, "right": shares, "machine": machine()})
        write_text(given.out / "dialogues.md", table.markdown())


if __name__ == "__main__":
    main()
