"""What a student's verdicts find on the embedded task: by the kind of flaw in the teacher's CoTs, and of error in its own answers.

python benchmarks/quickstart_verdicts.py runs/quickstart [BUNDLE]        by default bundle-fp32
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from mmedge import Student
from mmedge.folders import Run, load_run_recipe
from mmedge.recipe import EmbeddedTeacherSection
from mmedge.statistics import balanced_accuracy
from mmedge.tasks import ChainOfThought, build_task
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.tasks.evaluation_set import FILE_NAME, read_evaluation_set
from mmedge.tasks.prompts import render_question
from mmedge.teachers.embedded import EmbeddedTeacher


def error_of(answer: str, label: str, question: str) -> str:
    """Return what is wrong with a wrong answer, by the numbers that it is made of."""
    said, right, given = (re.findall(r"\d+(?:\.\d+)?", text) for text in (answer, label, question))
    if sorted(said) == sorted(right):
        return "right numbers, another operation or order"
    return "other numbers of the question" if all(number in given for number in said) else "a number that is not there"


def main(folder: Path, bundle: str) -> None:
    """Print both tables for a finished run of the embedded task."""
    recipe = load_run_recipe(Run(folder))
    task = build_task(recipe.task.model_dump())
    assert isinstance(task, ArithmeticTask) and isinstance(recipe.teacher, EmbeddedTeacherSection), "only these know their flaws"
    teacher = EmbeddedTeacher(task, **recipe.teacher.model_dump(exclude={"kind"}))
    student = Student.load(folder / bundle)
    evaluation = read_evaluation_set(folder / FILE_NAME)
    held_out = {held.example.id for held in evaluation.cots["verdict_test"]}
    held_out |= {example.id for example in evaluation.questions["validation"]}
    problems = task.problems()["train"][0]
    examples = [example for example in task.load().train if example.id in held_out]
    by_id = {example.id: example for example in examples}
    total, found, probability = Counter[str](), Counter[str](), defaultdict[str, float](float)
    for annotation in teacher.chains_of_thought(examples):
        example = by_id[annotation.example_id]
        cot = task.form.read(annotation.text, example)
        if not isinstance(cot, ChainOfThought):
            continue
        flaw = teacher.solution(problems[example.id], example.id, annotation.sample).flaw
        kind = flaw.kind if flaw else "none"
        judgement = student.judge([render_question(example)], [cot])[0]
        total[kind] += 1
        found[kind] += judgement.verdict != "correct"
        probability[kind] += judgement.probability_correct
    for kind, count in total.most_common():
        print(f"flaw {kind}: {count} CoTs, {100 * found[kind] / count:.0f} % not called correct, mean P(correct) "
              f"{probability[kind] / count:.2f}")  # fmt: skip
    for split, questions in evaluation.tests().items():
        answers = student.answer_all(questions, evaluate=True)
        right = [task.form.agrees(a.text, str(q.label), q.choices) for a, q in zip(answers, questions, strict=True)]
        says = [a.verdict == "correct" for a in answers]
        balanced = balanced_accuracy(says, right)
        print(f"own answers to {split}: {sum(right)} of {len(right)} right, {sum(says)} called correct, balanced {balanced}")
        kinds = [
            "right" if truth else error_of(a.text, str(q.label), q.question)
            for a, q, truth in zip(answers, questions, right, strict=True)
        ]
        called = Counter(kind for kind, correct in zip(kinds, says, strict=True) if correct)
        for kind, count in Counter(kinds).most_common():
            print(f"    {kind}: {count}, of which {called[kind]} called correct")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "bundle-fp32")
