"""Low-rank adapters (Hu et al. 2021), through peft: put into a student before training, merged into its weights after it."""

from __future__ import annotations

from typing import Any

from mmedge.errors import MmedgeError, missing_extra
from mmedge.recipe import LoraSection
from mmedge.students.frozen import trainable_layers
from mmedge.students.student import TorchStudent


def add_adapters(student: TorchStudent, section: LoraSection, seed: int, frozen: int = 0) -> None:
    """Put adapters into a student's linear layers and freeze everything else.

    Args:
        student: Changed in place.
        section: Which layers, and the adapters' size.
        seed: Of the adapters' first weights.
        frozen: How many of its first layers get none.

    Raises:
        MmedgeError: peft is not installed, no layer has such a name, or none would be left above the frozen ones.
    """
    try:
        import peft
    except ImportError:
        raise missing_extra("peft", "distill") from None
    import torch

    torch.manual_seed(seed)
    targets: Any = section.targets if isinstance(section.targets, str) else list(section.targets)
    if frozen:
        targets = _linear_above(student, frozen, None if isinstance(targets, str) else targets)
    kind = peft.TaskType.SEQ_2_SEQ_LM if student.family == "encoder-decoder" else peft.TaskType.CAUSAL_LM
    config = peft.LoraConfig(
        r=section.rank, lora_alpha=section.alpha, lora_dropout=section.dropout, target_modules=targets, task_type=kind, bias="none"
    )
    try:
        student.adapted = peft.get_peft_model(student.model, config)
    except ValueError as error:
        reason = str(error).split(". ")[0][:200]
        raise MmedgeError(f"student.lora.targets: {reason}", "name layers of the student, or set it to all-linear") from None


def _linear_above(student: TorchStudent, frozen: int, targets: list[str] | None) -> list[str]:
    """Return the whole names of the linear layers behind the frozen ones; of those with certain names where they are given."""
    import torch

    above = {id(module) for layer in trainable_layers(student, frozen)[frozen:] for module in layer.modules()}
    linear = [name for name, module in student.model.named_modules() if isinstance(module, torch.nn.Linear) and id(module) in above]
    return [name for name in linear if targets is None or name in targets or name.rpartition(".")[2] in targets] or list(
        targets or ()
    )


def finish_training(student: TorchStudent) -> None:
    """Merge adapters into the weights, and remove them; nothing is frozen any more."""
    if student.adapted is not None:
        student.model = student.adapted.merge_and_unload()
        student.adapted = None
    for parameter in student.model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
