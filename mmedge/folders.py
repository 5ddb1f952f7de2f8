"""What a folder is, and what lies in it. Everything that asks "is this a run, a student or a bundle?" asks here.

    runs/quickstart/
        recipe.yaml          the resolved recipe
        run.json             versions, machine, hashes of the data
        annotations.sqlite   the teacher's raw texts
        synthesis.sqlite     its texts when it was asked for new questions; synthesized.jsonl has those that were taken
        stage1/  stage2/     checkpoints while they train, metrics, the best weights
        student/             the distilled model with mmedge.json
        metrics.json         its scores before and after
        student-bnb-int8/  bundle-fp32/  bundle-int8/
        bench.json  bench.md  bench.html

Knows the names of files, not what is in them. Imports nothing heavy: an edge device asks here too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedge.errors import MmedgeError, Notice
from mmedge.storage import in_json, locked, read_json, remove_leftovers

if TYPE_CHECKING:
    from mmedge.recipe import Recipe

RECIPE = "recipe.yaml"
DETAILS = "mmedge.json"  # makes a folder with a Hugging Face model a student of mmedge
MANIFEST = "manifest.json"  # makes a folder with graphs a bundle
QUANTIZED = "quantized"  # where the mmedge.json of a quantized student tells of its export
_FINEST_FIRST = ("fp32", "fp16", "int8", "int4", "int2")  # the order in which a run's bundles are listed; others follow by name
_EXPORTS_FOR_PEERS = {  # by the file that makes it one
    "genai_config.json": "genai",
    "model.bin": "ctranslate2",
    "openvino_model.xml": "openvino",
    "decoder_model_merged.onnx": "optimum",
    "decoder_model.onnx": "optimum",
    "model.onnx": "optimum",
}


class Kind(StrEnum):
    """What a path is."""

    RUN = "run"  # a recipe's run; also a folder that holds nothing but students and bundles, such as a row of a comparison
    COMPARISON = "comparison of methods"
    STUDENT = "student"
    QUANTIZED_STUDENT = "quantized student"
    BUNDLE = "bundle"
    PEER = "export for another engine"
    OTHER = "something else"
    MISSING = "missing"


STUDENTS = (Kind.STUDENT, Kind.QUANTIZED_STUDENT)


def kind_of(path: Path) -> Kind:
    """Return what a path is. Only names are looked at: a folder that is damaged or of another version still has its kind."""
    if path.is_file():
        return Kind.PEER if path.suffix == ".gguf" else Kind.OTHER
    if not path.is_dir():
        return Kind.MISSING
    if (path / MANIFEST).is_file():
        return Kind.BUNDLE
    if (path / DETAILS).is_file():
        return Kind.QUANTIZED_STUDENT if _is_quantized(path) else Kind.STUDENT
    run = Run(path)
    if run.recipe.is_file() or run.variants:
        return Kind.COMPARISON if run.comparison.is_dir() else Kind.RUN
    return Kind.PEER if peer_engine(path) else Kind.OTHER


def peer_engine(path: Path) -> str | None:
    """Return which other engine an export was made for, by the files in it; None if it is not one."""
    if path.suffix == ".gguf" and path.is_file():
        return "llama.cpp"
    return next((engine for name, engine in _EXPORTS_FOR_PEERS.items() if (path / name).is_file()), None)


def _is_quantized(student: Path) -> bool:
    try:
        details = read_json(student / DETAILS)
    except MmedgeError:
        return False
    return isinstance(details, dict) and is_quantized(details)


def is_quantized(details: Mapping[str, Any]) -> bool:
    """Return whether a student's `mmedge.json` is that of a quantized one; `rounded` is what older versions called it."""
    return QUANTIZED in details or "rounded" in details


@dataclass(frozen=True)
class Run:
    """The paths of a run, and which of them are there."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / RECIPE

    @property
    def explanation(self) -> Path:
        return self.folder / "run.json"

    @property
    def annotations(self) -> Path:
        return self.folder / "annotations.sqlite"

    @property
    def synthesis(self) -> Path:
        """Everything that the teacher wrote when it was asked for new questions."""
        return self.folder / "synthesis.sqlite"

    @property
    def synthesized(self) -> Path:
        """The new questions that were taken, which join the training questions."""
        return self.folder / "synthesized.jsonl"

    @property
    def student(self) -> Path:
        return self.folder / "student"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.json"

    @property
    def comparison(self) -> Path:
        """The trainings of a comparison of methods, which makes this a run of `mmedge ablate`."""
        return self.folder / "ablation"

    @property
    def stages(self) -> tuple[Path, ...]:
        """The stages that were begun, in their order."""
        return tuple(path for path in sorted(self.folder.glob("stage[0-9]*")) if path.is_dir())

    @property
    def students(self) -> tuple[Path, ...]:
        """The student and its quantized copies."""
        found = [self.student, *sorted(self.folder.glob("student-*"))]
        return tuple(path for path in found if (path / DETAILS).is_file())

    @property
    def bundles(self) -> tuple[Path, ...]:
        """The bundles of every precision, the finest first."""

        def place(path: Path) -> tuple[int, str]:
            precision = path.name.removeprefix("bundle-")
            return _FINEST_FIRST.index(precision) if precision in _FINEST_FIRST else len(_FINEST_FIRST), precision

        found = (path for path in self.folder.glob("bundle-*") if (path / MANIFEST).is_file())
        return tuple(sorted(found, key=place))

    @property
    def variants(self) -> tuple[Path, ...]:
        """Everything in the run that answers questions: students and bundles."""
        return self.students + self.bundles


def variants_in(place: Path) -> tuple[Path, ...]:
    """Return the students and bundles that a path means: itself, or those of a run.

    Raises:
        MmedgeError: There are none.
    """
    kind = kind_of(place)
    if kind in (*STUDENTS, Kind.BUNDLE):
        return (place,)
    if kind is Kind.RUN:
        if found := Run(place).variants:
            return found
        raise MmedgeError(f"the run {place} has no student and no bundle yet", "finish mmedge distill and mmedge export")
    raise _not_a(place, kind, "a run, a student or a bundle")


def student_in(place: Path) -> Path:
    """Return the student folder that a path means: itself, or that of a run. A model of another kind is returned as it is.

    Raises:
        MmedgeError: There is none.
    """
    kind = kind_of(place)
    if kind is Kind.RUN:
        if Run(place).student.is_dir():
            return Run(place).student
        raise MmedgeError(f"the run {place} has no student yet", f"finish it: mmedge distill {place / RECIPE} --out {place}")
    if kind in STUDENTS or (kind is Kind.OTHER and (place / "config.json").is_file()):  # such as a model of transformers
        return place
    raise _not_a(place, kind, "a run or a student")


def bundles_in(place: Path) -> tuple[Path, ...]:
    """Return the bundles that a path means: itself, or those of a run.

    Raises:
        MmedgeError: There are none.
    """
    kind = kind_of(place)
    if kind is Kind.BUNDLE:
        return (place,)
    if kind is Kind.RUN:
        if found := Run(place).bundles:
            return found
        raise MmedgeError(f"the run {place} has no bundle yet", f"mmedge export {place} --int8")
    raise _not_a(place, kind, "a run or a bundle")


def _not_a(place: Path, kind: Kind, wanted: str) -> MmedgeError:
    """Return the error for a path that is not what a command needs, with what to do about it."""
    if kind is Kind.MISSING:
        return MmedgeError(f"no such folder: {place}", f"name {wanted}")
    if kind is Kind.PEER:
        return MmedgeError(
            f"{place} is an export for {peer_engine(place)}, not {wanted}", f"name it as {peer_engine(place)}:{place}"
        )
    hint = {
        Kind.COMPARISON: "name one of the folders in ablation/rows, which hold students with ablation.keep_students=true",
        Kind.STUDENT: f"export it: mmedge export {place} --int8",
        Kind.QUANTIZED_STUDENT: "name the student it was made from, or a bundle",
        Kind.BUNDLE: "name the student it was made from",
    }
    found = "is not" if kind is Kind.OTHER else f"is a {kind}, not"
    return MmedgeError(f"{place} {found} {wanted}", hint.get(kind, f"name {wanted}"))


def shipped_recipe(name: str) -> Path:
    """Return the path of a recipe that comes with mmedge: beside the package in a checkout, inside it when installed.

    Raises:
        MmedgeError: No recipe of that name comes with mmedge.
    """
    here = Path(__file__).parent
    for folder in (here / "recipes", here.parent / "recipes"):
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise MmedgeError(f"recipes/{name}.yaml is not installed", "reinstall mmedge")


# ---------------------------------------------------------------------------------------------- working on a run


@contextmanager
def work_on(folder: Path, recipe: Recipe, *, shared: bool = False, comparison: bool = False) -> Iterator[Run]:
    """Open a run for one process, creating it or checking that it is this recipe's.

    Args:
        folder: The run's folder.
        recipe: The recipe that it is made by.
        shared: Let others who also say so work on it at the same time, as several collectors do.
        comparison: It is a comparison of methods, whose rows may grow but not what they share.

    Raises:
        MmedgeError: Another process works on it, it was made by a recipe that differs in what decides the result, or the folder
            cannot be written.
    """
    from mmedge.recipe import write_recipe

    with locked(folder, shared=shared):
        run = Run(folder)
        if not shared:
            remove_leftovers(folder)
        compared = run.comparison.exists()
        if compared and not comparison and not shared:
            raise MmedgeError(f"{folder} holds a comparison of methods", "choose another --out folder")
        if run.recipe.is_file() and (compared or run.stages or run.student.exists()):
            # before training, the annotations alone say what they belong to
            _check_same(load_run_recipe(run), recipe, folder)
        write_recipe(recipe, run.recipe)
        yield run


def load_run_recipe(run: Run) -> Recipe:
    """Return the resolved recipe of a run; keys that were renamed since it was written are read.

    Raises:
        MmedgeError: The folder is not a run, or its recipe was written by a version of mmedge that this one does not support.
    """
    from mmedge import __version__
    from mmedge.recipe import load_recipe

    if not run.recipe.is_file():
        raise MmedgeError(f"{run.folder} is not a run: it has no {RECIPE}", "make one: mmedge annotate RECIPE --out FOLDER")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)  # it was not written by hand, and working on the run rewrites it
            return load_recipe(run.recipe)
    except MmedgeError as error:
        wrote = _written_by(run)
        if wrote in (None, __version__):
            raise
        hint = f"the run was made by mmedge {wrote}, this is {__version__}: correct that field, or distil again into another --out"
        raise MmedgeError(error.what, hint) from None


def _written_by(run: Run) -> str | None:
    """Return the version of mmedge that trained a run; None where that is not known."""
    try:
        return str(read_json(run.explanation)["machine"]["mmedge"])
    except (MmedgeError, KeyError, TypeError):
        return None


def _check_same(old: Recipe, new: Recipe, folder: Path) -> None:
    from mmedge.recipe import COMPUTE_ONLY, recipe_values

    ignored = _OF_REACHING_A_TEACHER | {f"training.{name}" for name in COMPUTE_ONLY}
    before, after = _flat(recipe_values(old)), _flat(recipe_values(new))
    for name in sorted(before.keys() | after.keys()):
        if name.split(".")[0] in _DECISIVE and before.get(name) != after.get(name) and name not in ignored:
            raise MmedgeError(
                f"{folder} was made with {name} = {in_json(before.get(name), 60)}, not {in_json(after.get(name), 60)}",
                "choose another --out folder, or run it with the same recipe",
            )


_DECISIVE = ("name", "seed", "task", "teacher", "student", "method", "training", "split", "generation")
_OF_REACHING_A_TEACHER = {  # decides nothing; what the teacher wrote is in the store
    f"teacher.{name}"
    for name in (
        *("base_url", "api_key_env", "concurrency", "timeout_seconds", "patience_minutes", "choices_per_request", "attempts"),
        *("max_cost", "max_requests", "prices.input", "prices.output", "prices.currency"),
        *("device", "batch_size", "threads"),
    )
}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
