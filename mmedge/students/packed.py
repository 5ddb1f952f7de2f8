"""Forward passes without padding: what a training step computes.

Lessons differ in length, and a padded batch of them is half padding; cut into several passes it is less, but each pass reads all
weights and writes all gradients again, the vocabulary's table above all. Here every linear layer gets the tokens of all
rows in one matrix, and rows are laid out side by side only where they must be, in attention, which is a few hundredths of the work.
T5's decoder has the targets of both tasks, and keys and values of a context are computed once for all its targets. The
student's own modules compute, adapters included; what is computed is the same up to rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import dropout, scaled_dot_product_attention

from mmedge.errors import MmedgeError
from mmedge.export.architectures import ARCHITECTURES
from mmedge.export.architectures.decoder import Attention, DecoderShape
from mmedge.export.architectures.rotary import Rotary

# how many times as long as its shortest row a block's longest may be; for a GPU padding is cheaper than a block's forty operations
WIDEST = {"cpu": 2.0, "cuda": float("inf")}


# not cuDNN's, which builds a graph for every new shape, and where the GPU's memory is full stops with an error that does not say so
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def can_pack(model: Any) -> bool:
    """Return whether a model's forward pass is implemented here, by its architecture and its config."""
    config = model.config
    entry, dropped = ARCHITECTURES.get(config.model_type), getattr(config, "attention_dropout", 0.0)
    if entry is None or not entry.packed or dropped:
        return False
    return bool(config.is_encoder_decoder) or shape_of(model) is not None


def shape_of(model: Any) -> DecoderShape | None:
    """Return what a decoder-only model's layers are, as its architecture's graph has them; None where it is not known."""
    try:
        entry = ARCHITECTURES[model.config.model_type]
        shape = (entry.describe or entry.read_shape)(model.config.to_dict())
    except MmedgeError:
        return None
    known = isinstance(shape, DecoderShape) and all(isinstance(mixer, Attention) for mixer in shape.mixers)
    return shape if known else None


class Rows:
    """Rows of different lengths, their tokens one after the other; for attention, rows of similar length make a block.

    Args:
        lengths: Of each row.
        device: Where the rows are.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        starts = [0, *accumulate(lengths)]
        widest = WIDEST.get(device.type, 2.0)
        self.tokens = starts[-1]
        self.blocks: list[RowBlock] = []
        first = 0
        for row in range(1, len(lengths) + 1):
            inside = lengths[first:row]
            if row == len(lengths) or max(*inside, lengths[row]) > widest * min(*inside, lengths[row]):
                width = max(inside)
                places = [at * width + position for at, length in enumerate(inside) for position in range(length)]
                self.blocks.append(
                    RowBlock(
                        slice(first, row),
                        slice(starts[first], starts[row]),
                        torch.tensor(places, device=device),
                        torch.arange(width, device=device) < torch.tensor(inside, device=device)[:, None],
                    )
                )
                first = row
        offsets = torch.tensor(starts[:-1], device=device)
        self._sources = offsets[:, None] + torch.arange(max(lengths), device=device)
        self._lengths = torch.tensor(lengths, device=device)

    def laid_out(self, packed: Sequence[torch.Tensor], chosen: torch.Tensor, heads: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return (tokens, heads × size) of some rows as (rows, heads, width, size), and (rows, width): where they have tokens.

        Where a row has none, some other token's values stand.
        """
        lengths = self._lengths[chosen]
        width = int(lengths.max())
        present = torch.arange(width, device=lengths.device) < lengths[:, None]
        source = self._sources[chosen, :width].where(present, 0).flatten()
        laid = [one.index_select(0, source).view(len(chosen), width, heads, -1).transpose(1, 2) for one in packed]
        return laid, present


@dataclass(frozen=True)
class RowBlock:
    """Rows of similar length that share a block in attention.

    Attributes:
        rows: Which.
        tokens: Where theirs stand among all.
        places: Where each of their tokens lies, row × width + position.
        present: Where a row has tokens, (rows, width).
    """

    rows: slice
    tokens: slice
    places: torch.Tensor
    present: torch.Tensor

    def laid_out(self, packed: torch.Tensor, heads: int) -> torch.Tensor:
        """Return (all tokens, heads × size) as (rows, heads, width, size), with zeros where a row has no token."""
        rows, width = self.present.shape
        laid = packed.new_zeros(rows * width, packed.shape[1]).index_copy(0, self.places, packed[self.tokens])
        return laid.view(rows, width, heads, -1).transpose(1, 2)

    def packed(self, laid: torch.Tensor) -> torch.Tensor:
        """Return (rows, heads, width, size) as (tokens, heads × size)."""
        return laid.transpose(1, 2).reshape(self.present.numel(), -1).index_select(0, self.places)


def encoder_decoder_states(
    model: Any, contexts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], context_of: Sequence[int]
) -> torch.Tensor:
    """Return the decoder's states for every token of every target, one target after the other, (tokens, width).

    Args:
        model: A T5 of transformers, adapters included.
        contexts: What the encoder reads, in tokens.
        targets: What the decoder reads, in tokens.
        context_of: The number of each target's context.
    """
    table = model.get_input_embeddings()
    device = table.weight.device
    read, written = Rows([len(row) for row in contexts], device), Rows([len(row) for row in targets], device)
    tokens = torch.tensor([token for row in (*contexts, *targets) for token in row], device=device)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    # one look into the table, so that its gradient, as large as the table, is made once
    states, targeted = table(tokens).split([read.tokens, written.tokens])
    context = torch.tensor(context_of, device=device)
    around = [
        _position_bias(encoder, block.present.shape[1], both_ways=True) + _mask(block.present[:, None, None, :])
        for block in read.blocks
    ]
    before = [_position_bias(decoder, block.present.shape[1], both_ways=False) for block in written.blocks]
    before = [bias + _mask(torch.ones_like(bias[0, 0], dtype=torch.bool).tril()) for bias in before]
    states = encoder.dropout(states)
    for block in encoder.block:
        states = _self_attention(block.layer[0], states, read, around)
        states = block.layer[-1](states)
    states = encoder.dropout(encoder.final_layer_norm(states))
    hidden = decoder.dropout(targeted)
    for block in decoder.block:
        hidden = _self_attention(block.layer[0], hidden, written, before)
        hidden = _cross_attention(block.layer[1], hidden, written, states, read, context)
        hidden = block.layer[-1](hidden)
    found: torch.Tensor = decoder.dropout(decoder.final_layer_norm(hidden))
    return found


def decoder_only_states(
    model: Any,
    shape: DecoderShape,
    tokens: Sequence[int],
    positions: Sequence[int],
    rows: Rows,
    masks: Mapping[int | None, Sequence[torch.Tensor]],
    *,
    below: torch.Tensor | None = None,
    first: int = 0,
    last: int | None = None,
) -> torch.Tensor:
    """Return a decoder's states for every token, (tokens, width).

    Args:
        model: A decoder-only model of transformers, adapters included.
        shape: What its layers are, as `shape_of` says.
        tokens: Those of all rows, one row after the other.
        positions: Where each stands, for the rotary embedding.
        rows: Where a row begins.
        masks: What is added to the scores of each block of rows, (rows, 1, width, width), by the layers' windows.
        below: States before the layer `first`, (tokens, width); those of the embeddings where None.
        first: The first layer that is computed.
        last: The layer before which it ends; behind all of them, and the last norm, where None.
    """
    decoder, names = model.get_decoder(), shape.names
    device = decoder.embed_tokens.weight.device
    if below is None:
        below = decoder.embed_tokens(torch.tensor(tokens, device=device)) * getattr(decoder, "embedding_multiplier", 1.0)
    hidden: torch.Tensor = below
    turns = _turns(shape, torch.tensor(positions, device=device))
    for layer, mixer in list(zip(decoder.layers, shape.mixers, strict=True))[first:last]:
        assert isinstance(mixer, Attention)
        normed = layer.get_submodule(names.before_mixer)(hidden)
        query, key, value = _heads(layer, mixer, normed)
        if mixer.rotary is not None:
            query, key = (_turned(heads, *turns[mixer.rotary]) for heads in (query, key))
        attended = _grouped_attention(query, key, value, rows, masks[mixer.window], mixer.scale)
        mixed = layer.get_submodule(mixer.output)(attended)
        hidden = hidden + shape.residual_multiplier * _normed(layer, names.after_mixer, mixed)
        feed_forward = layer.get_submodule(names.down.partition(".")[0])
        fed = feed_forward(layer.get_submodule(names.before_feed_forward)(hidden))
        hidden = hidden + shape.residual_multiplier * _normed(layer, names.after_feed_forward, fed)
    return hidden if last is not None else decoder.norm(hidden)


def _heads(layer: Any, mixer: Attention, normed: torch.Tensor) -> list[torch.Tensor]:
    """Return queries, keys and values, (tokens, heads, size), normed where the model does so."""
    sizes = [mixer.heads, mixer.kv_heads, mixer.kv_heads]
    projected = [layer.get_submodule(part)(normed) for part in mixer.parts]
    if len(projected) == 1:
        projected = list(projected[0].split([size * mixer.head_width for size in sizes], dim=-1))
    found = [one.view(len(normed), size, mixer.head_width) for one, size in zip(projected, sizes, strict=True)]
    for place, norm in enumerate(mixer.norms):
        found[place] = layer.get_submodule(norm)(found[place]).to(found[-1].dtype)
    return found


def _normed(layer: Any, norm: str | None, x: torch.Tensor) -> torch.Tensor:
    return layer.get_submodule(norm)(x) if norm else x


def _turns(shape: DecoderShape, positions: torch.Tensor) -> dict[Rotary, tuple[torch.Tensor, torch.Tensor]]:
    """Return each rotary embedding's cosines and sines for (tokens,) positions, (tokens, 1, frequencies)."""
    found = {}
    for rotary in {mixer.rotary for mixer in shape.mixers if isinstance(mixer, Attention) and mixer.rotary}:
        frequencies = torch.tensor(rotary.frequencies, dtype=torch.float32, device=positions.device)
        angles = (positions[:, None].float() * frequencies)[:, None]
        found[rotary] = angles.cos() * rotary.factor, angles.sin() * rotary.factor
    return found


def _turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Return (tokens, heads, size) with the rotary position embedding (Su et al. 2021), values half of what turns apart."""
    turned = cosine.shape[-1]
    cosine, sine = cosine.to(heads.dtype), sine.to(heads.dtype)
    first, second, rest = heads.split([turned, turned, heads.shape[-1] - 2 * turned], dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine, rest), dim=-1)


def _grouped_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: Rows, masks: Sequence[torch.Tensor], scale: float
) -> torch.Tensor:
    """Return (tokens, heads × size) for (tokens, heads, size) queries, where keys and values may have fewer heads."""
    device = query.device.type
    if device == "cpu":  # attention in bfloat16 takes twice as long there (forward and backward, 60 to 200 tokens a row)
        query, key, value = query.float(), key.float(), value.float()
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) if groups > 1 else one for one in (key, value))
    found = []
    with torch.autocast(device, enabled=False), sdpa_kernel(_KERNELS):
        for block, mask in zip(rows.blocks, masks, strict=True):
            queries, keys, values = (block.laid_out(one.flatten(1), one.shape[1]) for one in (query, key, value))
            seen = scaled_dot_product_attention(queries, keys, values, attn_mask=mask.to(query.dtype), scale=scale)
            found.append(block.packed(seen))
    return torch.cat(found)


def _mask(allowed: torch.Tensor) -> torch.Tensor:
    """Return zeros where attention is allowed and the lowest value elsewhere."""
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill(~allowed, torch.finfo(torch.float32).min)


def _position_bias(stack: Any, width: int, *, both_ways: bool) -> torch.Tensor:
    """Return what the first layer adds to every layer's scores by distance, (1, heads, width, width)."""
    attention = stack.block[0].layer[0].SelfAttention
    position = torch.arange(width, device=attention.relative_attention_bias.weight.device)
    buckets = attention._relative_position_bucket(
        position[None, :] - position[:, None],
        bidirectional=both_ways,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias: torch.Tensor = attention.relative_attention_bias(buckets).permute(2, 0, 1)[None]
    return bias


def _self_attention(layer: Any, hidden: torch.Tensor, rows: Rows, biases: Sequence[torch.Tensor]) -> torch.Tensor:
    attention, heads = layer.SelfAttention, layer.SelfAttention.n_heads
    normed = layer.layer_norm(hidden)
    projected = [linear(normed) for linear in (attention.q, attention.k, attention.v)]
    found = []
    for block, bias in zip(rows.blocks, biases, strict=True):
        query, key, value = (block.laid_out(one, heads) for one in projected)
        found.append(block.packed(_attend(attention, query, key, value, bias)))
    added: torch.Tensor = hidden + layer.dropout(attention.o(torch.cat(found)))
    return added


def _cross_attention(
    layer: Any, hidden: torch.Tensor, rows: Rows, states: torch.Tensor, read: Rows, context: torch.Tensor
) -> torch.Tensor:
    attention, heads = layer.EncDecAttention, layer.EncDecAttention.n_heads
    query = attention.q(layer.layer_norm(hidden))
    looked_at = attention.k(states), attention.v(states)
    found = []
    for block in rows.blocks:
        (key, value), present = read.laid_out(looked_at, context[block.rows], heads)
        found.append(block.packed(_attend(attention, block.laid_out(query, heads), key, value, _mask(present[:, None, None, :]))))
    added: torch.Tensor = hidden + layer.dropout(attention.o(torch.cat(found)))
    return added


def _attend(attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return the result of each query, (rows, heads, width, size); T5 does not scale its scores."""
    scores = query @ key.transpose(2, 3) + bias
    weights = scores.float().softmax(-1).type_as(scores)
    return dropout(weights, attention.dropout, attention.training) @ value
