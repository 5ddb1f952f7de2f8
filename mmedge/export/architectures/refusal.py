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
