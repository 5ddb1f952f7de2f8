"""Bundles: the deployable folder, its manifest, and the check that every file is what the manifest says.

    bundle-int8/
        manifest.json                    what this file declares; hashes of every other file, and of itself
        encoder_model.onnx  decoder_model.onnx             (encoder-decoder), or model.onnx (decoder-only)
        weights.data                     what those graphs read
        tokenizer.json  config.json  …   as other runtimes expect them

A bundle opens without network, torch or transformers, and refuses to open when a byte differs. Export writes manifests, the runtime
and the reports read them. A student quantized by bitsandbytes carries the same account of its export in its `mmedge.json`.
Knows what a manifest says, and not how any of it comes about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmedge.errors import MmedgeError
from mmedge.folders import DETAILS, QUANTIZED
from mmedge.folders import MANIFEST as MANIFEST
from mmedge.storage import check_files, folder_size, hash_files, read_json, sha256_json, write_json
from mmedge.tasks.base import LONGEST_TEXT
from mmedge.tasks.encoding import Family, SpecialTokens
from mmedge.tasks.forms import AnswerForm, open_form
from mmedge.tasks.prompts import StudentPrompts
from mmedge.typed import read_as

FORMAT = 6
OLDEST = 5  # that is read
MOST_TOKENS = 1 << 31  # of a vocabulary
MOST_THREADS = 1024
MOST_BYTES = 1 << 53  # of anything
RENEW = "write it again: mmedge export RUN"
Graphs = Literal["fused", "transformers", "optimum"]  # who wrote them: mmedge itself, with fused attention, or somebody else
Arithmetic = Literal["float32", "int8"]
GRAPHS: dict[tuple[Family, Graphs], dict[str, str]] = {
    ("encoder-decoder", "fused"): {"encoder": "encoder_model.onnx", "decoder": "decoder_model.onnx"},
    ("encoder-decoder", "optimum"): {"encoder": "encoder_model.onnx", "decoder": "decoder_model_merged.onnx"},
    ("decoder-only", "fused"): {"decoder": "model.onnx"},
    ("decoder-only", "transformers"): {"decoder": "model.onnx"},
    ("decoder-only", "optimum"): {"decoder": "model.onnx"},
}


# --------------------------------------------------------------------------------------------- what a manifest says


@dataclass(frozen=True)
class TaskPart:
    """What a bundle answers.

    Attributes:
        name: The task.
        form: The form of its answers: `expression`, `choice`, `label`, …
        settings: The form's settings, such as its labels.
        files: Names of files in the bundle that the form needs, such as a schema.
    """

    name: str
    form: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudentPart:
    """The student that was exported.

    Attributes:
        parameters: How many.
        origin: Where its weights came from.
        metrics: What it scored before and after it was distilled.
        learned: What it learned to write besides answers: `rationale`, `verdict`; None where that is not known.
    """

    parameters: int
    origin: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    learned: tuple[str, ...] | None = None


@dataclass(frozen=True)
class VocabularyPart:
    """A trimmed vocabulary: how many tokens were kept, and of how many."""

    kept: int
    of: int


@dataclass(frozen=True)
class WrittenPart:
    """What was written: in how many seconds, how many bytes, and how many nodes the decoder's graph has, where that is known."""

    seconds: float
    bytes: int
    decoder_nodes: int | None = None


@dataclass(frozen=True)
class QuantizationPart:
    """The dtype of every linear layer and table.

    Attributes:
        layers: By name, the dtype: `int4`, `int8`, `float32`, …
        exceptions: Layers kept in a finer dtype than the precision's own, for accuracy.
    """

    layers: Mapping[str, str]
    exceptions: Mapping[str, str]


@dataclass(frozen=True)
class BudgetStep:
    """One attempt to stay within the accuracy budget.

    Attributes:
        kept_finer: How many layers were kept in a finer dtype.
        problems: What was wrong; nothing of the last attempt.
        accuracy_drop: Points of accuracy lost on validation questions; None without labels.
        mean_kl: KL divergence from the student, in nats per token.
        static_activations: Whether an encoder's activations were quantized with ranges fixed by calibration.
        recovered: Whether the quantized layers' scales had been learned from the student.
    """

    kept_finer: int
    problems: tuple[str, ...]
    accuracy_drop: float | None
    mean_kl: float
    static_activations: bool = False
    recovered: bool = False


@dataclass(frozen=True)
class RecoveryPart:
    """How scales were learned from the float student.

    Attributes:
        texts: How many of the student's own texts they were learned from.
        steps: How many were taken.
        planned: How many there would have been without a limit of time.
        kl_before: Mean divergence from the student on held-out texts before, in nats per token.
        kl_after: The same with what was learned.
    """

    texts: int
    steps: int
    planned: int
    kl_before: float
    kl_after: float


@dataclass(frozen=True)
class LayerCost:
    """What quantizing one linear layer costs: the loss foreseen, in nats per token, and the bytes of a finer dtype."""

    linear: str
    loss: float
    bytes: int


@dataclass(frozen=True)
class Verification:
    """How what was exported compares with its student on validation questions.

    Attributes:
        questions: How many were asked.
        same_answers: How many greedy answers are the same, word for word.
        largest_difference: The largest difference of any logit, as a share of the largest logit, teacher-forced.
        top1_agreement: The share of answer tokens for which both choose the same, teacher-forced.
        mean_kl: Mean Kullback-Leibler divergence from the student, in nats per token.
        accuracy_student: Share of right answers of the student; None without labels.
        accuracy_bundle: The same of what was exported.
        accuracy_change: The second less the first, in points, with its paired 95 % interval; None without labels.
        label_probability: The mean probability of the right answer, of the student and of what was exported; None without labels.
            It moves by less chance than the share of right answers, which a few questions decide.
        label_probability_change: By how many points it changed, with its paired 95 % interval; None without labels.
        became_wrong: How many right answers became wrong.
        became_right: How many wrong answers became right.
    """

    questions: int
    same_answers: int
    largest_difference: float
    top1_agreement: float
    mean_kl: float
    accuracy_student: float | None = None
    accuracy_bundle: float | None = None
    accuracy_change: tuple[float, float, float] | None = None
    label_probability: tuple[float, float] | None = None
    label_probability_change: tuple[float, float, float] | None = None
    became_wrong: int = 0
    became_right: int = 0

    @property
    def drop(self) -> float | None:
        """Points of accuracy lost; None without labels."""
        if self.accuracy_student is None or self.accuracy_bundle is None:
            return None
        return 100 * (self.accuracy_student - self.accuracy_bundle)

    def __str__(self) -> str:
        words = [f"{self.same_answers}/{self.questions} answers match the student's"]
        words.append(f"top-1 agreement {100 * self.top1_agreement:.2f} %, KL {self.mean_kl:.1e}")
        if self.accuracy_change is not None:
            words.append(f"accuracy {change_text(self.accuracy_change)}")
        if self.label_probability_change is not None:
            words.append(f"probability of the right answer {change_text(self.label_probability_change)} points")
        return ", ".join(words)


def change_text(change: Sequence[float] | None) -> str:
    """Return a change in points with its interval, as a person reads it; a dash for none."""
    return "–" if change is None else f"{change[0]:+.1f} [{change[1]:+.1f}, {change[2]:+.1f}]"


NOT_VERIFIED = Verification(questions=0, same_answers=0, largest_difference=0.0, top1_agreement=0.0, mean_kl=0.0)


@dataclass(frozen=True)
class Int8CachePart:
    """How a bundle does with keys and values in int8, on the native engine.

    Attributes:
        problems: What was wrong; where nothing was, the layer plan keeps them so.
        verification: How it compares with its student.
    """

    problems: tuple[str, ...]
    verification: Verification


@dataclass(frozen=True)
class ThresholdPart:
    """The confidence below which a bundle withholds answers, chosen on validation questions.

    Attributes:
        value: The confidence.
        accuracy: Of the answers given on validation questions.
        withheld: The share of validation questions below.
        questions: How many there were.
        interval: 95 % interval of the accuracy.
        target_accuracy: The accuracy that the recipe asked for, if it did.
        max_withheld: The largest share withheld that the recipe asked for, if it did.
    """

    value: float
    accuracy: float
    withheld: float
    questions: int
    interval: tuple[float, float] = (0.0, 1.0)
    target_accuracy: float | None = None
    max_withheld: float | None = None


@dataclass(frozen=True)
class AnsweringPart:
    """How a bundle answers where a call says nothing else.

    Attributes:
        strategy: The settings of the runtime's strategy.
        constrained: Whether answers are held to the task's form.
        threshold: Below which confidence answers are withheld; None for never.
    """

    strategy: Mapping[str, Any] = field(default_factory=dict)
    constrained: bool = False
    threshold: ThresholdPart | None = None


@dataclass(frozen=True)
class Work:
    """What one row's decoding step does with its weights; attention over what was read before is not counted.

    Attributes:
        bytes: Of the weights that are read: all but tables that rows are looked up in.
        operations: Multiplications and additions of linear layers.
        table_bytes: Of those tables: embeddings that are not the head too.
        arithmetic: What the linear layers are mostly computed in.
    """

    bytes: int
    operations: int
    table_bytes: int
    arithmetic: Arithmetic = "float32"


@dataclass(frozen=True)
class State:
    """A recurrent state of a graph, which holds all that was read and cannot be taken back to an earlier token.

    Attributes:
        name: The graph takes it as `past_states.NAME` and returns it as `present_states.NAME`.
        shape: Of one row.
        dtype: Of its numbers.
    """

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "float16"] = "float32"


@dataclass(frozen=True)
class FilePart:
    """A file's hash and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What a bundle and a quantized student both say of their export.

    Attributes:
        mmedge: The version that wrote it.
        recipe: The recipe's name.
        precision: `fp32`, `int8`, `bnb-nf4`, …
        student: What was exported.
        key: Hash of all that decides what is written.
        verified_on: Hash of the questions that it was verified on.
        max_accuracy_drop: The accuracy budget, in points.
        written: In what time and size.
        quantization: The dtype of every layer.
        verification: How it compares with the student.
        budget: The attempts to stay within the accuracy budget.
        sensitivity: What quantizing each layer costs, where that was found out, the worst first.
        recovery: How scales were learned from the student; None where they were not.
        files: Hash and size of every other file.
    """

    mmedge: str
    recipe: str
    precision: str
    student: StudentPart
    key: str
    verified_on: str
    max_accuracy_drop: float
    written: WrittenPart
    quantization: QuantizationPart
    verification: Verification = NOT_VERIFIED
    budget: tuple[BudgetStep, ...] = ()
    sensitivity: tuple[LayerCost, ...] = ()
    recovery: RecoveryPart | None = None
    files: Mapping[str, FilePart] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Manifest(Exported):
    """What a bundle says of itself.

    Attributes:
        device: What it is meant for: `cpu`, or `cuda` (fp16), which the CPU computes too, more slowly than float32.
        family: Which kind of student.
        graphs: Who wrote the graphs, which decides their inputs and outputs.
        task: What it answers.
        prompts: Its prompts.
        special_tokens: Its special tokens.
        max_input_tokens: Longer inputs are cut.
        max_answer_tokens: The longest answer.
        max_rationale_tokens: The longest rationale or evaluation.
        threads: How many threads serve it best; None for all cores.
        vocabulary: What was kept of the vocabulary; None for all of it.
        confidence: How its confidence was calibrated, as `runtime.confidence` reads it; empty where it was not.
        answering: How it answers where a call says nothing else.
        work: What a decoding step does; None in bundles of format 5.
        states: The graph's recurrent states.
        plan: The layer plan of an engine that interprets one; None where none was written.
        int8_cache: How it does with keys and values in int8; None where that was not asked for.
        least_runtime: The oldest ONNX Runtime that has its graphs' operators; empty for the oldest that mmedge supports.
        model: What the student is: where it comes from, under which licence, how it is prompted; empty in older bundles.
    """

    device: Literal["cpu", "cuda"]
    family: Family
    graphs: Graphs
    task: TaskPart
    prompts: StudentPrompts
    special_tokens: SpecialTokens
    max_input_tokens: int
    max_answer_tokens: int
    max_rationale_tokens: int
    threads: int | None = None
    vocabulary: VocabularyPart | None = None
    confidence: Mapping[str, Any] = field(default_factory=dict)
    answering: AnsweringPart = AnsweringPart()
    work: Work | None = None
    states: tuple[State, ...] = ()
    plan: Mapping[str, Any] | None = None
    int8_cache: Int8CachePart | None = None
    least_runtime: str = ""
    model: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> str:
        """Return a hash of all that answers depend on."""
        stated = asdict(self)
        cache = [self.plan["cache"]] if self.plan and "cache" in self.plan else []
        return sha256_json([*(stated[name] for name in ("files", "prompts", "confidence", "answering")), *cache])


@dataclass(frozen=True, kw_only=True)
class QuantizedStudent(Exported):
    """What a student quantized by bitsandbytes says of its export.

    Attributes:
        made_with: Versions of the packages that quantized it.
        computed_on: Where it was verified: `cpu` or `cuda`.
    """

    made_with: Mapping[str, str] = field(default_factory=dict)
    computed_on: Literal["cpu", "cuda"] = "cpu"


@dataclass(frozen=True)
class Bundle:
    """An opened, checked bundle.

    Attributes:
        folder: Where it lies.
        manifest: What it says of itself.
        form: What answers of its task look like.
        held: What the files of weights hold, by name, where they were read into memory.
    """

    folder: Path
    manifest: Manifest
    form: AnswerForm
    held: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, held: Mapping[str, NDArray[np.uint8]] | None = None) -> Bundle:
        """Return the bundle in a folder whose files are known to be right.

        Raises:
            MmedgeError: This version does not know the form of its answers.
        """
        return cls(folder, manifest, open_form(asdict(manifest.task), folder, f"{folder / MANIFEST}: task"), held or {})

    def graph(self, part: str) -> Path:
        """Return the path of a graph: `decoder`, or `encoder`."""
        return self.folder / GRAPHS[self.manifest.family, self.manifest.graphs][part]

    @property
    def size(self) -> int:
        """Bytes on disk, all included."""
        return folder_size(self.folder)


# ------------------------------------------------------------------------------------------------- reading, writing


def seal(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest of a folder whose other files are complete, and return it with their hashes and sizes."""
    whole = replace(manifest, files=_hashed(folder, MANIFEST))
    stated = {"format": FORMAT, **asdict(whole)}
    write_json(folder / MANIFEST, {**stated, "sha256": sha256_json(stated)})
    return whole


def _hashed(folder: Path, besides: str) -> dict[str, FilePart]:
    return {name: FilePart(**part) for name, part in hash_files(folder, besides).items()}


def refuse_bundle(folder: Path, option: str) -> None:
    """Refuse to write results into a bundle: it no longer opens when it holds a file that its manifest does not list.

    Raises:
        MmedgeError: The folder is a bundle.
    """
    if (folder / MANIFEST).is_file():
        raise MmedgeError(f"{folder} is a bundle, and another file in it would break it", f"choose another folder with {option}")


def read_manifest(folder: Path) -> Manifest:
    """Return a bundle's manifest, checked against its own hash.

    Raises:
        MmedgeError: The folder is not a bundle, its format is not read by this version, or its manifest was changed.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise MmedgeError(f"no such bundle: {folder}", "make one: mmedge export RUN --int8")
    if not path.is_file():
        within = [path.parent for path in sorted(folder.glob(f"*/{MANIFEST}"))]
        hint = f"name one of its bundles: {', '.join(map(str, within))}" if within else "make one: mmedge export RUN --int8"
        raise MmedgeError(f"{folder} is not a bundle: it has no {MANIFEST}", hint)
    stated = read_json(path)
    if not isinstance(stated, dict) or not isinstance(stated.get("format"), int):
        raise MmedgeError(f"{path} is not a bundle's manifest", RENEW)
    format_ = stated["format"]
    if format_ > FORMAT:
        raise MmedgeError(f"{path} has format {format_}, and this version of mmedge reads up to {FORMAT}", "update mmedge")
    if format_ < OLDEST:
        raise MmedgeError(f"{path} has format {format_}, which is too old: formats {OLDEST} to {FORMAT} are read", RENEW)
    digest = stated.pop("sha256", None)
    if sha256_json(stated) != digest:
        raise MmedgeError(f"{path} was changed after export: its hash does not match", RENEW)
    found = read_as(Manifest, _upgraded(stated, path) if format_ < FORMAT else stated, str(path), RENEW)
    _check_limits(found, path)
    for name, token in found.special_tokens.to_json().items():
        if token is not None and not -1 <= token < MOST_TOKENS:
            raise MmedgeError(f"{path}: special_tokens.{name} is {token}, which is not a token id", RENEW)
    return found


def _check_limits(found: Manifest, path: Path) -> None:
    """Refuse numbers that no bundle can mean.

    Raises:
        MmedgeError: One is out of its range; the message names it.
    """
    texts = ("max_input_tokens", "max_answer_tokens", "max_rationale_tokens")
    stated = [(name, getattr(found, name), 1, LONGEST_TEXT) for name in texts]
    stated.append(("student.parameters", found.student.parameters, 0, MOST_BYTES))
    if found.threads is not None:
        stated.append(("threads", found.threads, 1, MOST_THREADS))
    if found.vocabulary is not None:
        stated.append(("vocabulary.of", found.vocabulary.of, 1, MOST_TOKENS))
        stated.append(("vocabulary.kept", found.vocabulary.kept, 1, found.vocabulary.of))
    if found.work is not None:
        stated += [(f"work.{name}", getattr(found.work, name), 0, MOST_BYTES) for name in ("bytes", "operations", "table_bytes")]
    stated += [(f"states.{place}.shape", size, 1, MOST_TOKENS) for place, state in enumerate(found.states) for size in state.shape]
    for name, value, low, high in stated:
        if not low <= value <= high:
            raise MmedgeError(f"{path}: field {name!r}: expected a whole number from {low} to {high}, found {value}", RENEW)


def open_bundle(folder: Path, hold: bool = False) -> Bundle:
    """Open a bundle and check every file.

    Args:
        folder: Where it lies.
        hold: Read its weights into memory, so that nothing that happens to the files matters any more.

    Raises:
        MmedgeError: A file is missing, was added, or differs from its hash; the message names it.
    """
    manifest = read_manifest(folder)
    weights = [name for name in manifest.files if name.endswith("data")] if hold else []  # weights.data, model.onnx_data
    held = check_files(folder, {name: asdict(part) for name, part in manifest.files.items()}, MANIFEST, weights)
    return Bundle.of(folder, manifest, held)


def learned_of(details: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return what a student learned to write besides answers, by its details; None for a student of an older version."""
    return None if details.get("learned") is None else tuple(details["learned"])


def seal_student(folder: Path, details: Mapping[str, Any], manifest: QuantizedStudent) -> QuantizedStudent:
    """Write the `mmedge.json` of a quantized student whose other files are complete, and return its account with their hashes.

    Args:
        folder: Its folder.
        details: The `mmedge.json` of the student that was quantized.
        manifest: How it was exported.
    """
    whole = replace(manifest, files=_hashed(folder, DETAILS))
    stated = {**details, QUANTIZED: asdict(whole)}
    write_json(folder / DETAILS, {**stated, "sha256": sha256_json(stated)})
    return whole


def read_quantized(details: Mapping[str, Any], path: Path) -> QuantizedStudent:
    """Return how a quantized student was exported, from its `mmedge.json`, without a look at its files.

    Raises:
        MmedgeError: A field is missing or of another type.
    """
    stated = details[QUANTIZED] if QUANTIZED in details else _upgraded(details["rounded"], path)
    return read_as(QuantizedStudent, stated, str(path), RENEW)


def check_student(folder: Path, details: Mapping[str, Any]) -> QuantizedStudent:
    """Check every file of a quantized student, and return how it was exported.

    Args:
        folder: Its folder.
        details: Its `mmedge.json`.

    Raises:
        MmedgeError: A file is missing, was added or changed; the message names it.
    """
    stated = {name: value for name, value in details.items() if name != "sha256"}
    if sha256_json(stated) != details.get("sha256"):
        raise MmedgeError(f"{folder / DETAILS} was changed after export: its hash does not match", RENEW)
    manifest = read_quantized(details, folder / DETAILS)
    check_files(folder, {name: asdict(part) for name, part in manifest.files.items()}, DETAILS)
    return manifest


def _upgraded(old: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a manifest of format 5, or what a quantized student of its time says, in the words of format 6.

    Raises:
        MmedgeError: It is not what export wrote then.
    """
    try:
        return _renamed(old)
    except (KeyError, TypeError, AttributeError):
        raise MmedgeError(f"{path} is not what mmedge export writes", RENEW) from None


def _renamed(old: dict[str, Any]) -> dict[str, Any]:
    new = dict(old)
    if "task" in old:
        labels = old["task"].get("labels")
        settings = {"labels": labels} if labels else {}
        new["task"] = {"name": old["task"]["name"], "form": old["task"]["judge"], "settings": settings}
    new["quantization"] = old.get("numbers", {"layers": {}, "exceptions": {}})
    new["budget"] = [{**step, "static_activations": step.get("fixed_steps", False)} for step in old.get("budget", ())]
    new["sensitivity"] = [{**cost, "linear": cost["product"]} for cost in old.get("sensitivity", ())]
    new["confidence"] = old.get("confidence") or {}
    answering = dict(old.get("answering") or {})
    if threshold := answering.get("threshold"):
        withheld = {"withheld": threshold["handed_on"], "max_withheld": threshold.get("max_handed_on")}
        answering["threshold"] = threshold | withheld
    new["answering"] = answering
    return new
