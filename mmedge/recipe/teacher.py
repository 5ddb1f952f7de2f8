"""The teacher: who writes chains of thought and evaluations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from mmedge.openai import base_url_problem
from mmedge.sections import PathText, Positive, Section, Share, Threads, TokenLimit

NotNegative = Annotated[int, Field(ge=0)]


class RecordedTeacherSection(Section):
    """Annotations that were collected before."""

    kind: Literal["recorded"] = Field(description="Read annotations from files.")
    cots: PathText | tuple[PathText, ...] = Field(description="File of chains of thought, or several files.")
    evaluations: PathText | None = Field(
        default=None, description="File of self-evaluations. A tree-of-thought log contains its own; leave this out then."
    )
    questions: PathText | None = Field(
        default=None, description="File of new questions, for `mmedge synthesize`: JSON lines with `text`."
    )
    max_cots: Positive | None = Field(default=None, description="Chains of thought used per question, at most. Default: all.")
    format: Literal["auto", "jsonl", "parquet", "tree_of_thought", "lists"] = Field(
        default="auto",
        description="Format of the files. jsonl, parquet: as `mmedge review RUN --export` writes them (parquet needs the "
        "extra `data`). tree_of_thought: the logs published by the authors of Mind's Mirror, chains of thought and evaluations in "
        "one file. lists: the lists of Distilling Step-by-Step, in the order of the training questions. auto: by the file.",
    )


class EmbeddedTeacherSection(Section):
    """The built-in teacher of the arithmetic task."""

    kind: Literal["embedded"] = Field(description="Let the arithmetic task explain its own questions.")
    seed: int = Field(default=0, description="Random seed of everything it writes.")
    cots_per_question: Positive = Field(default=3, description="Chains of thought per question (m).")
    evaluations_per_cot: NotNegative = Field(default=1, description="Self-evaluations per chain of thought (n).")
    flawed_share: Share = Field(default=0.25, description="Share of chains of thought with a mistake.")
    wrong_evaluation_share: Share = Field(default=0.03, description="Share of self-evaluations with the wrong verdict.")


class PromptsSection(Section):
    """Prompt templates of your own; `mmedge annotate RECIPE --copy-prompts FOLDER` writes the built-in ones to start from."""

    cot: PathText | None = Field(
        default=None, description="Template that asks for a chain of thought. Default: the built-in one of the task."
    )
    evaluation: PathText | None = Field(
        default=None, description="Template that asks for a self-evaluation. Default: the built-in one of the task."
    )


class PricesSection(Section):
    """Prices of tokens, for the bill and for `max_cost`."""

    input: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Price of a million prompt tokens.")
    output: Annotated[float, Field(ge=0)] = Field(default=0.0, description="Price of a million completion tokens.")
    currency: Annotated[str, Field(min_length=1, max_length=8)] = Field(default="USD", description="Currency of both prices.")


class SampledTeacherSection(Section):
    """Settings of every teacher that is sampled, behind an endpoint or on this machine."""

    cots_per_question: Positive = Field(default=5, description="Distinct chains of thought per question (m).")
    evaluations_per_cot: NotNegative = Field(default=1, description="Self-evaluations per chain of thought (n).")
    attempts: Annotated[float, Field(ge=1)] = Field(
        default=3.0,
        description="How many texts may be sampled for each text that is wanted. Texts that cannot be read, and chains of thought "
        "that say the same as another of their question, are sampled again up to this limit.",
    )
    temperature: Annotated[float, Field(ge=0)] = Field(default=0.7, description="Sampling temperature; 0 is greedy.")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        default=1.0, description="Nucleus sampling: share of probability to sample from."
    )
    max_cot_tokens: TokenLimit = Field(default=512, description="Longest chain of thought, in tokens.")
    max_evaluation_tokens: TokenLimit = Field(default=512, description="Longest self-evaluation, in tokens.")
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), description="Strings that end a text.")
    seed: int = Field(default=0, description="Random seed; every request gets a seed of its own that depends on it.")
    examples: NotNegative = Field(
        default=0,
        description="Training questions with their human labels that the prompt for chains of thought shows, of all functions in "
        "turn: for small teachers, which misspell calls that they have not seen. Answer forms `schema` and `tools` alone.",
    )
    prompts: PromptsSection = Field(default=PromptsSection(), description="Prompt templates of your own.")


class OpenAITeacherSection(SampledTeacherSection):
    """A model behind an OpenAI-compatible endpoint: OpenAI, vLLM, llama.cpp, Ollama, TGI, transformers serve …"""

    kind: Literal["openai"] = Field(description="Ask a model behind an OpenAI-compatible endpoint (extra `annotate`).")
    base_url: Annotated[str, Field(min_length=1)] = Field(
        default="https://api.openai.com/v1", description="Address of the endpoint, up to and without /chat/completions."
    )
    model: Annotated[str, Field(min_length=1)] = Field(description="Name of the model at the endpoint.")
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = Field(
        default="OPENAI_API_KEY",
        description="Environment variable that holds the API key; null to send none. The key is never stored.",
    )
    concurrency: Annotated[int, Field(gt=0, le=4096)] = Field(
        default=64, description="Requests in flight, at most; fewer are sent while the endpoint is overloaded."
    )
    timeout_seconds: Annotated[float, Field(gt=0)] = Field(
        default=300.0, description="Seconds until a reply must have arrived in full."
    )
    patience_minutes: Annotated[float, Field(ge=0)] = Field(
        default=10.0, description="Minutes without one successful reply after which the collection stops."
    )
    choices_per_request: Positive | None = Field(
        default=None,
        description="Texts that one request asks for (`n`). Default: all that a question still needs, or one if the endpoint "
        "does not support `n`.",
    )
    extra: dict[str, JsonValue] = Field(default_factory=dict, description="Further fields of every request, sent as they are.")
    prices: PricesSection = Field(default=PricesSection(), description="Prices of tokens.")
    max_cost: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Stop before the bill of the whole run exceeds this, however often the run is continued. Needs prices.",
    )
    max_requests: NotNegative | None = Field(
        default=None, description="Stop before the whole run has sent more requests than this."
    )

    @field_validator("base_url")
    @classmethod
    def _base_url_is_valid(cls, base_url: str) -> str:
        if problem := base_url_problem(base_url):
            raise ValueError(f"{problem}; write http://HOST:PORT/v1, and name the variable with the key in api_key_env")
        return base_url

    @field_validator("extra")
    @classmethod
    def _extra_repeats_no_field(cls, extra: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if doubled := sorted(_REQUEST_FIELDS & extra.keys()):
            raise ValueError(f"{doubled[0]!r} is set by other fields of the teacher's section")
        return extra


_REQUEST_FIELDS = frozenset(
    ("model", "messages", "n", "seed", "stream", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop")
)


class LocalTeacherSection(SampledTeacherSection):
    """A transformers model on this machine."""

    kind: Literal["local"] = Field(description="Sample a transformers model on this machine (extra `distill`).")
    source: PathText = Field(description="Hub id, folder, .gguf file, or package:NAME/FILE.")
    revision: str | None = Field(default=None, description="Revision of the hub id.")
    tokenizer: PathText | None = Field(default=None, description="Hub id or folder of the tokenizer, if the source has none.")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Dtype of the weights. auto: bfloat16 or float16 on a GPU, float32 on a CPU."
    )
    quantization: Literal["none", "int8", "nf4"] = Field(default="none", description="Quantize with bitsandbytes (extra `gpu`).")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where the model runs.")
    batch_size: Positive = Field(default=16, description="Prompts per batch; halved if a batch does not fit into memory.")
    threads: Threads | None = Field(default=None, description="CPU threads. Default: all cores.")
    thinking: bool | None = Field(
        default=None,
        description="Whether a model that can reason in a block of its own (`<think>`) does so. Default: as its template has it.",
    )


TeacherSection = Annotated[
    RecordedTeacherSection | EmbeddedTeacherSection | OpenAITeacherSection | LocalTeacherSection,
    Field(discriminator="kind"),
]
