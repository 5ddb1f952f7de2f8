"""What fused graphs do not implement is refused by name: a config that is silently misread is another model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from mmedge.errors import MmedgeError, printable

S = TypeVar("S")

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
_POSITIONS = (1, 1 << 27)
_FACTORS = (1e-12, 1e6)
# what sizes and factors of a shape may be, by the names that configs have for them
SIZES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "num_heads", "num_hidden_layers"), _COUNTS),
    **dict.fromkeys(("num_layers", "num_decoder_layers", "linear_num_key_heads", "linear_num_value_heads"), _COUNTS),
    **dict.fromkeys(("full_attention_interval", "no_rope_layer_interval", "conv_L_cache", "linear_conv_kernel_dim"), _COUNTS),
    **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern"), _COUNTS),
    **dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "d_model", "d_ff", "d_kv"), _WIDTHS),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "relative_attention_num_buckets"), _WIDTHS),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "relative_attention_max_distance"), _POSITIONS),
    **dict.fromkeys(("original_max_position_embeddings",), _POSITIONS),
    **dict.fromkeys(("sliding_window", "max_window_layers"), (0, 1 << 27)),
    **dict.fromkeys(("rms_norm_eps", "norm_eps", "layer_norm_epsilon"), (1e-30, 1.0)),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), (1.0, 1e12)),
    **dict.fromkeys(("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"), _FACTORS),
    **dict.fromkeys(("query_pre_attn_scalar", "factor", "low_freq_factor", "high_freq_factor", "attention_factor"), _FACTORS),
    "final_logit_softcapping": (0.0, 1e6),
    "partial_rotary_factor": (1e-3, 1.0),
}
_LISTS = ("layer_types", "layers_block_type", "no_rope_layers", "full_attn_idxs")
_ROTARY = ("rope_parameters", "rope_scaling")
RESTORE = "restore the model's own config.json"


def refuse_odd_sizes(config: Mapping[str, Any], where: str = "config.json", hint: str = RESTORE) -> None:
    """Refuse sizes and factors that no model has, in a config, in what it says of its rotary embedding, and of its parts.

    Args:
        config: The model's.
        where: What it was read from, for errors.
        hint: What to do.

    Raises:
        MmedgeError: One is not a number, or beyond what it may be; the message names it.
    """
    for name in _ROTARY:
        if not isinstance(config.get(name), Mapping | None):
            raise MmedgeError(f"{where}: {name} must be an object, found {config[name]!r:.60}", hint)
    rotary = [one for name in _ROTARY if (one := config.get(name))]
    kinds = [one for described in rotary for one in described.values() if isinstance(one, Mapping)]  # one for each kind of layer
    for part in (config, *rotary, *kinds):
        for name in SIZES.keys() & part.keys():
            values = part[name] if name == "intermediate_size" and isinstance(part[name], list) else [part[name]]
            for value in values:
                _refuse_odd(name, value, where, hint)
        for name in {"short_factor", "long_factor"} & part.keys():
            for value in _list(part, name, where, hint):
                _refuse_odd("factor", value, f"{where}: {name}", hint)
    listed, layers = {name: _list(config, name, where, hint) for name in _LISTS}, config.get("num_hidden_layers")
    kinds_of, turns = config.get("layer_types"), listed["no_rope_layers"]
    if layers is not None and ((kinds_of is not None and len(kinds_of) != layers) or 0 < len(turns) < layers):
        name = "no_rope_layers" if 0 < len(turns) < layers else "layer_types"
        raise MmedgeError(f"{where}: {name} has {len(listed[name])} entries for {layers} layers", hint)
    for name, part in config.items():
        if name.endswith("_config") and isinstance(part, Mapping) and name != "quantization_config":
            refuse_odd_sizes(part, f"{where}: {name}", hint)


def _refuse_odd(name: str, value: Any, where: str, hint: str) -> None:
    low, high = SIZES[name]
    kinds: tuple[type, ...]
    if isinstance(low, int):
        kinds, what = (int,), f"a whole number from {low} to {high}"
    else:
        kinds, what = (int, float), f"a number from {low:g} to {high:g}"
    if value is not None and (type(value) not in kinds or not low <= value <= high):
        raise MmedgeError(f"{where}: {name} must be {what}, found {value!r:.60}", hint)


def _list(part: Mapping[str, Any], name: str, where: str, hint: str) -> list[Any]:
    found = part.get(name)
    if found is not None and not isinstance(found, list | tuple):
        raise MmedgeError(f"{where}: {name} must be a list, found {found!r:.60}", hint)
    return list(found or ())


def reader(read: Callable[[Mapping[str, Any]], S]) -> Callable[[Mapping[str, Any]], S]:
    """Return a function that reads a config such that whatever it stumbles over is one error.

    Args:
        read: Reads a config whose sizes are none that no model has.
    """

    @functools.wraps(read)
    def checked(config: Mapping[str, Any]) -> S:
        refuse_odd_sizes(config)
        try:
            return read(config)
        except KeyError as error:
            raise MmedgeError(f"config.json has no {error.args[0]}", RESTORE) from None
        except (ArithmeticError, TypeError, ValueError) as error:
            kind = str(config.get("model_type"))
            raise MmedgeError(f"config.json describes no {printable(kind):.40} model: {error!s:.100}", RESTORE) from None

    return checked


def refused(name: str, value: Any) -> MmedgeError:
    """Return the error of a setting that the graphs do not implement."""
    return MmedgeError(f"config.json: {name} {value!r} is not implemented by the fused graphs", "set export.graphs to auto")


def refuse_others(config: Mapping[str, Any], implemented: frozenset[str] = frozenset()) -> None:
    """Refuse settings that change what is computed, but for those that an architecture implements.

    Args:
        config: The model's.
        implemented: The names of settings that the architecture reads.

    Raises:
        MmedgeError: Another one is set; the message names it.
    """
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
