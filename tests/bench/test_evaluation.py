"""`mmedge evaluate`: figures that follow from the answers, kept when killed, told plainly where there is nothing to tell."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmedge.bench.evaluation import EvaluationSettings, evaluate
from mmedge.bench.evaluation_figures import AnsweredQuestion, signal_quality, split_of
from mmedge.bench.evaluation_report import decision, markdown, page
from mmedge.bench.evaluation_results import EvaluationReport
from mmedge.bench.results import Interval
from mmedge.bundle import open_bundle
from mmedge.engines.bundles import open_speaker
from mmedge.engines.speaker import Evidence
from mmedge.export.confidence import calibrated, fitted
from mmedge.progress import Progress
from mmedge.runtime.strategies import Sample
from mmedge.runtime.student import Student
from mmedge.statistics import auroc, proportion
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import read_evaluation_set, write_evaluation_set
from mmedge.tasks.forms.choice import LabelForm
from tests.conftest import is_one_line_error, killed_when_lines_are_there, mmedge

QUIET = Progress(quiet=True)


@pytest.fixture
def knowing(tiny_run: Path, tmp_path: Path) -> Student:
    """A student that answers half of the questions rightly, and knows which."""
    shutil.copytree(tiny_run / "bundle-int8", tmp_path / "bundle-int8")
    shutil.copy(tiny_run / "evaluation.jsonl", tmp_path)
    rng = np.random.default_rng(0)
    labels = {
        example.id: example.label or ""
        for examples in read_evaluation_set(tmp_path / "evaluation.jsonl").questions.values()
        for example in examples
    }

    def shown(right: bool) -> Evidence:
        return Evidence(-0.5, float(rng.normal(2.0 if right else -2.0, 1.0)), 0.0, -0.2)

    class Knowing(Student):
        """Its evidence is put in its mouth."""

        def examined(self, questions: Sequence[Example], constrained: bool | None = None) -> list[tuple[str, Evidence]]:
            rights = [sum(map(ord, example.id)) % 2 == 0 for example in questions]
            return [
                (labels.get(example.id, example.label or "") if right else "no", shown(right))
                for example, right in zip(questions, rights, strict=True)
            ]

    truth = [bool(number % 2) for number in range(80)]
    opened = open_bundle(tmp_path / "bundle-int8")
    manifest = replace(opened.manifest, confidence=fitted([shown(right) for right in truth], truth))
    return Knowing(replace(opened, manifest=manifest), open_speaker(opened))


def _surer(report: EvaluationReport, chosen: str, interval: tuple[float, float]) -> EvaluationReport:
    """Return a report whose chosen signal has an AUROC with this interval."""
    whole = report.splits["all"]
    signal = whole.signals[chosen]
    assert signal.auroc is not None
    signal = signal.model_copy(update={"auroc": signal.auroc.model_copy(update={"interval_95": interval})})
    whole = whole.model_copy(update={"signals": whole.signals | {chosen: signal}})
    confidence = report.confidence.model_copy(update={"chosen": chosen})
    return report.model_copy(update={"splits": report.splits | {"all": whole}, "confidence": confidence})


def test_what_a_student_knows_is_found(knowing: Student) -> None:
    report = evaluate(knowing, EvaluationSettings(samples=2, timed=9), QUIET)
    assert report.confidence.chosen == "evaluation" and report.out_of_scope is None
    whole = report.splits["all"]
    assert set(report.splits) == {"new_combinations", "held_out_patterns", "all"}
    evaluation, answer = whole.signals["evaluation"], whole.signals["answer"]
    assert evaluation.auroc and evaluation.auroc.value > 0.95
    assert answer.auroc and answer.auroc.value == 0.5  # it is the same everywhere
    again = auroc([one.confidence["evaluation"] for one in whole.answers], [one.right for one in whole.answers])
    assert evaluation.auroc.value == pytest.approx(again, abs=1e-3)
    difference, gain = whole.auroc_differences["evaluation - answer"], evaluation.gain_at["0.7"]
    assert difference and difference.interval_95[0] > 0.3 and gain and gain.value > 0.1
    given = next(aim for aim in whole.abstaining if aim.target_accuracy == 0.9).accuracy_of_given
    assert given and (given.value or 0) >= 0.8
    assert report.prices["answer"].times_answer == 1.0
    assert report.prices["answer, rationale, confidence"].times_answer > 1
    cascade = report.cascade
    assert cascade is not None
    assert cascade.curve[0][1] == pytest.approx(cascade.student.value, abs=1e-4)
    assert cascade.curve[-1][1] == pytest.approx(cascade.teacher.value, abs=1e-4)
    assert max(accuracy for _, accuracy in cascade.curve) >= cascade.teacher.value
    text = markdown(report)
    assert "self-evaluation (chosen)" in text and "escalating to the recorded teacher" in text
    assert "evaluate it on more questions" in decision(report)  # 24 of them
    known = decision(_surer(report, "evaluation", (0.93, 1.0)))
    assert known.startswith("It knows when it is wrong (AUROC 1.000 [0.930, 1.00") and "withheld" in known
    assert "do not withhold or escalate by it" in decision(_surer(report, "answer", (0.45, 0.55)))
    shown = page(report).text()
    assert shown.index('class="lead"') < shown.index("<table") < shown.index("How it was measured")
    assert shown.count("<svg") == 7  # AUROCs of so few questions have no interval, and no chart
    assert "nan" not in shown.lower().replace("nancy", "")
    assert EvaluationReport.model_validate(report.to_json()) == report


def test_questions_out_of_scope_are_told_apart_by_confidence(knowing: Student) -> None:
    path = knowing.bundle.folder.parent / "evaluation.jsonl"
    evaluation = read_evaluation_set(path)
    strangers = tuple(Example(f"~{chr(65 + 2 * number)}x", "why is the sky blue?", out_of_scope=True) for number in range(1, 20))
    asked = evaluation.questions["held_out_patterns"]
    write_evaluation_set(path, replace(evaluation, questions={**evaluation.questions, "held_out_patterns": (*asked, *strangers)}))
    report = evaluate(knowing, EvaluationSettings(samples=0, timed=0), QUIET)
    labelled = sum(len(examples) for examples in evaluation.tests().values())
    assert report.splits["held_out_patterns"].questions == len(asked) and report.splits["all"].questions == labelled
    found = report.out_of_scope
    assert found is not None and (found.questions, found.in_scope) == (19, labelled)
    area = found.auroc["evaluation"]
    assert area is not None and 0.5 < area.value < 1  # half of the others are as doubtful
    strict = next(one for one in found.abstaining if one.target_accuracy == 0.9)
    assert strict.withheld_out_of_scope and strict.withheld
    assert (strict.withheld_out_of_scope.value or 0) > (strict.withheld.value or 0)
    assert all(aim.withheld_out_of_scope is None for aim in report.splits["all"].abstaining)
    assert strict.accuracy_of_given is not None
    text = markdown(report)
    assert "The 19 questions out of scope are detected best by self-evaluation (AUROC" in text and "withheld out of scope" in text
    assert EvaluationReport.model_validate(report.to_json()) == report


def test_an_answer_out_of_scope_is_wrong_whatever_it_says(tiny_run: Path) -> None:
    student = Student.load(tiny_run / "bundle-int8")
    asked = read_evaluation_set(tiny_run / "evaluation.jsonl").questions["validation"][:20]
    found = calibrated(student, asked, QUIET, constrained=False)
    strangers = [replace(one, id=f"~{one.id}", label=None, out_of_scope=True) for one in asked]
    assert calibrated(student, [*asked, *strangers], QUIET, constrained=False)["right"] == found["right"] + [0] * len(asked)


def test_all_right_on_few_questions_is_not_certainty() -> None:
    confidences = np.linspace(0.1, 1, 50).tolist()
    found = signal_quality(confidences, [False] * 10 + [True] * 40).accuracy_at
    for share, count in (("0.7", 35), ("0.8", 40)):
        assert found[share] == Interval(value=1.0, interval_95=proportion([True] * count).interval)
    last = found["0.9"]
    assert last and last.value == 40 / 45 and last.interval_95[0] < 40 / 45 < last.interval_95[1]


def test_the_command_writes_and_continues(tiny_run: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", tiny_run / "bundle-int8", "--samples", "2", "--timed", "1", "--batch", "2", "--out", tmp_path]
    killed_when_lines_are_there(arguments, tmp_path / ".evaluate-bundle-int8.journal", 4)
    assert not list(tmp_path.glob("evaluate*"))
    done = mmedge(*arguments)
    assert done.code == 0 and "batches are already answered" in done.err, done.err
    first = json.loads((tmp_path / "evaluate-int8.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} == {f"evaluate-int8.{end}" for end in ("json", "md", "html")}
    whole = mmedge(*arguments, "--json", "-q")
    assert json.loads(whole.out)["splits"] == first["splits"]
    none = mmedge(*arguments[:2], "--samples", "0", "--timed", "0", "--questions", "3", "--out", tmp_path / "few")
    assert none.code == 0, none.err


def test_a_student_that_learned_labels_alone_is_timed_answering(labels_run: Path, tmp_path: Path) -> None:
    bundle = labels_run / "bundle-fp32"
    assert open_bundle(bundle).manifest.student.learned == ()
    done = mmedge("evaluate", bundle, "--samples", "2", "--timed", "1", "--questions", "4", "--out", tmp_path, "--json", "-q")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(found["prices"]) == {"answer"}
    for split in found["splits"].values():  # nothing of what it never learned to say
        assert set(split["signals"]) == {"answer", "samples"}
        assert set(split["strategies"]) == {"answer", "2 samples, majority"}
    assert not set(found["confidence"]["signals"]) & {"evaluation", "combined"}


def test_what_cannot_be_evaluated_is_one_line(tiny_run: Path, tmp_path: Path) -> None:
    found = mmedge("evaluate", tmp_path)
    assert is_one_line_error(found) and "is not a bundle" in found.err
    other = tmp_path / "other.jsonl"
    other.write_text('{"kind": "task", "name": "x", "judge": "choice", "labels": []}\n')
    found = mmedge("evaluate", tiny_run / "bundle-int8", "--evaluation", other)
    assert is_one_line_error(found) and "for another task" in found.err
    other.write_text('{"kind": "task", "name": "x", "judge": "expression", "labels": []}\n')
    found = mmedge("evaluate", tiny_run / "bundle-int8", "--evaluation", other)
    assert is_one_line_error(found) and "no labelled test questions" in found.err


def test_answers_are_stated_as_people_read_them(knowing: Student) -> None:
    form = LabelForm(("turn the light off", "play music"), "short")
    manifest = replace(knowing.bundle.manifest, confidence={})
    student = Student(replace(knowing.bundle, form=form, manifest=manifest), knowing.speaker)
    codes = [form.canonical(label) or "" for label in form.labels]
    asked = [
        AnsweredQuestion(Example(f"q{place}", "Now?"), code, place == 0, Evidence(-0.1), [Sample(code, "", 0.5)])
        for place, code in enumerate(codes)
    ]
    found = split_of(student, asked).answers
    assert [(one.answer, one.samples) for one in found] == [(label, [label]) for label in form.labels]
