"""The one place that knows what differs between transformers 4.57 and 5.x.

- The argument for the dtype is `dtype` in both, but 4.57 saves `torch_dtype` into configs.
- A GGUF file is dequantized by 4.57 always, by 5.x on request (`GgufConfig(dequantize=True)`).
- T5: 5.x writes `scale_decoder_outputs` and says `tie_word_embeddings: true` also of a v1.1 model whose head is its own; 4.57
  reads `tie_word_embeddings` as "scale the logits", so it would compute another model. 5.x builds v1.1 models with a tied head,
  which it does not save; 4.57 would initialize it at random.
- The rotary embedding: 5.x writes `rope_parameters`, 4.57 reads `rope_theta` and `rope_scaling` and would take its defaults.
- What a step hands to the next is `cache` from 5.24 on, `past_key_values` before, as an argument and in outputs.
- A quantized model: 5.x leaves what is not quantized in the dtype that it was saved in, whatever is asked for.
- A tokenizer: 5.x calls the plain one `TokenizersBackend` and lists `extra_special_tokens`, which 4.57 wants as a dictionary.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import re
from collections.abc import Collection
from typing import Any

import torch
import transformers
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from mmedge.export.architectures import ARCHITECTURES
from mmedge.export.architectures.refusal import refuse_odd_sizes
from mmedge.students.weight_files import check_place

# weights beside those of the text model: of images and sound, of heads that guess further tokens, and what is computed anyway
_OTHER_PARTS = re.compile(
    r"(^|\.)(visual|vision\w*|audio\w*|embed_vision|embed_audio|multi_modal_projector|mm_projector|mtp\w*)\."
    r"|rotary_emb\.inv_freq$|(^|\.)position_ids$"
)
MAJOR = int(transformers.__version__.split(".")[0])
REPORTS_SHAPES = MAJOR >= 5  # 5.x says which shapes differ only where it may ignore them; 4.57 where it may not


def gguf_arguments(file_name: str) -> dict[str, Any]:
    """Return what `from_pretrained` needs to read a GGUF file as float32 weights; its own progress bar is switched off."""
    reader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    bar = getattr(reader, "tqdm", None)
    if isinstance(bar, type):
        vars(reader)["tqdm"] = functools.partial(bar, disable=True)
    arguments: dict[str, Any] = {"gguf_file": file_name}
    if MAJOR >= 5 and hasattr(transformers, "GgufConfig"):
        arguments["quantization_config"] = transformers.GgufConfig(dequantize=True)
    return arguments


def load_config(place: str, **arguments: Any) -> Any:
    """Return the config of a hub id or folder, so that this version computes the model that either version wrote.

    Raises:
        MmedgeError: A size or factor is none that a model has.
        ValueError: It is in 5.x's words, and 4.57 has none for it.
    """
    ARCHITECTURES.load_plugins()  # which may bring models that transformers does not know
    _check_config(place, arguments)
    config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=False, **arguments)
    if MAJOR < 5:
        _read_as_5(config)
    return config


def _check_config(place: str, arguments: dict[str, Any]) -> None:
    """Refuse odd sizes before transformers makes anything of them, such as a list of a billion layers.

    Raises:
        MmedgeError: A size or factor is none that a model has.
        OSError: There is no config.
    """
    written, _ = transformers.PretrainedConfig.get_config_dict(place, **arguments)
    refuse_odd_sizes(written)


def _read_as_5(config: Any) -> None:
    """Translate a config's fields of 5.x, which 4.57 silently ignores, to those of 4.57."""
    scaled = getattr(config, "scale_decoder_outputs", None)
    if config.model_type == "t5" and scaled is not None:
        config.tie_word_embeddings = bool(scaled)
    rotary = getattr(config, "rope_parameters", None)
    if not rotary:
        return
    if any(isinstance(value, dict) for value in rotary.values()):
        raise ValueError("rope_parameters differ from layer to layer, which needs transformers 5")
    rotary = dict(rotary)
    for name in ("rope_theta", "partial_rotary_factor"):
        if rotary.get(name) is not None:
            setattr(config, name, rotary[name])
        rotary.pop(name, None)
    kind = rotary.get("rope_type") or rotary.get("type") or "default"
    config.rope_scaling = None if kind == "default" else rotary | {"rope_type": kind}


def scales_outputs(config: Any) -> bool:
    """Whether the states are scaled before the head, as in T5's original form: 4.57 says so by `tie_word_embeddings`."""
    explicit = getattr(config, "scale_decoder_outputs", None)
    return bool(config.is_encoder_decoder and (config.tie_word_embeddings if explicit is None else explicit))


def load_model(place: str, config: Any, **arguments: Any) -> Any:
    """Load a model's weights (safetensors), with a head of its own exactly where the weights have one.

    Args:
        place: A hub id or folder.
        config: What `load_config` returned.
        arguments: For `from_pretrained`, such as `dtype`, `revision` and `quantization_config`.

    Raises:
        MmedgeError: There is an adapter beside the weights, or weights are in other files than safetensors.
        ValueError: A weight is missing, of another shape, or left over, so that the config is another model's.
    """
    if getattr(config, "transformers_weights", None) is not None:
        raise ValueError("config.json: transformers_weights names other weights than those of the folder")
    if revision := check_place(place, arguments.get("revision")):
        arguments["revision"] = revision
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model, found = kind.from_pretrained(
        place,
        config=config,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=REPORTS_SHAPES,
        **arguments,
    )
    missing = set(found["missing_keys"])
    if config.model_type == "t5" and "lm_head.weight" in missing:
        # 5.x ties every T5 head that the file does not have; 4.57 knows no such head where logits are not scaled
        model.lm_head.weight.data.copy_(model.shared.weight.data)
        missing.discard("lm_head.weight")
    quantized = "quantization_config" in arguments or getattr(config, "quantization_config", None) is not None
    if quantized and isinstance(dtype := arguments.get("dtype"), torch.dtype):
        _cast_unquantized(model, dtype)
    missing, unused = (set(), set()) if quantized else (missing, found["unexpected_keys"])  # quantized ones have other names
    refuse_other_weights(missing, unused, found["mismatched_keys"])
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if MAJOR >= 5 and head is not None and head.weight is not embedding.weight:
        model.config.tie_word_embeddings = False  # 5.x says true of every T5; what is saved shall say what it is
    return model


def refuse_other_weights(missing: Collection[str], unused: Collection[str], mismatched: Collection[tuple[Any, ...]]) -> None:
    """Refuse weights that are not those of the model that a config describes.

    Args:
        missing: Names that the model has and the weights have not.
        unused: Names that the weights have and the model has not.
        mismatched: Names with two shapes, those of the weights and of the model.

    Raises:
        ValueError: There are any; but what belongs to a model's other parts may be left over.
    """
    unused = [name for name in unused if not _OTHER_PARTS.search(name)]
    if mismatched:
        name, stored, wanted = min(mismatched)[:3]
        raise ValueError(f"the weight {name} has shape {list(stored)}, and the config says {list(wanted)}{_more(mismatched)}")
    if missing:
        raise ValueError(f"the weights lack {min(missing)}{_more(missing)}")
    if unused:
        raise ValueError(f"the config has no place for the weight {min(unused)}{_more(unused)}")


def _more(found: Collection[Any]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""


def _cast_unquantized(model: Any, dtype: torch.dtype) -> None:
    """Give what is not quantized the dtype that was asked for; what overflows in float16, as T5's `wo` does, is float32."""
    kept = set(model._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(torch.float32 if kept & set(name.split(".")) else dtype)


def load_tokenizer(place: str, *, plain: bool = False, **arguments: Any) -> Any:
    """Return the tokenizer of a hub id or folder, whichever version saved it.

    Args:
        place: A hub id or folder.
        plain: Take `tokenizer.json` as it is, whatever class the configuration names.
        arguments: For `from_pretrained`, such as `revision`.

    Raises:
        MmedgeError: The config beside it has a size or factor that no model has.
    """
    with contextlib.suppress(OSError):  # a tokenizer may have no config beside it
        _check_config(place, arguments)  # where there is one, transformers reads it first
    arguments["trust_remote_code"] = False
    if MAJOR < 5:
        written = get_tokenizer_config(place, **arguments)
        extra = written.get("extra_special_tokens")
        if isinstance(extra, list):  # 4.57 wants names for them
            arguments |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
        plain = plain or written.get("tokenizer_class") == "TokenizersBackend"  # 5.x's name of it
    kind = transformers.PreTrainedTokenizerFast if plain else transformers.AutoTokenizer
    return kind.from_pretrained(place, **arguments)


def cache_argument(model: Any) -> str:
    """Return what a model's forward pass calls its cache, in its arguments and in what it returns."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def quiet() -> None:
    """Silence transformers' own warnings and progress bars; errors are still raised."""
    transformers.logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of a kernel that it would download
    transformers.utils.logging.disable_progress_bar()
