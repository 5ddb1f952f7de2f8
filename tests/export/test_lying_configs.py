"""Configs that lie: whatever stands in a field, a shape is read or one error names what is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from mmedge.errors import MmedgeError
from mmedge.export.architectures import ARCHITECTURES
from mmedge.export.architectures.refusal import SIZES, refuse_odd_sizes
from tests.export.published import CONFIGS

LIES: tuple[Any, ...] = (None, 0, -1, 1e30, float("nan"), float("inf"), "8", "x", [], {}, True, [1, 2], 3, 10**6, 10**9)
LLAMA = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 512, "vocab_size": 100, "intermediate_size": 128,
    "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}  # fmt: skip
T5 = {"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
HONEST = {**CONFIGS, "llama": LLAMA, "t5": T5}


@pytest.mark.parametrize("name", list(HONEST))
def test_a_lie_in_any_field_is_one_error_or_none(name: str) -> None:
    config = HONEST[name]
    read = ARCHITECTURES[config["model_type"]].read_shape
    read(config)
    inner = [(field, part) for field in ("rope_scaling", "rope_parameters") if config.get(field) for part in config[field]]
    for path in [*((field,) for field in config if field != "model_type"), *inner]:
        for lie in LIES:
            lying = copy.deepcopy(config)
            place = lying if len(path) == 1 else lying[path[0]]
            place[path[-1]] = lie
            by_layer = path[-1] == "intermediate_size" and isinstance(lie, list)
            honest = lie is None or path[-1] not in SIZES or type(lie) in (int, float) or by_layer
            try:
                read(lying)
            except MmedgeError as error:
                assert "\n" not in error.what and len(error.what) < 300
            else:
                assert honest, (path, lie)
        lying = copy.deepcopy(config)
        del (lying if len(path) == 1 else lying[path[0]])[path[-1]]
        try:
            read(lying)
        except MmedgeError as error:
            assert "\n" not in error.what


@pytest.mark.parametrize("name", list(SIZES))
def test_sizes_and_factors_are_positive_numbers_of_some_size(name: str) -> None:
    lies: tuple[Any, ...] = (
        -1,
        1e30,
        float("nan"),
        float("inf"),
        10**9 if isinstance(SIZES[name][0], int) else 1e13,
        "3",
        True,
        {},
    )
    for lie in lies:
        with pytest.raises(MmedgeError, match=rf"^config\.json: {name} must be a"):
            refuse_odd_sizes({name: lie})
        with pytest.raises(MmedgeError, match=rf"^config\.json: text_config: {name} must be a"):
            refuse_odd_sizes({"text_config": {name: lie}})
    if name not in ("sliding_window", "max_window_layers", "final_logit_softcapping"):
        with pytest.raises(MmedgeError, match=rf"{name} must be a"):
            refuse_odd_sizes({name: 0})
    refuse_odd_sizes({name: None})


def test_sizes_by_layer_are_read() -> None:
    refuse_odd_sizes({"intermediate_size": [128, 256]})
    with pytest.raises(MmedgeError, match="intermediate_size must be a whole number"):
        refuse_odd_sizes({"intermediate_size": [128, -1]})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 2 layers"),
        ({"layer_types": 5}, "layer_types must be a list"),
        ({"rope_scaling": 3}, "rope_scaling must be an object, found 3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "config.json has no factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor must be a number from"),
        ({"rms_norm_eps": None}, "config.json describes no llama model"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(MmedgeError, match=complaint):
        ARCHITECTURES["llama"].read_shape({**LLAMA, **changes})
