"""Low-rank adapters (Hu et al. 2021), through peft: put into a student before training, merged into its weights after it."""

from __future__ import annotations

from typing import Any

from mmedge.errors import MmedgeError, missing_extra
from mmedge.recipe import LoraSection
from mmedge.students.student import TorchStudent


def add_adapters(student: TorchStudent, section: LoraSection, seed: int) -> None:
    """Put adapters into a student's linear layers and freeze everything else.

    Raises:
        MmedgeError: peft is not installed, or no layer has such a name.
    """
    try:
        import peft
    except ImportError:
        raise missing_extra("peft", "distill") from None
    import torch

    torch.manual_seed(seed)
    targets: Any = section.targets if isinstance(section.targets, str) else list(section.targets)
    kind = peft.TaskType.SEQ_2_SEQ_LM if student.family == "encoder-decoder" else peft.TaskType.CAUSAL_LM
    config = peft.LoraConfig(
        r=section.rank, lora_alpha=section.alpha, lora_dropout=section.dropout, target_modules=targets, task_type=kind, bias="none"
    )
    try:
        student.adapted = peft.get_peft_model(student.model, config)
    except ValueError as error:
        reason = str(error).split(". ")[0][:200]
        raise MmedgeError(f"student.lora.targets: {reason}", "name layers of the student, or set it to all-linear") from None


def merge_adapters(student: TorchStudent) -> None:
    """Merge the adapters into the weights, and remove them."""
    if student.adapted is not None:
        student.model = student.adapted.merge_and_unload()
        student.adapted = None
        for parameter in student.model.parameters():
            parameter.requires_grad_(True)
