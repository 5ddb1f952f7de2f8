"""Asking a bundle: `run`, for one question, a dialogue in the terminal, or JSON lines through files and pipes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import typer

from mmedge.cli.common import AsJson, BundlePath, Threads, progress
from mmedge.errors import MmedgeError, printable

if TYPE_CHECKING:
    from mmedge.progress import Progress
    from mmedge.runtime import Answer, AnswerOptions, Endpoint, Student
    from mmedge.runtime.options import SettledOptions
    from mmedge.tasks import Example
    from mmedge.tasks.forms import AnswerForm


SHOWN_LABELS = 5  # of those with a probability, in the terminal; JSON has all


@dataclass(frozen=True)
class AnswerContents:
    """What comes with the answer."""

    panel: ClassVar[str] = "Answer"

    explain: Annotated[bool, typer.Option("--explain", help="Also write a rationale.")] = False
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Compute the best confidence, even if it takes a rationale and a verdict.")
    ] = False
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also judge the rationale and answer: a verdict, and with --explain its reasons.")
    ] = False
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also show how likely each label or choice is.")] = False
    constrained: Annotated[
        bool | None,
        typer.Option("--constrained/--free", help="Allow only answers of the task's form. Default: the bundle's setting, or free."),
    ] = None
    choices: Annotated[list[str] | None, typer.Option("--choice", help="One choice of the question; repeat for each.")] = None


@dataclass(frozen=True)
class SamplingOptions:
    """How the student finds an answer."""

    panel: ClassVar[str] = "Strategy"

    strategy: Annotated[
        Literal["answer", "confidence", "samples", "retry"] | None,
        typer.Option(
            metavar="NAME", help="How to find the answer: answer, confidence, samples or retry. Default: the bundle's, or answer."
        ),
    ] = None
    samples: Annotated[int | None, typer.Option(min=1, max=64, help="Chains of thought to sample.")] = None
    choose_by: Annotated[
        Literal["majority", "self_evaluation", "both"] | None,
        typer.Option(metavar="NAME", help="How the sampled answers vote: majority, self_evaluation or both."),
    ] = None
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature.")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Sampling seed.")] = None
    retry_below: Annotated[
        float | None, typer.Option(min=0, max=1, help="Confidence below which the strategy retry samples more.")
    ] = None


@dataclass(frozen=True)
class Abstention:
    """Which answers are withheld."""

    panel: ClassVar[str] = "Withhold answers (one of --abstain-below, --target-accuracy, --max-withheld)"

    abstain_below: Annotated[float | None, typer.Option(min=0, max=1, help="Withhold answers with a lower confidence.")] = None
    abstain_field_below: Annotated[
        list[str] | None,
        typer.Option(
            help="Withhold structured answers that have a field with a lower confidence; repeatable, such as name=0.9.",
            metavar="[FIELD=]P",
        ),
    ] = None
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Withhold just enough answers for the rest to reach this accuracy on validation questions."
        ),
    ] = None
    max_withheld: Annotated[
        float | None, typer.Option(min=0, max=1, help="Withhold the least confident answers, at most this share.")
    ] = None
    max_withheld_by_field: Annotated[
        list[str] | None,
        typer.Option(
            help="Withhold the structured answers least sure of a field: this share of validation questions, such as name=0.05.",
            metavar="FIELD=SHARE",
        ),
    ] = None

    def changes(self) -> dict[str, Any]:
        """Return the options that are given.

        Raises:
            MmedgeError: A field's threshold is not a number.
        """
        thresholds = {name or "*": value for name, value in _by_field("--abstain-field-below", self.abstain_field_below)}
        shares = dict(_by_field("--max-withheld-by-field", self.max_withheld_by_field))
        if "" in shares:
            raise MmedgeError(
                "--max-withheld-by-field: must be FIELD=SHARE", "such as name=0.05; for whole answers, --max-withheld"
            )
        return {
            "abstain_below": self.abstain_below,
            "abstain_field_below": thresholds or None,
            "max_withheld_by_field": shares or None,
            "target_accuracy": self.target_accuracy,
            "max_withheld": self.max_withheld,
        }


def _by_field(option: str, given: Sequence[str] | None) -> Iterator[tuple[str, float]]:
    """Read numbers by field; the field is empty where there is a number alone.

    Raises:
        MmedgeError: One has no number.
    """
    for one in given or ():
        name, _, value = one.rpartition("=")
        try:
            yield name, float(value)
        except ValueError:
            raise MmedgeError(f"{option} {one!r:.60}: must be a number, or FIELD=NUMBER", "such as name=0.9") from None


@dataclass(frozen=True)
class Escalation:
    """Who answers what would be withheld."""

    panel: ClassVar[str] = "Escalate withheld questions to a bigger model"

    escalate_to: Annotated[
        str | None, typer.Option(metavar="URL", help="OpenAI-compatible endpoint (…/v1) that answers what would be withheld.")
    ] = None
    escalate_model: Annotated[str | None, typer.Option(metavar="NAME", help="Model at that endpoint.")] = None
    escalate_key: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable that holds the endpoint's API key.")
    ] = None
    price_input: Annotated[float, typer.Option(min=0, help="Price of a million of its prompt tokens, for the reported cost.")] = 0.0
    price_output: Annotated[float, typer.Option(min=0, help="Price of a million of its completion tokens.")] = 0.0


@dataclass(frozen=True)
class Lines:
    """Questions and answers in files or pipes."""

    panel: ClassVar[str] = "Files and pipes"

    messages: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file with the messages of a dialogue; the last one is the question."),
    ] = None

    input_: Annotated[Path | None, typer.Option("--input", help="JSON lines with questions or messages; - for standard input.")] = (
        None
    )
    output: Annotated[Path | None, typer.Option("--output", help="JSON lines for the answers; - for standard output.")] = None
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Questions per batch.")] = 8


def run(
    bundle: BundlePath,
    wanted: AnswerContents,
    sampling: SamplingOptions,
    abstention: Abstention,
    escalation: Escalation,
    lines: Lines,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="One question. Without it: a dialogue, or JSON lines from a pipe.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Show the text as it is written.")] = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Device to compute on; auto: the one the bundle was exported for.")
    ] = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Ask a bundle: one question, a dialogue in the terminal, or JSON lines through files and pipes."""
    _check_use(question, wanted, lines, stream=stream, as_json=as_json)
    from mmedge.runtime import Student
    from mmedge.tasks import Example

    bigger = bigger_model(escalation)
    asking = _asking(Student.load(bundle, threads, device), wanted, sampling, abstention, bigger)
    if stream and asking.settled.decides_afterwards:
        raise MmedgeError(
            "--stream cannot show an answer that may still be withheld or outvoted",
            "leave it out, or add --strategy answer --abstain-below 0",
        )
    choices = tuple(wanted.choices or ())
    if question is not None:
        say(asking, Example("question", question, None, choices), as_json=as_json, stream=stream)
    elif lines.messages is not None:
        say(asking, _read_messages(lines.messages, choices, asking), as_json=as_json, stream=stream)
    elif lines.input_ is None and sys.stdin.isatty():
        dialogue(asking, stream=stream)
    else:
        answer_lines(asking, lines.input_, lines.output, lines.batch, progress(False))


def _check_use(question: str | None, wanted: AnswerContents, lines: Lines, *, stream: bool, as_json: bool) -> None:
    """Refuse options that contradict each other.

    Raises:
        MmedgeError: They do.
    """
    source, target = lines.input_, lines.output
    if lines.messages is not None and (question is not None or source is not None):
        raise MmedgeError("give one of a question, --messages and --input", "leave the others out")
    if question is not None and source is not None:
        raise MmedgeError("give either a question or --input, not both", "leave one out")
    if (question is not None or lines.messages is not None) and target is not None:
        raise MmedgeError("--output is for the answers to --input or a pipe", "redirect the output of one question, or use --json")
    if question is not None and not question.strip():
        raise MmedgeError("the question is empty", "write it in quotes after the bundle")
    if source is not None and str(source) != "-" and source.exists() and not source.is_file():
        raise MmedgeError(f"{source} is not a regular file", "for a pipe, redirect it: --input - < FILE")
    if source is not None and str(source) != "-" and not source.is_file():
        raise MmedgeError(f"no such file: {source}", 'name a file with one JSON object per line, such as {"question": "…"}')
    if source is not None and target is not None and target.exists() and source.exists() and source.samefile(target):
        raise MmedgeError("--input and --output are the same file", "name another output")
    if wanted.choices and question is None and lines.messages is None:
        raise MmedgeError("--choice is for one question on the command line", "give `choices` in the lines of --input")
    if stream and (as_json or source is not None):
        raise MmedgeError(
            "--stream shows answers in a terminal as they are written", "leave it out, or leave out --json and --input"
        )


def bigger_model(escalation: Escalation) -> Endpoint | None:
    """Return the model that is asked what would be withheld.

    Raises:
        MmedgeError: Options are missing, or contradict each other.
    """
    from mmedge.openai import Prices
    from mmedge.runtime import Endpoint

    if (escalation.escalate_to is None) != (escalation.escalate_model is None):
        raise MmedgeError("--escalate-to and --escalate-model go together", "give both")
    prices = Prices(escalation.price_input, escalation.price_output)
    if escalation.escalate_to is None or escalation.escalate_model is None:
        if escalation.escalate_key is not None or prices.known:
            raise MmedgeError(
                "--escalate-key and the prices require an endpoint", "name it: --escalate-to URL --escalate-model NAME"
            )
        return None
    return Endpoint(
        escalation.escalate_to,
        escalation.escalate_model,
        escalation.escalate_key,
        prices=prices,
    )


def _asking(
    student: Student, wanted: AnswerContents, sampling: SamplingOptions, abstention: Abstention, bigger: Endpoint | None
) -> AskedStudent:
    """Return how the student is asked, and print its threshold if one was chosen.

    Raises:
        MmedgeError: Options contradict each other, or no threshold reaches an aim.
    """
    from mmedge.runtime import AnswerOptions

    if wanted.choices and not student.bundle.form.takes_choices:
        task = student.bundle.manifest.task.name
        raise MmedgeError(f"--choice: questions of the task {task} have no choices", "leave it out")
    strategy = student.strategy_with(**{"kind" if name == "strategy" else name: value for name, value in asdict(sampling).items()})
    options = AnswerOptions(
        explain=wanted.explain,
        evaluate=wanted.evaluate,
        confidence=wanted.confidence,
        probabilities=wanted.probabilities,
        strategy=strategy,
        constrained=wanted.constrained,
        escalate_to=bigger,
        **abstention.changes(),
    )
    settled = student.settled(options)
    found = options.chosen_threshold(student.bundle, student.confidence)
    if found is not None:
        low, high = (100 * end for end in found.interval)
        typer.echo(
            f"withheld below a confidence of {found.value:.2f}: {100 * found.withheld:.0f} % of {found.questions} validation "
            f"questions; of the others {100 * found.accuracy:.0f} % [{low:.0f}, {high:.0f}] were right",
            err=True,
        )
    return AskedStudent(student, options, settled)


# ------------------------------------------------------------------------------------------------------ in a terminal


@dataclass(frozen=True)
class AskedStudent:
    """The student that is asked, and what it is asked for; see `Student.answer`."""

    student: Student
    options: AnswerOptions
    settled: SettledOptions

    def answers(self, examples: list[Example], batch: int) -> list[Answer]:
        return self.student.answer_all(examples, self.options, batch=batch)

    def key(self) -> list[object]:
        """Return everything besides the questions that answers depend on."""
        return [self.student.bundle.manifest.identity(), *self.settled.key()]


def say(asking: AskedStudent, example: Example, *, as_json: bool = False, stream: bool = False) -> Answer:
    """Answer one question on the terminal, and return the answer."""
    if stream and not asking.settled.decides_afterwards:  # an answer that may yet be withheld is not shown
        answer = _streamed(asking, example)
        _say_rest(answer, shown=True)
        return answer
    answer = asking.answers([example], 1)[0]
    if as_json:
        typer.echo(json.dumps(answer.to_json(), ensure_ascii=False))
        return answer
    if answer.withheld:
        typer.echo(f"no answer: {answer.doubt}")
    else:
        said = answer.text if answer.value is None or answer.value == answer.text else f"{answer.text} = {answer.value}"
        typer.echo(printable(said if answer.source == "student" else f"{said}  (by {answer.source})"))
    _say_rest(answer, shown=False)
    return answer


def _streamed(asking: AskedStudent, example: Example) -> Answer:
    from mmedge.runtime import Answer, Piece

    part = ""
    headings = {"answer": "", "rationale": "because: ", "evaluation": "evaluation: "}
    for item in asking.student.stream(example, asking.options):
        if isinstance(item, Answer):
            last = part == "answer" and item.value not in (None, item.text)
            typer.echo(printable(f" = {item.value}") if last else "")
            return item
        assert isinstance(item, Piece)
        if item.part == "rationale" and not asking.options.explain:
            continue
        if item.part != part:
            typer.echo(("\n" if part else "") + headings[item.part], nl=False)
            part = item.part
        typer.echo(printable(item.text), nl=False)
        sys.stdout.flush()
    raise AssertionError("a stream ends with its answer")


def _say_rest(answer: Answer, *, shown: bool) -> None:
    if answer.problem:
        typer.echo(printable(f"not escalated: {answer.problem}"), err=True)
    if answer.written is not None and answer.source == "student" and not answer.withheld:
        if answer.written.question_cut:
            typer.echo("the end of the question was not read: it is longer than training.max_input_tokens", err=True)
        if answer.written.cut_short:
            typer.echo("cut short: the answer was ended at its limit of tokens, its last values are not what was meant", err=True)
    if answer.rationale and not shown:
        typer.echo(printable(f"because: {answer.rationale}"))
    if answer.confidence is not None and not answer.withheld:
        how = "calibrated" if answer.calibrated else "not calibrated"
        typer.echo(f"confidence: {answer.confidence:.2f} ({how}; signal: {answer.signal})")
    if answer.probabilities is not None:
        shown_ones = list(islice(answer.probabilities.items(), SHOWN_LABELS))
        left = len(answer.probabilities) - len(shown_ones)
        more = f", and {left} more" if left else ""
        typer.echo(printable("probabilities: " + ", ".join(f"{text} {p:.2f}" for text, p in shown_ones) + more))
    if answer.verdict is not None:
        typer.echo(f"verdict: {answer.verdict} (P(correct) = {answer.probability_correct:.2f}, not calibrated)")
    if answer.evaluation and not shown:
        typer.echo(printable(f"evaluation: {answer.evaluation}"))
    if answer.escalation is not None and answer.escalation.cost:
        typer.echo(f"cost: {answer.escalation.cost:.6f}")


def dialogue(asking: AskedStudent, *, stream: bool = False) -> None:
    """Answer typed questions until an empty line or the end of input; a student that reads dialogues remembers what was said."""
    from mmedge.tasks import Example
    from mmedge.tasks.base import Turn
    from mmedge.tasks.reading import one_paragraph

    remembers = asking.student.reads_dialogues
    more = ", then others that refer back to it" if remembers else ""
    typer.echo(f"Type a question{more}; an empty line or Ctrl-D ends the dialogue.", err=True)
    turns: tuple[Turn, ...] = ()
    while True:
        try:
            question = input("? ")
        except EOFError:
            typer.echo()
            return
        if not question.strip():
            return
        answer = say(asking, Example("question", question, turns=turns), stream=stream)
        said = answer.text or answer.guess or ""
        if remembers and said:
            turns = (*turns, Turn("user", one_paragraph(question)), Turn("assistant", said))


def _read_messages(path: Path, choices: tuple[str, ...], asking: AskedStudent) -> Example:
    """Return the question of a file of messages.

    Raises:
        MmedgeError: It cannot be read, or holds no messages.
    """
    from mmedge.storage import read_json
    from mmedge.tasks import Example
    from mmedge.tasks.dialogue import WrongMessage, read_messages

    try:
        turns, question = read_messages(read_json(path), asking.student.bundle.form)
    except WrongMessage as error:
        raise MmedgeError(f"{path}: {error}", 'write a list of messages, such as [{"role": "user", "content": "…"}]') from None
    return Example("question", question, None, choices, turns)


def _read_lines(source: Path | None, form: AnswerForm) -> Iterator[Example]:
    from mmedge.storage import parse_json_line
    from mmedge.tasks.evaluation_set import read_example

    name = "standard input" if source is None or str(source) == "-" else str(source)
    file = sys.stdin if name == "standard input" else open(name, encoding="utf-8-sig")  # noqa: SIM115 (closed by the process)
    try:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield read_example(parse_json_line(line, name, number, strict=True), name, number, form)
    except UnicodeDecodeError as error:
        raise MmedgeError(f"{name} is not valid UTF-8 (byte {error.start})", "save it as UTF-8") from None


def answer_lines(asking: AskedStudent, source: Path | None, target: Path | None, batch: int, progress: Progress) -> None:
    """Answer JSON lines, batch by batch.

    Args:
        asking: Who is asked, and for what.
        source: A file; standard input where it is None or `-`.
        target: A file, which is there once all are answered; standard output where it is None or `-`.
        batch: How many questions together.
        progress: Where progress is shown.
    """

    def answered(examples: list[Example]) -> tuple[list[str], bool]:
        """Return lines of answers, and whether every bigger model that was asked answered."""
        found = asking.answers(examples, batch)
        lines = [
            json.dumps({"id": example.id, **answer.to_json()}, ensure_ascii=False)
            for example, answer in zip(examples, found, strict=True)
        ]
        return lines, not any(answer.problem for answer in found)

    examples = _read_lines(source, asking.student.bundle.form)
    batches = iter(lambda: list(islice(examples, batch)), [])
    if target is None or str(target) == "-":
        for questions in batches:
            sys.stdout.write("".join(line + "\n" for line in answered(questions)[0]))
            sys.stdout.flush()
        return
    from mmedge.bundle import refuse_bundle
    from mmedge.storage import Journal, refuse_special_file, sha256_file, sha256_json, write_text

    refuse_special_file(target)
    refuse_bundle(target.parent, "--output")
    piped = source is None or str(source) == "-"
    given = "" if piped or source is None else sha256_file(source)
    key = sha256_json([*asking.key(), given, batch])
    lines: list[str] = []
    # finished batches are kept beside the output until all are done, so that a killed run continues (a pipe starts over)
    journal = Journal(target.with_name(f".{target.name}.journal"), os.urandom(8).hex() if piped else key)
    if len(journal):
        progress.line(f"continuing: {len(journal)} batches are already answered")
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
