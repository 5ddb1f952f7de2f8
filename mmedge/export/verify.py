"""Is the bundle the same model? It is compared with the torch student on validation questions, and refused if it differs.

fp32 must give the same greedy answers, with logits within float32's rounding. Other precisions must choose the same token nearly
always and must not lose more accuracy than is allowed. The CPU computes float16 graphs in float32, where nothing overflows; so what
goes through the student's layers must also fit into float16.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmedge.engines.generation import Logits
from mmedge.engines.speaker import Speaker
from mmedge.engines.torch_decoding import TorchEngine, batch_rows
from mmedge.errors import MmedgeError
from mmedge.export.quantization.precisions import Precision
from mmedge.manifest import Verification, change_text
from mmedge.progress import Progress
from mmedge.statistics import paired_difference
from mmedge.students.student import TorchStudent
from mmedge.tasks.base import Example
from mmedge.tasks.encoding import Prompt
from mmedge.tasks.forms import AnswerForm

# float32 sums in another order differ, and the difference grows with depth; small students stay below 1e-4
FP32_TOLERANCE = 2e-3

Judge = Callable[[Verification, Precision, float], Sequence[str]]  # what is wrong with a comparison, for a budget in points


class _OnDisk:
    """Arrays of float32 in a file that nobody else sees, since the logits of many answers may not fit into memory."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as its arrays are needed
        self._end = 0

    def put(self, array: Logits) -> Logits:
        """Write an array, and return it mapped into memory."""
        if not array.size:
            return array
        self._file.write(np.ascontiguousarray(array).data)
        self._file.flush()
        start, self._end = self._end, self._end + array.nbytes
        return np.memmap(self._file, np.float32, "r", start, array.shape)


class Reference:
    """A student's answers to validation questions, computed once for all bundles.

    Args:
        student: The torch student.
        speaker: Asks it.
        form: What answers look like.
        examples: Validation questions.
        folder: Where there is room for the logits of all answers' tokens, 4 bytes each; they are gone with the process.
        progress: Where progress is shown.

    Raises:
        OSError: There is no room.
    """

    def __init__(
        self,
        student: TorchStudent,
        speaker: Speaker,
        form: AnswerForm,
        examples: Sequence[Example],
        folder: Path,
        progress: Progress,
    ) -> None:
        self._progress = progress
        self.examples, self._form, self._limit, self._encoder = examples, form, speaker.max_answer_tokens, student.encoder
        self.contexts = [speaker.reasoning_context(example) for example in examples]
        self.answers = speaker.write_all("predict", self.contexts, self._limit, batch_rows(student))
        self.forced, self.label_probabilities, kept = [], [], _OnDisk(folder)
        with progress.task("probabilities of its answers", len(examples)) as step:
            for context, answer, example in zip(self.contexts, self.answers, examples, strict=True):
                prompt, target = speaker.prompt("predict", context), speaker.encoder.target(answer, self._limit)
                logits = speaker.engine.forced_logits(prompt, target)
                self.forced.append((target, kept.put(logits)))
                self.label_probabilities += self._of_label(speaker, prompt, example, target, logits)
                step.advance(1)
        self.right = self._outcomes(self.answers)
        self._student = student

    def _outcomes(self, texts: Sequence[str]) -> list[bool]:
        return [
            self._form.agrees(text, example.label, example.choices)
            for text, example in zip(texts, self.examples, strict=True)
            if example.label is not None
        ]

    def _of_label(self, speaker: Speaker, prompt: Prompt, example: Example, known: Sequence[int], logits: Logits) -> list[float]:
        """Return how likely a question's label is as the answer; nothing without a label.

        Args:
            speaker: Asks the student or a bundle.
            prompt: The question.
            example: The same, with its label.
            known: A target.
            logits: What predicts its tokens, (tokens, vocabulary).
        """
        if example.label is None:
            return []
        target = speaker.encoder.target(example.label, self._limit)
        found = logits if list(target) == list(known) else speaker.engine.forced_logits(prompt, target)
        logs = (found - _log_sum(found))[np.arange(len(target)), list(target)]
        return [float(np.exp(logs.sum(dtype=np.float64)))]

    def largest_state(self) -> tuple[float, str]:
        """Return the largest activation of the student on these questions, and the layer's name."""
        prompts = [self._encoder.prompt("predict", context) for context in self.contexts]
        return largest_state(self._student, list(zip(prompts, [target for target, _ in self.forced], strict=True)))

    def compare(self, bundle: Speaker, kept: Sequence[int] | None = None) -> Verification:
        """Ask a bundle the same questions and compare answers and logits.

        Args:
            bundle: Asks the bundle, or the quantized student.
            kept: The student's ids of the tokens that the bundle's vocabulary has; all by default.

        Raises:
            MmedgeError: The bundle's tokenizer cuts an answer into other tokens.
        """
        answers, differences, agreements, divergences, likely = [], [], [], [], []
        with self._progress.task("answers compared", len(self.examples)) as step:
            for context, answer, (target, mapped), example in zip(
                self.contexts, self.answers, self.forced, self.examples, strict=True
            ):
                answers.append(bundle.write("predict", [context], self._limit)[0])
                own = bundle.encoder.target(answer, self._limit)
                if (own if kept is None else [kept[token] for token in own]) != list(target):
                    raise MmedgeError(
                        f"the bundle's tokenizer splits {answer!r} differently from the student's", "export without --trim-vocab"
                    )
                prompt = bundle.prompt("predict", context)
                right = bundle.engine.forced_logits(prompt, own)
                left: NDArray[np.float32] = np.array(mapped if kept is None else mapped[:, list(kept)])
                differences.append(float(np.abs(left - right).max() / max(1.0, np.abs(left).max())))
                agreements += (left.argmax(-1) == right.argmax(-1)).tolist()
                divergences += _kl(left, right).tolist()
                likely += self._of_label(bundle, prompt, example, own, right)
                step.advance(1)
        before, after = self.right, self._outcomes(answers)
        change = None
        if before:
            estimate = paired_difference([after], [before])
            change = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
        means, moved = None, None
        if likely:
            estimate = paired_difference([likely], [self.label_probabilities])
            means = (float(np.mean(self.label_probabilities)), float(np.mean(likely)))
            moved = (100 * estimate.value, 100 * estimate.low, 100 * estimate.high)
        return Verification(
            questions=len(self.examples),
            same_answers=sum(a == b for a, b in zip(answers, self.answers, strict=True)),
            largest_difference=max(differences, default=0.0),
            top1_agreement=sum(agreements) / max(1, len(agreements)),
            mean_kl=sum(divergences) / max(1, len(divergences)),
            accuracy_student=sum(before) / len(before) if before else None,
            accuracy_bundle=sum(after) / len(after) if after else None,
            accuracy_change=change,
            label_probability=means,
            label_probability_change=moved,
            became_wrong=sum(old and not new for old, new in zip(before, after, strict=True)),
            became_right=sum(new and not old for old, new in zip(before, after, strict=True)),
        )


def _kl(left: Any, right: Any) -> Any:
    """Return KL(left ‖ right) of rows of logits, in nats."""
    left_log = left - _log_sum(left)
    right_log = right - _log_sum(right)
    return (np.exp(left_log) * (left_log - right_log)).sum(-1)


def _log_sum(logits: Any) -> Any:
    top = logits.max(-1, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(-1, keepdims=True))


def largest_state(student: TorchStudent, texts: Sequence[tuple[Prompt, Sequence[int]]]) -> tuple[float, str]:
    """Return the largest input or output of any layer, and the layer's name.

    Args:
        student: The torch student.
        texts: Prompts, and what follows each.
    """
    largest, where = 0.0, ""

    def seen(name: str, tensors: Any) -> None:
        nonlocal largest, where
        for tensor in tensors if isinstance(tensors, (tuple, list)) else (tensors,):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
                found = float(tensor.detach().abs().max())
                if found > largest or found != found:
                    largest, where = found, name

    head = student.model.get_output_embeddings()
    hooks = [
        module.register_forward_hook(lambda _, inputs, outputs, name=name: seen(name, [*inputs, *_listed(outputs)]))
        for name, module in student.model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and module is not head
    ]
    # of a norm and of a whole layer only what goes in counts: masks, which hold the lowest value there is, come to layers by name
    hooks += [
        module.register_forward_hook(lambda _, inputs, outputs, name=name: seen(name, inputs[:1]))
        for name, module in student.model.named_modules()
        if name.endswith("norm")
    ]
    try:
        engine = TorchEngine(student)
        for prompt, target in texts:
            engine.forced_logits(prompt, target)
    finally:
        for hook in hooks:
            hook.remove()
    return largest, where


def _listed(found: Any) -> Sequence[Any]:
    return found if isinstance(found, (tuple, list)) else (found,)


def problems(found: Verification, precision: Precision, max_accuracy_drop: float) -> list[str]:
    """Return why an export is not the same model; nothing if it is.

    Args:
        found: The comparison.
        precision: What it is to agree by.
        max_accuracy_drop: The largest loss of accuracy on validation questions, in points; and of the right answers' mean
            probability, where its whole interval lies beyond. One answer fewer is allowed where that probability holds: of 80
            questions it is 1.25 points. More than 100, for comparisons, allow any difference.
    """
    said = []
    if not np.isfinite([found.largest_difference, found.mean_kl]).all():
        said.append("its logits are not finite")
    if precision.least_agreement is None:
        if found.same_answers < found.questions:
            said.append(f"{found.questions - found.same_answers} of {found.questions} greedy answers differ")
        if found.largest_difference > FP32_TOLERANCE:
            said.append(f"logits differ by {found.largest_difference:.1e} of the largest")
        return said
    least = precision.least_agreement if max_accuracy_drop <= 100 else 0.0
    if found.top1_agreement < least:
        said.append(
            f"it chooses a different token {100 * (1 - found.top1_agreement):.1f} % of the time"
            f" (allowed: {100 * (1 - least):.0f} %)"
        )
    moved = found.label_probability_change
    holds = moved is not None and moved[0] >= -max_accuracy_drop
    one = holds and found.became_wrong - found.became_right <= 1  # the least that can be seen, and chance as likely as not
    if found.drop is not None and found.drop > max_accuracy_drop + 1e-9 and not one:
        said.append(f"accuracy drops by {found.drop:.1f} points (allowed: {max_accuracy_drop:g})")
    if moved is not None and moved[2] < -max_accuracy_drop:
        said.append(f"the probability of the right answer changes by {change_text(moved)} points (allowed: {-max_accuracy_drop:g})")
    return said
