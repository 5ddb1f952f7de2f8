"""What a student computes on calibration questions: the inputs of every linear layer, and how much its outputs matter.

A forward pass gives the inputs' second moments, which GPTQ quantizes by; a backward pass gives the loss's gradient at each
linear layer's outputs, and with both the loss that quantizing a matrix costs, to second order: ½ Σ gᵢ² (Δ H Δᵀ)ᵢᵢ, where Δ is the
quantization error, H the inputs' second moments, and g² the outputs' mean squared gradients (the diagonal of the empirical
Fisher information, as in Kim et al. 2023, SqueezeLLM).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmedge.engines.torch_decoding import batch_rows, torch_speaker
from mmedge.progress import Progress
from mmedge.students.encoded import EncodedLesson, EncodedSegment, EncodedTarget
from mmedge.students.passes import LossPass
from mmedge.students.student import TorchStudent
from mmedge.tasks.base import Example
from mmedge.tasks.prompts import Context, Kind

COARSEST = 2.0  # times the median range of single questions; beyond it, static ranges cost what half a bit of weights would
MARGIN = 0.05  # by which a range is widened on both sides, for questions other than the calibration questions
EXPLAINED = 16  # questions whose rationale is also written, which takes most of the time


@dataclass(frozen=True)
class Observed:
    """What was observed of a linear layer.

    Attributes:
        moments: The mean of x · xᵀ over its inputs, (inputs, inputs).
        gradients: The mean square of the loss's gradient at its outputs, (outputs,); None where it was not asked for.
    """

    moments: NDArray[np.float32]
    gradients: NDArray[np.float32] | None

    def loss_of(self, change: NDArray[np.float32]) -> float:
        """Return the loss that a change of the matrix, (outputs, inputs), costs, in nats per token, to second order."""
        if self.gradients is None:
            raise ValueError("observed without gradients")
        moved = ((change @ self.moments) * change).sum(axis=1)
        return float(0.5 * (moved * self.gradients).sum())


class _Watch:
    """Sums up what goes through the modules of one linear layer."""

    def __init__(self, modules: Sequence[Any], *, gradients: bool) -> None:
        self.moments: torch.Tensor | None = None
        self.squares: list[torch.Tensor | None] = [None] * len(modules)
        self.rows = 0
        self._handles = [modules[0].register_forward_pre_hook(self._inputs)]
        if gradients:
            for index, module in enumerate(modules):
                self._handles.append(module.register_full_backward_hook(self._backward(index)))

    def _inputs(self, module: Any, inputs: Any) -> None:
        rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
        self.rows += len(rows)
        found = rows.T @ rows
        self.moments = found if self.moments is None else self.moments.add_(found)

    def _backward(self, index: int) -> Any:
        def seen(module: Any, inputs: Any, outputs: Any) -> None:
            gradient = outputs[0].detach().reshape(-1, outputs[0].shape[-1]).float()
            found, before = (gradient**2).sum(0), self.squares[index]
            self.squares[index] = found if before is None else before + found

        return seen

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def observed(self, tokens: int) -> Observed | None:
        if self.moments is None:
            return None
        gradients = None
        if all(square is not None for square in self.squares):
            gradients = (torch.cat([square for square in self.squares if square is not None]) / tokens).cpu().numpy()
        return Observed((self.moments / self.rows).cpu().numpy(), gradients)


def observe(
    student: TorchStudent,
    questions: Sequence[Example],
    linears: Mapping[str, tuple[str, ...]],
    max_answer_tokens: int,
    max_rationale_tokens: int,
    progress: Progress,
    *,
    gradients: bool = False,
    explains: bool = True,
) -> dict[str, Observed]:
    """Let a student read questions and its own answers and rationales, and observe its linear layers.

    Args:
        student: The torch student; its weights do not change.
        questions: Calibration questions.
        linears: The weights of each linear layer by its name.
        max_answer_tokens: The longest answer.
        max_rationale_tokens: The longest rationale.
        progress: Where progress is shown.
        gradients: Whether the loss's gradients are needed too, which takes twice as long.
        explains: Whether it has learned to write rationales; what it would write otherwise is not what it is used for.

    Returns:
        What was observed of each linear layer, by name; layers that were not used are left out.
    """
    lessons = own_texts(student, questions, max_answer_tokens, max_rationale_tokens, EXPLAINED if explains else 0)
    watches = {name: _Watch(modules, gradients=gradients) for name, modules in modules_of(student.model.eval(), linears).items()}
    trainable = {parameter: parameter.requires_grad for parameter in student.model.parameters()}
    table = student.model.get_input_embeddings().weight
    reading, learned = LossPass(student.model, student.encoder), 0
    try:
        for parameter in trainable:
            parameter.requires_grad_(parameter is table)  # gradients flow through the network, but no weight gets one
        with progress.task("calibrating", len(lessons)) as step, torch.set_grad_enabled(gradients):
            for lesson in lessons:
                loss = reading([lesson])[0].sum()  # one at a time: no padding among the inputs
                learned += sum(len(segment.ids) for target in lesson.targets for segment in target.segments)
                if gradients:
                    loss.backward()
                    table.grad = None
                step.advance(1)
    finally:
        for watch in watches.values():
            watch.close()
        for parameter, before in trainable.items():
            parameter.requires_grad_(before)
    found = {name: watch.observed(max(1, learned)) for name, watch in watches.items()}
    return {name: seen for name, seen in found.items() if seen is not None}


def own_texts(
    student: TorchStudent, questions: Sequence[Example], max_answer_tokens: int, max_rationale_tokens: int, explained: int
) -> list[EncodedLesson]:
    """Return questions with what the student writes to each: the answer, and to `explained` of them the rationale."""
    speaker, rows = torch_speaker(student), batch_rows(student)
    contexts = [speaker.reasoning_context(example) for example in questions]
    answers = speaker.write_all("predict", contexts, max_answer_tokens, rows)
    rationales = speaker.write_all("explain", contexts[:explained], max_rationale_tokens, rows)
    longest, lessons = max(max_answer_tokens, max_rationale_tokens), []
    for index, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        texts: list[tuple[Kind, str]] = [("predict", answer)]
        if index < len(rationales):
            texts.append(("explain", rationales[index]))
        targets = tuple(_target(student, kind, context, text, longest) for kind, text in texts)
        lessons.append(EncodedLesson(student.encoder.context(context), targets))
    return lessons


def modules_of(model: Any, linears: Mapping[str, tuple[str, ...]]) -> dict[str, list[Any]]:
    """Return the modules whose weights each linear layer of the graphs multiplies by, where the model has them all."""
    modules = dict(model.named_modules())
    # a table that is looked up in and multiplied by: quantizing it well for the product changes what is looked up but little
    modules |= {name: model.get_output_embeddings() for name, one in modules.items() if one is model.get_input_embeddings()}
    named = {name: [modules.get(weight.removesuffix(".weight")) for weight in weights] for name, weights in linears.items()}
    return {name: found for name, found in named.items() if None not in found}


def _target(student: TorchStudent, kind: Kind, context: Context, text: str, most: int) -> EncodedTarget:
    ids = tuple(student.encoder.target(text, most))
    return EncodedTarget(kind, student.encoder.begun(kind, context), (EncodedSegment(ids, 1.0, kind),))


def input_ranges(
    student: TorchStudent, questions: Sequence[Example], linears: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[float, float]]:
    """Return the static range of the inputs of an encoder's linear layers; nothing if static ranges are too coarse.

    With static ranges, a question's codes do not depend on what is read with it, so that a batch is read at once
    and gives the very same answers; with dynamic ranges (`DynamicQuantizeMatMul`), questions are read one by one.

    Args:
        student: The torch student, an encoder-decoder.
        questions: Calibration questions.
        linears: The weights of each linear layer by its name.
    """
    model = student.model.eval()
    modules = dict(model.named_modules())
    seen: dict[str, list[tuple[float, float]]] = {}

    def watch(name: str) -> Any:
        def look(module: Any, inputs: Any) -> None:
            low, high = torch.aminmax(inputs[0].detach().float())
            seen.setdefault(name, []).append((float(low), float(high)))

        return look

    read = {name: weights for name, weights in linears.items() if name.startswith("encoder.")}
    handles = [
        modules[weights[0].removesuffix(".weight")].register_forward_pre_hook(watch(name))
        for name, weights in read.items()
        if weights[0].removesuffix(".weight") in modules
    ]
    device = model.get_input_embeddings().weight.device
    try:
        with torch.inference_mode():
            for example in questions:
                context = student.encoder.context(student.encoder.prompts.reasoning_context(example))
                states = model.get_encoder()(input_ids=torch.tensor([context], device=device)).last_hidden_state
                watch("cross.kv")(None, (states,))
    finally:
        for handle in handles:
            handle.remove()
    ranges = {}
    for name, found in seen.items():
        spans = np.array(found)
        low, high = float(spans[:, 0].min()), float(spans[:, 1].max())
        if high - low > COARSEST * float(np.median(spans[:, 1] - spans[:, 0])):
            return {}
        ranges[name] = low - MARGIN * (high - low), high + MARGIN * (high - low)
    return ranges
