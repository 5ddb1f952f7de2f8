"""Bundles that are nothing but graphs, for tests of the engines that decode these."""

from __future__ import annotations

from pathlib import Path

from mmedge.manifest import Bundle, Graphs, Manifest, QuantizationPart, StudentPart, TaskPart, WrittenPart
from mmedge.tasks.encoding import Family, SpecialTokens
from mmedge.tasks.prompts import DECODER_ONLY_PROMPTS, ENCODER_DECODER_PROMPTS


def bundle_of(folder: Path, special: SpecialTokens, family: Family = "decoder-only", graphs: Graphs = "fused") -> Bundle:
    """Return a bundle of the graphs in a folder; what else its manifest says means nothing."""
    manifest = Manifest(
        mmedge="",
        recipe="",
        precision="fp32",
        student=StudentPart(0),
        key="",
        verified_on="",
        max_accuracy_drop=0.0,
        written=WrittenPart(0.0, 0),
        quantization=QuantizationPart({}, {}),
        device="cpu",
        family=family,
        graphs=graphs,
        task=TaskPart("", "exact"),
        prompts=ENCODER_DECODER_PROMPTS if family == "encoder-decoder" else DECODER_ONLY_PROMPTS,
        special_tokens=special,
        max_input_tokens=0,
        max_answer_tokens=0,
        max_rationale_tokens=0,
    )
    return Bundle.of(folder, manifest)
