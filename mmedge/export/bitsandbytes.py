"""Students quantized by bitsandbytes: `student-bnb-int8`, `student-bnb-nf4`, in Hugging Face format, for small GPUs.

What is written is what transformers itself would load: `config.json` with a `quantization_config`, safetensors, a tokenizer. It is
quantized on the CPU, so that it is the same wherever that is done. Embedding, head and norms are float16; T5's `wo` is too,
and becomes float32 when it is opened, since its inputs are too large for float16. Layers that cost too much accuracy stay in
float16, up to half of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from mmedge import __version__
from mmedge.bundle import check_student, read_quantized, seal_student
from mmedge.engines.torch_decoding import torch_speaker
from mmedge.errors import MmedgeError
from mmedge.export.budget import within_budget
from mmedge.export.quantization.precisions import PRECISIONS, Precision
from mmedge.export.source import Source
from mmedge.export.verify import Judge, problems
from mmedge.folders import DETAILS, is_quantized
from mmedge.manifest import QuantizationPart, QuantizedStudent, StudentPart, Verification, WrittenPart
from mmedge.reports.formats import duration
from mmedge.storage import atomic_folder, folder_size
from mmedge.students import dialects
from mmedge.students.bitsandbytes import bits_config, kept_in_float, need_bitsandbytes
from mmedge.students.saved import TASK_TOKENS, open_student, student_details

FLOAT = "float16"
MOST_FINER = 1 / 2  # of the layers: beyond, little is left of the precision
_NOT_COPIED = {DETAILS, *TASK_TOKENS, "config.json", "generation_config.json", "model.safetensors.index.json"}


def write_student(source: Source, precision: Precision, judge: Judge = problems) -> QuantizedStudent:
    """Write a student quantized by bitsandbytes, unless a valid one exists.

    Args:
        source: The student.
        precision: How its weights are stored.
        judge: Says what is wrong with a comparison.

    Raises:
        MmedgeError: bitsandbytes is not installed, or what was written is not the same model.
    """
    target = source.out / precision.folder
    if (kept := _kept(source, target)) is not None:
        source.progress.line(f"{target}: already exported, kept")
        return kept
    need_bitsandbytes()
    if source.trims:
        source.progress.line(f"{precision.name}: keeps the whole vocabulary; only bundles can be trimmed")
    with atomic_folder(target) as temporary:
        attempts = _StudentAttempts(source, precision, temporary)
        found, steps = within_budget(
            attempts.attempt,
            lambda found: judge(found, precision, source.max_accuracy_drop),
            attempts.keep,
            lambda text: source.progress.line(f"{precision.name}: {text}"),
        )
        manifest = seal_student(temporary, source.details, replace(attempts.manifest, budget=steps, verification=found))
    return manifest


def written_student(source: Source, precision: Precision) -> QuantizedStudent | None:
    """Return the manifest of an existing quantized copy of this student; None if there is none."""
    folder = source.out / precision.folder
    if not (folder / DETAILS).is_file() or not is_quantized(details := student_details(folder)):
        return None
    manifest = read_quantized(details, folder / DETAILS)
    return manifest if manifest.key == source.student_key else None


def _kept(source: Source, folder: Path) -> QuantizedStudent | None:
    """Return the manifest of a quantized student that was written earlier from the same student and is valid, or None."""
    if not (folder / DETAILS).is_file():
        return None
    try:
        manifest = check_student(folder, student_details(folder))
    except (MmedgeError, KeyError):
        return None  # damaged, or of a version that is no longer read: written again
    return manifest if source.still_holds(manifest, source.student_key) else None


@dataclass
class _StudentAttempts:
    """Writes one quantized student, repeatedly until it is within the accuracy budget."""

    source: Source
    precision: Precision
    folder: Path
    ranked: list[str] = field(default_factory=list)

    def attempt(self, finer: Sequence[str], static: bool) -> Verification:
        """Write the student with the named modules kept in float16, and compare it."""
        source, precision = self.source, self.precision
        device = "cuda" if torch.cuda.is_available() else "cpu"
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        source.progress.line(f"{precision.name}: writing")
        started = time.monotonic()
        layers = write_quantized(source.folder, self.folder, precision, finer)
        seconds = time.monotonic() - started
        size = folder_size(self.folder)
        self.manifest = QuantizedStudent(
            mmedge=__version__,
            recipe=source.details["recipe"]["name"],
            precision=precision.name,
            student=StudentPart(source.details["parameters"]),
            key=source.student_key,
            verified_on=source.verified_on,
            max_accuracy_drop=source.max_accuracy_drop,
            written=WrittenPart(round(seconds, 2), size),
            quantization=QuantizationPart(layers, dict.fromkeys(finer, FLOAT)),
            made_with={name: version(name) for name in ("bitsandbytes", "transformers", "torch")},
            computed_on="cuda" if device == "cuda" else "cpu",
        )
        seal_student(self.folder, source.details, self.manifest)
        source.progress.line(f"{precision.name}: {size / 1e6:.1f} MB in {duration(seconds)}; verifying")
        return source.reference.compare(torch_speaker(open_student(self.folder, device=device)))

    def keep(self, share: float, wrong: str) -> list[str]:
        """Return the modules to keep in float16: that share of the most costly ones."""
        layers = self.manifest.quantization.layers
        self.ranked = self.ranked or _costly_modules(self.source, self.precision, layers)
        if not self.ranked or share > MOST_FINER:
            raise MmedgeError(
                f"the {self.precision.name} student is refused: {wrong}",
                "no student was written; check the student's own accuracy first, or allow more with --max-accuracy-drop",
            )
        return self.ranked[: max(1, round(share * len(self.ranked)))]


def _costly_modules(source: Source, precision: Precision, layers: Mapping[str, str]) -> list[str]:
    """Return the modules that are quantized, the most costly first; none if costs are not known."""
    if not source.linears:
        return []
    costs = source.costs(PRECISIONS[precision.costs_of or precision.name])
    modules = [part.removesuffix(".weight") for cost in costs for part in source.linears[cost.linear]]
    return [module for module in modules if layers.get(module) == precision.name]


def write_quantized(student: Path, out: Path, precision: Precision, finer: Sequence[str] = ()) -> dict[str, str]:
    """Write a student with quantized weights; the caller makes the folder atomic and writes `mmedge.json`.

    Args:
        student: The student's folder, float32.
        out: An existing, empty folder.
        precision: How its weights are stored.
        finer: Linear layers that stay in float16, beside those that always do, by their modules' names.

    Returns:
        The dtype of every linear layer, by its module's name.

    Raises:
        MmedgeError: bitsandbytes is not installed.
    """
    need_bitsandbytes()
    dialects.quiet()
    config = dialects.load_config(str(student))
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        floats = [*kept_in_float(kind.from_config(config)), *finer]
    bits = bits_config(precision.weights.bits, floats, torch.float16)
    model = dialects.load_model(str(student), config, dtype=torch.float16, quantization_config=bits, device_map={"": "cpu"})
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:
            parameter.data = parameter.data.half()
    model.save_pretrained(out, safe_serialization=True)  # before anything is computed: see restore_unsupported_linears
    for file in student.iterdir():
        if file.is_file() and file.name not in _NOT_COPIED and file.suffix != ".safetensors":
            shutil.copyfile(file, out / file.name)
    return {
        name: FLOAT if type(module) is torch.nn.Linear else precision.name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
