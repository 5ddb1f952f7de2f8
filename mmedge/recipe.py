"""Recipes: one YAML file that names task, teacher, student, method, training and export; a closed, validated schema.

    recipe = load_recipe(Path("recipes/quickstart.yaml"), ["training.stage2.max_steps=100"])

An unknown field, a wrong type or a value out of range is an error that names the field and what is allowed. `${MMEDGE_DATA}`
in a path stands for the environment variable of that name (default `../shared/data`); other variables are not expanded.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Union
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError, model_validator

from mmedge.errors import MmedgeError
from mmedge.storage import read_text, write_text

DEFAULT_DATA = "../shared/data"
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def expand_path(value: object) -> object:
    """Replace `${MMEDGE_DATA}` in a path; any other variable is an error."""
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] != "MMEDGE_DATA":
            raise ValueError(f"unknown variable ${{{match[1]}}}; only ${{MMEDGE_DATA}} is expanded")
        return os.environ.get("MMEDGE_DATA") or DEFAULT_DATA

    return _VARIABLE.sub(replace, value)


PathText = Annotated[str, BeforeValidator(expand_path), Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of a recipe; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class ArithmeticSection(Section):
    """The embedded task: word problems written by a grammar.

    `train_distractors` is the share of training problems with a number that the answer does not need; the tests have 0.2.
    """

    kind: Literal["arithmetic"]
    seed: int = 0
    train: Positive = 8000
    test: Positive = 400
    train_distractors: Share = 0.2


class DataFolderSection(Section):
    """A task read from a folder with `train.jsonl` and `test.jsonl`."""

    kind: Literal["svamp", "commonsenseqa", "nli"]
    data: PathText
    limit: Positive | None = None


class JsonlSection(Section):
    """A user's own task: JSON lines with `question`, `label`, optional `choices` and `id`, and how answers are judged."""

    kind: Literal["jsonl"]
    name: str = "jsonl"
    train_file: PathText
    test_files: dict[str, PathText] = {}
    judge: Literal["expression", "choice", "label", "exact"]
    labels: tuple[str, ...] = ()
    limit: Positive | None = None

    @model_validator(mode="after")
    def _labels_where_needed(self) -> JsonlSection:
        if (self.judge == "label") != bool(self.labels):
            raise ValueError("labels: list them when judge is 'label', and only then")
        return self


TaskSection = Annotated[Union[ArithmeticSection, DataFolderSection, JsonlSection], Field(discriminator="kind")]


class RecordedTeacherSection(Section):
    """Annotations that were collected before.

    `format`: `jsonl` and `parquet` are what `mmedge annotations RUN --export` writes, `tree_of_thought` the logs that the paper's
    authors published (chains of thought and their evaluations in one file), `lists` the lists of Distilling Step-by-Step, in
    the order of the training questions. `auto` goes by the file's name and first bytes. `cots` may name several files.
    """

    kind: Literal["recorded"]
    cots: PathText | tuple[PathText, ...]
    evaluations: PathText | None = None
    max_cots: Positive | None = None
    format: Literal["auto", "jsonl", "parquet", "tree_of_thought", "lists"] = "auto"


class EmbeddedTeacherSection(Section):
    """The teacher of the embedded task."""

    kind: Literal["embedded"]
    seed: int = 0
    cots_per_question: Positive = 3
    evaluations_per_cot: Annotated[int, Field(ge=0)] = 1
    flawed_share: Share = 0.25
    wrong_evaluation_share: Share = 0.03


class PromptsSection(Section):
    """Template files of one's own; the built-in ones of the task where none are named."""

    cot: PathText | None = None
    evaluation: PathText | None = None


class PricesSection(Section):
    """What a million tokens cost, for the bill; any currency."""

    input: Annotated[float, Field(ge=0)] = 0.0
    output: Annotated[float, Field(ge=0)] = 0.0
    currency: Annotated[str, Field(min_length=1, max_length=8)] = "USD"


class SampledTeacherSection(Section):
    """What every teacher that is asked has in common, whether through an endpoint or on this machine.

    `cots_per_question` distinct chains of thought are wanted, and `evaluations_per_cot` evaluations of each. A text that says the
    same as another of its question, or that could not be read, is drawn again, up to `attempts` times as many texts as are wanted.
    """

    cots_per_question: Positive = 5
    evaluations_per_cot: Annotated[int, Field(ge=0)] = 1
    attempts: Annotated[float, Field(ge=1)] = 3.0
    temperature: Annotated[float, Field(ge=0)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_cot_tokens: Positive = 512
    max_evaluation_tokens: Positive = 512
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    seed: int = 0
    prompts: PromptsSection = PromptsSection()


class OpenAITeacherSection(SampledTeacherSection):
    """A model behind an OpenAI-compatible chat endpoint (OpenAI, vLLM, llama.cpp, Ollama, TGI, transformers serve …).

    The key is read from the environment variable that `api_key_env` names (null: none is sent), and stands nowhere else.
    `concurrency` is the most requests in flight; how many there are adapts to the endpoint. `choices_per_request` is how many
    texts one request asks for (`n`); without it all that a question still needs, and one by one where the endpoint does not
    know `n`. `extra` goes into every request as it is. `max_cost` and `max_requests` are for the whole run, however often it is
    continued.
    """

    kind: Literal["openai"]
    base_url: Annotated[str, Field(min_length=1)] = "https://api.openai.com/v1"
    model: Annotated[str, Field(min_length=1)]
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = "OPENAI_API_KEY"
    concurrency: Annotated[int, Field(gt=0, le=4096)] = 64
    timeout_seconds: Annotated[float, Field(gt=0)] = 300.0
    patience_minutes: Annotated[float, Field(ge=0)] = 10.0
    choices_per_request: Positive | None = None
    extra: dict[str, JsonValue] = {}
    prices: PricesSection = PricesSection()
    max_cost: Annotated[float, Field(ge=0)] | None = None
    max_requests: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _no_secrets_and_no_doubles(self) -> OpenAITeacherSection:
        parts = urlsplit(self.base_url)
        if parts.username or parts.password or _SECRET_PARAMETER.search(parts.query):
            raise ValueError(
                "base_url: it carries a password or key, which would be written into the run; put the key into the environment "
                "variable that api_key_env names"
            )
        doubled = sorted(_FIELDS_OF_REQUESTS & self.extra.keys())
        if doubled:
            raise ValueError(f"extra: {doubled[0]!r} is set by other fields of the teacher's section")
        return self


_SECRET_PARAMETER = re.compile(r"(?:^|&)[^=&]*(?:key|token|secret|password|sig)[^=&]*=", re.IGNORECASE)
_FIELDS_OF_REQUESTS = frozenset(
    ("model", "messages", "n", "seed", "stream", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop")
)


class LocalTeacherSection(SampledTeacherSection):
    """A transformers model on this machine: hub id, folder, `.gguf` file, or `package:NAME/FILE`.

    `quantization` is bitsandbytes'. A batch that does not fit into memory is halved.
    """

    kind: Literal["local"]
    source: PathText
    revision: str | None = None
    tokenizer: PathText | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    quantization: Literal["none", "int8", "nf4"] = "none"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_size: Positive = 16
    threads: Positive | None = None


TeacherSection = Annotated[
    Union[RecordedTeacherSection, EmbeddedTeacherSection, OpenAITeacherSection, LocalTeacherSection],
    Field(discriminator="kind"),
]


class ScratchSection(Section):
    """The shape of a small T5 built from nothing, with a tokenizer trained on the task's text.

    All layers of a side share each head's position bias, so the number of heads is the number of places they can look at: on
    the embedded task 8 heads of 16 answered 98 % where 4 of 32 answered 90 %.
    """

    d_model: Positive = 192
    d_ff: Positive = 512
    d_kv: Positive = 16
    heads: Positive = 12
    encoder_layers: Positive = 3
    decoder_layers: Positive = 2
    vocabulary: Annotated[int, Field(ge=300)] = 600
    dropout: Share = 0.0


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021) instead of training all weights; they are merged into the student at the end.

    `targets` are the names of the layers that get one, or `all-linear`: every linear layer but the head. What is trained, and
    so what a checkpoint holds, is the adapters alone; the learning rate may be ten times that of full training.
    """

    rank: Positive = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    dropout: Share = 0.0
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"


class StudentSection(Section):
    """Where the student's weights come from.

    `source` is a hub id, a local folder, a `.gguf` file, `package:NAME/FILE` (a file inside an installed Python package), or
    `scratch`. `lora` trains adapters instead of all weights.
    """

    source: PathText
    revision: str | None = None
    tokenizer: PathText | None = None
    scratch: ScratchSection = ScratchSection()
    lora: LoraSection | None = None


class MethodSection(Section):
    """Mind's Mirror: what is learned from.

    `labels` says what the right answer is: the pseudo-label of every CoT, weighted by how many say it (the paper without human
    labels), the `majority` of a question's CoTs, or the `human` label. `rationales: false` learns answers alone, the standard
    way to fine-tune. `max_cots` learns from the first so many chains of thought of a question and their evaluations.

    `schedule` is `sequential` (stage 1 learns to evaluate, stage 2 to reason: the paper) or `joint` (one stage learns both at
    once). `rehearsal` is the share of stage 2 that goes on learning to evaluate (0: the paper's schedule; with `joint` the
    share that evaluation has in all). Its lessons count as much as their number says, unless `evaluation_weight` gives them
    another weight in the loss. `alpha` weighs the short task against the long one. `balance_verdicts` gives all verdicts the
    same weight in total, so that a student is not drawn to the most frequent one; `contrast_verdicts` learns to evaluate from
    questions whose chains of thought were judged differently, and from no others.

    `cots_per_visit` is how many of a question's rationales one visit trains; they take turns from epoch to epoch (none given:
    all of them at every visit). `keep` chooses the chains of thought that stage 2 learns from: all of them (the paper), those
    that agree with most others of their question, or those that the teacher itself judged correct; stage 1 learns from all of
    them in any case.

    `own_cots` adds a stage 3 on the student's own mistakes: the student writes so many chains of thought to every training
    question (the first greedily, the others drawn at `own_temperature`), learns to judge them beside the teacher's, and to reason
    from those that came out right. `own_share` is the share of stage 3 that judges.
    """

    labels: Literal["pseudo", "majority", "human"] = "pseudo"
    rationales: bool = True
    max_cots: Positive | None = None
    keep: Literal["all", "self_consistent", "judged_correct"] = "all"
    self_evaluation: bool = True
    schedule: Literal["sequential", "joint"] = "sequential"
    alpha: Share = 0.5
    balance_verdicts: bool = False
    contrast_verdicts: bool = False
    rehearsal: Annotated[float, Field(ge=0, lt=1)] = 0.0
    evaluation_weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    cots_per_visit: Positive | None = None
    own_cots: Annotated[int, Field(ge=0, le=32)] = 0
    own_temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    own_share: Annotated[float, Field(gt=0, lt=1)] = 0.5

    @model_validator(mode="after")
    def _joint_needs_a_share(self) -> MethodSection:
        if self.schedule == "joint" and self.self_evaluation and not self.rehearsal:
            raise ValueError("rehearsal: a joint schedule needs the share that evaluation has in it, such as 0.3")
        return self


class StageSection(Section):
    """How long one stage trains, at which rate."""

    max_steps: Positive | None = None
    epochs: Annotated[float, Field(gt=0)] | None = None
    learning_rate: Annotated[float, Field(gt=0)] = 5e-5
    batch_size: Positive = 16
    warmup_share: Share = 0.05
    evaluate_every: Positive | None = None
    patience: Positive | None = None

    @model_validator(mode="after")
    def _one_length(self) -> StageSection:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of max_steps and epochs")
        return self


HOW_NOT_WHAT = (  # settings of training that change how it is computed, and not what is learned
    "checkpoint_minutes",
    "threads",
    "device",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "compile",
    "tensorboard",
)


class TrainingSection(Section):
    """The stages (the third for `method.own_cots`), and what they share.

    `optimizer: muon` and a `position_rate` above 1, which multiplies the learning rate of T5's position biases, are for
    students from scratch. `select_by` says what stage 2's best checkpoint is: the one with the best answers on validation
    questions, or with the best mean of answers and verdicts (balanced); the former may have forgotten how to judge.

    `precision` is the number type that the passes compute in; weights, their moments and the loss stay float32 (mixed
    precision). `micro_batch_tokens` bounds the padded tokens of one pass: a step's gradient is accumulated over as many passes
    as its batch needs, so it changes memory and speed but no result; a pass that does not fit is halved. `gradient_checkpointing`
    computes activations twice instead of keeping them. `compile` lets `torch.compile` build the passes, which pays for long
    trainings on a GPU. `tensorboard` writes event files beside the metrics.
    """

    stage1: StageSection
    stage2: StageSection
    stage3: StageSection | None = None
    max_input_tokens: Positive = 512
    max_target_tokens: Positive = 256
    optimizer: Literal["adamw", "muon"] = "adamw"
    position_rate: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    adam_beta2: Annotated[float, Field(gt=0, lt=1)] = 0.999
    select_by: Literal["answers", "answers_and_verdicts"] = "answers"
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    checkpoint_minutes: Annotated[float, Field(ge=0)] = 5.0
    threads: Positive | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    micro_batch_tokens: Positive | None = None
    gradient_checkpointing: bool = False
    compile: bool = False
    tensorboard: bool = False


class SplitSection(Section):
    """What is held out of the training questions, as counts of questions.

    `validation` is for every choice (checkpoint, early stop, export's verification); the CoTs of `verdict_test` are for the
    final verdict accuracy only.
    """

    validation: Positive = 100
    verdict_test: Annotated[int, Field(ge=0)] = 50
    seed: int = 0


class GenerationSection(Section):
    """Limits of what a student writes."""

    max_answer_tokens: Positive = 32
    max_rationale_tokens: Positive = 128


class ExportSection(Section):
    """Which precisions to write, who writes the graphs, and how close they must be to the student.

    `bnb-int8` and `bnb-nf4` are no graphs but torch students rounded by bitsandbytes, for small GPUs. `graphs`: `fused` are
    mmedge's own (T5, and Llama-type decoders), `optimum` is any architecture that optimum knows; `auto` takes fused ones where
    there are any. `max_accuracy_drop` is in points, on `verify_questions` validation questions (all by default); matrices that
    cost more stay in finer numbers. `trim_vocab` keeps only the pieces that the task needs.
    """

    precisions: tuple[Literal["fp32", "fp16", "int8", "int4", "bnb-int8", "bnb-nf4"], ...] = ("fp32", "int8")
    graphs: Literal["auto", "fused", "optimum"] = "auto"
    verify_questions: Positive | None = None
    max_accuracy_drop: Annotated[float, Field(ge=0)] = 1.0
    trim_vocab: bool = False


class AnsweringSection(Section):
    """How a bundle answers where a call says nothing else; the bundle carries it.

    `strategy`: `answer` at once; `confidence` judges itself; `samples` draws so many chains of thought at `temperature` and lets
    them vote (`choose_by` `majority`, `self_evaluation`, or `both`); `retry` does so where the confidence is below `retry_below`.
    `constrained` answers have the task's form. Answers below a confidence are withheld where `target_accuracy` (of the answers
    given) or `max_handed_on` (the share withheld) is given: export chooses the threshold on validation questions.
    """

    strategy: Literal["answer", "confidence", "samples", "retry"] = "answer"
    samples: Annotated[int, Field(ge=1, le=64)] = 5
    choose_by: Literal["majority", "self_evaluation", "both"] = "both"
    temperature: Annotated[float, Field(gt=0, le=10)] = 0.7
    seed: int = 0
    retry_below: Share = 0.5
    constrained: bool = False
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    max_handed_on: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _one_aim(self) -> AnsweringSection:
        if self.target_accuracy is not None and self.max_handed_on is not None:
            raise ValueError("give target_accuracy or max_handed_on, not both")
        if self.strategy in ("samples", "retry") and (self.target_accuracy is not None or self.max_handed_on is not None):
            raise ValueError(f"thresholds are chosen for answering at once, not for strategy {self.strategy!r}")
        return self


class BenchSection(Section):
    """How much to measure."""

    questions: Positive | None = None
    warmup_questions: Positive = 5
    verdicts: Annotated[int, Field(ge=0)] = 100
    threads: Positive | None = None


RowName = Literal["standard", "one_cot", "one_cot_self_evaluation", "cots", "cots_self_evaluation"]
ROWS: tuple[RowName, ...] = ("standard", "one_cot", "one_cot_self_evaluation", "cots", "cots_self_evaluation")


_OF_SELF_EVALUATION = {"rehearsal", "evaluation_weight", "balance_verdicts", "contrast_verdicts", "schedule"}


class AblationSection(Section):
    """What `mmedge ablate` compares.

    `rows` are the paper's methods: labels only, one CoT, one CoT with self-evaluation, all CoTs, all CoTs with self-evaluation;
    they learn from all of a question's chains of thought, whatever `method.keep` says. `more` are further rows by name, each
    the recipe's `method` with self-evaluation and with other settings, such as `paper_schedule: {rehearsal: 0}`. Every row is
    trained with each of `labels` and from every one of `seeds`.

    `equal` is the budget that all rows share: `lessons` (as many visits to a question or a chain of thought, over both stages,
    as the last of the paper's rows takes), `steps` (as many optimizer steps over both stages), `stage2` (as many steps of
    stage 2, with stage 1 on top), or `none`: the recipe's own lengths, as epochs of each row's own material (`epochs` may give
    a row its own for both stages, as the paper does). No row stops early (`patience`), and all validate equally often.
    """

    rows: Annotated[tuple[RowName, ...], Field(min_length=1)] = ROWS
    more: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")], dict[str, JsonValue]] = {}
    labels: Annotated[tuple[Literal["pseudo", "majority", "human"], ...], Field(min_length=1)] = ("pseudo", "human")
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0, 1, 2)
    equal: Literal["lessons", "steps", "stage2", "none"] = "lessons"
    epochs: dict[str, tuple[Annotated[float, Field(ge=0)], Annotated[float, Field(gt=0)]]] = {}
    keep_students: bool = False


class Recipe(Section):
    """A whole recipe."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    seed: int = 0
    task: TaskSection
    teacher: TeacherSection
    student: StudentSection
    method: MethodSection = MethodSection()
    training: TrainingSection
    split: SplitSection = SplitSection()
    generation: GenerationSection = GenerationSection()
    export: ExportSection = ExportSection()
    answering: AnsweringSection = AnsweringSection()
    bench: BenchSection = BenchSection()
    ablation: AblationSection = AblationSection()

    @model_validator(mode="after")
    def _teacher_fits_task(self) -> Recipe:
        if self.teacher.kind == "embedded" and self.task.kind != "arithmetic":
            raise ValueError("teacher.kind: 'embedded' knows the task 'arithmetic' only; use 'recorded'")
        return self

    @model_validator(mode="after")
    def _evaluation_is_weighed(self) -> Recipe:
        if self.method.evaluation_weight is not None and not self.method.rehearsal:
            raise ValueError("method.evaluation_weight: changes nothing without method.rehearsal")
        return self

    @model_validator(mode="after")
    def _own_cots_have_a_stage(self) -> Recipe:
        if self.method.own_cots and self.training.stage3 is None:
            raise ValueError("method.own_cots: stage 3 learns from them, so training.stage3 must say how long")
        if self.method.own_cots and not self.method.self_evaluation:
            raise ValueError("method.own_cots: they are written to be judged, and method.self_evaluation is false")
        return self

    @model_validator(mode="after")
    def _rows_are_methods(self) -> Recipe:
        for name, settings in self.ablation.more.items():
            if name in ROWS:
                raise ValueError(f"ablation.more: {name!r} is a row of the paper's; give yours another name")
            if unknown := sorted(settings.keys() - MethodSection.model_fields.keys()):
                raise ValueError(f"ablation.more.{name}: {unknown[0]!r} is no setting of method")
            if "labels" in settings:
                raise ValueError(f"ablation.more.{name}: every row is trained with each of ablation.labels; name them there")
            method = MethodSection.model_validate(self.method.model_dump() | settings)
            if method.own_cots and self.training.stage3 is None:
                raise ValueError(f"ablation.more.{name}: own_cots needs training.stage3, which says how long")
            vain = sorted(one for one in settings.keys() & _OF_SELF_EVALUATION if settings[one])
            if vain and not method.self_evaluation:
                raise ValueError(f"ablation.more.{name}: {vain[0]} changes nothing without self_evaluation")
            if not method.rehearsal and settings.get("evaluation_weight") is not None:
                raise ValueError(f"ablation.more.{name}: evaluation_weight changes nothing without rehearsal")
        if self.ablation.epochs and self.ablation.equal != "none":
            raise ValueError("ablation.epochs: rows have lengths of their own with `equal: none` only")
        for name in ("rows", "labels", "seeds"):
            if len(set(getattr(self.ablation, name))) < len(getattr(self.ablation, name)):
                raise ValueError(f"ablation.{name}: something stands there twice")
        if unknown := sorted(self.ablation.epochs.keys() - {*ROWS, *self.ablation.more}):
            raise ValueError(f"ablation.epochs: there is no row {unknown[0]!r}")
        return self


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: The YAML file.
        overrides: `section.field=value` settings that replace or add fields; values are read as YAML.

    Raises:
        MmedgeError: The file is missing or no YAML, or a field is unknown or has a value that is not allowed.
    """
    if path.is_dir():
        raise MmedgeError(f"{path} is a folder, not a recipe", "name a YAML file, such as recipes/quickstart.yaml")
    text = read_text(path)
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise MmedgeError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise MmedgeError(f"{path}: YAML nested too deeply") from None
    if not isinstance(values, dict):
        raise MmedgeError(f"{path}: a recipe is a mapping of sections", "see recipes/quickstart.yaml")
    for override in overrides or []:
        _override(values, override)
    return validate(values, str(path))


def validate(values: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe's values; errors name the field and what is allowed."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise MmedgeError(_explain(error, where)) from None


_EITHER = {"max_steps": "epochs", "epochs": "max_steps"}


def _override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise MmedgeError(f"--set {override!r}: expected section.field=value", "for example --set training.stage2.max_steps=100")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    target = values
    for part in parts[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise MmedgeError(f"--set {override!r}: {part!r} is a value, not a section")
        target = inner
    if value is not None and parts[-1] in _EITHER:
        target.pop(_EITHER[parts[-1]], None)  # a stage has one length: what is set replaces what the file says
    target[parts[-1]] = value


def _explain(error: ValidationError, where: str) -> str:
    """Return the first problem of a validation as one line that names the field and what is allowed."""
    problem = error.errors(include_url=False)[0]
    place = [str(part) for part in problem["loc"] if str(part) not in _TAGS]
    field = ".".join(place)
    kind = problem["type"]
    if kind == "extra_forbidden":
        known = _known_fields(list(problem["loc"][:-1]))
        close = difflib.get_close_matches(place[-1], known, n=1)
        advice = f"did you mean {close[0]!r}? " if close else ""
        return f"{where}: unknown field {field!r}\n  → {advice}allowed here: {', '.join(known)}"
    if kind == "missing":
        return f"{where}: field {field!r} is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        expected = problem.get("ctx", {}).get("expected_tags") or "arithmetic, svamp, commonsenseqa, nli, jsonl"
        return f"{where}: field '{field}.kind' must be one of {expected}"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if kind == "value_error" else f", found {problem.get('input')!r:.60}"
    return f"{where}: field {field!r}: {message}{found}" if field else f"{where}: {message}"


_TAGS = {"ArithmeticSection", "DataFolderSection", "JsonlSection", "arithmetic", "svamp", "commonsenseqa", "nli", "jsonl"} | {
    "recorded",
    "embedded",
    "openai",
    "local",
}
_BY_TAG: dict[str, type[Section]] = {
    "arithmetic": ArithmeticSection,
    "svamp": DataFolderSection,
    "commonsenseqa": DataFolderSection,
    "nli": DataFolderSection,
    "jsonl": JsonlSection,
    "recorded": RecordedTeacherSection,
    "embedded": EmbeddedTeacherSection,
    "openai": OpenAITeacherSection,
    "local": LocalTeacherSection,
}


def _known_fields(path: list[int | str]) -> list[str]:
    """Return the names of the fields that the section at a path has."""
    section: type[Section] = Recipe
    for part in path:
        if str(part) in _BY_TAG:
            section = _BY_TAG[str(part)]
            continue
        annotation = section.model_fields[str(part)].annotation if str(part) in section.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, Section):
            section = annotation
    return sorted(section.model_fields)


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe as plain values, every default written out."""
    return recipe.model_dump(mode="json")


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML, atomically."""
    write_text(path, yaml.safe_dump(recipe_values(recipe), sort_keys=False, allow_unicode=True))
