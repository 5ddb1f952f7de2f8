"""A bundle of graphs alone: for measurements, and tests, of engines that decode token ids and are asked nothing in words.

    bundle = bundle_of(folder, SpecialTokens(eos=1, pad=0))        of the graphs that `write_fused` wrote there
    replace(bundle, manifest=replace(bundle.manifest, plan=plan))  for the native engine

What its manifest says besides family, graphs and special tokens means nothing. Knows neither tokenizer nor weights.
"""

from __future__ import annotations

from pathlib import Path

from mmedge.bundle import Bundle
from mmedge.manifest import Graphs, Manifest, QuantizationPart, StudentPart, TaskPart, WrittenPart
from mmedge.tasks.encoding import Family, SpecialTokens
from mmedge.tasks.prompts import DECODER_ONLY_PROMPTS, ENCODER_DECODER_PROMPTS


def bundle_of(
    folder: Path, special: SpecialTokens, family: Family = "decoder-only", graphs: Graphs = "fused", longest: int = 0
) -> Bundle:
    """Return a bundle of the graphs in a folder.

    Args:
        folder: Where they lie.
        special: The token ids that begin, end and pad; an end token of -1 ends no text early.
        family: Which kind of student they are of.
        graphs: Who wrote them.
        longest: The most tokens that are read at once, where an engine must know.
    """
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
        max_input_tokens=longest,
        max_answer_tokens=0,
        max_rationale_tokens=0,
    )
    return Bundle.of(folder, manifest)
