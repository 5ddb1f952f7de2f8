"""Teachers and their store: what they write, what is kept, and that nothing is lost or stored twice."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.reading import read_annotations, reading_limits
from mmedge.annotations.store import AnnotationStore
from mmedge.annotations.summary import refreshed_report
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.recipe import load_recipe
from mmedge.tasks import Unparsed, build_task
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.teachers.collect import annotate, collect_run
from mmedge.teachers.embedded import FLAWS, EmbeddedTeacher
from mmedge.teachers.recorded import RecordedTeacher
from tests.conftest import own_recipe, tiny_recipe, write_recipe

TASK = ArithmeticTask(train=700, test=10)


def test_the_set_share_of_chains_of_thought_is_flawed_and_every_flaw_gives_a_wrong_answer() -> None:
    examples = TASK.load().train
    teacher = EmbeddedTeacher(TASK, cots_per_question=3, flawed_share=0.25)
    problems = TASK.problems()["train"][0]
    wrong, kinds = 0, Counter[str]()
    by_id = {example.id: example for example in examples}
    cots = list(teacher.chains_of_thought(examples))
    for annotation in cots:
        example = by_id[annotation.example_id]
        found = TASK.form.read(annotation.text, example)
        assert not isinstance(found, Unparsed), annotation.text
        right = TASK.form.agrees(found.pseudo_label, example.label or "")
        flaw = teacher.solution(problems[example.id], example.id, annotation.sample).flaw
        assert right == (flaw is None), annotation.text
        wrong += not right
        if flaw is not None:
            kinds[flaw.kind] += 1
    assert 0.21 < wrong / len(cots) < 0.29
    assert set(kinds) == set(FLAWS)


def test_chains_of_thought_of_one_question_are_worded_differently() -> None:
    example = TASK.load().train[0]
    texts = [annotation.text for annotation in EmbeddedTeacher(TASK, cots_per_question=5).chains_of_thought([example])]
    assert len(set(texts)) == 5


def test_evaluations_are_wrong_at_the_set_rate() -> None:
    examples = TASK.load().train
    teacher = EmbeddedTeacher(TASK, cots_per_question=3, wrong_evaluation_share=0.1)
    problems = TASK.problems()["train"][0]
    by_id = {example.id: example for example in examples}
    pairs = [(by_id[cot.example_id], cot) for cot in teacher.chains_of_thought(examples)]
    evaluations = list(teacher.self_evaluations(pairs))
    mistaken = sum(
        (evaluation.verdict == "wrong")
        == (teacher.solution(problems[evaluation.example_id], evaluation.example_id, evaluation.sample).flaw is None)
        for evaluation in evaluations
    )
    assert len(evaluations) == len(pairs) == 2100
    assert 0.07 < mistaken / len(evaluations) < 0.13


def test_an_interrupted_collection_is_continued_and_equals_an_undisturbed_one(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", tiny_recipe()))
    task = build_task(recipe.task.model_dump())
    examples = task.load().train
    with AnnotationStore(tmp_path / "whole.sqlite") as whole:
        annotate(recipe, task, examples, whole, Progress(quiet=True))
        expected = [*whole.annotations("cot"), *whole.annotations("evaluation")]
    with AnnotationStore(tmp_path / "cut.sqlite") as cut:
        cut.add(expected[5:90])  # what a killed collection had stored, without the note that it finished
        annotate(recipe, task, examples, cut, Progress(quiet=True))
        assert [*cut.annotations("cot"), *cut.annotations("evaluation")] == expected


def test_what_cannot_be_read_is_counted_by_reason(own_task: dict[str, Path], tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", own_recipe(own_task, tmp_path)))
    task = build_task(recipe.task.model_dump())
    examples = task.load().train
    dirty = tmp_path / "dirty.jsonl"
    id_ = examples[0].id
    texts = ["", "We take the numbers and", "There is no telling.", "3 + 4 = 7. The answer is 7."]
    dirty.write_text("".join(json.dumps({"id": id_, "sample": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        store.add(RecordedTeacher((dirty,)).chains_of_thought(examples))
        read, report = read_annotations(store, task, examples)
    assert dict(report.cots) == {"empty": 1, "cut off": 1, "no answer found": 1, "parsed": 1}
    assert [evaluated.cot.pseudo_label for evaluated in read[0].cots] == ["3 + 4"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"id": "x", "sample": 0, "text"', "cots.jsonl:2: not a complete JSON object"),
        ('{"id": "x", "sample": -1, "text": "a"}', "cots.jsonl:2: field 'sample'"),
        ('{"id": "x", "sample": 0, "text": 5}', "cots.jsonl:2: field 'text'"),
        ('{"sample": 0, "text": "a"}', "cots.jsonl:2: field 'id' is missing"),
        ('{"id": "a", "sample": 0, "text": "a"}', "cots.jsonl:2: sample 0 of 'a' occurs twice"),
    ],
)
def test_a_broken_recording_is_named_by_file_and_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "cots.jsonl"
    path.write_text('{"id": "a", "sample": 0, "text": "fine"}\n' + line + "\n")
    with pytest.raises(MmedgeError) as caught:
        list(RecordedTeacher((path,)).chains_of_thought([]))
    assert complaint in str(caught.value)


def test_an_unpaired_surrogate_is_stored_as_a_question_mark(tmp_path: Path) -> None:
    with AnnotationStore(tmp_path / "a.sqlite") as store:
        store.add([Annotation("q", "cot", 0, 0, "First \ud800 1", None, "t", "o")])
        assert [annotation.text for annotation in store.annotations("cot")] == ["First ? 1"]


def test_a_recipe_without_a_teacher_reports_on_nothing_and_collects_nothing(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "r.yaml", tiny_recipe())).model_copy(update={"teacher": None})
    task = build_task(recipe.task.model_dump())
    with AnnotationStore(tmp_path / "s.sqlite") as store:
        found = refreshed_report(recipe, task, store, Progress(quiet=True))
    assert found.teacher == "none" and found.cots.stored == 0 and reading_limits(recipe) == (None, None)
    with pytest.raises(MmedgeError, match="the recipe has no teacher"):
        collect_run(recipe, tmp_path / "run", Progress(quiet=True))


def test_what_the_embedded_teacher_writes_has_not_changed_since_its_results_were_published() -> None:
    task = ArithmeticTask(train=60, test=10)
    examples = {example.id: example for example in task.load().train}
    teacher = EmbeddedTeacher(task, cots_per_question=5, evaluations_per_cot=2)
    cots = list(teacher.chains_of_thought(list(examples.values())))
    evaluations = teacher.self_evaluations([(examples[cot.example_id], cot) for cot in cots])
    written = "".join(f"{each.text}\0{each.verdict}\0" for each in (*cots, *evaluations))
    assert hashlib.sha256(written.encode()).hexdigest() == "d675324100cc48758f01d8bcdc1720d5ae65acb7d4328244d8a0a022b3b6317b"
