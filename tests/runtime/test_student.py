"""The Python API: answers, streams, threads, strategies, abstaining, escalating."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

import mmedge as package
from mmedge import Answer, AnswerOptions, Piece, Strategy, Student
from mmedge.cli.asking import AskedStudent, say
from mmedge.engines.engine import Engine
from mmedge.engines.generation import GREEDY, Decoding, Generation, Logits
from mmedge.errors import MmedgeError
from mmedge.manifest import AnsweringPart, ThresholdPart
from mmedge.runtime.confidence import Confidence, LinearMap
from mmedge.runtime.escalation import EscalatedAnswer
from mmedge.tasks.base import Example
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.evaluation_set import read_evaluation_set
from mmedge.tasks.expressions import parse
from mmedge.tasks.forms import AnswerForm
from tests.conftest import is_one_line_error, mmedge

RUNS = ["tiny_run", "llama_run"]


@pytest.fixture(params=RUNS)
def opened(request: pytest.FixtureRequest) -> tuple[Student, list[Example]]:
    run: Path = request.getfixturevalue(request.param)
    questions = read_evaluation_set(run / "evaluation.jsonl").questions
    return Student.load(run / "bundle-int8"), [example for examples in questions.values() for example in examples][:10]


def _calibrated(student: Student, chosen: str = "combined") -> Student:
    """Give a student a confidence, as export does where validation questions are answered well enough to fit one."""
    maps = {
        "answer": LinearMap("temperature", (1.0,)),
        "evaluation": LinearMap("platt", (1.0,), 0.1),
        "combined": LinearMap("logistic", (0.5, 0.5, 0.2, 0.1), 0.0),
    }
    known = {name: ([0.1, 0.3, 0.6, 0.8], [False, False, True, True]) for name in maps}
    student.confidence = Confidence(maps, chosen, known)  # type: ignore[arg-type]
    return student


class Counted:
    """An engine that counts what it writes."""

    def __init__(self, engine: Engine, made: list[int]) -> None:
        self._engine, self._made = engine, made

    def conversation(self) -> Engine:
        return Counted(self._engine.conversation(), self._made)

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
        found = self._engine.generate(prompts, max_new_tokens, how)
        self._made += [len(row) for row in found.tokens]
        return found

    def next_logits(self, prompts: Sequence[Prompt], more: Sequence[int]) -> Logits:
        return self._engine.next_logits(prompts, more)

    def forced_logits(self, prompt: Prompt, target: Sequence[int]) -> Logits:
        return self._engine.forced_logits(prompt, target)


@pytest.mark.parametrize(
    "wanted",
    [
        AnswerOptions(),
        AnswerOptions(explain=True),
        AnswerOptions(explain=True, evaluate=True),
        AnswerOptions(strategy=Strategy("samples", samples=3)),
        AnswerOptions(strategy=Strategy("retry", samples=2, retry_below=1.0)),
    ],
    ids=["answer", "rationale", "evaluation", "samples", "retry"],
)
def test_every_token_that_is_written_for_an_answer_is_counted(opened: tuple[Student, list[Example]], wanted: AnswerOptions) -> None:
    student, questions = opened
    made = list[int]()
    student.speaker = student.speaker.on(Counted(student.speaker.engine, made))
    answers = student.answer_all(questions[:2], wanted)
    written = [answer.written for answer in answers if answer.written is not None]
    assert sum(len(one.tokens) + one.reasoning_tokens for one in written) == sum(made) > 0


def test_one_question_with_everything(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    plain = student.answer(questions[0])
    assert plain.rationale is None and plain.verdict is None and plain.signal == "answer" and not plain.calibrated
    assert 0 <= (plain.confidence or 0) <= 1
    whole = student.answer(questions[0].question, explain=True, evaluate=True)
    assert whole.text == plain.text and whole.rationale is not None and whole.evaluation is not None
    assert whole.verdict in ("correct", "wrong", "uncertain")
    _calibrated(student)
    assert student.answer(questions[0]).signal == "answer"
    sure = student.answer(questions[0], confidence=True)
    assert (sure.signal, sure.calibrated, sure.rationale) == ("combined", True, None)
    assert student.answer(questions[0], strategy=Strategy("confidence")) == sure
    _calibrated(student, "answer")
    assert student.answer(questions[0], confidence=True).signal == "answer"


def test_a_stream_ends_with_the_answer_that_a_call_gives(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    for question in questions[:3]:
        items = list(student.stream(question, explain=True, evaluate=True))
        answer = items[-1]
        assert isinstance(answer, Answer) and answer == student.answer(question, explain=True, evaluate=True)
        texts: dict[str, str] = {}
        for item in items[:-1]:
            assert isinstance(item, Piece)
            texts[item.part] = texts.get(item.part, "") + item.text
        assert texts.get("answer", "").strip() == answer.text
        assert texts.get("rationale", "").strip() == answer.rationale
        assert texts.get("evaluation", "").strip() == answer.evaluation


def test_a_stream_that_is_given_up_stops_the_student(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    before = threading.active_count()
    stream = student.stream(questions[0], explain=True)
    assert isinstance(stream, Iterator)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    with pytest.raises(MmedgeError, match="too long"):
        list(student.stream("x" * 2_000_000))


def test_threads_get_what_one_gets(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened

    def ask(question: Example) -> Answer:
        return student.answer(question, explain=True, evaluate=True)

    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, questions * 3)) == alone * 3


def test_samples_depend_on_their_seed_alone(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    drawing = Strategy("samples", samples=4, temperature=1.0, seed=7)
    alone = [student.answer(question, strategy=drawing) for question in questions[:3]]
    together = student.answer_all(questions[:3], strategy=drawing)
    assert [[sample.text for sample in answer.samples] for answer in alone] == [
        [sample.text for sample in answer.samples] for answer in together
    ]
    assert all(len(answer.samples) == 4 and answer.signal == "samples" for answer in alone)
    other = student.answer(questions[0], strategy=replace(drawing, seed=8))
    assert [sample.rationale for sample in other.samples] != [sample.rationale for sample in alone[0].samples]


def test_retry_samples_only_where_there_is_doubt(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    never = student.answer_all(questions[:4], strategy=Strategy("retry", retry_below=0.0))
    assert not any(answer.samples for answer in never)
    assert [answer.text for answer in never] == [answer.text for answer in student.answer_all(questions[:4])]
    always = student.answer_all(questions[:4], strategy=Strategy("retry", samples=3, retry_below=1.0))
    assert [len(answer.samples) for answer in always] == [4] * 4  # the first answer is one of them
    assert all(answer.samples[0].text == first.text for answer, first in zip(always, never, strict=True))


def test_constrained_answers_have_the_form(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    for answer in student.answer_all(questions, constrained=True):
        parse(answer.text)
    for answer in student.answer_all(questions, constrained=True, strategy=Strategy("samples", samples=4, temperature=3.0)):
        for sample in answer.samples:
            parse(sample.text)


class Oracle:
    """A bigger model that knows every answer but one."""

    name = "oracle"

    def ask(self, example: Example, form: AnswerForm) -> EscalatedAnswer:
        if example.id == "lost":
            raise MmedgeError("nobody knows")
        return EscalatedAnswer("6 * 7", "because", 10, 5, 0.001, 0.1)


def test_doubtful_answers_are_withheld_or_escalated(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    _calibrated(student)
    given = student.answer_all(questions, abstain_below=0.0)
    assert not any(answer.withheld for answer in given)
    withheld = student.answer_all(questions, abstain_below=1.0)
    assert all(answer.withheld and answer.text == "" for answer in withheld)
    assert [answer.guess for answer in withheld] == [answer.text for answer in given]
    assert withheld[0].to_json()["answer"] is None and withheld[0].to_json()["withheld"] is True
    asked = [questions[0], replace(questions[1], id="lost")]
    handed = student.answer_all(asked, abstain_below=1.0, escalate_to=Oracle())
    assert (handed[0].source, handed[0].text, handed[0].value, handed[0].withheld) == ("oracle", "6 * 7", "42", False)
    assert handed[0].escalation is not None and handed[0].escalation.cost == 0.001
    assert handed[0].confidence is None and handed[0].verdict is None  # these were the student's, of what it would have said
    assert handed[0].guess == given[0].text
    assert handed[1].withheld and handed[1].problem == "nobody knows"
    with pytest.raises(MmedgeError, match="requires a confidence threshold"):
        student.answer(questions[0], escalate_to=Oracle())
    chosen = student.threshold(target_accuracy=0.8)
    assert (chosen.value, chosen.accuracy, chosen.withheld) == (0.6, 1.0, 0.5)
    student.confidence = None
    with pytest.raises(MmedgeError, match="not calibrated"):
        student.threshold(max_withheld=0.3)


EVERYTHING_WITHHELD = ThresholdPart(1.0, accuracy=1.0, withheld=1.0, questions=20)


def _answers(student: Student, answering: AnsweringPart) -> None:
    """Let a bundle say something else of how it answers."""
    student.bundle = replace(student.bundle, manifest=replace(student.bundle.manifest, answering=answering))


def test_a_stream_does_not_show_what_the_bundle_withholds(
    opened: tuple[Student, list[Example]], capsys: pytest.CaptureFixture[str]
) -> None:
    student, questions = opened
    for threshold, withheld in ((None, False), (EVERYTHING_WITHHELD, True)):
        _answers(student, AnsweringPart(threshold=threshold))
        asking = AskedStudent(student, AnswerOptions(), student.settled())
        say(asking, questions[0], stream=True)
        assert capsys.readouterr().out.startswith("no answer: ") == withheld


def test_thresholds_are_for_answering_at_once(opened: tuple[Student, list[Example]]) -> None:
    student, questions = opened
    _calibrated(student)
    _answers(student, AnsweringPart({"kind": "answer"}, threshold=EVERYTHING_WITHHELD))
    assert student.answer(questions[0]).withheld
    assert not student.answer(questions[0], abstain_below=0.0).withheld
    with pytest.raises(MmedgeError, match="chosen for answering at once"):
        student.answer(questions[0], strategy=Strategy("samples", samples=2))
    (only,) = student.stream(questions[0], explain=True)  # nothing is shown of what is withheld
    assert isinstance(only, Answer) and only.withheld
    _answers(student, AnsweringPart({"kind": "samples", "samples": 2}))
    (only,) = student.stream(questions[0])
    assert isinstance(only, Answer) and len(only.samples) == 2


@pytest.mark.parametrize("threshold", [-0.1, 1.5, float("nan")])
def test_wrong_values_are_named(tiny_run: Path, threshold: float) -> None:
    student = Student.load(tiny_run / "bundle-int8")
    with pytest.raises(MmedgeError, match="abstain_below must be from 0 to 1"):
        student.answer("x", abstain_below=threshold)
    with pytest.raises(MmedgeError, match="a list of questions"):
        student.answer_all("one question")
    with pytest.raises(MmedgeError, match="got NoneType"):
        student.answer(None)  # type: ignore[arg-type]
    for threads in (0, -3, 100_000):
        with pytest.raises(MmedgeError, match="threads"):
            Student.load(tiny_run / "bundle-int8", threads=threads)


def test_a_server_that_is_not_there_and_wrong_settings_are_one_line(tiny_run: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    common = [bundle, "How many?", "--abstain-below", "1"]
    gone = mmedge("run", *common, "--escalate-to", "http://127.0.0.1:9/v1", "--escalate-model", "m")
    assert gone.code == 0 and "no answer" in gone.out and "unreachable" in gone.err
    for options, complaint in (
        (["--escalate-to", "file:///etc/passwd", "--escalate-model", "m"], "invalid base URL"),
        (["--escalate-to", "http://x/v1"], "go together"),
        (["--escalate-to", "http://x/v1", "--escalate-model", "m", "--escalate-key", "NOT_SET_ANYWHERE"], "is not set"),
        (["--target-accuracy", "0.9"], "give one of"),
    ):
        found = mmedge("run", *common, *options)
        assert is_one_line_error(found) and complaint in found.err, found.err
    found = mmedge("run", bundle, "How many?", "--target-accuracy", "0.9")
    assert is_one_line_error(found) and "not calibrated" in found.err


def test_options_that_would_change_nothing_are_refused(tiny_run: Path) -> None:
    question = ["run", tiny_run / "bundle-int8", "Ann has 3 apples."]
    for options, complaint in (
        (["--samples", "3"], "--samples is for the strategies"),
        (["--temperature", "0.5", "--strategy", "confidence"], "not for confidence"),
        (["--strategy", "samples", "--retry-below", "0.5"], "--retry-below is for"),
        (["--choice", "a", "--choice", "b"], "have no choices"),
        (["--stream", "--json"], "--stream"),
        (["--stream", "--strategy", "samples"], "outvoted"),
        (["--stream", "--abstain-below", "0.5"], "withheld"),
        (["--price-input", "1"], "--escalate-to"),
    ):
        found = mmedge(*question, *options)
        assert is_one_line_error(found) and complaint in found.err, found.err
    assert mmedge(*question, "--stream", "--abstain-below", "0").code == 0


def test_the_command_line_has_every_strategy(tiny_run: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    drawn = mmedge("run", bundle, "Ann has 3 apples.", "--strategy", "samples", "--samples", "3", "--constrained", "--json")
    found = json.loads(drawn.out)
    assert len(found["samples"]) == 3 and found["signal"] == "samples"
    streamed = mmedge("run", bundle, "Ann has 3 apples.", "--explain", "--evaluate", "--stream")
    whole = mmedge("run", bundle, "Ann has 3 apples.", "--explain", "--evaluate")
    assert streamed.code == 0 and set(whole.out.split()) >= set(streamed.out.split()) - {"="}
    assert package.Student is Student
    with pytest.raises(AttributeError):
        package.Teacher  # noqa: B018


def test_what_is_no_list_of_questions_is_one_line(tiny_run: Path) -> None:
    student = Student.load(tiny_run / "bundle-int8")
    asked = ["What is 3 and 4?", "What is 9 and 2?"]
    assert student.answer_all(question for question in asked) == student.answer_all(asked)
    for questions, more in (
        (None, {}),
        (3, {}),
        ([3], {}),
        (asked, {"batch": 0}),
        (asked, {"batch": "4"}),
        (asked, {"batch": None}),
    ):
        with pytest.raises(MmedgeError):
            student.answer_all(questions, **more)  # type: ignore[arg-type]
    assert student.judge([], []) == []
    for cots in ([], ["3 + 4"]):
        with pytest.raises(MmedgeError, match="chain of thought"):
            student.judge(asked[:1], cots)  # type: ignore[arg-type]
    with pytest.raises(MmedgeError, match="no choices to choose from"):
        student.answer(asked[0], choices=["7", "8"])
    with pytest.raises(MmedgeError, match="target_accuracy must be from 0 to 1"):
        student.threshold(target_accuracy=2)
    with pytest.raises(MmedgeError, match="strategy"):
        student.answer(asked[0], strategy="samples")  # type: ignore[arg-type]
    with pytest.raises(MmedgeError, match="abstain_below"):
        student.answer(asked[0], abstain_below="0.5")  # type: ignore[arg-type]
    with pytest.raises(MmedgeError, match="device 'tpu'"):
        Student.load(tiny_run / "bundle-int8", device="tpu")  # type: ignore[arg-type]
    with pytest.raises(MmedgeError, match="temperature"):
        Strategy("samples", temperature="a")  # type: ignore[arg-type]
    with pytest.raises(MmedgeError, match="temperature"):
        Strategy("samples", temperature=1e-300)
