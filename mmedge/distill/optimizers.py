"""Optimizers and learning rates of a training, the same for every student."""

from __future__ import annotations

from typing import Any

import torch

from mmedge.distill.muon import Muon
from mmedge.recipe import TrainingSection


def build_optimizers(model: Any, learning_rate: float, training: TrainingSection) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a model: AdamW for all of it, or Muon for its inner matrices and AdamW for the rest.

    Muon is for students from scratch; pretrained weights were made with Adam. So is `training.position_rate`: T5's position
    biases are added to scores that must differ by several units before a head looks at one place, and at the rate of the
    embeddings they do not get there in a short training (embedded task, 600 steps: 72 % of answers with 1, 90 % with 20).
    """
    tables = {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
    named = dict(model.named_parameters())
    if training.optimizer == "muon":
        inner = [p for name, p in named.items() if p.dim() == 2 and id(p) not in tables and "relative_attention" not in name]
    else:
        inner = []
    positions = [parameter for name, parameter in named.items() if "relative_attention" in name]
    chosen = {id(parameter) for parameter in (*inner, *positions)}
    rest = [parameter for parameter in named.values() if id(parameter) not in chosen]
    groups = [
        {"params": [parameter for parameter in rest if parameter.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [parameter for parameter in rest if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    if positions:
        groups.append({"params": positions, "weight_decay": 0.0, "rate": training.position_rate})
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, training.adam_beta2), fused=True)]
    if inner:
        found.append(Muon(inner, lr=learning_rate, weight_decay=training.weight_decay))
    return found


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Return the share of the peak rate at a step: linear warm-up, then linear decay to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))
