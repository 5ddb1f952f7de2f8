"""The student: where its weights come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from mmedge.sections import PathText, Section, Share
from mmedge.tasks.chat.template import DATE

Width = Annotated[int, Field(gt=0, le=1 << 16)]  # of layers, as wide as the engines multiply
Count = Annotated[int, Field(gt=0, le=1024)]  # of heads and layers


class ScratchSection(Section):
    """The shape of a small T5 built from nothing, with a tokenizer trained on the task's text.

    All layers of a side share each head's position bias, so the number of heads is the number of places they can look at: on
    the embedded task, 8 heads of width 16 answered 98 % right, and 4 heads of width 32 only 90 %.
    """

    d_model: Width = Field(default=192, description="Width of embeddings and layers.")
    d_ff: Width = Field(default=512, description="Width of the feed-forward layers.")
    d_kv: Count = Field(default=16, description="Width of an attention head.")
    heads: Count = Field(default=12, description="Attention heads.")
    encoder_layers: Count = Field(default=3, description="Layers of the encoder.")
    decoder_layers: Count = Field(default=2, description="Layers of the decoder.")
    vocabulary: int = Field(default=600, ge=300, le=4_000_000, description="Size of the tokenizer's vocabulary.")
    dropout: Share = Field(default=0.0, description="Dropout while training.")


class LoraSection(Section):
    """Low-rank adapters (Hu et al. 2021) instead of training all weights; they are merged into the student at the end.

    Only the adapters are trained, and kept in checkpoints; the learning rate may be ten times that of full training.
    """

    rank: Width = Field(default=16, description="Rank of the adapters.")
    alpha: float = Field(
        default=32.0, gt=0, le=1e6, description="Scale of the adapters; what they add is multiplied by alpha / rank."
    )
    dropout: Share = Field(default=0.0, description="Dropout before the adapters.")
    targets: Literal["all-linear"] | tuple[str, ...] = Field(
        default="all-linear", description="Names of the layers with an adapter; all-linear is every linear layer but the head."
    )


class StudentSection(Section):
    """Where the student's weights come from."""

    source: PathText = Field(
        description="A hub id, a local folder, a `.gguf` file, `package:NAME/FILE` (a file in an installed Python package), or"
        " `scratch`."
    )
    revision: str | None = Field(default=None, description="Revision of a hub id.")
    tokenizer: PathText | None = Field(default=None, description="Hub id or folder of the tokenizer. Default: the model's own.")
    prompt: Literal["plain", "chat"] = Field(
        default="plain",
        description="plain: the student reads questions as they are. chat: as the user's message in the model's own chat template,"
        " for models trained to follow instructions. A student of mmedge keeps what it has learned with.",
    )
    system: str = Field(default="", description="The system message in front of every question, for prompt: chat.")
    date: str = Field(
        default=DATE,
        pattern=r"^\d{4}-\d{2}-\d{2}$",
        description="Today's date for chat templates that print it, the same in training and on the device.",
    )
    scratch: ScratchSection = Field(default=ScratchSection(), description="Shape of a student from scratch.")
    lora: LoraSection | None = Field(default=None, description="Train adapters. Default: train all weights.")
    frozen_layers: int = Field(
        default=0,
        ge=0,
        description="First layers of a decoder-only student that are not trained, nor the embeddings; what they make of each"
        " lesson is computed once, so that a step takes little more than the share of the other layers.",
    )

    @model_validator(mode="after")
    def _system_is_read(self) -> StudentSection:
        if self.system and self.prompt == "plain":
            raise ValueError("system: requires student.prompt: chat")
        return self
