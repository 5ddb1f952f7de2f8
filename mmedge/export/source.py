"""What is exported: a student, its questions, and what several exports need and is computed once. Knows no format on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmedge.bundle import learned_of
from mmedge.engines.torch_decoding import torch_speaker
from mmedge.errors import MmedgeError
from mmedge.export.calibration import Observed, input_ranges, modules_of, observe, own_texts
from mmedge.export.graphs import GraphChoice, choose_graphs, fused_linears
from mmedge.export.quantization.blocks import QuantizedMatrix
from mmedge.export.quantization.precisions import Precision
from mmedge.export.quantization.quantizer import BundleQuantizer, hash_of
from mmedge.export.recovery import FEWEST, Recovery, RecoverySettings
from mmedge.export.trim import TrimmedVocabulary, trim
from mmedge.export.verify import Reference
from mmedge.export.weights import TABLE, WeightFiles
from mmedge.folders import is_quantized
from mmedge.manifest import Exported, LayerCost, RecoveryPart
from mmedge.progress import Progress
from mmedge.recipe import AnsweringSection, ExportSection, GenerationSection
from mmedge.storage import sha256_file, sha256_json
from mmedge.students.encoded import EncodedLesson
from mmedge.students.saved import open_student, student_details, task_tokens
from mmedge.students.student import TorchStudent
from mmedge.tasks.base import Example
from mmedge.tasks.evaluation_set import CALIBRATION, FILE_NAME, RECOVERY, VALIDATION, read_evaluation_set
from mmedge.tasks.forms.constraints import refuse_impossible_answers

GRAPH_FORMAT = 6  # goes up when the same student would give different graphs
RECOVERY_FORMAT = 2  # the same for scales that are learned from the student
HEAD_LAYER = "head"  # what graphs call a head of its own
QUANTIZED_FORMAT = 1  # the same for students that bitsandbytes quantizes


RecoverChoice = Literal["auto", "always", "never"]


class Source:
    """A student that is exported, and how.

    Args:
        folder: The student's.
        out: Where its exports go.
        progress: Where progress is shown.
        evaluation: The evaluation set to verify with; that beside the student by default.
        max_accuracy_drop: The accuracy budget in points; the recipe's by default.
        graphs: Who writes the graphs; as the recipe says by default.
        trim_vocabulary: Keep only the tokens that the task needs; as the recipe says by default.
        int8_cache: Let the native engine keep keys and values in int8 where the accuracy holds; as the recipe says by default.
        sensitivity: Find out what quantizing each layer costs even where the accuracy holds.
        recover: When quantized layers learn their scales from the student; as the recipe says by default.
        recover_minutes: The longest that this may take; as the recipe says by default.

    Attributes:
        details: The student's `mmedge.json`.
        max_accuracy_drop: The accuracy budget in points.
        graphs: Who writes the graphs.
        trims: Whether bundles keep only the tokens that the task needs.
        int8_cache: Whether quantized bundles are to have an int8 cache where the accuracy holds.
        sensitivity: Whether to find out what quantizing each layer costs in any case.
        recover: When quantized layers learn their scales from the student.
        recover_minutes: The longest that this may take.
        verified_on: Hash of the questions that exports are verified on.
        key: Hash of all that decides what a bundle is.
        student_key: Hash of all that decides what a quantized student is.

    Raises:
        MmedgeError: The student cannot be exported this way.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        progress: Progress,
        *,
        evaluation: Path | None = None,
        max_accuracy_drop: float | None = None,
        graphs: GraphChoice | None = None,
        trim_vocabulary: bool | None = None,
        int8_cache: bool | None = None,
        sensitivity: bool = False,
        recover: RecoverChoice | None = None,
        recover_minutes: float | None = None,
    ) -> None:
        self.folder, self.out, self.progress = folder, out, progress
        self.details = student_details(folder)
        if is_quantized(self.details):
            raise MmedgeError(f"{folder} is already quantized", "export the student that it was made from")
        recipe = self.details["recipe"]
        self.recipe = ExportSection.model_validate(recipe["export"])
        self.limits = GenerationSection.model_validate(recipe["generation"])
        self.answering = AnsweringSection.model_validate(recipe.get("answering", {}))
        self.questions = read_evaluation_set(evaluation or folder.parent / FILE_NAME)
        self._examples = self.questions.questions.get(VALIDATION, ())[: self.recipe.verify_questions]
        if not self._examples:
            raise MmedgeError(
                "the evaluation set has no validation questions to verify with", "raise split.validation and distil again"
            )
        self.max_accuracy_drop = self.recipe.max_accuracy_drop if max_accuracy_drop is None else max_accuracy_drop
        self.graphs, why = choose_graphs(folder, graphs or self.recipe.graphs)
        if why:
            progress.line(f"graphs by {self.graphs}: {why}")
        self.trims = self.recipe.trim_vocab if trim_vocabulary is None else trim_vocabulary
        if self.trims and self.graphs != "fused":
            raise MmedgeError("only mmedge's own graphs can have their vocabulary trimmed", "export without --trim-vocab")
        self.int8_cache = self.recipe.int8_cache if int8_cache is None else int8_cache
        self.sensitivity = sensitivity and self.graphs == "fused"
        self.recover = recover or self.recipe.recover
        if recover == "always" and self.graphs != "fused":
            raise MmedgeError("only mmedge's own graphs can be recovered", "export without --recover")
        self.recover_minutes = self.recipe.recover_minutes if recover_minutes is None else recover_minutes
        splits = [self.questions.questions.get(split, ()) for split in (VALIDATION, CALIBRATION)]
        self.verified_on = sha256_json(repr(splits))
        weights = {file.name: sha256_file(file) for file in sorted(folder.glob("*.safetensors"))}
        shared = {"weights": weights, "student": self.details["prompts"]}
        self.student_key = sha256_json({"format": QUANTIZED_FORMAT, **shared})
        own = {"format": GRAPH_FORMAT, "graphs": self.graphs, "trimmed": self.trims, "answering": recipe.get("answering", {})}
        calibrated = {"calibrated": "constrained"} if self.answering.constrained else {}
        learned = learned_of(self.details)
        self._explains = learned is None or "rationale" in learned
        if not self._explains:
            calibrated["observed"] = "answers"
        self.key = sha256_json(own | shared | calibrated)

    @property
    def validation(self) -> Sequence[Example]:
        """All validation questions, for fitting and not only comparing."""
        return self.questions.questions.get(VALIDATION, ())

    def still_holds(self, manifest: Exported, key: str) -> bool:
        """Return whether an existing export is what would be written now."""
        before = (manifest.key, manifest.max_accuracy_drop, manifest.verified_on)
        return before == (key, self.max_accuracy_drop, self.verified_on)

    @cached_property
    def student(self) -> TorchStudent:
        return open_student(self.folder)

    @cached_property
    def reference(self) -> Reference:
        """The student's answers to validation questions."""
        self.progress.line(f"the student answers {len(self._examples)} validation questions")
        speaker = torch_speaker(self.student, self.questions.form, self.limits.max_answer_tokens)
        if self.answering.constrained:
            refuse_impossible_answers(speaker.constrainer, self.limits.max_answer_tokens)
        return Reference(self.student, speaker, self.questions.form, self._examples, self.out, self.progress)

    @cached_property
    def vocabulary(self) -> TrimmedVocabulary | None:
        """What is kept of the vocabulary; None for all of it."""
        if not self.trims:
            return None
        encoder, used = self.student.encoder, set(task_tokens(self.folder))
        for example in (example for examples in self.questions.questions.values() for example in examples):
            used.update(encoder.context(encoder.prompts.reasoning_context(example)))
            for text in (example.label, *example.choices):
                used.update(encoder.target(text, self.details["max_input_tokens"]) if text else ())
        for target, _ in self.reference.forced:
            used.update(target)
        begun, verdicts = encoder.verdict_tokens()
        used.update(begun, verdicts, (number for number in self.details["special_tokens"].values() if number is not None))
        found = trim((self.folder / "tokenizer.json").read_text(encoding="utf-8"), used)
        self.progress.line(f"vocabulary: {len(found.kept):,} of {found.of:,} tokens kept")
        return found

    # ------------------------------------------------------------------------------- from calibration questions

    @cached_property
    def linears(self) -> dict[str, tuple[str, ...]]:
        """The weights that each linear layer of the graphs multiplies by; empty if the graphs are not mmedge's own."""
        return fused_linears(self.folder) if self.graphs == "fused" else {}

    @property
    def _calibration(self) -> Sequence[Example]:
        return self.questions.questions.get(CALIBRATION, ()) if self.linears else ()

    def observed(self, *, gradients: bool = False) -> Mapping[str, Observed]:
        """Return the activations of linear layers on calibration questions; empty if there are none.

        Args:
            gradients: Whether the loss's gradients at their outputs are needed too.
        """
        if not self._calibration:
            return {}
        return self._observed_with_gradients if gradients or "_observed_with_gradients" in vars(self) else self._observed

    @cached_property
    def _observed(self) -> Mapping[str, Observed]:
        return self._observe(gradients=False)

    @cached_property
    def _observed_with_gradients(self) -> Mapping[str, Observed]:
        return self._observe(gradients=True)

    def _observe(self, *, gradients: bool) -> Mapping[str, Observed]:
        limits = self.limits.max_answer_tokens, self.limits.max_rationale_tokens
        explains = self._explains
        return observe(
            self.student, self._calibration, self.linears, *limits, self.progress, gradients=gradients, explains=explains
        )

    @cached_property
    def input_ranges(self) -> Mapping[str, tuple[float, float]]:
        """The ranges of the inputs of an encoder's linear layers; nothing where static scales would be too coarse."""
        if not self._calibration or self.student.family != "encoder-decoder":
            return {}
        return input_ranges(self.student, self._calibration, self.linears)

    # ----------------------------------------------------------------------------------------------- recovery

    def may_recover(self, precision: Precision) -> bool:
        """Whether a precision's scales may be learned from the student, for what it costs."""
        quantized = not precision.weights.is_float and precision.artifact == "bundle"
        enough = self.recover == "always" or len(self._taught) >= FEWEST
        return quantized and self.recover != "never" and bool(self.linears) and enough

    def recovered(self, quantizer: BundleQuantizer) -> tuple[dict[str, tuple[str, QuantizedMatrix]], RecoveryPart]:
        """Return the matrices of linear layers with scales that were learned from the student, as a quantizer takes them.

        Args:
            quantizer: How they are quantized otherwise.

        Raises:
            MmedgeError: There are too few texts, or the student computes NaN.
        """
        weights: Any = WeightFiles(self.folder)
        matrices: dict[str, QuantizedMatrix] = {}
        hashes: dict[str, str] = {}
        for name, parts in self.linears.items():
            weight = np.concatenate([weights[part] for part in parts])
            format_ = quantizer.weight_format(name, weight.shape, table=name in (TABLE, HEAD_LAYER))
            if not format_.is_float:
                matrices[name], hashes[name] = quantizer.quantize(name, weight, format_), hash_of(weight)
        settings = RecoverySettings(max_minutes=self.recover_minutes)
        student = open_student(self.folder)
        modules = {name: found for name, found in modules_of(student.model, self.linears).items() if name in matrices}
        table = student.model.get_input_embeddings()
        if TABLE in modules and table not in modules[TABLE]:
            modules[TABLE] = [*modules[TABLE], table]
        formats = sorted((name, str(one.format), one.format.block) for name, one in matrices.items())
        texts = [repr(self._taught), self._explains]
        key = sha256_json([RECOVERY_FORMAT, self.student_key, texts, formats, settings.decisive()])
        place, device = self.out / f".recovery-{quantizer.precision.name}", "cuda" if torch.cuda.is_available() else "cpu"
        for one in (self.student, student):
            one.model.to(device)
        try:
            teaching = Recovery(self.student, student, modules, self.recovery_lessons, settings)
            found = teaching.run(matrices, place, key, self.progress)
        finally:
            self.student.model.to("cpu")  # where everything else of an export is computed
        shutil.rmtree(place, ignore_errors=True)
        kept = self.vocabulary.kept if self.vocabulary else None
        result = {}
        for name, matrix in found.matrices.items():
            stands_for = hashes[name]
            if kept is not None and name in (TABLE, HEAD_LAYER):
                whole = np.concatenate([weights[part] for part in self.linears[name]])
                matrix, stands_for = matrix.rows(kept), hash_of(whole[list(kept)])
            result[name] = stands_for, matrix
        return result, RecoveryPart(found.texts, found.steps, found.planned, found.kl_before, found.kl_after)

    @property
    def _taught(self) -> Sequence[Example]:
        """The questions whose answers and explanations a quantized student learns."""
        return [*self.questions.questions.get(RECOVERY, ()), *self._calibration]

    @cached_property
    def recovery_lessons(self) -> Sequence[EncodedLesson]:
        """What the student answers and explains to the questions of recovery."""
        questions = self._taught
        writes = "answers and explains" if self._explains else "answers"
        self.progress.line(f"recovery: the student {writes} {len(questions)} training questions")
        limits = self.limits.max_answer_tokens, self.limits.max_rationale_tokens
        return own_texts(self.student, questions, *limits, len(questions) if self._explains else 0)

    def costs(self, precision: Precision) -> list[LayerCost]:
        """Return for each linear layer the loss that quantizing it costs and the bytes of a finer format, the worst first."""
        observed = self.observed(gradients=True)
        quantizer = BundleQuantizer(precision, observed=observed)
        finer = precision.finer_weights.bits if precision.finer_weights else 0
        weights: Any = WeightFiles(self.folder)
        found = []
        with self.progress.task("what quantizing each layer costs", len(observed)) as step:
            for name, seen in observed.items():
                step.advance(1)
                if name == TABLE:  # the cost and benefit of a finer format in a lookup table are not known
                    continue
                weight = np.concatenate([weights[part] for part in self.linears[name]])
                format_ = quantizer.weight_format(name, weight.shape)
                size = weight.size * (finer - format_.bits) // 8
                if size > 0:
                    change = quantizer.quantize(name, weight, format_).dequantized() - weight
                    found.append(LayerCost(name, seen.loss_of(change), size))
        return sorted(found, key=lambda cost: -cost.loss / cost.bytes)
