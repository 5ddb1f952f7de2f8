"""Asking a bundle from a terminal, through files and through pipes: what `mmedge run` does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import typer

from mmedge.errors import MmedgeError, printable
from mmedge.manifest import refuse_bundle
from mmedge.progress import Progress
from mmedge.runtime.escalation import BiggerModel
from mmedge.runtime.strategies import Strategy
from mmedge.runtime.student import Answer, Piece, Student
from mmedge.storage import Journal, parse_json_line, refuse_special_file, sha256_file, sha256_json, write_text
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import read_example


@dataclass(frozen=True)
class Asking:
    """Who is asked, and for what; see `Student.answer`."""

    student: Student
    explain: bool
    evaluate: bool
    confidence: bool
    strategy: Strategy
    constrained: bool | None
    abstain_below: float | None
    escalate_to: BiggerModel | None

    def answers(self, examples: list[Example], batch: int) -> list[Answer]:
        return self.student.answer_all(
            examples,
            explain=self.explain,
            evaluate=self.evaluate,
            confidence=self.confidence,
            strategy=self.strategy,
            constrained=self.constrained,
            abstain_below=self.abstain_below,
            escalate_to=self.escalate_to,
            batch=batch,
        )

    @property
    def decides_later(self) -> bool:
        """Whether an answer may be withheld or outvoted once it is written."""
        stated = (self.student.bundle.manifest.get("answering") or {}).get("threshold")
        threshold = (stated or {}).get("value") if self.abstain_below is None else self.abstain_below
        return bool(threshold) or self.strategy.kind in ("samples", "retry")

    def key(self) -> list[object]:
        """Return everything besides the questions that answers depend on."""
        manifest = self.student.bundle.manifest
        settings = [self.explain, self.evaluate, self.confidence, self.strategy.to_json(), self.constrained, self.abstain_below]
        bigger = self.escalate_to.name if self.escalate_to else None
        return [manifest["files"], manifest["prompts"], manifest.get("confidence"), manifest.get("answering"), settings, bigger]


def say(asking: Asking, example: Example, *, as_json: bool = False, stream: bool = False) -> None:
    """Answer one question on the terminal."""
    if stream and not asking.decides_later:  # what may yet be withheld is not shown
        answer = _streamed(asking, example)
        _say_rest(answer, shown=True)
        return
    answer = asking.answers([example], 1)[0]
    if as_json:
        typer.echo(json.dumps(answer.to_json(), ensure_ascii=False))
        return
    if answer.withheld:
        typer.echo(f"no answer: a confidence of {answer.confidence or 0:.2f} is too low")
    else:
        said = answer.text if answer.value is None or answer.value == answer.text else f"{answer.text} = {answer.value}"
        typer.echo(printable(said if answer.source == "student" else f"{said}  (by {answer.source})"))
    _say_rest(answer, shown=False)


def _streamed(asking: Asking, example: Example) -> Answer:
    part = ""
    headings = {"answer": "", "rationale": "because: ", "evaluation": "evaluation: "}
    for item in asking.student.stream(
        example,
        explain=asking.explain,
        evaluate=asking.evaluate,
        confidence=asking.confidence or asking.strategy.kind == "confidence",
        constrained=asking.constrained,
    ):
        if isinstance(item, Answer):
            typer.echo()
            return item
        assert isinstance(item, Piece)
        if item.part == "rationale" and not asking.explain:
            continue
        if item.part != part:
            typer.echo(("\n" if part else "") + headings[item.part], nl=False)
            part = item.part
        typer.echo(printable(item.text), nl=False)
        sys.stdout.flush()
    raise AssertionError("a stream ends with its answer")


def _say_rest(answer: Answer, *, shown: bool) -> None:
    if answer.problem:
        typer.echo(printable(f"nobody else answered: {answer.problem}"), err=True)
    if answer.rationale and not shown:
        typer.echo(printable(f"because: {answer.rationale}"))
    if answer.confidence is not None and not answer.withheld and (answer.calibrated or answer.signal != "answer"):
        how = "calibrated" if answer.calibrated else "not calibrated"
        typer.echo(f"confidence: {answer.confidence:.2f} ({how}, by {answer.signal})")
    if answer.verdict is not None:
        typer.echo(f"verdict: {answer.verdict} (P(correct) = {answer.probability_correct:.2f}, not calibrated)")
    if answer.evaluation and not shown:
        typer.echo(printable(f"evaluation: {answer.evaluation}"))
    if answer.escalation is not None and answer.escalation.cost:
        typer.echo(f"cost: {answer.escalation.cost:.6f}")


def dialogue(asking: Asking, *, stream: bool = False) -> None:
    """Answer what is typed, until an empty line or the end."""
    typer.echo("Ask; an empty line or Ctrl-D ends.", err=True)
    while True:
        try:
            question = input("? ")
        except EOFError:
            typer.echo()
            return
        if not question.strip():
            return
        say(asking, Example("question", question), stream=stream)


def _read_lines(source: Path | None) -> Iterator[Example]:
    name = "standard input" if source is None or str(source) == "-" else str(source)
    file = sys.stdin if name == "standard input" else open(name, encoding="utf-8-sig")  # noqa: SIM115 (closed by the process)
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield read_example(parse_json_line(line, name, number), name, number)
    except UnicodeDecodeError as error:
        raise MmedgeError(f"{name} is not valid UTF-8 (byte {error.start})", "save it as UTF-8") from None


def answer_lines(asking: Asking, source: Path | None, target: Path | None, batch: int, progress: Progress) -> None:
    """Answer JSON lines, batch by batch.

    Args:
        asking: Who is asked, and for what.
        source: A file; standard input where it is None or `-`.
        target: A file, which is there once all are answered; standard output where it is None or `-`.
        batch: How many questions together.
        progress: Where progress is shown.
    """

    def answered(examples: list[Example]) -> tuple[list[str], bool]:
        """Return lines, and whether everybody who was asked answered."""
        found = asking.answers(examples, batch)
        lines = [
            json.dumps({"id": example.id, **answer.to_json()}, ensure_ascii=False)
            for example, answer in zip(examples, found, strict=True)
        ]
        return lines, not any(answer.problem for answer in found)

    examples = _read_lines(source)
    batches = iter(lambda: list(islice(examples, batch)), [])
    if target is None or str(target) == "-":
        for questions in batches:
            sys.stdout.write("".join(line + "\n" for line in answered(questions)[0]))
            sys.stdout.flush()
        return
    refuse_special_file(target)
    refuse_bundle(target.parent, "--output")
    piped = source is None or str(source) == "-"
    given = "" if piped or source is None else sha256_file(source)
    key = sha256_json([*asking.key(), given, batch])
    lines: list[str] = []
    # what is finished waits beside the output until all is, so that a killed run continues (a pipe is read anew)
    journal = Journal(target.with_name(f".{target.name}.journal"), os.urandom(8).hex() if piped else key)
    if len(journal):
        progress.line(f"continues: {len(journal)} batches are answered already")
    try:
        with progress.task("answers", total=None) as step:
            for number, questions in enumerate(batches):
                found = journal.get(str(number))
                if found is None:
                    found, whole = answered(questions)
                    if whole:  # a bigger model that could not be asked is asked again by a run that continues
                        journal.put(str(number), found)
                lines += found
                step.advance(len(questions))
        write_text(target, "".join(line + "\n" for line in lines))
        journal.remove()
    finally:
        journal.close()
