"""The student: where its weights come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mmedge.sections import PathText, Positive, Section, Share


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
