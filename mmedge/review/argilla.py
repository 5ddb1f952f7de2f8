"""Argilla's records: questions with suggestions go out, and people's responses come back as decisions.

    [{"id": "q1", "fields": {"question": "put some fado on", "texts": "…"}, "metadata": {"kind": "music", "source": "synthesized"},
      "suggestions": {"answer": {"value": "music", "score": 0.8, "agent": "gpt-4o-mini"}},
      "responses": {"decision": [{"value": "accept", "user_id": "…"}], "answer": [{"value": "music", "user_id": "…"}]},
      "vectors": {}, "_server_id": null}]

This is what `rg.Dataset.records.to_json` of Argilla 2 writes and `from_json` reads (`Record.to_dict` and `Record.from_dict` in
argilla/src/argilla/records/_resource.py, and _io/_json.py, github.com/argilla-io/argilla). The names are ours: fields `question`,
`choices` and `texts`; questions `decision` (accept, mend, drop), `wording` and `answer`.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge.annotations.decisions import ACTIONS, Decision, Item
from mmedge.errors import MmedgeError
from mmedge.review.desk import Desk
from mmedge.storage import in_json, read_json, write_json

BATCH = 200
_QUESTIONS = ("decision", "wording", "answer")


def export_records(desk: Desk, path: Path, which: str) -> int:
    """Write questions as Argilla's records, and return how many.

    Args:
        desk: The run.
        path: The file.
        which: Which questions: one of the desk's filters.

    Raises:
        MmedgeError: The file is there already, or cannot be written.
    """
    if path.exists():
        raise MmedgeError(f"{path} already exists", "move it away, or name another file")
    records: list[dict[str, Any]] = []
    while part := desk.questions(which, len(records), BATCH)["questions"]:
        records += [_record(question) for question in part]
    write_json(path, records)
    return len(records)


def _record(question: Mapping[str, Any]) -> dict[str, Any]:
    fields = {"question": question["question"]} | ({"before": "\n".join(question["before"])} if question["before"] else {})
    if question["choices"]:
        fields["choices"] = "\n".join(f"({chr(ord('a') + place)}) {text}" for place, text in enumerate(question["choices"]))
    fields["texts"] = "\n\n".join(
        f"{'rationale' if text['kind'] == 'cot' else 'evaluation'} {text['sample']}: {text['text']}" for text in question["texts"]
    )
    teacher = next((text["teacher"] for text in question["texts"]), "")
    answer = question["label"] or question["suggestion"]
    suggestions = {}
    if answer is not None:
        score = 1.0 if question["label"] else question["agreement"]
        suggestions["answer"] = {"value": answer, "score": score, "agent": "label" if question["label"] else teacher}
    return {
        "id": question["id"],
        "fields": fields,
        "metadata": {"source": "synthesized" if question["new"] else "training", "kind": question["wanted"]},
        "suggestions": suggestions,
        "responses": _responses(question["decision"]),
        "vectors": {},
        "_server_id": None,
    }


def _responses(decision: Mapping[str, str] | None) -> dict[str, list[dict[str, str]]]:
    if decision is None:
        return {}
    user = str(uuid.uuid5(uuid.NAMESPACE_URL, f"mmedge:{decision['who']}"))  # Argilla's users are UUIDs
    given = {"decision": decision["what"], "wording": decision.get("question"), "answer": decision.get("label")}
    return {name: [{"value": value, "user_id": user}] for name, value in given.items() if value is not None}


# ------------------------------------------------------------------------------------------------------ what comes back


@dataclass(frozen=True)
class Imported:
    """What an import did with the records.

    Attributes:
        stored: Questions with a new decision.
        same: Questions whose decision is stored already.
        open: Records without a response.
        disputed: Records whose annotators disagree; nothing is stored for them.
        unknown: Records of questions that the run does not have.
    """

    stored: int
    same: int
    open: int
    disputed: int
    unknown: int

    def __str__(self) -> str:
        rest = {"stored before": self.same, "without a response": self.open, "disputed": self.disputed, "unknown": self.unknown}
        return f"{self.stored} decisions stored" + "".join(f", {count} {what}" for what, count in rest.items() if count)


def import_records(desk: Desk, path: Path) -> Imported:
    """Store the responses in a file of Argilla's records as decisions: all of them, or none where one is broken.

    Raises:
        MmedgeError: The file is missing or no list of records, or a response does not fit; the message names the record.
    """
    document = read_json(path)
    if not isinstance(document, list):
        raise MmedgeError(f"{path}: expected a JSON list of records", "write it with dataset.records.to_json(PATH)")
    current, now, counts = desk.decisions.current(), time.time(), Counter[str]()
    found: list[tuple[Item, Decision]] = []
    places: dict[str, int] = {}
    for number, record in enumerate(document):
        where = f"{path}[{number}]"
        id_, responses = _checked(record, where)
        if places.setdefault(id_, number) != number:
            twice = f"{where}: the question {id_!r:.60} was already at {places[id_]}"
            raise MmedgeError(twice, "keep one record of each question, with all of its responses")
        if id_ not in desk.examples:
            counts["unknown"] += 1
            continue
        by_user = _by_user(responses, where)
        if not by_user:
            counts["open"] += 1
            continue
        said = Counter(tuple(answers.get(name) for name in _QUESTIONS) for answers in by_user.values())
        ranked = said.most_common(2)
        if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
            counts["disputed"] += 1
            continue
        if _says_nothing(ranked[0][0]):
            counts["open"] += 1
            continue
        who = "argilla:" + ", ".join(sorted(user for user, answers in by_user.items() if _as_tuple(answers) == ranked[0][0]))
        try:
            item, decision = desk.checked(_asked(id_, ranked[0][0]), who, now)
        except MmedgeError as error:
            raise MmedgeError(f"{where} ({id_}): {error.what}", error.hint) from None
        if item in current and current[item].content() == decision.content():
            counts["same"] += 1
        else:
            counts["stored"] += 1
            found.append((item, decision))
    desk.decisions.decide_all(found)
    return Imported(*(counts[name] for name in ("stored", "same", "open", "disputed", "unknown")))


def _as_tuple(answers: Mapping[str, str]) -> tuple[str | None, ...]:
    return tuple(answers.get(name) for name in _QUESTIONS)


def _says_nothing(said: tuple[str | None, ...]) -> bool:
    """Whether responses say that a question is mended, and not into what."""
    what, *content = said
    return what == "mend" and not any(content)


def _asked(example_id: str, said: tuple[str | None, ...]) -> dict[str, Any]:
    """Return the decision that responses amount to: without an explicit one, what they say is accepted or mended."""
    what, wording, answer = said
    what = what or ("mend" if wording else "accept")
    content = {} if what == "drop" else {"question": wording, "label": answer}
    return {"id": example_id, "kind": "question", "what": what, **content}


def _checked(record: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    """Return a record's id and responses.

    Raises:
        MmedgeError: It is not a record.
    """
    if not isinstance(record, dict) or not isinstance(record.get("id"), str) or not isinstance(record.get("responses") or {}, dict):
        raise MmedgeError(f"{where}: expected a record with 'id' and 'responses'", "write it with dataset.records.to_json(PATH)")
    return record["id"], record.get("responses") or {}


def _by_user(responses: Mapping[str, Any], where: str) -> dict[str, dict[str, str]]:
    """Return what each annotator answered, by the question's name; questions that are not ours are left out."""
    found: dict[str, dict[str, str]] = {}
    for name in _QUESTIONS:
        given: Iterable[Any] = responses.get(name) or []
        if not isinstance(given, list):
            raise MmedgeError(f"{where}: the responses to {name!r} must be a list")
        for response in given:
            value = response.get("value") if isinstance(response, dict) else None
            if not isinstance(value, str) or (name == "decision" and value not in ACTIONS):
                allowed = f"one of {', '.join(ACTIONS)}" if name == "decision" else "text"
                raise MmedgeError(f"{where}: a response to {name!r} must be {allowed}, found {in_json(value, 40)}")
            found.setdefault(str(response.get("user_id") or "unknown"), {})[name] = value
    return found
