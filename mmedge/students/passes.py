"""One pass of encoded lessons through a student: the cross entropy of every token that is learned.

A lesson is a context and the targets after it, which share the context: it is read once, whatever the number of targets. For an
encoder-decoder each target is a row of the decoder. For a decoder-only student, targets are branches after the context that do
not see each other:

    context ─┬─ predict:  84 / 2 <eos>
             ├─ predict:  84 * 2 <eos>
             └─ explain:  Luke scored 84 … <eos>

which gives exactly the losses of the separate sequences at a fraction of the tokens. A student with recurrent layers cannot branch:
there each target is read behind a context of its own. What is learned from the losses is not known here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from mmedge.export.architectures.decoder import DecoderShape
from mmedge.students.dialects import scales_outputs
from mmedge.students.encoded import (
    IGNORED,
    KINDS,
    EncodedLesson,
    LearnedSegment,
    learned_segments,
)
from mmedge.students.frozen import FrozenStates, frozen_layers
from mmedge.students.packed import Rows, can_pack, decoder_only_states, encoder_decoder_states, shape_of
from mmedge.students.windows import config_windows, is_recurrent, window_mask, windows_of
from mmedge.tasks.encoding import PromptEncoder


@dataclass(frozen=True)
class TokenLosses:
    """The loss of each learned token of some lessons.

    Attributes:
        lessons: The lessons.
        losses: The cross entropies, (tokens,); in no particular order.
        segments: The number of the learned segment that each is of, (tokens,).
    """

    lessons: Sequence[EncodedLesson]
    losses: torch.Tensor
    segments: torch.Tensor

    @cached_property
    def learned(self) -> list[LearnedSegment]:
        """The learned segments."""
        return learned_segments(self.lessons)

    def _of_segments(self, values: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
        """Return for each token what is so of its segment."""
        return torch.tensor(values, dtype=dtype, device=self.losses.device)[self.segments]

    @cached_property
    def weights(self) -> torch.Tensor:
        """The tokens' weights, (tokens,)."""
        return self._of_segments([one.weight for one in self.learned], torch.float32)

    @cached_property
    def weighted(self) -> torch.Tensor:
        """The cross entropies times their weights, (tokens,)."""
        return self.losses * self.weights

    def of_part(self, part: str) -> torch.Tensor:
        """Return which tokens are of a part of the loss, (tokens,)."""
        return self._of_segments([one.part == part for one in self.learned], torch.bool)

    def of_lessons(self, first: int, last: int) -> TokenLosses:
        """Return the same of the lessons from `first` to before `last`."""
        if first == 0 and last == len(self.lessons):
            return self
        places = [number for number, one in enumerate(self.learned) if first <= one.lesson < last]
        low, high = (places[0], places[-1] + 1) if places else (0, 0)
        own = (self.segments >= low) & (self.segments < high)
        return TokenLosses(self.lessons[first:last], self.losses[own], self.segments[own] - low)

    @cached_property
    def log_probabilities(self) -> torch.Tensor:
        """The weighted log-probability of each target, (targets,), in the lessons' order."""
        count = sum(len(lesson.targets) for lesson in self.lessons)
        place = self._of_segments([one.target for one in self.learned], torch.long)
        return torch.zeros(count, device=self.losses.device).index_add(0, place, -self.weighted)

    @cached_property
    def reference(self) -> torch.Tensor:
        """The same under the weights that the stage began with."""
        return torch.tensor([value for lesson in self.lessons for value in lesson.reference], device=self.losses.device)


Head = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]  # model, states and labels of learned positions


class LossPass(torch.nn.Module):  # type: ignore[misc]
    """A pass of lessons through a model, as a module, so that whoever wraps modules (DDP, FSDP, autocast) can wrap it.

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
        self._shape = shape_of(model) if self.packs and encoder.family == "decoder-only" else None
        frozen = frozen_layers(model) if self._shape is not None else 0
        self._frozen = FrozenStates(frozen) if frozen else None
        self._branches = not is_recurrent(model)
        parts = [model.get_decoder()] if encoder.family == "decoder-only" else [model.get_decoder(), model.get_encoder()]
        # in a list, so that a compiled part is not a module of this one: its parameters would be there twice
        self._parts = [[torch.compile(part, dynamic=True) for part in parts] if compiled else parts]

    def forward(self, lessons: Sequence[EncodedLesson], head: Head | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `losses` and `segments` of `TokenLosses`; the head is computed for learned positions only.

        Args:
            lessons: What is read.
            head: What becomes of the states and labels of learned positions instead of their cross entropies.
        """
        last = head or _head_losses
        device = self.model.get_input_embeddings().weight.device
        numbered = _number_targets(lessons)
        if self._encoder.family == "decoder-only":
            if self._shape is not None:
                return _packed_decoder_only_losses(self.model, self._shape, lessons, numbered, device, last, self._frozen)
            if not self._branches:
                return _separate_losses(self.model, self._parts[0][0], lessons, numbered, self._encoder, device, last)
            return _decoder_only_losses(self.model, self._parts[0][0], lessons, numbered, self._encoder, device, last)
        if self.packs:
            return _packed_encoder_decoder_losses(self.model, lessons, numbered, device, last)
        decoder, encoder = self._parts[0]
        return _encoder_decoder_losses(self.model, encoder, decoder, lessons, numbered, self._encoder, device, last)

    def logits(self, lessons: Sequence[EncodedLesson]) -> torch.Tensor:
        """Return the logits at learned positions, (tokens, vocabulary), in the order of `forward`'s losses."""
        return self(lessons, _head_logits)[0]

    def token_losses(self, lessons: Sequence[EncodedLesson]) -> TokenLosses:
        """Run some lessons through the model, and return what their tokens cost."""
        return TokenLosses(lessons, *self(lessons))


def _number_targets(lessons: Sequence[EncodedLesson]) -> list[list[list[int]]]:
    """Return by lesson and target the number of the learned segment that each of its learned tokens is of."""
    found, number = [], -1
    for lesson in lessons:
        of_lesson = []
        for target in lesson.targets:
            numbers: list[int] = []
            for segment in target.segments:
                if segment.weight and segment.ids:
                    number += 1
                    numbers += [number] * len(segment.ids)
            of_lesson.append(numbers)
        found.append(of_lesson)
    return found


def _padded(rows: Sequence[Sequence[Any]], value: Any) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _packed_encoder_decoder_losses(
    model: Any, lessons: Sequence[EncodedLesson], numbered: list[list[list[int]]], device: torch.device, head: Head
) -> tuple[torch.Tensor, torch.Tensor]:
    targets = [
        (place, target, numbers)
        for place, (lesson, of_lesson) in enumerate(zip(lessons, numbered, strict=True))
        for target, numbers in zip(lesson.targets, of_lesson, strict=True)
    ]
    targets.sort(key=lambda found: len(found[1].read))
    contexts = [lesson.context for lesson in lessons]
    hidden = encoder_decoder_states(model, contexts, [target.read for _, target, _ in targets], [place for place, *_ in targets])
    label = torch.tensor([label for _, target, _ in targets for label in target.labels], device=device)
    learned = label != IGNORED
    segments = torch.tensor([number for *_, numbers in targets for number in numbers], dtype=torch.long, device=device)
    return head(model, hidden[learned], label[learned]), segments


def _encoder_decoder_losses(
    model: Any,
    encoder: Any,
    decoder: Any,
    lessons: Sequence[EncodedLesson],
    numbered: list[list[list[int]]],
    prompts: PromptEncoder,
    device: torch.device,
    head: Head,
) -> tuple[torch.Tensor, torch.Tensor]:
    contexts = [lesson.context for lesson in lessons]
    read = _padded(contexts, prompts.special.pad).to(device)
    mask = _padded([[1] * len(context) for context in contexts], 0).to(device)
    states = encoder(input_ids=read, attention_mask=mask).last_hidden_state
    losses: list[torch.Tensor] = []
    segments: list[int] = []
    for kind in KINDS:  # short and long targets apart, or most of what the decoder computes is padding
        rows = [
            (place, target, numbers)
            for place, (lesson, of_lesson) in enumerate(zip(lessons, numbered, strict=True))
            for target, numbers in zip(lesson.targets, of_lesson, strict=True)
            if target.kind == kind
        ]
        if not rows:
            continue
        row = torch.tensor([place for place, *_ in rows], device=device)
        hidden = decoder(
            input_ids=_padded([target.read for _, target, _ in rows], prompts.special.pad).to(device),
            encoder_hidden_states=states[row],
            encoder_attention_mask=mask[row],
            use_cache=False,
        ).last_hidden_state
        label = _padded([target.labels for _, target, _ in rows], IGNORED).to(device)
        learned = label != IGNORED
        losses.append(head(model, hidden[learned], label[learned]))
        segments += [number for *_, numbers in rows for number in numbers]
    return torch.cat(losses), torch.tensor(segments, dtype=torch.long, device=device)


@dataclass(frozen=True)
class _Tree:
    """A lesson as a decoder-only student reads it: the context is the trunk, targets are its branches.

    Attributes:
        tokens: What is read.
        positions: Where each token stands.
        branches: The number of the branch that each is on, 0 for the context.
        labels: What each predicts.
        segments: The number of the learned segment that each learned token is of.
    """

    tokens: list[int]
    positions: list[int]
    branches: list[int]
    labels: list[int]
    segments: list[int]

    @property
    def read(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What its states depend on."""
        return tuple(self.tokens), tuple(self.branches)


def _tree(lesson: EncodedLesson, numbered: list[list[int]]) -> _Tree:
    length = len(lesson.context)
    tree = _Tree(list(lesson.context), list(range(length)), [0] * length, [IGNORED] * length, [])
    for branch, (target, numbers) in enumerate(zip(lesson.targets, numbered, strict=True), start=1):
        count = len(target.read)
        tree.tokens.extend(target.read)
        tree.positions.extend(range(length, length + count))
        tree.branches.extend([branch] * count)
        tree.labels.extend(target.labels)
        tree.segments.extend(numbers)
    return tree


def _packed_decoder_only_losses(
    model: Any,
    shape: DecoderShape,
    lessons: Sequence[EncodedLesson],
    numbered: list[list[list[int]]],
    device: torch.device,
    head: Head,
    frozen: FrozenStates | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    trees = sorted(map(_tree, lessons, numbered), key=lambda tree: len(tree.tokens))
    below = None
    if frozen is not None:
        below = torch.cat(
            [frozen.of(tree.read, partial(_tree_states, model, shape, [tree], device, last=frozen.count)) for tree in trees]
        )
    hidden = _tree_states(model, shape, trees, device, below=below, first=0 if frozen is None else frozen.count)
    label = torch.tensor([label for tree in trees for label in tree.labels], device=device)
    learned = label != IGNORED
    segments = torch.tensor([number for tree in trees for number in tree.segments], dtype=torch.long, device=device)
    return head(model, hidden[learned], label[learned]), segments


def _tree_states(model: Any, shape: DecoderShape, trees: Sequence[_Tree], device: torch.device, **layers: Any) -> torch.Tensor:
    """Return a decoder's states for every token of some trees, one after the other; which layers: see `decoder_only_states`."""
    rows = Rows([len(tree.tokens) for tree in trees], device)
    masks: dict[int | None, list[torch.Tensor]] = {window: [] for window in windows_of(shape)}
    for block in rows.blocks:
        found = _branch_masks(trees[block.rows], torch.float32, device, tuple(masks))
        for window, mask in found.items():
            masks[window].append(mask)
    tokens = [token for tree in trees for token in tree.tokens]
    positions = [position for tree in trees for position in tree.positions]
    return decoder_only_states(model, shape, tokens, positions, rows, masks, **layers)


def _branch_masks(
    trees: Sequence[_Tree], dtype: torch.dtype, device: torch.device, windows: Sequence[int | None]
) -> dict[int | None, torch.Tensor]:
    """Return the masks of some trees, one for each window; None sees all."""
    mask = branch_mask(_padded([tree.branches for tree in trees], -1).to(device), dtype)
    positions = _padded([tree.positions for tree in trees], 0).to(device)
    return {window: mask if window is None else window_mask(mask, positions, window) for window in windows}


def _decoder_only_losses(
    model: Any,
    decoder: Any,
    lessons: Sequence[EncodedLesson],
    numbered: list[list[list[int]]],
    encoder: PromptEncoder,
    device: torch.device,
    head: Head,
) -> tuple[torch.Tensor, torch.Tensor]:
    trees = list(map(_tree, lessons, numbered))
    windows = config_windows(model.config)
    masks = _branch_masks(trees, model.dtype, device, list(windows.values()))
    by_kind = {kind: masks[window] for kind, window in windows.items()}
    hidden = decoder(
        input_ids=_padded([tree.tokens for tree in trees], encoder.special.pad).to(device),
        position_ids=_padded([tree.positions for tree in trees], 0).to(device),
        attention_mask=by_kind if len(by_kind) > 1 else next(iter(by_kind.values())),
        use_cache=False,
    ).last_hidden_state
    label = _padded([tree.labels for tree in trees], IGNORED).to(device)
    learned = label != IGNORED
    segments = torch.tensor([number for tree in trees for number in tree.segments], dtype=torch.long, device=device)
    return head(model, hidden[learned], label[learned]), segments


def _separate_losses(
    model: Any,
    decoder: Any,
    lessons: Sequence[EncodedLesson],
    numbered: list[list[list[int]]],
    encoder: PromptEncoder,
    device: torch.device,
    head: Head,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read each target behind a context of its own, padded behind, where what is read later changes nothing before."""
    rows = [
        (lesson.context, target, numbers)
        for lesson, of_lesson in zip(lessons, numbered, strict=True)
        for target, numbers in zip(lesson.targets, of_lesson, strict=True)
    ]
    hidden = decoder(
        input_ids=_padded([(*context, *target.read) for context, target, _ in rows], encoder.special.pad).to(device),
        use_cache=False,
    ).last_hidden_state
    label = _padded([[IGNORED] * len(context) + target.labels for context, target, _ in rows], IGNORED).to(device)
    learned = label != IGNORED
    segments = torch.tensor([number for *_, numbers in rows for number in numbers], dtype=torch.long, device=device)
    return head(model, hidden[learned], label[learned]), segments


def branch_mask(branch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the additive attention mask of a tree of one trunk and its branches.

    Args:
        branch: (batch, length): 0 for the context, 1… for the branch that a token is on, -1 for padding.
        dtype: Of the mask.

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


def _head_logits(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the logits, float32, of (tokens, width) states."""
    config = model.config
    if scales_outputs(config):
        hidden = hidden * config.d_model**-0.5
    logits = model.get_output_embeddings()(hidden).float()
    logits = logits * (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = cap * torch.tanh(logits / cap)
    return logits


def _head_losses(model: Any, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of (tokens, width) states against (tokens,) labels."""
    return torch.nn.functional.cross_entropy(_head_logits(model, hidden, labels), labels, reduction="none")
