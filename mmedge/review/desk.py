"""What a reviewer sees of a run and may decide about it, as JSON documents; knows neither HTTP nor the page.

desk = Desk(recipe, run, store, "ann")
desk.questions("undecided", start=0, count=20)
desk.decide({"id": "q1", "kind": "question", "what": "mend", "label": "music"})
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.decisions import ACTIONS, KINDS, Decision, Decisions, Item
from mmedge.annotations.questions import plain_task, task_of
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError, is_broken
from mmedge.folders import Run
from mmedge.recipe import Recipe
from mmedge.tasks import Example, Unparsed
from mmedge.tasks.forms import AnswerForm
from mmedge.tasks.reading import one_paragraph, plain, read_self_evaluation
from mmedge.tasks.synthesized import is_synthesized, read_questions

FILTERS = ("undecided", "new", "decided", "all")
VERDICTS = ("correct", "wrong", "uncertain")
_CONTENT = {"question": ("question", "label"), "cot": ("text",), "evaluation": ("text", "verdict")}  # of decisions, by kind
LONGEST = 20_000  # characters of a text that somebody writes


class Desk:
    """A run under review.

    Args:
        recipe: The run's.
        run: The run.
        store: Its annotations.
        who: Who decides.
    """

    def __init__(self, recipe: Recipe, run: Run, store: AnnotationStore, who: str) -> None:
        self._store, self._who, self.name = store, who, recipe.name
        self.decisions = Decisions(store)
        task = replace(task_of(recipe, run), decisions={})
        self.form: AnswerForm = plain_task(task).form
        splits = task.load()
        self.examples = {example.id: example for example in splits.train}
        asked = [("test question", one) for part in splits.tests.values() for one in part]
        asked += [("question", one) for one in splits.train]
        self._wordings = {plain(one.question): (what, one.id) for what, one in reversed(asked) if not one.turns}
        path = task.new_questions
        self._wanted = {question.id: question.kind for question in read_questions(path)} if path else {}

    def questions(self, which: str, start: int, count: int) -> dict[str, Any]:
        """Return some questions with everything about them.

        Args:
            which: One of `FILTERS`.
            start: How many to leave out.
            count: How many at most.
        """
        current = self.decisions.current()
        decided = {item.example_id for item in current}
        chosen = [id_ for id_ in self.examples if _shown(id_, which, decided)]
        part = chosen[start : start + count]
        return {
            "run": self.name,
            "form": self.form.name,
            "expected": self.form.expected(),
            "labels": list(self.form.kinds()) if self.form.labels else [],
            "total": len(chosen),
            "start": start,
            "decided": len(decided & self.examples.keys()),
            "all": len(self.examples),
            "questions": self._documents(part, current),
        }

    def question(self, example_id: str) -> dict[str, Any]:
        """Return one question with everything about it."""
        return self._documents([example_id], self.decisions.current([example_id]))[0]

    def _documents(self, ids: Sequence[str], current: Mapping[Item, Decision]) -> list[dict[str, Any]]:
        texts: dict[str, list[Annotation]] = {id_: [] for id_ in ids}
        for kind in ("cot", "evaluation"):
            for annotation in self._store.annotations(kind, list(ids)):
                texts[annotation.example_id].append(annotation)
        return [self._document(self.examples[id_], texts[id_], current) for id_ in ids]

    def _document(self, example: Example, texts: Sequence[Annotation], current: Mapping[Item, Decision]) -> dict[str, Any]:
        shown = [self._text(example, annotation, current) for annotation in texts]
        answers = [one["answer"] for one in shown if one["kind"] == "cot" and one["answer"] is not None]
        most = max(answers, key=answers.count, default=None)
        return {
            "id": example.id,
            "before": [f"{turn.role}: {self.readable(turn.text)}" for turn in example.turns],
            "question": example.question,
            "choices": list(example.choices),
            "label": None if example.label is None else self.readable(example.label),
            "new": is_synthesized(example.id),
            "wanted": self._wanted.get(example.id, ""),
            "suggestion": most,
            "agreement": answers.count(most) / len(answers) if answers else None,
            "decision": _decision(current.get(Item(example.id, "question"))),
            "texts": sorted(shown, key=lambda one: (one["sample"], one["kind"], one["evaluation"])),
        }

    def _text(self, example: Example, annotation: Annotation, current: Mapping[Item, Decision]) -> dict[str, Any]:
        decision = current.get(Item(example.id, annotation.kind, annotation.sample, annotation.evaluation))
        text = decision.text if decision and decision.text is not None else annotation.text
        answer = verdict = problem = None
        if annotation.kind == "cot":
            cot = self.form.read(text, example)
            answer, problem = (None, cot.value) if isinstance(cot, Unparsed) else (self.readable(cot.pseudo_label), None)
        else:
            given = decision.verdict if decision and decision.verdict is not None else annotation.verdict
            judged = read_self_evaluation(text, given)
            verdict, problem = (None, judged.value) if isinstance(judged, Unparsed) else (judged.verdict.value, None)
        return {
            "kind": annotation.kind,
            "sample": annotation.sample,
            "evaluation": annotation.evaluation,
            "text": annotation.text,
            "teacher": annotation.teacher,
            "answer": answer,
            "verdict": verdict,
            "problem": problem,
            "decision": _decision(decision),
        }

    def readable(self, answer: str) -> str:
        """Return an answer as people read and write it: a structured one as JSON."""
        return self.form.readable(answer)

    # --------------------------------------------------------------------------------------------------- decisions

    def decide(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Store a decision and return its question.

        Args:
            asked: `id`, `kind`, `sample`, `evaluation`, `what`; `question` and `label`, or `text` and `verdict`.

        Raises:
            MmedgeError: The item does not exist, or the values given do not fit it.
        """
        item, decision = self.checked(asked, self._who, time.time())
        self.decisions.decide_all([(item, decision)])
        return self.question(item.example_id)

    def checked(self, asked: Mapping[str, Any], who: str, at: float) -> tuple[Item, Decision]:
        """Return what a decision asks for.

        Args:
            asked: See `decide`.
            who: Who decides.
            at: When, in seconds since 1970.

        Raises:
            MmedgeError: The item does not exist, or what is given does not fit it.
        """
        item, what = self.item(asked), asked.get("what")
        if what not in ACTIONS:
            raise MmedgeError(f"what must be one of {', '.join(ACTIONS)}")
        texts = {name: _text_of(asked, name) for name in ("question", "label", "text", "verdict")}
        allowed = () if what == "drop" else _CONTENT[item.kind]
        if extra := next((name for name, value in texts.items() if value is not None and name not in allowed), None):
            raise MmedgeError(f"{extra} does not go with {what} of a {item.kind}")
        if what == "mend" and not any(value is not None for value in texts.values()):
            raise MmedgeError("nothing is mended", "give what it becomes")
        self._check(texts["label"], texts["text"] if item.kind == "cot" else None, self.examples[item.example_id])
        if texts["question"] is not None:
            texts["question"] = one_paragraph(texts["question"])
            self._check_wording(texts["question"], self.examples[item.example_id])
        if texts["verdict"] is not None and texts["verdict"] not in VERDICTS:
            raise MmedgeError(f"verdict must be one of {', '.join(VERDICTS)}")
        return item, Decision(what, who, at, **texts)

    def _check_wording(self, question: str, example: Example) -> None:
        """Refuse the wording of another question; a test question must not be learned."""
        what, same = self._wordings.get(plain(question), ("", example.id))
        if not example.turns and same != example.id and plain(question) != plain(example.question):
            raise MmedgeError(f"the {what} {same!r:.60} has this wording already", "word it differently, or drop it")

    def _check(self, label: str | None, cot: str | None, example: Example) -> None:
        """Refuse a label, or a chain of thought, that is or has no answer of the form."""
        if label is not None and self.form.canonical(label, example.choices) is None:
            why = self.form.problem(label, example.choices)
            what_is_wrong = "the label is not an answer of this form" + (f": {why}" if why else "")
            raise MmedgeError(what_is_wrong, f"it must be {self.form.expected()}")
        if cot is not None and isinstance(found := self.form.read(cot, example), Unparsed):
            raise MmedgeError(f"the text cannot be read: {found.value}", "end it with: The answer is …")

    def undo(self, asked: Mapping[str, Any]) -> dict[str, Any] | None:
        """Take back the last decision about an item, or of all; return its question, or None where there is nothing."""
        item = self.item(asked) if asked.get("id") is not None else self.decisions.last()
        if item is None or not self.decisions.undo(item, self._who):
            return None
        return self.question(item.example_id) if item.example_id in self.examples else None

    def item(self, asked: Mapping[str, Any]) -> Item:
        """Return the item that a request names.

        Raises:
            MmedgeError: There is none.
        """
        id_, kind = asked.get("id"), asked.get("kind", "question")
        numbers = [asked.get(name) or 0 for name in ("sample", "evaluation")]
        if not isinstance(id_, str) or id_ not in self.examples:
            raise MmedgeError(f"unknown question {id_!r:.60}", "load the page again")
        if kind not in KINDS or not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers):
            raise MmedgeError(f"kind must be one of {', '.join(KINDS)}, sample and evaluation numbers")
        item = Item(id_, kind, *numbers)
        if kind == "question":
            return Item(id_, "question")
        found = ((a.sample, a.evaluation) for a in self._store.annotations(kind, [id_]))
        if (item.sample, item.evaluation) not in found:
            raise MmedgeError(f"question {id_!r:.60} has no {kind} with these numbers", "load the page again")
        return item


def _shown(example_id: str, which: str, decided: set[str]) -> bool:
    return {
        "all": True,
        "new": is_synthesized(example_id),
        "decided": example_id in decided,
        "undecided": example_id not in decided,
    }[which]


def _decision(decision: Decision | None) -> dict[str, Any] | None:
    if decision is None:
        return None
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(decision.time))
    names = ("question", "label", "text", "verdict")
    given = {name: getattr(decision, name) for name in names if getattr(decision, name) is not None}
    return {"what": decision.what, "who": decision.who, "when": when, **given}


def _text_of(asked: Mapping[str, Any], name: str) -> str | None:
    value = asked.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str) or len(value) > LONGEST:
        raise MmedgeError(f"{name} must be text of at most {LONGEST:,} characters")
    if name in ("question", "label") and is_broken(value):
        raise MmedgeError(f"{name} has broken or control characters", "write it anew")
    return value.strip()
