"""A teacher that was recorded before, in the formats in which recordings are published: raw and dirty, as real teachers write.

    jsonl              {"id": "svamp-train-0000", "sample": 1, "teacher": "llama-3", "text": " Rationale: To find …"}
                       {"id": "svamp-train-0000", "sample": 1, "evaluation": "The solution …", "verdict": "correct"}
    parquet            the same records as columns
    tree_of_thought    [{"steps": [{"x": "…\\"Luke scored …\\"", "new_ys": ["Luke scored …"], "value_outputs_list": [["…"]]}]}]
                       (the logs that the paper's authors published: a question's texts, and evaluations of each)
    lists              ["Luke scored 84 points after 2 rounds. …", …]
                       (Distilling Step-by-Step: one text per question, in the order of the training questions)

Records about questions that the task does not have are left out; a chain of thought may be empty, an id may not.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedge.annotations.annotation import Annotation
from mmedge.errors import MmedgeError, missing_extra
from mmedge.storage import Json, iterate_jsonl, read_json, require_file, sha256_file, sha256_json, text_field
from mmedge.tasks import Example
from mmedge.tasks.reading import one_paragraph
from mmedge.tasks.synthesized import is_synthesized

Records = Iterator[tuple[int, Json]]


@dataclass(frozen=True)
class RecordedTeacher:
    """A teacher whose annotations are in files.

    Attributes:
        cots: The files of chains of thought, read one after another.
        evaluations: The file of self-evaluations, or None; a tree-of-thought log has its own.
        max_cots: The largest number of chains of thought per question that is used, lowest `sample` first; None for all.
        format: Format of the files; `auto` detects it.
    """

    cots: tuple[Path, ...]
    evaluations: Path | None = None
    max_cots: int | None = None
    format: str = "auto"

    def fingerprint(self) -> str:
        self._require_files()
        files = [sha256_file(path) for path in (*self.cots, self.evaluations) if path is not None]
        return sha256_json({"kind": "recorded", "files": files, "max_cots": self.max_cots})

    def chains_of_thought(self, examples: Sequence[Example]) -> Iterator[Annotation]:
        self._require_files()
        wanted = {example.id for example in examples}
        seen: set[tuple[str, int]] = set()
        for annotation, where in self._all_cots(examples):
            key = (annotation.example_id, annotation.sample)
            if key in seen:
                raise MmedgeError(f"{where}: sample {annotation.sample} of {annotation.example_id!r} occurs twice")
            seen.add(key)
            if annotation.example_id in wanted and (self.max_cots is None or annotation.sample < self.max_cots):
                yield annotation

    def _all_cots(self, examples: Sequence[Example]) -> Iterator[tuple[Annotation, str]]:
        offset = 0
        examples = [example for example in examples if not is_synthesized(example.id)] if self._has_lists() else examples
        if all(self._form(path) == "lists" for path in self.cots):
            _check_count(self.cots, len(examples))
        for path in self.cots:
            form = self._form(path)
            if form == "lists":
                texts = _list_of_texts(path)
                for index, text in enumerate(texts[: max(0, len(examples) - offset)]):
                    origin = f"{path.name}[{index}]"
                    yield (
                        Annotation(examples[offset + index].id, "cot", 0, 0, text, None, path.stem, origin),
                        f"{path}[{index}]",
                    )
                offset += len(texts)
            elif form == "tree_of_thought":
                for id_, sample, text, _, where in _trees(path, examples):
                    yield Annotation(id_, "cot", sample, 0, text, None, "tree of thought", where.name), str(where)
            else:
                for number, record in _records(path, form):
                    id_, sample = text_field(record, "id", path, number), _sample(record, path, number)
                    written = record.get("text")
                    if not isinstance(written, str):
                        raise MmedgeError(f"{path}:{number}: field 'text' must be text")
                    origin = f"{path.name}:{number}"
                    teacher = str(record.get("teacher") or "unknown")
                    yield Annotation(id_, "cot", sample, 0, written, None, teacher, origin), f"{path}:{number}"

    def self_evaluations(self, cots: Sequence[tuple[Example, Annotation]]) -> Iterator[Annotation]:
        known = {(cot.example_id, cot.sample) for _, cot in cots}
        counts: Counter[tuple[str, int]] = Counter()

        def numbered(key: tuple[str, int], text: str, verdict: str | None, teacher: str, origin: str) -> Iterator[Annotation]:
            if key in known:
                yield Annotation(key[0], "evaluation", key[1], counts[key], text, verdict, teacher, origin)
                counts[key] += 1

        for path in self.cots:
            if self._form(path) == "tree_of_thought":
                examples = list({example.id: example for example, _ in cots}.values())
                for id_, sample, _, evaluations, where in _trees(path, examples):
                    for text in evaluations:
                        yield from numbered((id_, sample), text, None, "tree of thought", where.name)
        if self.evaluations is None:
            return
        path = self.evaluations
        for number, record in _records(path, self._form(path)):
            key = (text_field(record, "id", path, number), _sample(record, path, number))
            written, verdict = record.get("evaluation"), record.get("verdict")
            if not isinstance(written, str) or not isinstance(verdict, (str, type(None))):
                raise MmedgeError(f"{path}:{number}: fields 'evaluation' and 'verdict' must be text")
            yield from numbered(key, written, verdict, str(record.get("teacher") or "teacher"), f"{path.name}:{number}")

    def _require_files(self) -> None:
        """Refuse missing files by the names that a recipe has for them."""
        for path in self.cots:
            require_file(path, "teacher.cots")
        if self.evaluations is not None:
            require_file(self.evaluations, "teacher.evaluations")

    def _has_lists(self) -> bool:
        return any(self._form(path) == "lists" for path in self.cots)

    def _form(self, path: Path) -> str:
        if self.format != "auto":
            return self.format
        if path.suffix == ".parquet":
            return "parquet"
        if path.suffix != ".json":
            return "jsonl"
        document = read_json(path)
        is_lists = isinstance(document, list) and all(isinstance(item, str) for item in document)
        return "lists" if is_lists else "tree_of_thought"


def _records(path: Path, form: str) -> Records:
    if form != "parquet":
        yield from iterate_jsonl(path)
        return
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "data") from None
    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=5000):
            for record in batch.to_pylist():
                number += 1
                yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise MmedgeError(f"{path} is not a Parquet file: {str(error).splitlines()[0][:120]}") from None


def _check_count(paths: Sequence[Path], questions: int) -> None:
    """Refuse lists that cannot belong to the questions: only their order says which text belongs to which question."""
    texts = sum(len(_list_of_texts(path)) for path in paths)
    if texts != questions:
        names = ", ".join(path.name for path in paths)
        raise MmedgeError(
            f"{names}: {texts} texts, but the task has {questions} training questions",
            "lists go with the whole training set, in its order: name all of its files, and set no task.limit",
        )


def _list_of_texts(path: Path) -> list[str]:
    document = read_json(path)
    if not isinstance(document, list) or not all(isinstance(item, str) for item in document):
        raise MmedgeError(f"{path}: expected one JSON list of texts")
    return document


@dataclass(frozen=True)
class _TreeText:
    """A node of a tree-of-thought log, for errors and origins."""

    path: Path
    tree: int
    text: int

    @property
    def name(self) -> str:
        return f"{self.path.name}[{self.tree}].new_ys[{self.text}]"

    def __str__(self) -> str:
        return f"{self.path}[{self.tree}].new_ys[{self.text}]"


def _trees(path: Path, examples: Sequence[Example]) -> Iterator[tuple[str, int, str, list[str], _TreeText]]:
    """Yield (example id, sample, text, evaluations, place) of a log, for the questions that are known by their words."""
    document = read_json(path)
    if not isinstance(document, list):
        raise MmedgeError(f"{path}: expected a JSON list of trees, each with steps")
    ids = {_plain(example.question): example.id for example in examples}
    for index, tree in enumerate(document):
        steps = tree.get("steps") if isinstance(tree, dict) else None
        if not isinstance(steps, list) or not steps or not isinstance(steps[0], dict):
            raise MmedgeError(f"{path}[{index}]: a tree has no steps")
        step: Json = steps[0]
        texts, judged = step.get("new_ys"), step.get("value_outputs_list", [])
        if not isinstance(texts, list) or not isinstance(judged, list) or not all(isinstance(text, str) for text in texts):
            raise MmedgeError(f"{path}[{index}]: 'new_ys' must be a list of texts, 'value_outputs_list' one of lists")
        id_ = ids.get(_plain(_asked(step.get("x"), path, index)))
        if id_ is None:
            continue
        for sample, text in enumerate(texts):
            evaluations = judged[sample] if sample < len(judged) else []
            if not isinstance(evaluations, list) or not all(isinstance(item, str) for item in evaluations):
                raise MmedgeError(f"{path}[{index}]: the evaluations of text {sample} must be a list of texts")
            yield id_, sample, text, evaluations, _TreeText(path, index, sample)


def _asked(x: Any, path: Path, index: int) -> str:
    """Return the question of a tree: its `x` is the inside of a JSON object."""
    try:
        value = json.loads("{" + x + "}")["input"] if isinstance(x, str) and x.lstrip().startswith('"input"') else x
    except (ValueError, KeyError, RecursionError):
        value = None
    if not isinstance(value, str):
        raise MmedgeError(f"{path}[{index}]: 'x' contains no question")
    return value


def _plain(question: str) -> str:
    return one_paragraph(question).casefold()


def _sample(record: Json, path: Path, number: int) -> int:
    sample = record.get("sample", 0)
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise MmedgeError(f"{path}:{number}: field 'sample' must be a whole number of at least 0, found {sample!r:.40}")
    return sample
