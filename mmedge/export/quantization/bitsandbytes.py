"""Students whose weights bitsandbytes rounded: `student-bnb-int8`, `student-bnb-nf4`, in Hugging Face format, for small GPUs.

What is written is what transformers itself would load: `config.json` with a `quantization_config`, safetensors, a tokenizer. The
rounding is done on the CPU, so that it is the same wherever it is done. Embedding, head and norms are float16; T5's `wo` is too,
and becomes float32 when it is opened, since its inputs are too large for float16.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from mmedge.folders import DETAILS
from mmedge.students import dialects
from mmedge.students.bitsandbytes import BitsPrecision, bits_config, kept_in_float, need_bitsandbytes
from mmedge.students.saved import TASK_TOKENS

FLOATS = "float16"
_NOT_COPIED = {DETAILS, *TASK_TOKENS, "config.json", "generation_config.json", "model.safetensors.index.json"}


def write_rounded(student: Path, out: Path, precision: BitsPrecision, finer: Sequence[str] = ()) -> dict[str, str]:
    """Write a student with rounded weights; the caller makes the folder atomic and writes `mmedge.json`.

    Args:
        student: The student's folder, float32.
        out: An existing, empty folder.
        precision: Which numbers.
        finer: Products that stay in floats, beside those that always do, by their modules' names.

    Returns:
        The numbers of every product, by its module's name.

    Raises:
        MmedgeError: bitsandbytes is not installed.
    """
    need_bitsandbytes()
    dialects.quiet()
    config = dialects.load_config(str(student))
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        floats = [*kept_in_float(kind.from_config(config)), *finer]
    bits = bits_config(precision, floats, torch.float16)
    model = dialects.load_model(str(student), config, dtype=torch.float16, quantization_config=bits, device_map={"": "cpu"})
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.half()
    model.save_pretrained(out, safe_serialization=True)  # before anything is computed: see bits.restore_unsupported_linears
    for file in student.iterdir():
        if file.is_file() and file.name not in _NOT_COPIED and file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    return {
        name: FLOATS if type(module) is torch.nn.Linear else precision
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
