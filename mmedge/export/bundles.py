"""Writing one ONNX bundle of a student, verified against it and within its accuracy budget; kept if it already exists."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from mmedge import __version__
from mmedge.bundle import GRAPHS, Bundle, learned_of, open_bundle, read_manifest, seal
from mmedge.engines.bundles import engine_of, open_speaker, speaker_of
from mmedge.engines.drafting import FILE_NAME as DRAFTS
from mmedge.engines.drafting import PhraseTable
from mmedge.engines.native.engine import NativeEngine, unsupported
from mmedge.engines.speaker import Speaker
from mmedge.errors import MmedgeError
from mmedge.export.budget import within_budget
from mmedge.export.builder import WrittenGraphs
from mmedge.export.confidence import calibrated
from mmedge.export.foreign import write_foreign
from mmedge.export.graphs import copy_configs, write_fused
from mmedge.export.quantization.blocks import QuantizedMatrix
from mmedge.export.quantization.graphs import quantize_model
from mmedge.export.quantization.precisions import Precision
from mmedge.export.quantization.quantizer import BundleQuantizer
from mmedge.export.source import Source
from mmedge.export.trim import TrimmedVocabulary
from mmedge.export.verify import Judge, problems
from mmedge.export.work import decoding_work
from mmedge.manifest import (
    AnsweringPart,
    Int8CachePart,
    LayerCost,
    Manifest,
    QuantizationPart,
    RecoveryPart,
    StudentPart,
    TaskPart,
    ThresholdPart,
    Verification,
    VocabularyPart,
    WrittenPart,
)
from mmedge.model_card import describe_model, write_card
from mmedge.recipe import AnsweringSection
from mmedge.reports.formats import duration
from mmedge.runtime.confidence import Confidence
from mmedge.runtime.student import Student
from mmedge.storage import atomic_folder, folder_size, read_json, write_json
from mmedge.tasks.encoding import SpecialTokens
from mmedge.tasks.prompts import StudentPrompts

# Below this, one layer is done before a second thread wakes up: a student of 1.2 M parameters answers in 8 ms with one thread
# and in 17 ms with two (measured on two cores); SmolLM2's 135 M gain from every core.
SMALL_PARAMETERS = 10_000_000
FLOAT16_ROOM = 32_752.0  # half of float16's range: other questions may exceed the validation questions
_OF_STRATEGY = {"samples", "choose_by", "temperature", "seed", "retry_below"}


def write_bundle(source: Source, precision: Precision, judge: Judge = problems) -> Manifest:
    """Write a bundle, unless a valid one exists.

    Args:
        source: The student.
        precision: How its weights are stored.
        judge: Says what is wrong with a comparison.

    Raises:
        MmedgeError: The student cannot be exported in this precision, or what was written is not the same model.
    """
    if precision.device == "cuda" and source.graphs != "fused":
        raise MmedgeError(f"only mmedge's own graphs can be written in {precision.name}", "export with --fp32 or --int8")
    target = source.out / precision.folder
    if (kept := _kept(source, precision, target)) is not None:
        source.progress.line(f"{target}: already exported, kept")
        return kept
    if precision.weights.bits == 16:
        _check_float16(source)
    with atomic_folder(target) as temporary:
        manifest = _BundleAttempts(source, precision, temporary).write(judge)
    return manifest


def written_bundle(source: Source, precision: Precision) -> Manifest | None:
    """Return the manifest of an existing bundle of this student; None if there is none, or one of another student."""
    try:
        manifest = read_manifest(source.out / precision.folder)
    except MmedgeError:
        return None
    return manifest if manifest.key == source.key else None


def _kept(source: Source, precision: Precision, target: Path) -> Manifest | None:
    """Return the manifest of a bundle that was exported earlier from the same student and is valid, or None."""
    try:
        manifest = open_bundle(target).manifest
    except MmedgeError:
        return None  # none, damaged, or of a version that is no longer read: exported again
    if manifest.work is None or (source.sensitivity and precision.finer and not manifest.sensitivity):
        return None
    if (manifest.int8_cache is not None) != _caches_int8(source, precision):
        return None
    if source.recover == "always" and source.may_recover(precision) and manifest.recovery is None:
        return None
    if source.recover == "never" and manifest.recovery is not None:
        return None
    return manifest if source.still_holds(manifest, source.key) else None


def _caches_int8(source: Source, precision: Precision) -> bool:
    """Whether a bundle is to have an int8 cache where the accuracy holds: one that is quantized."""
    return source.int8_cache and not precision.weights.is_float


def _check_float16(source: Source) -> None:
    """Refuse float16 where what goes through the student does not fit into it: a CPU computes it in float32, and would not show."""
    largest, layer = source.reference.largest_state()
    if not largest <= FLOAT16_ROOM:
        raise MmedgeError(
            f"{layer} reaches {largest:.3g} on validation questions, more than half of float16's largest value, 65504",
            "export without --fp16",
        )


@dataclass
class _BundleAttempts:
    """Writes one bundle, repeatedly until it is within the accuracy budget."""

    source: Source
    precision: Precision
    folder: Path
    costs: list[LayerCost] = field(default_factory=list)
    recovery: RecoveryPart | None = None
    recovered: Mapping[str, tuple[str, QuantizedMatrix]] = field(default_factory=dict)

    def write(self, judge: Judge) -> Manifest:
        """Fill the folder and seal it."""
        source, precision = self.source, self.precision
        if (source.recover == "always" or precision.recovers) and source.may_recover(precision):
            self.recover()
        found, steps = within_budget(
            self.attempt,
            lambda found: judge(found, precision, source.max_accuracy_drop),
            self.keep,
            lambda text: source.progress.line(f"{precision.name}: {text}"),
            static=bool(precision.finer and source.input_ranges),
            recover=self.recover if source.may_recover(precision) and (precision.calibrated or self.recovery) else None,
            recovered=self.recovery is not None,
        )
        cached = self.cache_int8(judge) if _caches_int8(source, precision) else None
        if cached and not cached.problems and engine_of(self.student.bundle.manifest) == "native":
            found = cached.verification
        written, exceptions = self.quantizer.written, self.quantizer.exceptions
        if exceptions and not written.keys() - exceptions.keys():
            source.progress.line(
                f"{precision.name}: every layer had to be kept in {precision.finer}, so nothing is left in {precision.name}"
            )
        if source.sensitivity and precision.finer:
            self.costs = self.costs or source.costs(precision)
        confidence = calibrated(self.student, source.validation, source.progress, source.answering.constrained)
        manifest = replace(
            self.student.bundle.manifest,
            quantization=QuantizationPart(
                {name: str(format_) for name, (format_, _) in written.items()},
                {name: str(format_) for name, format_ in exceptions.items()},
            ),
            budget=steps,
            sensitivity=tuple(self.costs),
            recovery=self.recovery,
            verification=found,
            int8_cache=cached,
            confidence=confidence,
            answering=_answering(source.answering, confidence),
        )
        write_card(self.folder, manifest)
        return seal(self.folder, manifest)

    def attempt(self, finer: Sequence[str], static: bool) -> Verification:
        """Write the bundle with the named layers kept finer, and compare it."""
        source, precision = self.source, self.precision
        exceptions = dict.fromkeys(finer, precision.finer_weights) if precision.finer_weights else {}
        self.quantizer = BundleQuantizer(
            precision,
            {name: format_ for name, format_ in exceptions.items() if format_},
            source.observed() if precision.calibrated else {},
            source.input_ranges if static else {},
            self.recovered,
        )
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        source.progress.line(f"{precision.name}: writing")
        started = time.monotonic()
        graphs = self._write_fused() if source.graphs == "fused" else _quantize_foreign(source, precision, self.folder)
        for name, content in source.questions.form.files().items():
            (self.folder / name).write_bytes(content)
        seconds = time.monotonic() - started
        size = folder_size(self.folder)
        source.progress.line(f"{precision.name}: {size / 1e6:.1f} MB in {duration(seconds)}; verifying")
        manifest = _described(source, precision, graphs, WrittenPart(round(seconds, 2), size, graphs.nodes))
        if _caches_int8(source, precision) and (why := unsupported(manifest)):
            raise MmedgeError(f"{precision.name}: the native engine cannot check an int8 cache: {why}", "export with --float-cache")
        bundle = Bundle.of(self.folder, manifest)
        self.student = Student(bundle, open_speaker(bundle, device="cpu"))
        return self.compare(self.student.speaker)

    def compare(self, speaker: Speaker) -> Verification:
        """Compare the bundle with the student, on any engine."""
        vocabulary = self.source.vocabulary
        return self.source.reference.compare(speaker, vocabulary.kept if vocabulary else None)

    def cache_int8(self, judge: Judge) -> Int8CachePart:
        """Compare the bundle with its keys and values in int8, on the native engine; within the budget, its plan has them so."""
        source, precision, stated = self.source, self.precision, self.student.bundle.manifest
        bundle = Bundle.of(self.folder, replace(stated, plan={**(stated.plan or {}), "cache": "int8"}))
        source.progress.line(f"{precision.name}: verifying with keys and values in int8, on the native engine")
        speaker = speaker_of(bundle, None, lambda: NativeEngine(bundle))
        found = self.compare(speaker)
        problems = tuple(judge(found, precision, source.max_accuracy_drop))
        if problems:
            source.progress.line(f"{precision.name}: {'; '.join(problems)}; keys and values stay in float16")
        else:
            self.student = Student(bundle, speaker if engine_of(stated) == "native" else self.student.speaker)
        return Int8CachePart(problems, found)

    def recover(self) -> None:
        """Learn the scales of all linear layers from the student."""
        quantizer = BundleQuantizer(self.precision, observed=self.source.observed() if self.precision.calibrated else {})
        self.recovered, self.recovery = self.source.recovered(quantizer)

    def keep(self, share: float, wrong: str) -> list[str]:
        """Return the layers to keep finer: that share of the most costly ones, and all tables too where it is all of them."""
        refused = f"the {self.precision.name} graphs are refused: {wrong}"
        if self.precision.finer is None or self.source.graphs != "fused" or share > 1:
            raise MmedgeError(refused, "no bundle was written; check the student's own accuracy first")
        self.costs = self.costs or self.source.costs(self.precision)
        if not self.costs:
            raise MmedgeError(
                refused, "distil again to get an evaluation set with calibration questions, or allow more with --max-accuracy-drop"
            )
        worst = [cost.linear for cost in self.costs[: max(1, round(share * len(self.costs)))]]
        return list(dict.fromkeys([*worst, *self.quantizer.written])) if share == 1 else worst

    def _write_fused(self) -> WrittenGraphs:
        source, vocabulary = self.source, self.source.vocabulary
        graphs = write_fused(source.folder, self.folder, self.quantizer, vocabulary.kept if vocabulary else None)
        copy_configs(source.folder, self.folder)
        if vocabulary:
            _write_trimmed(vocabulary, self.folder)
        if self._drafts(graphs):
            phrases = PhraseTable.load(source.folder / DRAFTS)
            if vocabulary:
                phrases = phrases.renumbered({old: number for number, old in enumerate(vocabulary.kept)})
            phrases.save(self.folder / DRAFTS)
        return graphs

    def _drafts(self, graphs: WrittenGraphs) -> bool:
        """Whether the bundle drafts: its steps are long enough to be worth it, and reading several tokens gives the same bits.

        4-bit linear layers give other last bits for several tokens than for one, and so would write other tokens here and there.
        """
        details = self.source.details
        exact = self.precision.least_agreement is None  # what differs in float32 is no more than the order of sums
        alike = exact or (self.quantizer.batch_invariant and details["family"] == "decoder-only")
        drafts = (self.source.folder / DRAFTS).is_file()
        return alike and not graphs.states and details["parameters"] >= SMALL_PARAMETERS and drafts


def _quantize_foreign(source: Source, precision: Precision, folder: Path) -> WrittenGraphs:
    """Take float32 graphs written by optimum, once for all precisions, and quantize them."""
    floats, family = source.out / FOREIGN, source.student.family
    marker = floats / "key.json"
    if marker.is_file() and read_json(marker).get("key") == source.key:
        source.progress.line("float32 graphs: already made, kept")
    else:
        source.progress.line(f"writing float32 graphs with {source.graphs}, which may take minutes")
        with atomic_folder(floats) as temporary:
            write_foreign(source.graphs, source.folder, family, temporary)
            write_json(temporary / "key.json", {"key": source.key})
    copy_configs(floats, folder)
    for part, name in GRAPHS[family, source.graphs].items():
        if precision.weights.is_float:
            for file in floats.glob(f"{name}*"):  # the graph, and its weights where they are a file of their own
                shutil.copyfile(file, folder / file.name)
            continue
        report = quantize_model(floats / name, folder / name, many_rows=part == "encoder", format_=precision.weights)
        source.progress.line(
            f"{precision.name}: {name}: {report.matrices} matrices, {report.tables} tables, "
            f"{report.bytes_before / 1e6:.1f} → {report.bytes_after / 1e6:.1f} MB"
        )
    decoder = onnx.load(str(folder / GRAPHS[family, source.graphs]["decoder"]), load_external_data=False)
    return WrittenGraphs(len(decoder.graph.node), decoding_work(decoder.graph))


FOREIGN = ".graphs"


def _write_trimmed(vocabulary: TrimmedVocabulary, folder: Path) -> None:
    """Write the trimmed tokenizer over the whole one, and the new ids into the configs."""
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary.tokenizer, ensure_ascii=False), encoding="utf-8")
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            write_json(folder / name, vocabulary.renumbered(read_json(folder / name)))


# ------------------------------------------------------------------------------------------------------- manifest


def _described(source: Source, precision: Precision, graphs: WrittenGraphs, written: WrittenPart) -> Manifest:
    """Return the manifest of a bundle before it is verified."""
    details, vocabulary = source.details, source.vocabulary
    special = vocabulary.renumbered(details["special_tokens"]) if vocabulary else details["special_tokens"]
    return Manifest(
        mmedge=__version__,
        recipe=details["recipe"]["name"],
        precision=precision.name,
        device=precision.device,
        family=details["family"],
        graphs=source.graphs,
        task=TaskPart(source.questions.task, **source.questions.form.to_json(), files=tuple(source.questions.form.files())),
        prompts=StudentPrompts(**details["prompts"]),
        special_tokens=SpecialTokens(**special),
        vocabulary=VocabularyPart(len(vocabulary.kept), vocabulary.of) if vocabulary else None,
        max_input_tokens=details["max_input_tokens"],
        max_answer_tokens=source.limits.max_answer_tokens,
        max_rationale_tokens=source.limits.max_rationale_tokens,
        threads=1 if details["parameters"] < SMALL_PARAMETERS else None,
        student=StudentPart(details["parameters"], details["origin"], details["metrics"], learned_of(details)),
        key=source.key,
        verified_on=source.verified_on,
        max_accuracy_drop=source.max_accuracy_drop,
        written=written,
        quantization=QuantizationPart({}, {}),
        work=replace(graphs.work, arithmetic=precision.arithmetic),
        states=graphs.states,
        plan=graphs.plan,
        least_runtime=graphs.least_runtime,
        model=describe_model(source.folder, details),
    )


def _answering(section: AnsweringSection, confidence: dict[str, Any]) -> AnsweringPart:
    """Return how the bundle answers by default, with the threshold chosen on validation questions."""
    strategy = {"kind": section.strategy, **section.model_dump(include=_OF_STRATEGY)}
    threshold = None
    if section.target_accuracy is not None or section.max_withheld is not None:
        known = Confidence.from_manifest(confidence)
        if known is None:
            raise MmedgeError(
                f"no threshold can be chosen: {confidence['why']}",
                "raise split.validation, or leave out answering.target_accuracy and answering.max_withheld",
            )
        chosen = known.threshold(target_accuracy=section.target_accuracy, max_withheld=section.max_withheld)
        figures = chosen.value, chosen.accuracy, chosen.withheld, chosen.questions, chosen.interval
        threshold = ThresholdPart(*figures, section.target_accuracy, section.max_withheld)
    return AnsweringPart(strategy, section.constrained, threshold)
