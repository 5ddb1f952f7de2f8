"""What a method teaches, and what is refused before it would spoil a student."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mmedge.annotations.reading import AnnotatedExample, EvaluatedCot
from mmedge.distill.labels import reference
from mmedge.distill.measure import FIRST_LOOK
from mmedge.distill.objectives import LessonSource
from mmedge.distill.objectives.reasoning import Reasoning
from mmedge.recipe import MethodSection, ScratchSection
from mmedge.students.scratch import build_scratch
from mmedge.tasks import ChainOfThought, Example, SelfEvaluation, Verdict
from mmedge.tasks.forms.expression import ExpressionForm
from tests.conftest import is_one_line_error, mmedge, own_recipe, tiny_recipe, write_recipe


def _annotated(answers: list[str], label: str | None = "7") -> AnnotatedExample:
    cots = tuple(EvaluatedCot(n, ChainOfThought(f"because {n}", answer), ()) for n, answer in enumerate(answers))
    return AnnotatedExample(Example("q", "What?", label), cots)


def _targets(method: MethodSection, annotated: AnnotatedExample) -> list[tuple[str, str, float]]:
    section = ScratchSection(d_model=32, d_ff=48, d_kv=8, heads=2, encoder_layers=1, decoder_layers=1, vocabulary=300)
    encoder = build_scratch(section, ["What?"], 64, 0).encoder
    (lesson,) = Reasoning(None, LessonSource([annotated], method, ExpressionForm(), encoder)).lessons(0)
    return [(target.kind, segment.text, segment.weight) for target in lesson.targets for segment in target.segments]


def test_labels_are_those_of_all_cots_of_most_or_of_people() -> None:
    annotated = _annotated(["8", "3 + 4", "7", "8", "7"])
    pseudo = _targets(MethodSection(rationales=False), annotated)
    assert sorted(pseudo) == [("predict", "3 + 4", 0.2), ("predict", "7", 0.4), ("predict", "8", 0.4)]
    assert _targets(MethodSection(labels="majority", rationales=False), annotated) == [("predict", "3 + 4", 1.0)]
    assert _targets(MethodSection(labels="human", rationales=False), annotated) == [("predict", "7", 1.0)]
    with_rationales = _targets(MethodSection(labels="human"), annotated)
    assert len(with_rationales) == 6 and sum(kind == "explain" for kind, _, _ in with_rationales) == 5


def test_validation_takes_the_answer_of_most_chains_of_thought_however_they_write_it() -> None:
    pseudo, human = MethodSection(), MethodSection(labels="human")
    assert reference(_annotated(["8", "3 + 4", "8", "7", "14 / 2"], None), ExpressionForm(), pseudo) == "3 + 4"
    assert reference(_annotated([], None), ExpressionForm(), pseudo) is None
    assert reference(_annotated(["8", "8"], None), ExpressionForm(), human) == "8"


def test_checkpoints_are_chosen_by_the_kind_of_labels_that_is_learned() -> None:
    annotated = _annotated(["8", "8", "7"])
    assert reference(annotated, ExpressionForm(), MethodSection(labels="human")) == "7"
    assert reference(annotated, ExpressionForm(), MethodSection(labels="majority")) == "8"
    assert reference(annotated, ExpressionForm(), MethodSection(labels="pseudo")) == "8"
    verdicts = (Verdict.WRONG, Verdict.WRONG, Verdict.CORRECT)
    cots = tuple(
        replace(one, evaluations=(SelfEvaluation("so", verdict),)) for one, verdict in zip(annotated.cots, verdicts, strict=True)
    )
    kept = MethodSection(keep="judged_correct")
    assert reference(replace(annotated, cots=cots), ExpressionForm(), kept) == "7"  # what is kept is what is learned
    assert reference(replace(annotated, cots=cots[:2]), ExpressionForm(), kept) == "8"


def test_a_joint_schedule_has_one_stage_that_learns_both(tmp_path: Path) -> None:
    values = tiny_recipe(method={"schedule": "joint", "rehearsal": 0.4, "cots_per_visit": 1})
    values["training"] = {name: value for name, value in dict(values["training"]).items() if name != "stage1"}  # type: ignore[call-overload]
    recipe = write_recipe(tmp_path / "r.yaml", values)
    run = tmp_path / "run"
    done = mmedge("distill", recipe, "--out", run, "-q")
    assert done.code == 0, done.err
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["stage2"] and metrics["after_stage1"] is None
    logged = [json.loads(line) for line in (run / "stage2" / "metrics.jsonl").read_text().splitlines()]
    assert any("evaluation_predict_loss" in line and "predict_loss" in line for line in logged)
    assert (run / "training.html").read_text().count("<svg") >= 2


def test_evaluation_weight_changes_the_loss_and_nothing_else(tmp_path: Path) -> None:
    losses = {}
    for weight in (0.25, 0.6):
        method = {"rehearsal": 0.25, "cots_per_visit": 1, "evaluation_weight": weight}
        training = dict(tiny_recipe()["training"]) | {"stage2": {"max_steps": 1, "batch_size": 8}}  # type: ignore[call-overload]
        recipe = write_recipe(tmp_path / f"{weight}.yaml", tiny_recipe(method=method, training=training))
        assert mmedge("distill", recipe, "--out", tmp_path / str(weight), "-q").code == 0
        lines = (tmp_path / str(weight) / "stage2" / "metrics.jsonl").read_text().splitlines()
        losses[weight] = json.loads(lines[0])
    few, many = losses[0.25], losses[0.6]
    parts = [name for name in few if name.endswith("_loss")]
    assert len(parts) == 4 and all(few[name] == pytest.approx(many[name]) for name in parts)
    for weight, found in losses.items():
        reasoning = (found["predict_loss"] + found["explain_loss"]) / 2
        evaluation = (found["evaluation_predict_loss"] + found["evaluation_explain_loss"]) / 2
        assert found["loss"] == pytest.approx((1 - weight) * reasoning + weight * evaluation, rel=1e-5)


def test_labels_that_the_student_cannot_write_are_one_line(own_task: dict[str, Path], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *["correct", "wrong", "uncertain", "predict:", "explain:", "the", "of", "a", "is"],
        *"0123456789+-*/()",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(
        vocab_size=64,
        d_model=16,
        d_kv=8,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    folder = tmp_path / "student"
    T5ForConditionalGeneration(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    recipe = write_recipe(tmp_path / "r.yaml", own_recipe(own_task, folder))
    done = mmedge("distill", recipe, "--out", tmp_path / "run", "-q")
    assert is_one_line_error(done) and "tokenizer cannot write the answer" in done.err


def test_targets_that_are_cut_off_are_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    done = mmedge("distill", recipe, "--out", tmp_path / "run", "-q", "--set", "training.max_target_tokens=2")
    assert is_one_line_error(done) and "training.max_target_tokens" in done.err


def test_a_limit_that_no_answer_fits_is_refused_before_training(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    (tmp_path / "schema.json").write_text('{"enum": ["a value that takes many tokens, one after the other, to the end"]}')
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"id": f"q{n}", "question": f"Is it {n}?"}) + "\n" for n in range(12)))
    (tmp_path / "test.jsonl").write_text('{"id": "t0", "question": "is it 3?"}\n')
    label = {"label": "a value that takes many tokens, one after the other, to the end"}
    lines = [json.dumps({**json.loads(line), **label}) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text("\n".join([*lines, '{"id": "q12", "question": "Is it 12?", "answer": 3}']) + "\n")
    task = {"kind": "jsonl", "train_file": str(tmp_path / "train.jsonl"), "test_files": {"test": str(tmp_path / "test.jsonl")}}
    form = {"form": {"kind": "schema", "file": str(tmp_path / "schema.json")}}
    recipe = tiny_recipe(
        task=task | form,
        teacher=None,
        method={"labels": "human", "rationales": False, "self_evaluation": False},
        split={"validation": 2, "verdict_test": 0},
        answering={"constrained": True},
    )
    path = write_recipe(tmp_path / "r.yaml", recipe)
    done = mmedge("distill", path, "--out", tmp_path / "run", "--set", "generation.max_answer_tokens=4")
    assert done.code == 1 and "more than the limit of 4" in done.err and not (tmp_path / "run" / "stage2").exists()
    assert "warning: 1 test questions are also training questions" in done.err
    assert "have neither a label nor a chain of thought" in done.err


def test_a_loss_that_is_no_number_ends_in_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    rate = "training.stage1={max_steps: 200, batch_size: 8, learning_rate: 1.0e+30, warmup_share: 0}"
    done = mmedge("distill", recipe, "--out", tmp_path / "run", "-q", "--set", rate)
    assert is_one_line_error(done) and "NaN or infinite at step" in done.err and "lower training.stage1.learning_rate" in done.err


def test_a_validation_split_too_small_to_choose_by_is_said_and_the_last_weights_are_taken(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe(split={"validation": 5, "verdict_test": 4}))
    done = mmedge("distill", recipe, "--out", tmp_path / "run")
    assert done.code == 0 and "5 validation items are too few to choose a checkpoint by" in done.err
    stage = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]["stage2"]
    assert stage["best"]["step"] == stage["steps"]


def test_weights_that_are_no_numbers_after_the_last_step_are_no_student(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    rate = "training.stage2={max_steps: 1, batch_size: 8, learning_rate: 3.0e+38, warmup_share: 0}"
    done = mmedge("distill", recipe, "--out", tmp_path / "run", "--set", rate, "--set", "training.optimizer=adamw")
    assert is_one_line_error(done) and "NaN or infinite at step 1" in done.err and "training.stage2.learning_rate" in done.err
    assert not (tmp_path / "run" / "student").exists()


@pytest.mark.parametrize(("wanted", "asked"), [("brief", FIRST_LOOK), ("full", FIRST_LOOK + 6)])
def test_an_untrained_student_answers_until_it_is_clear_that_it_cannot(wanted: str, asked: int, tmp_path: Path) -> None:
    stage = {"max_steps": 1, "batch_size": 2}
    values = tiny_recipe(
        task={"kind": "arithmetic", "train": 60, "test": FIRST_LOOK + 6},
        training={"stage1": stage, "stage2": stage, "max_input_tokens": 160, "max_target_tokens": 72, "untrained": wanted},
    )
    done = mmedge("distill", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run")
    assert done.code == 0, done.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["before"]["answer"]["held_out_patterns"]["total"] == asked
    assert metrics["after"]["answer"]["held_out_patterns"]["total"] == FIRST_LOOK + 6
    assert (f"({FIRST_LOOK} of {FIRST_LOOK + 6} questions)" in done.err) == (wanted == "brief")
