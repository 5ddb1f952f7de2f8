"""Models in GGUF files: dequantized by transformers, with what its conversion leaves out.

Special tokens are the file's, and a table that the file holds twice is one table again. Does not know where a file comes from
(`sources.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import tokenizers
import torch
import transformers

from mmedge.export.architectures.refusal import refuse_odd_sizes
from mmedge.students import dialects
from mmedge.students.weight_files import refuse_adapter

_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
# sizes and factors behind the architecture's name, and configs' names for them
_SIZES = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
_SAME = 0.2  # relative difference of two tables: roundings of one to 4 and more bits differ by 0.1 and less, others by 1 and more


def load_gguf(path: Path, tokenizer_name: str | None, arguments: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model and its tokenizer from a GGUF file.

    Args:
        path: The file.
        tokenizer_name: Where the tokenizer comes from, where not from the file.
        arguments: For `from_pretrained`, such as `dtype`.

    Raises:
        MmedgeError: There is an adapter beside the file, or a size or factor is none that a model has.
        ValueError: The file's weights are not those of the model that it describes.
        Exception: Whatever gguf, tokenizers and transformers raise for a broken file.
    """
    refuse_adapter(path.parent)
    reader = gguf.GGUFReader(path)
    refuse_odd_sizes(_sizes(reader), path.name, "fetch or convert the file again")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_name or str(path.parent), gguf_file=path.name)
    known = dialects.gguf_arguments(path.name)
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        str(path.parent), output_loading_info=True, ignore_mismatched_sizes=dialects.REPORTS_SHAPES, **known, **arguments
    )
    dialects.refuse_other_weights(found["missing_keys"], found["unexpected_keys"], found["mismatched_keys"])
    _trust_tokens(tokenizer, model.config, reader)
    _tie_same_table(model, reader)
    return model, tokenizer


def _sizes(reader: gguf.GGUFReader) -> dict[str, Any]:
    """Return the sizes and factors that a file states, by the names that configs have for them; lists by layer are left out."""
    stated = {name.partition(".")[2]: field.contents() for name, field in reader.fields.items() if name.endswith(tuple(_SIZES))}
    return {_SIZES[name]: value for name, value in stated.items() if name in _SIZES and not isinstance(value, list)}


def licence_in(path: Path) -> str | None:
    """Return the licence that a GGUF file states; None where it states none."""
    field = gguf.GGUFReader(path).fields.get("general.license")
    return None if field is None else str(field.contents())


def _trust_tokens(tokenizer: Any, config: Any, reader: gguf.GGUFReader) -> None:
    """Set the special tokens that the file names; transformers' conversion may guess others (SmolLM2's end token, for one)."""
    adds_bos = reader.fields.get("tokenizer.ggml.add_bos_token")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(config.eos_token_id)
    if config.pad_token_id is not None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id)
    if adds_bos is not None and not bool(adds_bos.contents()):
        tokenizer.backend_tokenizer.post_processor = tokenizers.processors.Sequence([])


def _tie_same_table(model: Any, reader: gguf.GGUFReader) -> None:
    """Tie a head to the embedding where both are roundings of one table, and keep the finer.

    Some files hold the table of a tied model twice, since their head is quantized finer than their embedding.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is embedding.weight or head.weight.shape != embedding.weight.shape:
        return
    difference, norm = 0.0, 0.0
    for ours, theirs in zip(embedding.weight.detach().split(8192), head.weight.detach().split(8192), strict=True):
        difference += float(torch.linalg.vector_norm((ours - theirs).float())) ** 2
        norm += float(torch.linalg.vector_norm(theirs.float())) ** 2
    if not difference <= _SAME**2 * norm:
        return
    bits = {tensor.name: tensor.n_bytes / tensor.n_elements for tensor in reader.tensors if tensor.name in (_EMBEDDING, _HEAD)}
    if bits.get(_HEAD, 0.0) > bits.get(_EMBEDDING, 0.0):
        with torch.no_grad():
            embedding.weight.copy_(head.weight)
    model.config.tie_word_embeddings = True
    model.tie_weights()
