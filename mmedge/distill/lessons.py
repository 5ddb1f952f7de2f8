"""Lessons: what one visit to a question, or to one chain of thought, teaches; and how lessons become tensors.

Stage 1, self-evaluation:  context = question and chain of thought;  predict → verdict,  explain → evaluation
Stage 2, reasoning:        context = question;                       predict → answer,   explain → rationale

Both tasks share their context, which is read once, whatever the number of targets. For an encoder-decoder each target is a row
of the decoder, with the chain of thought in front of the task word where one is judged. For a decoder-only student, task words
and targets are branches behind the context that do not see each other:

    context ─┬─ predict:  84 / 2 <eos>
             ├─ predict:  84 * 2 <eos>        (a pseudo-label of another CoT, weighted by its share)
             └─ explain:  Luke scored 84 … <eos>

which is exactly the loss of the separate sequences at a fraction of the tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mmedge.annotations.reading import AnnotatedExample
from mmedge.recipe import MethodSection
from mmedge.students.packed import Rows, can_pack, decoder_only_states, encoder_decoder_states
from mmedge.tasks.encoding import Family, Kind, PromptEncoder
from mmedge.tasks.prompts import Context, render_question

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

    context: Context
    targets: tuple[Target, ...]


def _shares(texts: Sequence[str], kind: Kind) -> list[Target]:
    """Return distinct texts weighted by how often they occur; the weights sum to 1."""
    return [Target(kind, text, count / len(texts)) for text, count in Counter(texts).items()]


def evaluation_lessons(
    examples: Sequence[AnnotatedExample],
    encoder: PromptEncoder,
    *,
    balance_verdicts: bool = False,
    contrast_verdicts: bool = False,
) -> list[Lesson]:
    """Return stage 1's lessons: one for every chain of thought that has a self-evaluation.

    Args:
        examples: What to learn from.
        encoder: The student's prompts.
        balance_verdicts: Weigh verdicts so that each has the same weight in total; the mean weight stays 1, and none is more
            than four times the mean, so that a handful of rare verdicts cannot steer the training.
        contrast_verdicts: Take only questions whose chains of thought were judged differently: what is learned is then what
            tells them apart, not which questions are hard.
    """
    if contrast_verdicts:
        examples = [annotated for annotated in examples if _judged_differently(annotated)]
    judged = [(annotated.example, evaluated) for annotated in examples for evaluated in annotated.cots if evaluated.evaluations]
    counts = Counter(evaluation.verdict.value for _, evaluated in judged for evaluation in evaluated.evaluations)
    total = sum(counts.values())
    factors = {v: min(4.0, total / len(counts) / count) if balance_verdicts else 1.0 for v, count in counts.items()}
    lessons = []
    for example, evaluated in judged:
        verdicts = _shares([evaluation.verdict.value for evaluation in evaluated.evaluations], "predict")
        verdicts = [replace(target, weight=target.weight * factors[target.text]) for target in verdicts]
        rationales = _shares([evaluation.rationale for evaluation in evaluated.evaluations if evaluation.rationale], "explain")
        context = encoder.prompts.evaluation_context(render_question(example), evaluated.cot)
        lessons.append(Lesson(context, (*verdicts, *rationales)))
    return lessons


def _judged_differently(annotated: AnnotatedExample) -> bool:
    return len({evaluation.verdict for evaluated in annotated.cots for evaluation in evaluated.evaluations}) > 1


def reasoning_lessons(
    examples: Sequence[AnnotatedExample],
    encoder: PromptEncoder,
    method: MethodSection,
    epoch: int,
    majority: Mapping[str, str] | None = None,
) -> list[Lesson]:
    """Return stage 2's lessons for one epoch: one for every question.

    All pseudo-labels count at every visit, weighted by their share; `cots_per_visit` rationales take turns over the epochs,
    so that every chain of thought is a target. With human labels, or with those of the majority, the label is the only answer.

    Args:
        examples: What to learn from.
        encoder: The student's prompts.
        method: Which labels, and which rationales.
        epoch: Decides whose turn it is.
        majority: The answer of most chains of thought by the question's id; needed for majority labels only.
    """
    lessons = []
    for annotated in examples:
        example, cots = annotated.example, annotated.cots
        if method.labels == "human":
            answers = [example.label] if example.label is not None else []
        elif method.labels == "majority":
            answers = [majority[example.id]] if majority is not None and example.id in majority else []
        else:
            answers = [evaluated.cot.pseudo_label for evaluated in cots]
        per_visit = min(method.cots_per_visit or len(cots), len(cots)) if method.rationales else 0
        turn = [cots[(epoch * per_visit + offset) % len(cots)] for offset in range(per_visit)]
        targets = _shares(answers, "predict") + _shares([evaluated.cot.rationale for evaluated in turn], "explain")
        if targets:
            context = encoder.prompts.reasoning_context(render_question(example))
            lessons.append(Lesson(context, tuple(targets)))
    return lessons


def explanations(examples: Sequence[AnnotatedExample], encoder: PromptEncoder, max_target_tokens: int) -> Iterator[list[int]]:
    """Yield every rationale and evaluation in tokens, behind its task word and with its end token."""
    begun = list(encoder.begun("explain", Context("")))
    for annotated in examples:
        for evaluated in annotated.cots:
            for text in (evaluated.cot.rationale, *(evaluation.rationale for evaluation in evaluated.evaluations)):
                if text:
                    yield [*begun, *encoder.target(text, max_target_tokens)]


def task_tokens(examples: Sequence[AnnotatedExample], encoder: PromptEncoder, max_target_tokens: int) -> list[int]:
    """Return the ids of all tokens that a student reads or writes when it learns from some examples, rising.

    Args:
        examples: Annotated questions.
        encoder: The student's prompts.
        max_target_tokens: The longest target.
    """
    found: set[int] = set()
    for annotated in examples:
        question = render_question(annotated.example)
        contexts = [encoder.prompts.reasoning_context(question)]
        texts = [text for text in (annotated.example.label, *annotated.example.choices) if text]
        for evaluated in annotated.cots:
            contexts.append(encoder.prompts.evaluation_context(question, evaluated.cot))
            texts += [evaluated.cot.rationale, evaluated.cot.pseudo_label]
            texts += [text for evaluation in evaluated.evaluations for text in (evaluation.rationale, evaluation.verdict.value)]
        for context in contexts:
            found.update(encoder.context(context))
            for kind in TASKS:
                found.update(encoder.begun(kind, context))
        for text in texts:
            found.update(encoder.target(text, max_target_tokens))
    return sorted(found)


def epoch_order(count: int, seed: int, stage: str, epoch: int) -> list[int]:
    """Return a shuffled order of `count` lessons that depends on seed, stage and epoch alone."""
    order = list(range(count))
    random.Random(f"{seed}/{stage}/{epoch}").shuffle(order)
    return order


# ------------------------------------------------------------------------------------------------- tensors


@dataclass(frozen=True)
class EncodedTarget:
    """One target in tokens.

    Attributes:
        kind: Its task.
        weight: How much each of its tokens counts.
        begun: The tokens in front of it, which are read but not learned.
        ids: The tokens that are learned.
    """

    kind: Kind
    weight: float
    begun: tuple[int, ...]
    ids: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """The tokens that go through the model: all but the last, which is only predicted."""
        return self.begun + self.ids[:-1]

    @property
    def labels(self) -> list[int]:
        """What each token of `read` predicts."""
        return [IGNORED] * (len(self.begun) - 1) + list(self.ids)


@dataclass(frozen=True)
class Encoded:
    """One lesson in tokens."""

    context: tuple[int, ...]
    targets: tuple[EncodedTarget, ...]

    @property
    def tokens(self) -> int:
        """Tokens that go through the model."""
        return len(self.context) + sum(len(target.read) for target in self.targets)


def encode_lesson(lesson: Lesson, encoder: PromptEncoder, max_target_tokens: int) -> Encoded:
    """Turn a lesson into tokens."""
    targets = tuple(
        EncodedTarget(
            target.kind,
            target.weight,
            encoder.begun(target.kind, lesson.context),
            tuple(encoder.target(target.text, max_target_tokens)),
        )
        for target in lesson.targets
    )
    return Encoded(encoder.context(lesson.context), targets)


def padded_tokens(lessons: Sequence[Encoded], family: Family) -> int:
    """Return how many tokens one pass over some lessons computes, padding included.

    A decoder-only student reads a lesson as one row. An encoder-decoder reads contexts, short and long targets as three blocks.
    """
    if family == "decoder-only":
        return len(lessons) * max(lesson.tokens for lesson in lessons)
    padded = len(lessons) * max(len(lesson.context) for lesson in lessons)
    for kind in TASKS:
        lengths = [len(target.read) for lesson in lessons for target in lesson.targets if target.kind == kind]
        padded += len(lengths) * max(lengths, default=0)
    return padded


def micro_batches(
    lessons: Sequence[Encoded], family: Family, max_tokens: int, pass_cost: int, *, packed: bool = False
) -> list[list[Encoded]]:
    """Cut a batch into passes of similar length so that the least is computed, padding and passes counted.

    On SVAMP with SmolLM2 a batch of 16 in one pass was 30 to 70 % padding; cut so, it is under 10 %, and 108 tokens/s became
    138 to 155.

    Args:
        lessons: The batch.
        family: How lessons are padded.
        max_tokens: No pass has more padded tokens, unless it is a single lesson.
        pass_cost: What one more pass costs, in tokens.
        packed: Padding is laid out but not computed: it counts for `max_tokens` alone.
    """
    ordered = sorted(lessons, key=lambda item: item.tokens)
    cheapest = [0.0] + [float("inf")] * len(ordered)  # of the first n lessons
    cut = [0] * (len(ordered) + 1)
    for start in range(len(ordered)):
        for end in range(start + 1, len(ordered) + 1):
            padded = padded_tokens(ordered[start:end], family)
            if padded > max_tokens and end > start + 1:
                break
            computed = sum(lesson.tokens for lesson in ordered[start:end]) if packed else padded
            if cheapest[start] + computed + pass_cost < cheapest[end]:
                cheapest[end], cut[end] = cheapest[start] + computed + pass_cost, start
    groups: list[list[Encoded]] = []
    end = len(ordered)
    while end:
        groups.append(ordered[cut[end] : end])
        end = cut[end]
    return groups[::-1]


def weight_sums(lessons: Sequence[Encoded]) -> dict[str, float]:
    """Return for each task the sum of weight × tokens, which a batch's loss is divided by."""
    sums: dict[str, float] = dict.fromkeys(TASKS, 0.0)
    for lesson in lessons:
        for target in lesson.targets:
            sums[target.kind] += target.weight * len(target.ids)
    return sums


def _padded(rows: Sequence[Sequence[Any]], value: Any) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


@dataclass(frozen=True)
class TokenLosses:
    """Cross entropy of each learned token, and how much each counts.

    Attributes:
        losses: (tokens,)
        weights: (tokens,)
        explains: (tokens,), true for the tokens of the long task.
        lessons: (tokens,), the place of the lesson that each is of among those that went through the model.
    """

    losses: torch.Tensor
    weights: torch.Tensor
    explains: torch.Tensor
    lessons: torch.Tensor


class LessonPass(torch.nn.Module):  # type: ignore[misc]
    """One pass of lessons through a model, as a module, so that whoever wraps modules (DDP, FSDP, autocast) can wrap it.

    Args:
        model: The student's model.
        encoder: Its prompts and special tokens.
        compiled: Let `torch.compile` build the model's forward pass.
        packs: Compute without padding where the model is known well enough; the layers' own forward passes are then not called,
            which whoever watches or wraps them (FSDP, gradient checkpointing) needs.
    """

    def __init__(self, model: Any, encoder: PromptEncoder, *, compiled: bool = False, packs: bool = True) -> None:
        super().__init__()
        self.model = model
        self._encoder = encoder
        self.packs = packs and not compiled and can_pack(model)
        parts = [model.get_decoder()] if encoder.family == "decoder-only" else [model.get_decoder(), model.get_encoder()]
        # in a list, so that a compiled part is no module of this one: its parameters would be there twice
        self._parts = [[torch.compile(part, dynamic=True) for part in parts] if compiled else parts]

    def forward(self, groups: Sequence[Sequence[Encoded]], factors: Sequence[dict[str, float]]) -> torch.Tensor:
        """Return (groups, 3): each group's loss, and the weighted sums of the short and of the long task's token losses.

        Args:
            groups: Lessons that go through the model together.
            factors: For each group, what each task's sum is multiplied by in the loss.
        """
        found = self.token_losses([lesson for group in groups for lesson in group])
        weighted, rows, start = found.losses * found.weights, [], 0
        for group, factor in zip(groups, factors, strict=True):
            own = (found.lessons >= start) & (found.lessons < start + len(group))
            start += len(group)
            predict, explain = weighted[own & ~found.explains].sum(), weighted[own & found.explains].sum()
            loss = factor["predict"] * predict + factor["explain"] * explain
            rows.append(torch.stack([loss, predict.detach(), explain.detach()]))
        return torch.stack(rows)

    def token_losses(self, lessons: Sequence[Encoded]) -> TokenLosses:
        """Run some lessons through the model in one pass; the head is computed for learned positions only."""
        device = self.model.get_input_embeddings().weight.device
        if self._encoder.family == "decoder-only":
            if self.packs:
                return _packed_decoder_only_losses(self.model, lessons, device)
            return _decoder_only_losses(self.model, self._parts[0][0], lessons, self._encoder, device)
        if self.packs:
            return _packed_encoder_decoder_losses(self.model, lessons, device)
        decoder, encoder = self._parts[0]
        return _encoder_decoder_losses(self.model, encoder, decoder, lessons, self._encoder, device)


def _packed_encoder_decoder_losses(model: Any, lessons: Sequence[Encoded], device: torch.device) -> TokenLosses:
    targets = [(place, target) for place, lesson in enumerate(lessons) for target in lesson.targets]
    targets.sort(key=lambda found: len(found[1].read))
    contexts = [lesson.context for lesson in lessons]
    hidden = encoder_decoder_states(model, contexts, [target.read for _, target in targets], [place for place, _ in targets])
    label = torch.tensor([label for _, target in targets for label in target.labels], device=device)
    learned = label != IGNORED
    counts = torch.tensor([len(target.ids) for _, target in targets], device=device)
    weights = torch.tensor([target.weight for _, target in targets], device=device)
    explains = torch.tensor([target.kind == "explain" for _, target in targets], device=device)
    places = torch.tensor([place for place, _ in targets], device=device)
    losses = _head_losses(model, hidden[learned], label[learned])
    return TokenLosses(losses, *(one.repeat_interleave(counts) for one in (weights, explains, places)))


def _encoder_decoder_losses(
    model: Any,
    encoder: Any,
    decoder: Any,
    lessons: Sequence[Encoded],
    prompts: PromptEncoder,
    device: torch.device,
) -> TokenLosses:
    contexts = [lesson.context for lesson in lessons]
    read = _padded(contexts, prompts.special.pad).to(device)
    mask = _padded([[1] * len(context) for context in contexts], 0).to(device)
    states = encoder(input_ids=read, attention_mask=mask).last_hidden_state
    losses, weights, explains, places = [], [], [], []
    for kind in TASKS:  # short and long targets apart, or most of what the decoder computes is padding
        rows = [(place, target) for place, lesson in enumerate(lessons) for target in lesson.targets if target.kind == kind]
        if not rows:
            continue
        row = torch.tensor([place for place, _ in rows], device=device)
        hidden = decoder(
            input_ids=_padded([target.read for _, target in rows], prompts.special.pad).to(device),
            encoder_hidden_states=states[row],
            encoder_attention_mask=mask[row],
            use_cache=False,
        ).last_hidden_state
        label = _padded([target.labels for _, target in rows], IGNORED).to(device)
        learned = label != IGNORED
        losses.append(_head_losses(model, hidden[learned], label[learned]))
        weight = torch.tensor([target.weight for _, target in rows], device=device)
        weights.append(weight[:, None].expand_as(label)[learned])
        explains.append(torch.full_like(losses[-1], kind == "explain", dtype=torch.bool))
        places.append(row[:, None].expand_as(label)[learned])
    return TokenLosses(*map(torch.cat, (losses, weights, explains, places)))


@dataclass(frozen=True)
class _Tree:
    """A lesson as a decoder-only student reads it: the context is the trunk, targets are its branches.

    Attributes:
        tokens: What is read.
        positions: Where each token stands.
        branches: The number of the branch that each is on, 0 for the context.
        labels: What each predicts.
        weights: How much that counts.
        explains: Whether it is of the long task.
        lessons: The lesson's place among those that go through the model together.
    """

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    labels: list[int]
    weights: list[float]
    explains: list[bool]
    lessons: list[int]


def _tree(lesson: Encoded, place: int) -> _Tree:
    length = len(lesson.context)
    nothing: dict[str, Any] = {"branches": [0] * length, "labels": [IGNORED] * length, "weights": [0.0] * length}
    nothing |= {"explains": [False] * length, "lessons": [place] * length}
    tree = _Tree(list(lesson.context), list(range(length)), **nothing)
    for number, target in enumerate(lesson.targets, start=1):
        count = len(target.read)
        tree.tokens.extend(target.read)
        tree.positions.extend(range(length, length + count))
        tree.branches.extend([number] * count)
        tree.labels.extend(target.labels)
        tree.weights.extend([target.weight] * count)
        tree.explains.extend([target.kind == "explain"] * count)
        tree.lessons.extend([place] * count)
    return tree


def _packed_decoder_only_losses(model: Any, lessons: Sequence[Encoded], device: torch.device) -> TokenLosses:
    trees = sorted(map(_tree, lessons, range(len(lessons))), key=lambda tree: len(tree.tokens))
    rows = Rows([len(tree.tokens) for tree in trees], device)
    branches = [_padded([tree.branches for tree in trees[block.rows]], -1).to(device) for block in rows.blocks]
    hidden = decoder_only_states(
        model,
        [token for tree in trees for token in tree.tokens],
        [position for tree in trees for position in tree.positions],
        rows,
        [branch_mask(branch, torch.float32) for branch in branches],
    )
    label = torch.tensor([label for tree in trees for label in tree.labels], device=device)
    learned = label != IGNORED
    weight = torch.tensor([weight for tree in trees for weight in tree.weights], device=device)
    explain = torch.tensor([explain for tree in trees for explain in tree.explains], device=device)
    place = torch.tensor([place for tree in trees for place in tree.lessons], device=device)
    losses = _head_losses(model, hidden[learned], label[learned])
    return TokenLosses(losses, weight[learned], explain[learned], place[learned])


def _decoder_only_losses(
    model: Any, decoder: Any, lessons: Sequence[Encoded], encoder: PromptEncoder, device: torch.device
) -> TokenLosses:
    trees = [_tree(lesson, place) for place, lesson in enumerate(lessons)]
    branch_of = _padded([tree.branches for tree in trees], -1).to(device)
    hidden = decoder(
        input_ids=_padded([tree.tokens for tree in trees], encoder.special.pad).to(device),
        position_ids=_padded([tree.positions for tree in trees], 0).to(device),
        attention_mask=branch_mask(branch_of, model.dtype),
        use_cache=False,
    ).last_hidden_state
    label = _padded([tree.labels for tree in trees], IGNORED).to(device)
    learned = label != IGNORED
    weight = _padded([tree.weights for tree in trees], 0.0).to(device)
    explain = _padded([tree.explains for tree in trees], False).to(device)
    place = _padded([tree.lessons for tree in trees], 0).to(device)
    losses = _head_losses(model, hidden[learned], label[learned])
    return TokenLosses(losses, weight[learned], explain[learned], place[learned])


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
