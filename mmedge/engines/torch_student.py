"""Students in torch, as they were saved or in another dtype; quantized ones on a GPU where there is one.

    torch:runs/quickstart/student     torch-bf16:…     torch-cuda-fp16:…

Imports torch when one is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmedge.bundle import learned_of
from mmedge.engines.entry import EngineEntry, OpenedVariant, OpenRequest
from mmedge.errors import MmedgeError, missing_extra
from mmedge.folders import STUDENTS
from mmedge.machine import usable_cores
from mmedge.storage import folder_size
from mmedge.tasks.evaluation_set import form_beside, task_beside

FEW_PARAMETERS = 8_000_000  # up to here a second thread wins nothing where it is alone, and loses half where it is not


def _open(request: OpenRequest) -> OpenedVariant:
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "distill") from None

    from mmedge.engines.torch_decoding import torch_speaker
    from mmedge.students.saved import open_student, student_details, student_precision

    place = Path(request.place)
    if request.device == "cuda" and not torch.cuda.is_available():
        raise MmedgeError("no CUDA device found", "measure it on a machine that has one")
    details = student_details(place)
    saved = student_precision(details)
    if (request.dtype is not None or request.device == "cuda") and saved != "fp32":
        raise MmedgeError(f"{place} is already quantized to {saved}", f"name it without torch-…: {place}")
    device = request.device or ("cuda" if saved != "fp32" and torch.cuda.is_available() else "cpu")
    student = open_student(place, device=device)
    parameters = sum(parameter.numel() for parameter in student.model.parameters())
    used = request.threads or (1 if parameters <= FEW_PARAMETERS else usable_cores())
    torch.set_num_threads(used)
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if request.dtype is not None:
        student.model.to(dtypes[request.dtype])
    limits = details["recipe"]["generation"]
    answers, rationales = int(limits["max_answer_tokens"]), int(limits["max_rationale_tokens"])
    speaker = torch_speaker(student, form_beside(place), answers, rationales)
    return OpenedVariant(
        "torch",
        request.dtype or saved,
        used,
        speaker,
        folder_size(place),
        device,
        task_beside(place),
        work=_step_work(student.model),
        learned=learned_of(details),
    )


def _step_work(model: Any) -> dict[str, int]:
    """Return what one decoding step of a torch model does with its weights: its decoder's linear layers and its head."""
    head, tables = model.get_output_embeddings(), model.get_input_embeddings()
    linears = [head]
    for name, module in model.get_decoder().named_modules():
        # cross-attention keys and values are computed once, before the first token
        once = name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        if getattr(module, "in_features", None) and not once:
            linears.append(module)
    sizes = [module.in_features * module.out_features for module in linears]
    weights = {id(module.weight): module.weight.numel() * module.weight.element_size() for module in linears}
    picked = 0 if id(tables.weight) in weights else tables.weight.numel() * tables.weight.element_size()
    return {"bytes": sum(weights.values()), "operations": 2 * sum(sizes), "table_bytes": picked}


ENTRY = EngineEntry("torch", "a student", _open, devices=("cuda",), dtypes=("bf16", "fp16"), extra="distill", takes=STUDENTS)
