"""A student as a GGUF file, so that llama.cpp can be measured beside its bundles.

    python -m mmedge.export.gguf runs/svamp-smollm2/student runs/svamp-smollm2/model-q8.gguf --format Q8_0
    mmedge bench runs/svamp-smollm2 llama.cpp:runs/svamp-smollm2/model-q8.gguf

Students of Llama's kind (Llama, SmolLM2, TinyLlama, Mistral without a window), Qwen 2, 2.5 and 3, and Gemma 3, with a byte-level
BPE tokenizer. Prompts go to llama.cpp as token ids, so that its own splitting of texts is not used; the file says `default` for
it, which is not every tokenizer's. A student without a tokenizer becomes a file without a vocabulary: enough to be timed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MmedgeError, missing_extra
from mmedge.export.architectures.decoder import EMBEDDING, Attention, DecoderShape
from mmedge.export.architectures.gemma3 import GEMMA3
from mmedge.export.architectures.llama import LLAMA
from mmedge.export.weights import HEAD, WeightFiles, has_own_head
from mmedge.storage import atomic_file, read_json

GgufFormat = Literal["F32", "F16", "Q8_0", "Q4_0"]
_BLOCK = 32  # weights that share a scale in Q8_0 and Q4_0
_LAYER = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
}
_BIASES = {f"self_attn.{name}_proj.bias": f"attn_{name}.bias" for name in "qkv"}
_HEAD_NORMS = {f"self_attn.{name}_norm.weight": f"attn_{name}_norm.weight" for name in "qk"}
_FOUR_NORMS = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}


@dataclass(frozen=True)
class _Kind:
    """How llama.cpp stores a kind of model.

    Attributes:
        name: What llama.cpp calls it.
        layer: Our name of each of a layer's weights, and its own.
        interleaved: Whether values that are rotated together are neighbours, not half a head apart.
    """

    name: str
    layer: dict[str, str] = field(default_factory=lambda: _LAYER)
    interleaved: bool = False


_KINDS = {
    "llama": _Kind("llama", interleaved=True),
    "mistral": _Kind("llama", interleaved=True),
    "qwen2": _Kind("qwen2", _LAYER | _BIASES),
    "qwen3": _Kind("qwen3", _LAYER | _HEAD_NORMS),
    "gemma3_text": _Kind("gemma3", _LAYER | _FOUR_NORMS | _HEAD_NORMS),
}
_GEMMA_BASE, _GEMMA_WINDOW_BASE = 1e6, 1e4  # of the rotary embeddings; the second one is in llama.cpp's code
_NORMAL, _CONTROL, _UNUSED = 1, 3, 5  # llama.cpp's kinds of tokens


def write_gguf(student: Path, path: Path, format_: GgufFormat = "Q8_0") -> None:
    """Write a student's weights and vocabulary as GGUF, version 3.

    Args:
        student: A student folder in Hugging Face format.
        path: The file.
        format_: How linear layers and embeddings are stored; norms, and rows that are not a multiple of a block, stay float32.

    Raises:
        MmedgeError: The package `gguf` is missing, or the student has something that is not written here.
    """
    try:
        import gguf
    except ImportError:
        raise missing_extra("gguf", "distill") from None
    config = read_json(student / "config.json")
    kind = _KINDS.get(config["model_type"])
    if kind is None:
        raise _refused(student, f"model_type {config['model_type']!r}")
    shape = (GEMMA3 if kind.name == "gemma3" else LLAMA).read_shape(config)
    attention = _attention(student, kind, shape)
    weights = WeightFiles(student)
    names = _names(kind, len(shape.mixers), has_own_head(weights, EMBEDDING))
    if unknown := sorted(set(weights) - names.keys() - {HEAD}):
        raise _refused(student, f"the weight {unknown[0]}")
    with atomic_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, kind.name)
        _describe(writer, config, shape, attention)
        if (student / "tokenizer.json").is_file():
            _vocabulary(writer, student, int(config["vocab_size"]))
        else:
            writer.add_tokenizer_model("no_vocab")
        if (factors := _rotary_factors(_base(config), attention)) is not None:
            writer.add_tensor("rope_freqs.weight", factors)
        for theirs, ours in names.items():
            weight = weights[theirs]
            if kind.interleaved and ours.endswith(("attn_q.weight", "attn_k.weight")):
                weight = _interleaved(weight, attention.heads if ours.endswith("attn_q.weight") else attention.kv_heads)
            if shape.zero_centred and ours.endswith("norm.weight"):
                weight = weight + 1.0
            whole = weight.ndim == 1 or (format_ in ("Q8_0", "Q4_0") and weight.shape[1] % _BLOCK)
            stored = gguf.GGMLQuantizationType["F32" if whole else format_]
            writer.add_tensor(ours, gguf.quants.quantize(weight, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _refused(student: Path, what: str) -> MmedgeError:
    return MmedgeError(
        f"{student}: {what} cannot be written as GGUF by mmedge", "convert it with llama.cpp's convert_hf_to_gguf.py"
    )


def _attention(student: Path, kind: _Kind, shape: DecoderShape) -> Attention:
    """Return a layer's attention that sees all of the text, where llama.cpp's code computes what the student does.

    Raises:
        MmedgeError: It computes something else.
    """
    layers = [mixer for mixer in shape.mixers if isinstance(mixer, Attention)]
    every_sixth = [bool(layer.window) == bool((place + 1) % 6) for place, layer in enumerate(layers)]
    if kind.name != "gemma3":
        if any(layer.window for layer in layers):
            raise _refused(student, "sliding windows")
        return layers[0]
    whole = next((layer for layer in layers if not layer.window), None)
    if not all(every_sixth) or whole is None:
        raise _refused(student, "layers of another order than five with a window and one without")
    if any(layer.scale != layer.head_width**-0.5 for layer in layers) or shape.logits_cap:
        raise _refused(student, "another scale of the attention, or a cap of the logits")
    if any(_rotary_factors(base, layer) is not None for layer, base in ((whole, _GEMMA_BASE), (layers[0], _GEMMA_WINDOW_BASE))):
        raise _refused(student, "a scaled rotary embedding, or one of another base")
    return whole


def _names(kind: _Kind, layers: int, own_head: bool) -> dict[str, str]:
    """Return our name of each weight, and llama.cpp's."""
    found = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    if own_head:
        found[HEAD] = "output.weight"
    for layer in range(layers):
        found |= {f"model.layers.{layer}.{ours}": f"blk.{layer}.{theirs}" for ours, theirs in kind.layer.items()}
    return found


def _interleaved(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Return queries' or keys' rows in llama.cpp's order: values rotated together are neighbours, not half a head apart."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def _base(config: dict[str, Any]) -> float:
    if config["model_type"] == "gemma3_text":
        return _GEMMA_BASE
    rotary = config.get("rope_parameters") or {}
    return float(rotary.get("rope_theta") or config.get("rope_theta") or 10000.0)


def _rotary_factors(base: float, attention: Attention) -> NDArray[np.float32] | None:
    """Return what llama.cpp divides the plain rotary frequencies by, (head_width / 2,); None where they are the plain ones."""
    assert attention.rotary is not None
    plain = base ** (-np.arange(0, attention.head_width, 2) / attention.head_width)
    factors = (plain / np.array(attention.rotary.frequencies)).astype(np.float32)
    return None if np.allclose(factors, 1.0, rtol=1e-4) else factors


def _describe(writer: Any, config: dict[str, Any], shape: DecoderShape, attention: Attention) -> None:
    writer.add_context_length(int(config.get("max_position_embeddings") or shape.positions))
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_block_count(len(shape.mixers))
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_width)
    writer.add_value_length(attention.head_width)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(attention.head_width)
    writer.add_rope_freq_base(_base(config))
    writer.add_vocab_size(int(config["vocab_size"]))
    if windows := {mixer.window for mixer in shape.mixers if isinstance(mixer, Attention) and mixer.window}:
        writer.add_sliding_window(max(windows))


def _vocabulary(writer: Any, student: Path, size: int) -> None:
    tokenizer = read_json(student / "tokenizer.json")
    model = tokenizer["model"]
    steps = [step.get("type") for step in (tokenizer.get("decoder") or {}).get("decoders", [tokenizer.get("decoder") or {}])]
    if model.get("type") != "BPE" or "ByteLevel" not in steps:
        raise MmedgeError(f"{student}: its tokenizer is not a byte-level BPE", "convert it with llama.cpp's convert_hf_to_gguf.py")
    texts = {place: text for text, place in model["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer.get("added_tokens", [])}
    texts |= special
    places = range(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([texts.get(place, f"<unused{place}>") for place in places])
    writer.add_token_types([_CONTROL if place in special else _NORMAL if place in texts else _UNUSED for place in places])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if merges:
        writer.add_token_merges(merges)
    details = read_json(student / "mmedge.json") if (student / "mmedge.json").is_file() else {}
    tokens = details.get("special_tokens") or read_json(student / "config.json")
    for name, add in (("eos", writer.add_eos_token_id), ("bos", writer.add_bos_token_id), ("pad", writer.add_pad_token_id)):
        value = tokens.get(name, tokens.get(f"{name}_token_id"))
        if isinstance(value, int):
            add(value)


def main() -> None:
    """Start from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path, help="a student's folder")
    parser.add_argument("file", type=Path, help="the GGUF file")
    parser.add_argument("--format", "--numbers", dest="format_", choices=get_args(GgufFormat), default="Q8_0")
    options = parser.parse_args()
    try:
        write_gguf(options.student, options.file, options.format_)
    except MmedgeError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
