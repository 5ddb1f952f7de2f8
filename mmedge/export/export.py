"""`mmedge export`: student → ONNX graphs → fp16, int8, int4 → verified, sealed bundles; resumable, and refused where they differ.

A bundle that loses more accuracy than it may is not given up at once: the products whose rounding costs most are kept in
finer numbers, more and more of them, until it holds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmedge import __version__
from mmedge.engines.drafting import FILE_NAME as DRAFTS
from mmedge.engines.drafting import PhraseTable
from mmedge.engines.onnx.bundles import open_speaker
from mmedge.engines.torch_decoding import torch_speaker
from mmedge.errors import MmedgeError
from mmedge.export.calibration import Observed, input_ranges, observe
from mmedge.export.confidence import calibrated
from mmedge.export.graphs import GraphChoice, choose_graphs, copy_configs, fused_products, write_fused, write_through_optimum
from mmedge.export.quantization.bitsandbytes import FLOATS, write_rounded
from mmedge.export.quantization.formats import NumberFormat
from mmedge.export.quantization.graphs import quantize_model
from mmedge.export.quantization.precisions import FORMATS, HIGHER, MEANT_FOR, PRECISIONS, Numbers, Precision
from mmedge.export.report import write_report
from mmedge.export.trim import TrimmedVocabulary, trim
from mmedge.export.verify import Reference, problems
from mmedge.export.weights import TABLE, WeightFiles
from mmedge.folders import DETAILS, is_quantized, student_in
from mmedge.manifest import (
    GRAPHS,
    MANIFEST,
    AnsweringPart,
    BudgetStep,
    Bundle,
    Exported,
    LayerCost,
    Manifest,
    QuantizationPart,
    QuantizedStudent,
    StudentPart,
    TaskPart,
    ThresholdPart,
    Verification,
    VocabularyPart,
    WrittenPart,
    check_student,
    open_bundle,
    read_manifest,
    read_quantized,
    seal,
    seal_student,
)
from mmedge.progress import Progress
from mmedge.recipe import AnsweringSection
from mmedge.reports.formats import duration
from mmedge.runtime.confidence import Confidence
from mmedge.runtime.student import Student
from mmedge.storage import atomic_folder, folder_size, read_json, remove_leftovers, sha256_file, sha256_json, write_json
from mmedge.students.bitsandbytes import BITS_PRECISIONS, BitsPrecision, need_bitsandbytes
from mmedge.students.saved import open_student, student_details, task_tokens
from mmedge.students.student import TorchStudent
from mmedge.tasks.encoding import SpecialTokens
from mmedge.tasks.evaluation_set import CALIBRATION, FILE_NAME, VALIDATION, EvaluationSet, read_evaluation_set
from mmedge.tasks.prompts import StudentPrompts, render_question

__all__ = ["PRECISIONS", "AnyPrecision", "Precision", "export", "variant_name"]
AnyPrecision = Precision | BitsPrecision
# Below this, one product is done before a second thread is awake: a student of 1.2 M parameters answers in 8 ms with one thread
# and in 17 ms with two (measured on two cores); SmolLM2's 135 M gain from every core.
SMALL_PARAMETERS = 10_000_000
REPORT = "export.html"
STEPS_TO_BLAME = 0.9  # of the KL that fixed steps had, below which steps chosen anew are worth reading questions one by one
FIRST_SHARE = 1 / 8  # of the products that are kept in finer numbers when accuracy asks for it; doubled until it holds
_OF_STRATEGY = {"samples", "choose_by", "temperature", "seed", "retry_below"}
HALF_ROOM = 32_752.0  # half of what float16 holds: other questions may go further than those of the validation
GRAPH_FORMAT = 6  # counts up when the same student would give other graphs
ROUNDED_FORMAT = 1  # the same for students that bitsandbytes rounds
ROUNDED_AS: dict[BitsPrecision, Precision] = {"bnb-int8": "int8", "bnb-nf4": "int4"}  # whose costs say what to keep finer


def variant_name(precision: str) -> str:
    """Return the folder that export writes for a precision."""
    return f"student-{precision}" if precision in BITS_PRECISIONS else f"bundle-{precision}"


def export(
    place: Path,
    precisions: Sequence[AnyPrecision] | None,
    progress: Progress,
    out: Path | None = None,
    evaluation: Path | None = None,
    max_accuracy_drop: float | None = None,
    graphs: GraphChoice | None = None,
    trim_vocabulary: bool | None = None,
    *,
    sensitivity: bool = False,
) -> dict[str, Exported]:
    """Export a student.

    Args:
        place: A run, or a student folder.
        precisions: Which bundles, and which students with rounded weights, to write; those of the recipe by default.
        progress: Where progress is shown.
        out: The folder that gets `bundle-int8`, `student-bnb-int8` and so on; that of the student by default.
        evaluation: The evaluation set to verify with; that beside the student by default.
        max_accuracy_drop: The largest loss of accuracy in points; the recipe's by default.
        graphs: Who writes the graphs; as the recipe says by default.
        trim_vocabulary: Keep only the pieces that the task needs; as the recipe says by default.
        sensitivity: Find out what rounding each product costs even where the accuracy holds.

    Returns:
        The manifest of each bundle and rounded student by precision.

    Raises:
        MmedgeError: The student cannot be exported, or what is written is not the same model.
    """
    folder = student_in(place)
    out = out or folder.parent
    details = student_details(folder)
    if is_quantized(details):
        raise MmedgeError(f"{folder} is quantized already", "export the student that it was made from")
    questions = read_evaluation_set(evaluation or folder.parent / FILE_NAME)
    exporter = _Exporter(folder, details, out, questions, max_accuracy_drop, graphs, trim_vocabulary, progress, sensitivity)
    if out.is_dir():
        remove_leftovers(out)
    try:
        found: dict[str, Exported] = {}
        for precision in precisions or exporter.precisions:
            found[precision] = exporter.write(precision)
        write_report(out / REPORT, exporter.written())
    finally:
        exporter.close()
    return found


def _questions_hash(questions: EvaluationSet) -> str:
    return sha256_json(repr([questions.questions.get(split, ()) for split in (VALIDATION, CALIBRATION)]))


def _write_trimmed(vocabulary: TrimmedVocabulary, folder: Path) -> None:
    """Write the trimmed tokenizer over the whole one, and the new ids into the configs."""
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary.tokenizer, ensure_ascii=False), encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            write_json(folder / name, vocabulary.renumbered(read_json(folder / name)))


class _Exporter:
    """Writes the bundles of one student; what several of them need is made once."""

    def __init__(
        self,
        folder: Path,
        details: dict[str, Any],
        out: Path,
        questions: EvaluationSet,
        max_accuracy_drop: float | None,
        graphs: GraphChoice | None,
        trim_vocabulary: bool | None,
        progress: Progress,
        sensitivity: bool,
    ) -> None:
        self._folder, self._out, self._questions, self._progress = folder, out, questions, progress
        self._details = details
        self.precisions: Sequence[AnyPrecision] = self._details["recipe"]["export"]["precisions"]
        settings, self._limits = self._details["recipe"]["export"], self._details["recipe"]["generation"]
        self._drop = settings["max_accuracy_drop"] if max_accuracy_drop is None else max_accuracy_drop
        self._examples = questions.questions.get(VALIDATION, ())[: settings.get("verify_questions")]
        if not self._examples:
            raise MmedgeError(
                "the evaluation set has no validation questions to verify with", "raise split.validation and distil again"
            )
        self._answers = self._details["recipe"].get("answering", {})
        self._writer, why = choose_graphs(folder, graphs or settings.get("graphs", "auto"))
        if why:
            progress.line(f"graphs by optimum: {why}")
        self._trims = settings.get("trim_vocab", False) if trim_vocabulary is None else trim_vocabulary
        if self._trims and self._writer != "fused":
            raise MmedgeError("only mmedge's own graphs can have their vocabulary trimmed", "export without --trim-vocab")
        self._wants_costs = sensitivity and self._writer == "fused"
        weights = {file.name: sha256_file(file) for file in sorted(folder.glob("*.safetensors"))}
        self._rounded_key = sha256_json({"format": ROUNDED_FORMAT, "weights": weights, "student": self._details["prompts"]})
        self._key = sha256_json(
            {
                "format": GRAPH_FORMAT,
                "graphs": self._writer,
                "weights": weights,
                "student": self._details["prompts"],
                "trimmed": self._trims,
                "answering": self._answers,
            }
        )
        self._floats = out / ".graphs"
        self._seen: dict[str, Observed] | None = None
        self._input_ranges: dict[str, tuple[float, float]] | None = None
        self._with_gradients = False

    def close(self) -> None:
        """Remove what only the writing needed."""
        shutil.rmtree(self._floats, ignore_errors=True)

    @cached_property
    def _student(self) -> TorchStudent:
        return open_student(self._folder)

    @cached_property
    def _reference(self) -> Reference:
        self._progress.line(f"the student answers {len(self._examples)} validation questions")
        speaker = torch_speaker(self._student, self._questions.form, self._limits["max_answer_tokens"])
        return Reference(self._student, speaker, self._questions.form, self._examples)

    @cached_property
    def _vocabulary(self) -> TrimmedVocabulary | None:
        """What is kept of the vocabulary; None for all of it."""
        if not self._trims:
            return None
        encoder, used = self._student.encoder, set(task_tokens(self._folder))
        for example in (example for examples in self._questions.questions.values() for example in examples):
            used.update(encoder.context(encoder.prompts.reasoning_context(render_question(example))))
            for text in (example.label, *example.choices):
                used.update(encoder.target(text, self._details["max_input_tokens"]) if text else ())
        for target, _ in self._reference.forced:
            used.update(target)
        begun, verdicts = encoder.verdict_tokens()
        used.update(begun, verdicts, (number for number in self._details["special_tokens"].values() if number is not None))
        found = trim((self._folder / "tokenizer.json").read_text(encoding="utf-8"), used)
        self._progress.line(f"vocabulary: {len(found.kept):,} of {found.of:,} pieces kept")
        return found

    def _observed(self, *, gradients: bool) -> Mapping[str, Observed]:
        """Return what goes through the products on calibration questions; nothing where there are none."""
        examples = self._questions.questions.get(CALIBRATION, ())
        if not examples or self._writer != "fused":
            return {}
        if self._seen is None or (gradients and not self._with_gradients):
            products = fused_products(self._folder)
            limits = self._limits["max_answer_tokens"], self._limits["max_rationale_tokens"]
            self._seen = observe(self._student, examples, products, *limits, self._progress, gradients=gradients)
            self._with_gradients = gradients
        return self._seen

    def _ranges(self) -> Mapping[str, tuple[float, float]]:
        """Return between which numbers the inputs of an encoder's products lie; nothing where that is not known."""
        examples = self._questions.questions.get(CALIBRATION, ())
        if not examples or self._writer != "fused" or self._details["family"] != "encoder-decoder":
            return {}
        if self._input_ranges is None:
            self._input_ranges = input_ranges(self._student, examples, fused_products(self._folder))
        return self._input_ranges

    def written(self) -> dict[str, Exported]:
        """Return the manifests of all bundles of this student that are there, by precision."""
        found: dict[str, Exported] = {}
        for precision in PRECISIONS:
            try:
                manifest = read_manifest(self._out / f"bundle-{precision}")
            except MmedgeError:
                continue  # none, or one of another version
            if manifest.key == self._key:
                found[precision] = manifest
        for rounded in BITS_PRECISIONS:
            folder = self._out / variant_name(rounded)
            if (folder / DETAILS).is_file() and is_quantized(details := student_details(folder)):
                stated = read_quantized(details, folder / DETAILS)
                if stated.key == self._rounded_key:
                    found[rounded] = stated
        return found

    def write(self, precision: AnyPrecision) -> Exported:
        """Write what a precision asks for, unless it is there and holds, and return its manifest."""
        if precision == "bnb-int8" or precision == "bnb-nf4":
            return self.rounded(precision)
        return self.bundle(precision)

    def bundle(self, precision: Precision) -> Manifest:
        """Write one bundle, unless one that holds is there, and return its manifest."""
        if precision == "fp16" and self._writer != "fused":
            raise MmedgeError("float16 is there for mmedge's own graphs alone", "export with --fp32 or --int8")
        target = self._out / f"bundle-{precision}"
        kept = self._kept(target)
        if kept is not None:
            self._progress.line(f"{target}: exported already, kept")
            return kept
        if precision == "fp16":
            largest, layer = self._reference.largest_state()
            if not largest <= HALF_ROOM:
                raise MmedgeError(
                    f"float16 ends at 65504, and {largest:.3g} goes through {layer} on validation questions",
                    "export without --fp16",
                )
        with atomic_folder(target) as temporary:
            found = self._within_budget(precision, temporary)
        self._progress.line(f"{target}: {folder_size(target) / 1e6:.1f} MB, {found}")
        return read_manifest(target)

    def _kept(self, bundle: Path) -> Manifest | None:
        """Return the manifest of a bundle that was exported before from the same student and holds, or None."""
        if not (bundle / MANIFEST).is_file():
            return None
        try:
            manifest = open_bundle(bundle).manifest
        except MmedgeError:
            return None  # damaged or of an older format: exported anew
        if self._wants_costs and manifest.precision in HIGHER and not manifest.sensitivity:
            return None
        same = manifest.key == self._key and manifest.max_accuracy_drop == self._drop
        return manifest if same and manifest.verified_on == _questions_hash(self._questions) else None

    def _within_budget(self, precision: Precision, folder: Path) -> Verification:
        """Fill a folder with a bundle that loses no more accuracy than it may, as coarse as that allows."""
        exceptions: dict[str, NumberFormat] = {}
        history: list[BudgetStep] = []
        costs: list[LayerCost] = []
        share = FIRST_SHARE
        fixed = True  # an encoder's inputs are rounded to steps that calibration questions fixed
        while True:
            observed = self._observed(gradients=False) if precision == "int4" else {}
            ranges = self._ranges() if precision in HIGHER and fixed else {}
            numbers = Numbers(precision, exceptions, observed, ranges)
            manifest = self._fill(folder, precision, numbers)
            bundle = Bundle.of(folder, manifest)
            student = Student(bundle, open_speaker(bundle, device="cpu"))
            found = self._reference.compare(student.speaker, self._vocabulary.kept if self._vocabulary else None)
            said = problems(found, precision, self._drop)
            history.append(BudgetStep(len(exceptions), tuple(said), found.drop, found.mean_kl, bool(ranges)))
            if not said:
                break
            if ranges and len(history) == 1:
                self._progress.line(f"{precision}: {'; '.join(said)}; the encoder's inputs are rounded anew for every question")
                fixed = False
                continue
            if not fixed and len(history) == 2:
                fixed = found.mean_kl > STEPS_TO_BLAME * history[0].mean_kl  # it was the weights, and not the steps
            finer = HIGHER.get(precision) if self._writer == "fused" else None
            if finer is None or share > 1:
                raise MmedgeError(
                    f"the {precision} graphs are refused: {'; '.join(said)}",
                    "no bundle was written; see the student's own accuracy first",
                )
            costs = costs or self._costs(precision)
            if not costs:
                raise MmedgeError(
                    f"the {precision} graphs are refused: {'; '.join(said)}",
                    "distil again for an evaluation set with calibration questions, or allow more with --max-accuracy-drop",
                )
            exceptions = dict.fromkeys((cost.linear for cost in costs[: max(1, round(share * len(costs)))]), finer)
            if share == 1:
                exceptions |= dict.fromkeys(numbers.written, finer)  # the tables too
            self._progress.line(f"{precision}: {'; '.join(said)}; keeping {len(exceptions)} products in {finer}")
            share = min(1.0, share * 2) if share < 1 else 2.0
        if exceptions and not numbers.written.keys() - exceptions.keys():
            self._progress.line(f"{precision}: every product had to be kept in {HIGHER[precision]}: nothing is left of {precision}")
        if self._wants_costs and precision in HIGHER:
            costs = costs or self._costs(precision)
        confidence = calibrated(student, self._questions.questions.get(VALIDATION, ()), self._progress)
        layers = {name: str(format_) for name, (format_, _) in numbers.written.items()}
        seal(
            folder,
            replace(
                manifest,
                quantization=QuantizationPart(layers, {name: str(exceptions[name]) for name in exceptions}),
                budget=tuple(history),
                sensitivity=tuple(costs),
                verification=found,
                confidence=confidence,
                answering=self._answering(confidence),
            ),
        )
        return found

    def _drafts(self, numbers: Numbers) -> bool:
        """Whether a bundle drafts: where a step is long enough to be worth it, and reading several tokens gives the same ones.

        4-bit products give other last bits for several tokens than for one, and so would write other tokens here and there.
        """
        alike = numbers.precision == "fp32" or (numbers.steps_alike and self._details["family"] == "decoder-only")
        return alike and self._details["parameters"] >= SMALL_PARAMETERS and (self._folder / DRAFTS).is_file()

    def _answering(self, confidence: dict[str, Any]) -> AnsweringPart:
        """Return how the bundle answers where a call says nothing else, the threshold chosen on validation questions."""
        stated = AnsweringSection.model_validate(self._answers)
        strategy = {"kind": stated.strategy, **stated.model_dump(include=_OF_STRATEGY)}
        threshold = None
        if stated.target_accuracy is not None or stated.max_withheld is not None:
            known = Confidence.from_manifest(confidence)
            if known is None:
                raise MmedgeError(
                    f"no threshold can be chosen: {confidence['why']}",
                    "raise split.validation, or leave out answering.target_accuracy and answering.max_withheld",
                )
            chosen = known.threshold(target_accuracy=stated.target_accuracy, max_withheld=stated.max_withheld)
            known_from = chosen.value, chosen.accuracy, chosen.withheld, chosen.questions, chosen.interval
            threshold = ThresholdPart(*known_from, stated.target_accuracy, stated.max_withheld)
        return AnsweringPart(strategy, stated.constrained, threshold)

    def rounded(self, precision: BitsPrecision) -> QuantizedStudent:
        """Write a student with weights in bitsandbytes' numbers, unless one that holds is there, and return its manifest."""
        target = self._out / variant_name(precision)
        kept = self._kept_rounded(target)
        if kept is not None:
            self._progress.line(f"{target}: exported already, kept")
            return kept
        need_bitsandbytes()
        if self._trims:
            self._progress.line(f"{precision}: the whole vocabulary is kept; only graphs have theirs trimmed")
        with atomic_folder(target) as temporary:
            found = self._rounded_within_budget(precision, temporary)
        self._progress.line(f"{target}: {folder_size(target) / 1e6:.1f} MB, {found}")
        return read_quantized(student_details(target), target / DETAILS)

    def _kept_rounded(self, folder: Path) -> QuantizedStudent | None:
        """Return the manifest of a rounded student that was written before from the same student and holds, or None."""
        if not (folder / DETAILS).is_file():
            return None
        try:
            manifest = check_student(folder, student_details(folder))
        except (MmedgeError, KeyError):
            return None  # damaged, or of an older version: written anew
        same = manifest.key == self._rounded_key and manifest.max_accuracy_drop == self._drop
        return manifest if same and manifest.verified_on == _questions_hash(self._questions) else None

    def _rounded_within_budget(self, precision: BitsPrecision, folder: Path) -> Verification:
        """Fill a folder with a rounded student that loses no more accuracy than it may.

        The products that cost most stay in float16, up to half of them.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        finer: list[str] = []
        history: list[BudgetStep] = []
        ranked: list[str] = []
        share = FIRST_SHARE
        while True:
            shutil.rmtree(folder)
            folder.mkdir()
            self._progress.line(f"{precision}: writing")
            started = time.monotonic()
            layers = write_rounded(self._folder, folder, precision, finer)
            seconds = time.monotonic() - started
            size = folder_size(folder)
            manifest = QuantizedStudent(
                mmedge=__version__,
                recipe=self._details["recipe"]["name"],
                precision=precision,
                student=StudentPart(self._details["parameters"]),
                key=self._rounded_key,
                verified_on=_questions_hash(self._questions),
                max_accuracy_drop=self._drop,
                written=WrittenPart(round(seconds, 2), size),
                quantization=QuantizationPart(layers, dict.fromkeys(finer, FLOATS)),
                made_with={name: version(name) for name in ("bitsandbytes", "transformers", "torch")},
                computed_on="cuda" if device == "cuda" else "cpu",
            )
            seal_student(folder, self._details, manifest)
            self._progress.line(f"{precision}: {size / 1e6:.1f} MB in {duration(seconds)}; verifying")
            found = self._reference.compare(torch_speaker(open_student(folder, device=device)))
            said = problems(found, precision, self._drop)
            history.append(BudgetStep(len(finer), tuple(said), found.drop, found.mean_kl))
            if not said:
                break
            self._progress.line(f"{precision}: {'; '.join(said)}")
            ranked = ranked or self._costly_modules(precision, layers)
            if not ranked or share > 1 / 2:
                raise MmedgeError(
                    f"the {precision} student is refused: {'; '.join(said)}",
                    "no student was written; see the student's own accuracy first, or allow more with --max-accuracy-drop",
                )
            finer = ranked[: max(1, round(share * len(ranked)))]
            self._progress.line(f"{precision}: keeping {len(finer)} products in {FLOATS}")
            share *= 2
        seal_student(folder, self._details, replace(manifest, budget=tuple(history), verification=found))
        return found

    def _costly_modules(self, precision: BitsPrecision, layers: Mapping[str, str]) -> list[str]:
        """Return the modules that bitsandbytes rounds, those first whose rounding costs most; none where that is not known."""
        if self._writer != "fused":
            return []
        products = fused_products(self._folder)
        costs = self._costs(ROUNDED_AS[precision])
        modules = [part.removesuffix(".weight") for cost in costs for part in products[cost.linear]]
        return [module for module in modules if layers.get(module) == precision]

    def _costs(self, precision: Precision) -> list[LayerCost]:
        """Return for each product the loss that its rounding costs and the bytes that finer numbers cost, the worst first."""
        observed = self._observed(gradients=True)
        numbers = Numbers(precision, observed=observed)
        weights, products = WeightFiles(self._folder), fused_products(self._folder)
        found = []
        with self._progress.task("what each product's rounding costs", len(observed)) as step:
            for name, seen in observed.items():
                step.advance(1)
                if name == TABLE:  # what finer numbers cost and bring where it is looked up is not known
                    continue
                weight = np.concatenate([weights[part] for part in products[name]])
                format_ = numbers.number_format(name, weight.shape)
                size = weight.size * (HIGHER[precision].bits - format_.bits) // 8
                if size > 0:
                    change = numbers.rounded(name, weight, format_).restored() - weight
                    found.append(LayerCost(name, seen.loss_of(change), size))
        return sorted(found, key=lambda cost: -cost.loss / cost.bytes)

    def _fill(self, folder: Path, precision: Precision, numbers: Numbers) -> Manifest:
        """Write a bundle's files, and return its manifest so far."""
        shutil.rmtree(folder)
        folder.mkdir()
        self._progress.line(f"{precision}: writing")
        started = time.monotonic()
        if self._writer == "fused":
            vocabulary = self._vocabulary
            nodes: int | None = write_fused(self._folder, folder, numbers, vocabulary.kept if vocabulary else None)
            copy_configs(self._folder, folder)
            if vocabulary:
                _write_trimmed(vocabulary, folder)
            if self._drafts(numbers):
                phrases = PhraseTable.load(self._folder / DRAFTS)
                if vocabulary:
                    phrases = phrases.renumbered({old: number for number, old in enumerate(vocabulary.kept)})
                phrases.save(folder / DRAFTS)
        else:
            nodes = None
            self._fill_from_optimum(folder, precision)
        seconds = time.monotonic() - started
        size = folder_size(folder)
        self._progress.line(f"{precision}: {size / 1e6:.1f} MB in {duration(seconds)}; verifying")
        details = self._details
        questions = self._questions
        special = details["special_tokens"]
        if self._vocabulary:
            special = self._vocabulary.renumbered(special)
        return Manifest(
            mmedge=__version__,
            recipe=details["recipe"]["name"],
            precision=precision,
            device=MEANT_FOR[precision],
            family=details["family"],
            graphs=self._writer,
            task=TaskPart(questions.task, **questions.form.to_json()),
            prompts=StudentPrompts(**details["prompts"]),
            special_tokens=SpecialTokens(**special),
            vocabulary=VocabularyPart(len(self._vocabulary.kept), self._vocabulary.of) if self._vocabulary else None,
            max_input_tokens=details["max_input_tokens"],
            max_answer_tokens=self._limits["max_answer_tokens"],
            max_rationale_tokens=self._limits["max_rationale_tokens"],
            threads=1 if details["parameters"] < SMALL_PARAMETERS else None,
            student=StudentPart(details["parameters"], details["origin"], details["metrics"]),
            key=self._key,
            verified_on=_questions_hash(questions),
            max_accuracy_drop=self._drop,
            written=WrittenPart(round(seconds, 2), size, nodes),
            quantization=QuantizationPart({}, {}),
        )

    def _fill_from_optimum(self, folder: Path, precision: Precision) -> None:
        """Take optimum's float32 graphs, written once for all precisions, and round them."""
        marker, family = self._floats / "key.json", self._details["family"]
        if marker.is_file() and read_json(marker).get("key") == self._key:
            self._progress.line("float32 graphs: made already, kept")
        else:
            self._progress.line("writing float32 graphs")
            with atomic_folder(self._floats) as temporary:
                write_through_optimum(self._folder, family, temporary)
                write_json(temporary / "key.json", {"key": self._key})
        copy_configs(self._floats, folder)
        for part, name in GRAPHS[family, self._writer].items():
            if precision == "fp32":
                for file in self._floats.glob(f"{name}*"):  # the graph, and its weights where they are a file of their own
                    shutil.copyfile(file, folder / file.name)
                continue
            report = quantize_model(self._floats / name, folder / name, many_rows=part == "encoder", format_=FORMATS[precision])
            self._progress.line(
                f"{precision}: {name}: {report.matrices} matrices, {report.tables} tables, "
                f"{report.bytes_before / 1e6:.1f} → {report.bytes_after / 1e6:.1f} MB"
            )
