"""What fused graphs do not implement is refused by name: a config that is silently misread is another model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmedge.errors import MmedgeError

# settings that change what is computed, and the value with which they change nothing
NEUTRAL: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logits_scaling": 1.0,
    "logit_scale": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": None,
    "partial_rotary_factor": 1.0,
    "num_local_experts": None,
    "num_experts": None,
    "quantization_config": None,
    "alibi": False,
    "use_bidirectional_attention": False,
}

_COUNTS = (1, 1 << 10)
_WIDTHS = (1, 1 << 20)
# what sizes and factors of a shape may be, by the names that configs have for them
SIZES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "num_hidden_layers"), _COUNTS),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "linear_num_key_heads", "linear_num_value_heads"), _COUNTS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "d_model", "d_ff", "d_kv"), _WIDTHS),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "relative_attention_num_buckets"), _WIDTHS),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "relative_attention_max_distance"), (1, 1 << 27)),
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_epsilon"), (0.0, 1.0)),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), (1.0, 1e12)),
}


def refuse_odd_sizes(config: Mapping[str, Any]) -> None:
    """Refuse sizes and factors that no model has, at the top of a config and in what it says of its rotary embedding.

    Raises:
        MmedgeError: One is no number, or beyond what it may be; the message names it.
    """
    rotary = [one for name in ("rope_parameters", "rope_scaling") if isinstance(one := config.get(name), Mapping)]
    for part in (config, *rotary):
        for name in SIZES.keys() & part.keys():
            value, (low, high) = part[name], SIZES[name]
            kinds, what = ((int,), "a whole number") if isinstance(low, int) else ((int, float), "a number")
            if value is not None and (type(value) not in kinds or not low <= value <= high):
                raise MmedgeError(
                    f"config.json: {name} must be {what} from {low:g} to {high:g}, found {value!r:.60}",
                    "restore the model's own config.json",
                )


def refused(name: str, value: Any) -> MmedgeError:
    """Return the error of a setting that the graphs do not implement."""
    return MmedgeError(f"config.json: {name} {value!r} is not implemented by the fused graphs", "set export.graphs to auto")


def refuse_others(config: Mapping[str, Any], implemented: frozenset[str] = frozenset()) -> None:
    """Refuse settings that change what is computed, but for those that an architecture implements.

    Args:
        config: The model's.
        implemented: The names of settings that the architecture reads.

    Raises:
        MmedgeError: Another one is set, or a size is none that a model has; the message names it.
    """
    refuse_odd_sizes(config)
    for name, neutral in NEUTRAL.items():
        if name not in implemented and config.get(name, neutral) not in (neutral, None):
            raise refused(name, config[name])


def refuse_unless(config: Mapping[str, Any], name: str, default: Any, *implemented: Any) -> Any:
    """Return a setting, and refuse it where it is none of those that are implemented.

    Args:
        config: The model's.
        name: The setting's.
        default: transformers' for what a config leaves out.
        implemented: The values that are implemented.

    Raises:
        MmedgeError: It is another one; the message names it.
    """
    value = config.get(name, default)
    if value not in implemented:
        raise refused(name, value)
    return value
