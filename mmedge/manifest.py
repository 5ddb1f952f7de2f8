"""What the manifest of a bundle says of itself, and that of a quantized student: declared here, and nowhere else.

    read_manifest(Path("runs/quickstart/bundle-int8")).verification.accuracy_change

Export fills these, `bundle.py` writes and reads them, the runtime and the reports use them. Knows what is said, and neither files
nor formats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from mmedge.storage import sha256_json
from mmedge.tasks.encoding import Family, SpecialTokens
from mmedge.tasks.prompts import StudentPrompts

Graphs = Literal["fused", "transformers", "optimum"]  # who wrote them: mmedge itself, with fused attention, or somebody else
Arithmetic = Literal["float32", "int8"]


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
