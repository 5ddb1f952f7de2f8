"""`mmedge bench`: the same questions to every variant, interleaved, each in a process of its own.

Every question goes to each variant in turn before the next one comes, so that a machine that slows down slows all of them
(`scheduler.py`); `scenarios.py` says what is measured, `summary.py` what it amounts to. Accuracies are on the same
questions; the report keeps every sample (`results.py`). A variant that cannot be opened, or that does not fit, is a row that
says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmedge.bench import summary
from mmedge.bench.ceilings import measure_ceilings
from mmedge.bench.decision import decide
from mmedge.bench.energy import EnergyMeter
from mmedge.bench.results import BenchReport
from mmedge.bench.scenarios import measure
from mmedge.bench.scheduler import BenchQuestion, Row, VariantScheduler, find_rows, journal_key
from mmedge.bench.settings import BenchSettings
from mmedge.engines.variants import VariantSpec, find_variants, form_of
from mmedge.errors import MmedgeError
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.storage import Journal, iterate_jsonl
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import FILE_NAME, EvaluationSet, HeldOutCot, read_evaluation_set, read_example
from mmedge.tasks.forms import AnswerForm


def first_folder(places: Sequence[str]) -> Path:
    """Return where the report goes by default: beside the first variant that exists.

    Raises:
        MmedgeError: There is none.
    """
    problem = MmedgeError("no variant given", "name a run, a student folder or a bundle")
    for number, place in enumerate(places):
        try:
            return find_variants(place)[0].place.resolve().parent
        except MmedgeError as error:
            problem = problem if number else error
    raise problem


def bench(
    places: Sequence[Path | str],
    settings: BenchSettings,
    progress: Progress,
    evaluation: Path | None = None,
    journal: Path | None = None,
    energy: EnergyMeter | None = None,
) -> BenchReport:
    """Measure variants on the same questions.

    Args:
        places: Runs, student folders, bundles, or `KIND:PLACE`; see `engines/variants.py`.
        settings: How much to measure.
        progress: Where progress is shown.
        evaluation: The evaluation set, or JSON lines of questions with labels; the set beside the first variant by default.
        journal: Where replies are kept until all are there, so that a bench that was killed continues; the caller removes it
            when the report is written. Memory is that of the processes that finished.
        energy: What measures energy in the offline scenario; None for nothing.

    Raises:
        MmedgeError: No variant can be measured, the evaluation set is empty, or another bench holds the journal.
    """
    rows = find_rows(places, settings)
    specs = [row.spec for row in rows if row.problem is None]
    if not specs:
        raise _first_problem(rows)
    source = evaluation or specs[0].place.resolve().parent / FILE_NAME
    questions = _questions(source, specs)
    asked = [
        BenchQuestion(split, number, example)
        for split, examples in questions.tests().items()
        for number, example in enumerate(examples[: settings.questions])
    ]
    if not asked:
        raise MmedgeError("the evaluation set has no test questions", "add some, or name another set with --evaluation FILE")
    cots = next(iter(questions.cots.values()), ())[: settings.verdicts]
    kept = Journal(journal, journal_key(rows, settings, source)) if journal else None
    continued = len(kept) if kept is not None else 0
    if continued:
        progress.line(f"continuing: {continued} answers and verdicts are already there")
    scheduler = VariantScheduler(rows, settings, progress, kept)
    try:
        with scheduler.opened(questions.task):
            reached = measure(scheduler, asked, cots, energy)
    finally:
        if kept is not None:
            kept.close()
    if not scheduler.running:
        if journal is not None:  # what failed is tried anew when the command runs again
            journal.unlink(missing_ok=True)
        raise _first_problem(rows)
    return _report(scheduler, questions, cots, reached, continued)


def server_questions(source: Path | None, bundle: Path | None, most: int | None) -> tuple[list[Example], AnswerForm]:
    """Return the questions that servers are asked, and what answers look like.

    Args:
        source: An evaluation set, or JSON lines of questions with labels; None for the set beside the bundle.
        bundle: A bundle whose form is used for JSON lines; None where there is none.
        most: Questions of each test split; None for all.

    Raises:
        MmedgeError: There are none.
    """
    if source is None and bundle is None:
        raise MmedgeError("servers need questions", "name an evaluation set, or labelled questions, with --evaluation FILE")
    path = source or (bundle or Path()).resolve().parent / FILE_NAME
    found = _questions(path, find_variants(bundle) if bundle is not None else [])
    examples = [example for some in found.tests().values() for example in some[:most]]
    if not examples:
        raise MmedgeError(f"{path} has no test questions", "name another set with --evaluation FILE")
    return examples, found.form


def _first_problem(rows: Sequence[Row]) -> MmedgeError:
    first = rows[0].problem
    assert first is not None
    if len(rows) == 1:
        return first
    problems = "; ".join(dict.fromkeys(row.problem.what for row in rows if row.problem))
    return MmedgeError(f"none of the {len(rows)} variants could be measured: {problems[:400]}", first.hint)


def _questions(source: Path, specs: Sequence[VariantSpec]) -> EvaluationSet:
    """Read an evaluation set, or plain JSON lines of questions with labels, judged by the answer form of the first bundle.

    Raises:
        MmedgeError: It is neither, a bundle's answers are of another form, or no bundle names the form of answers.
    """
    if not source.is_file():
        return read_evaluation_set(source)
    _, first = next(iterate_jsonl(source), (0, {"kind": "empty"}))
    forms = [form for spec in specs if (form := form_of(spec)) is not None]
    if "kind" in first:
        questions = read_evaluation_set(source)
        for form in forms:
            questions.check(form, source)
        return questions
    found = next(iter(forms), None)
    if found is None:
        raise MmedgeError(f"{source} does not name a form of answers", "name a bundle as the first variant, whose form is used")
    examples = tuple(read_example(record, source, number) for number, record in iterate_jsonl(source))
    return EvaluationSet("", found, {source.stem: examples}, {})


def _report(
    scheduler: VariantScheduler, questions: EvaluationSet, cots: Sequence[HeldOutCot], reached: bool | None, continued: int
) -> BenchReport:
    settings, base = scheduler.settings, scheduler.running[0]
    whole = questions.tests()
    timed = [row for row in scheduler.running if row.single and row.opened["device"] == "cpu"]
    counts = sorted({summary.processors_of(row, settings) for row in timed})
    ceilings = {count: measure_ceilings(count) for count in counts}
    watched = scheduler.watch.summary()
    report = BenchReport(
        task=questions.task or base.opened["task"] or next(iter(whole)),
        questions={split: len(base.said.get(split, ())) for split in whole},
        questions_in_set={split: len(examples) for split, examples in whole.items()},
        ask=settings.ask,
        scenarios=list(settings.scenarios),
        settings=settings,
        precision_reached=reached,
        continued=continued,
        machine=machine(),
        watch=watched,
        noisy=watched.noisy,
        ceilings=list(ceilings.values()),
        variants=[
            summary.failed(row) if row.problem else summary.measured(row, base, settings, questions, cots, ceilings)
            for row in scheduler.rows
        ],
    )
    return report.model_copy(update={"decision": decide(report)})
