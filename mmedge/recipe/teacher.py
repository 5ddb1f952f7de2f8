"""The teacher: who writes chains of thought and evaluations."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, JsonValue, model_validator

from mmedge.sections import PathText, Positive, Section, Share


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
    extra: dict[str, JsonValue] = Field(default_factory=dict)
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
    RecordedTeacherSection | EmbeddedTeacherSection | OpenAITeacherSection | LocalTeacherSection,
    Field(discriminator="kind"),
]
