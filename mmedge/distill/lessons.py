"""Lessons: what one visit to a question, or to one chain of thought, teaches; and how lessons become tensors.

Stage 1, self-evaluation:  context = question and chain of thought;  predict → verdict,  explain → evaluation
Stage 2, reasoning:        context = question;                       predict → answer,   explain → rationale

Both tasks share their context. An encoder-decoder reads each prompt once, whatever the number of targets. A decoder-only
student reads the context once, with all task words and targets as branches behind it that do not see each other:

    context ─┬─ predict:  84 / 2 <eos>
             ├─ predict:  84 * 2 <eos>        (a pseudo-label of another CoT, weighted by its share)
             └─ explain:  Luke scored 84 … <eos>

which is exactly the loss of the separate sequences at a fraction of the tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmedge.recipe import MethodSection
from mmedge.tasks.encoding import Kind, PromptEncoder
from mmedge.tasks.prompts import render_question
from mmedge.teachers.store import AnnotatedExample

TASKS: tuple[Kind, Kind] = ("predict", "explain")
IGNORED = -100


@dataclass(frozen=True)
class Target:
    """One text to learn: which task it is of, and how much it counts."""

    kind: Kind
    text: str
    weight: float


@dataclass(frozen=True)
class Lesson:
    """A context and everything that is learned from it in one visit."""

    context: str
    targets: tuple[Target, ...]


def _shares(texts: Sequence[str], kind: Kind) -> list[Target]:
    """Return distinct texts weighted by how often they occur; the weights sum to 1."""
    return [Target(kind, text, count / len(texts)) for text, count in Counter(texts).items()]


def evaluation_lessons(examples: Sequence[AnnotatedExample], encoder: PromptEncoder) -> list[Lesson]:
    """Return stage 1's lessons: one for every chain of thought that has a self-evaluation."""
    lessons = []
    for annotated in examples:
        question = render_question(annotated.example)
        for evaluated in annotated.cots:
            if evaluated.evaluations:
                verdicts = _shares([evaluation.verdict.value for evaluation in evaluated.evaluations], "predict")
                rationales = _shares([evaluation.rationale for evaluation in evaluated.evaluations], "explain")
                context = encoder.prompts.evaluation_context(question, evaluated.cot)
                lessons.append(Lesson(context, (*verdicts, *rationales)))
    return lessons


def reasoning_lessons(
    examples: Sequence[AnnotatedExample], encoder: PromptEncoder, method: MethodSection, epoch: int
) -> list[Lesson]:
    """Return stage 2's lessons for one epoch: one for every question.

    All pseudo-labels count at every visit, weighted by their share; `cots_per_visit` rationales take turns over the epochs,
    so that every chain of thought is a target. With human labels, the label is the only answer.
    """
    lessons = []
    for annotated in examples:
        example, cots = annotated.example, annotated.cots
        if method.labels == "human":
            answers = [example.label] if example.label is not None else []
        else:
            answers = [evaluated.cot.pseudo_label for evaluated in cots]
        per_visit = min(method.cots_per_visit or len(cots), len(cots))
        turn = [cots[(epoch * per_visit + offset) % len(cots)] for offset in range(per_visit)]
        targets = _shares(answers, "predict") + _shares([evaluated.cot.rationale for evaluated in turn], "explain")
        if targets:
            context = encoder.prompts.reasoning_context(render_question(example))
            lessons.append(Lesson(context, tuple(targets)))
    return lessons


def epoch_order(count: int, seed: int, stage: str, epoch: int) -> list[int]:
    """Return a shuffled order of `count` lessons that depends on seed, stage and epoch alone."""
    order = list(range(count))
    random.Random(f"{seed}/{stage}/{epoch}").shuffle(order)
    return order


# ------------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class Encoded:
    """One lesson in tokens.

    Attributes:
        prompts: Encoder-decoder: the prompt of each task. Decoder-only: the context, once.
        targets: For each target its kind, its weight, and its tokens (decoder-only: behind the task word's tokens).
        words: Decoder-only: the task word's tokens for each target, which are read but not learned.
    """

    prompts: dict[str, list[int]]
    targets: tuple[tuple[Kind, float, list[int]], ...]
    words: tuple[list[int], ...]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        read = sum(map(len, self.prompts.values())) + sum(map(len, self.words))
        return read + sum(len(ids) for _, _, ids in self.targets)


def encode_lesson(lesson: Lesson, encoder: PromptEncoder, max_target_tokens: int) -> Encoded:
    """Turn a lesson into tokens."""
    targets = tuple(
        (target.kind, target.weight, encoder.target(target.text, max_target_tokens)) for target in lesson.targets
    )
    if encoder.family == "decoder-only":
        return Encoded({"context": encoder.context(lesson.context)}, targets, tuple(encoder.task_word(kind) for kind, _, _ in targets))
    kinds = {kind for kind, _, _ in targets}
    return Encoded({kind: encoder.prompt(kind, lesson.context) for kind in TASKS if kind in kinds}, targets, ())


def micro_batches(lessons: Sequence[Encoded], max_tokens: int) -> list[list[Encoded]]:
    """Group lessons of similar length so that none has more than `max_tokens` padded tokens (or is a single lesson)."""
    groups: list[list[Encoded]] = []
    for lesson in sorted(lessons, key=lambda item: item.tokens):
        if groups and (len(groups[-1]) + 1) * lesson.tokens <= max_tokens:
            groups[-1].append(lesson)
        else:
            groups.append([lesson])
    return groups


def weight_sums(lessons: Sequence[Encoded]) -> dict[str, float]:
    """Return for each task the sum of weight × tokens, which a batch's loss is divided by."""
    sums = dict.fromkeys(TASKS, 0.0)
    for lesson in lessons:
        for kind, weight, ids in lesson.targets:
            sums[kind] += weight * len(ids)
    return sums


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


@dataclass(frozen=True)
class TokenLosses:
    """Cross entropy of each learned token, and how much each counts.

    Attributes:
        losses: (tokens,)
        weights: (tokens,)
        explains: (tokens,), true for the tokens of the long task.
    """

    losses: torch.Tensor
    weights: torch.Tensor
    explains: torch.Tensor


def token_losses(model: Any, lessons: Sequence[Encoded], encoder: PromptEncoder, device: torch.device) -> TokenLosses:
    """Run some lessons through the model in one pass; the head is computed for learned positions only."""
    if encoder.family == "decoder-only":
        return _decoder_only_losses(model, lessons, encoder, device)
    return _encoder_decoder_losses(model, lessons, encoder, device)


def _encoder_decoder_losses(model: Any, lessons: Sequence[Encoded], encoder: PromptEncoder, device: torch.device) -> TokenLosses:
    prompts: list[list[int]] = []
    sources, inputs, labels, weights, explains = [], [], [], [], []
    for lesson in lessons:
        place = {kind: len(prompts) + index for index, kind in enumerate(lesson.prompts)}
        prompts.extend(lesson.prompts.values())
        for kind, weight, ids in lesson.targets:
            sources.append(place[kind])
            inputs.append([encoder.special.start or 0, *ids[:-1]])
            labels.append(ids)
            weights.append([weight] * len(ids))
            explains.append(kind == "explain")
    read = _padded(prompts, encoder.special.pad).to(device)
    mask = _padded([[1] * len(prompt) for prompt in prompts], 0).to(device)
    row = torch.tensor(sources, device=device)
    states = model.get_encoder()(input_ids=read, attention_mask=mask).last_hidden_state
    hidden = model.get_decoder()(
        input_ids=_padded(inputs, encoder.special.pad).to(device),
        encoder_hidden_states=states[row],
        encoder_attention_mask=mask[row],
        use_cache=False,
    ).last_hidden_state
    label = _padded(labels, IGNORED).to(device)
    learned = label != IGNORED
    losses = _head_losses(model, hidden[learned], label[learned])
    weight_rows = torch.tensor([value for values in weights for value in values], device=device)
    explain_rows = torch.tensor(explains, device=device)[:, None].expand_as(label)[learned]
    return TokenLosses(losses, weight_rows, explain_rows)


def _decoder_only_losses(model: Any, lessons: Sequence[Encoded], encoder: PromptEncoder, device: torch.device) -> TokenLosses:
    tokens, positions, branches, labels, weights, explains = [], [], [], [], [], []
    for lesson in lessons:
        context = lesson.prompts["context"]
        row, place, branch = list(context), list(range(len(context))), [0] * len(context)
        label, weight, explain = [IGNORED] * len(context), [0.0] * len(context), [False] * len(context)
        for number, ((kind, share, ids), word) in enumerate(zip(lesson.targets, lesson.words, strict=True), start=1):
            read = [*word, *ids[:-1]]
            row += read
            place += range(len(context), len(context) + len(read))
            branch += [number] * len(read)
            label += [IGNORED] * (len(word) - 1) + ids
            weight += [0.0] * (len(word) - 1) + [share] * len(ids)
            explain += [kind == "explain"] * len(read)
        for column, values in zip(
            (tokens, positions, branches, labels, weights, explains), (row, place, branch, label, weight, explain), strict=True
        ):
            column.append(values)
    branch_of = _padded(branches, -1).to(device)
    hidden = model.get_decoder()(
        input_ids=_padded(tokens, encoder.special.pad).to(device),
        position_ids=_padded(positions, 0).to(device),
        attention_mask=branch_mask(branch_of, model.dtype),
        use_cache=False,
    ).last_hidden_state
    label_of = _padded(labels, IGNORED).to(device)
    learned = label_of != IGNORED
    losses = _head_losses(model, hidden[learned], label_of[learned])
    width = label_of.shape[1]
    weight_of = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in weights], device=device)
    return TokenLosses(losses, weight_of[learned], _padded(explains, 0).to(device).bool()[learned])


def branch_mask(branch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive attention mask of a tree of one trunk and its branches.

    Args:
        branch: (batch, length): 0 for the context, 1… for the branch that a token is on, -1 for padding.
        dtype: Number type of the mask.

    Returns:
        (batch, 1, length, length): 0 where a token may look, the lowest number elsewhere. A token sees earlier tokens of the
        context and of its own branch; padding sees itself alone, so that no row is empty.
    """
    length = branch.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=branch.device).tril()
    same = branch[:, :, None] == branch[:, None, :]
    trunk = (branch[:, None, :] == 0) & (branch[:, :, None] >= 0)
    itself = torch.eye(length, dtype=torch.bool, device=branch.device)
    allowed = (earlier & (same | trunk) & (branch[:, :, None] >= 0)) | itself
    mask = torch.full(allowed.shape, torch.finfo(dtype).min, dtype=dtype, device=branch.device)
    return mask.masked_fill(allowed, 0.0)[:, None]


def _head_losses(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of (tokens, width) states against (tokens,) labels."""
    config = model.config
    if config.is_encoder_decoder and _scales_outputs(config):
        hidden = hidden * config.d_model**-0.5
    logits = model.get_output_embeddings()(hidden).float()
    for name in ("logits_scaling", "logit_scale", "final_logit_softcapping"):
        if getattr(config, name, None):
            raise ValueError(f"students whose config sets {name} are not supported")
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def _scales_outputs(config: Any) -> bool:
    """T5's original form scales the states before the head; 4.57 says so by `tie_word_embeddings`, 5.x by a name of its own."""
    explicit = getattr(config, "scale_decoder_outputs", None)
    return bool(config.tie_word_embeddings if explicit is None else explicit)
