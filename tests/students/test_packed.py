"""Passes without padding teach what padded ones do: losses and gradients are the same, for every architecture they know."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmedge.distill.batches import micro_batches
from mmedge.recipe import LoraSection, StudentSection
from mmedge.students.adapters import add_adapters
from mmedge.students.encoded import EncodedLesson, EncodedSegment, EncodedTarget
from mmedge.students.loading import load_student, resolve_source
from mmedge.students.passes import LossPass, TokenLosses
from mmedge.students.student import TorchStudent
from mmedge.tasks.encoding import PromptEncoder, SpecialTokens
from mmedge.tasks.prompts import DECODER_ONLY_PROMPTS, ENCODER_DECODER_PROMPTS, Kind
from tests.export.published import CONFIGS, small

VOCABULARY = 120
DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 3,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def published(name: str) -> Any:
    """Return a small model of a published model's switches."""
    changes = {"vocab_size": VOCABULARY, "attention_dropout": 0.0}
    return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**{**small(CONFIGS[name]), **changes}))


MODELS: dict[str, Any] = {
    "t5": lambda: transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)),
    "t5-v1.1": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER, tie_word_embeddings=True)),
    "llama3": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER, rope_scaling=LLAMA3)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**DECODER, head_dim=16)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DECODER)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**DECODER, head_dim=16)),
    "mistral, a window": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**DECODER, head_dim=16, sliding_window=20)
    ),
    **{name: functools.partial(published, name) for name in CONFIGS},
}
RECURRENT = [name for name, config in CONFIGS.items() if config["model_type"] in ("lfm2", "qwen3_5_text")]


def student_of(kind: str) -> TorchStudent:
    torch.manual_seed(0)
    model = MODELS[kind]()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    seq2seq = kind.startswith("t5")
    encoder = PromptEncoder(
        None,  # type: ignore[arg-type]
        "encoder-decoder" if seq2seq else "decoder-only",
        ENCODER_DECODER_PROMPTS if seq2seq else DECODER_ONLY_PROMPTS,
        SpecialTokens(eos=1, pad=0, bos=None, start=0 if seq2seq else None),
        200,
    )
    return TorchStudent(model, None, encoder, {})


def lessons(count: int = 7) -> list[EncodedLesson]:
    """Return lessons of very different lengths, with one to four targets."""
    rng = random.Random(3)

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(low, high)))

    def target(kind: Kind, weight: float, begun: tuple[int, ...], ids: tuple[int, ...]) -> EncodedTarget:
        return EncodedTarget(kind, begun, (EncodedSegment(ids, weight, kind),))

    made = []
    for _ in range(count):
        predict = [target("predict", rng.random(), some(1, 3), some(1, 5)) for _ in range(rng.randint(1, 2))]
        explain = [target("explain", rng.random(), some(1, 3), some(4, 60)) for _ in range(rng.randint(0, 2))]
        made.append(EncodedLesson(some(3, 70), (*predict, *explain)))
    return made


def figures(tokens: TokenLosses) -> torch.Tensor:
    """Return a loss, and the weighted sums of both tasks' token losses."""
    predict, explain = (tokens.weighted[tokens.of_part(part)].sum() for part in ("predict", "explain"))
    return torch.stack([0.03 * predict + 0.02 * explain, predict.detach(), explain.detach()])


def learned(
    student: TorchStudent, packs: bool, precision: torch.dtype | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the losses of a pass, and every parameter's gradient."""
    student.model.zero_grad()
    lesson_pass = LossPass(student.model, student.encoder, packs=packs)
    assert lesson_pass.packs == packs
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None):
        found = figures(lesson_pass.token_losses(lessons()))
    found[0].backward()
    gradients = {name: p.grad.clone() for name, p in student.model.named_parameters() if p.grad is not None}
    return found.detach(), gradients


@pytest.mark.parametrize("kind", [kind for kind in MODELS if not kind.startswith("t5")])
def test_every_target_is_learned_as_if_it_stood_alone_behind_its_context(kind: str) -> None:
    student = student_of(kind)
    lesson_pass = LossPass(student.model, student.encoder)
    assert lesson_pass.packs == (kind not in RECURRENT)
    with torch.no_grad():
        found = lesson_pass.token_losses(lessons())
        alone = []
        for lesson in lessons():
            for target in lesson.targets:
                read, labels = torch.tensor([[*lesson.context, *target.read]]), torch.tensor(target.labels)
                logits = student.model(input_ids=read, use_cache=False).logits[0, -len(labels) :].float()
                alone.append(torch.nn.functional.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="none"))
    assert len(found.learned) == len(alone)
    for place, losses in enumerate(alone):
        torch.testing.assert_close(found.losses[found.segments == place], losses, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in RECURRENT])
def test_losses_and_gradients_are_those_of_a_padded_pass(kind: str) -> None:
    student = student_of(kind)
    losses, gradients = learned(student, packs=True)
    expected_losses, expected = learned(student, packs=False)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys() == {name for name, _ in student.model.named_parameters()}
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("kind", ["t5-v1.1", "qwen3"])
def test_adapters_and_bfloat16(kind: str) -> None:
    student = student_of(kind)
    add_adapters(student, LoraSection(rank=4, alpha=8), 0)
    for name, parameter in student.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    losses, gradients = learned(student, packs=True)
    expected_losses, expected = learned(student, packs=False)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected.keys()
    assert all("lora" in name for name in gradients)
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    half, _ = learned(student, packs=True, precision=torch.bfloat16)
    torch.testing.assert_close(half, losses, rtol=0.03, atol=0.01)


def test_dropout_is_t5s_own() -> None:
    """Losses under dropout scatter about the same mean, and as much, as those of padded passes."""
    student = student_of("t5")
    for module in student.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
        elif hasattr(module, "relative_attention_num_buckets"):
            module.dropout = 0.3
    student.model.train()
    drawn = {}
    with torch.no_grad():
        for packs in (True, False):
            torch.manual_seed(1)
            lesson_pass = LossPass(student.model, student.encoder, packs=packs)
            drawn[packs] = torch.stack([figures(lesson_pass.token_losses(lessons(3)))[0] for _ in range(80)])
    error = float(drawn[False].std()) / 40**0.5
    assert error > 0
    assert abs(float(drawn[True].mean() - drawn[False].mean())) < 4 * error
    assert 0.7 < float(drawn[True].std() / drawn[False].std()) < 1.4


def test_other_architectures_are_padded(tiny_llama: Path) -> None:
    section = StudentSection(source=str(tiny_llama))
    student = load_student(section, resolve_source(section), 128, [], 0)
    assert LossPass(student.model, student.encoder).packs
    assert not LossPass(student.model, student.encoder, compiled=True).packs
    student.model.config.model_type = "something_else"
    assert not LossPass(student.model, student.encoder).packs


def test_recurrent_students_read_a_context_for_each_target() -> None:
    batch = [(lesson,) for lesson in lessons(12)]
    cut = micro_batches(batch, "decoder-only", 400, 10, branches=False)
    rows = [[len(lesson.context) + len(target.read) for (lesson,) in one for target in lesson.targets] for one in cut]
    assert len(cut) > 1 and all(len(one) == 1 or len(lengths) * max(lengths) <= 400 for one, lengths in zip(cut, rows, strict=True))


def test_a_packed_batch_is_cut_only_where_it_must_be() -> None:
    batch = [(lesson,) for lesson in lessons(12)]
    assert len(micro_batches(batch, "decoder-only", 100_000, 10, packed=True)) == 1
    assert len(micro_batches(batch, "decoder-only", 100_000, 10)) > 1
    cut = micro_batches(batch, "decoder-only", 400, 10, packed=True)
    assert all(len(one) == 1 or len(one) * max(lesson.tokens for (lesson,) in one) <= 400 for one in cut)
    assert sorted(lesson.tokens for one in cut for (lesson,) in one) == sorted(lesson.tokens for (lesson,) in batch)
