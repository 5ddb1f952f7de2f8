"""Exporting annotations in the format that a recorded teacher reads: a run's texts are the next run's recording.

    FOLDER/cots.jsonl           {"id": …, "sample": 0, "teacher": …, "text": …}
    FOLDER/evaluations.jsonl    {"id": …, "sample": 0, "teacher": …, "evaluation": …, "verdict": …}
    FOLDER/questions.jsonl      {"id": …, "kind": …, "teacher": …, "text": …}       where the run has synthesized questions

With `parquet` the first two are columns of `cots.parquet` and `evaluations.parquet`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError, missing_extra
from mmedge.storage import atomic_file
from mmedge.tasks.synthesized import NewQuestion

BATCH = 10_000


def export_annotations(store: AnnotationStore, folder: Path, form: Literal["jsonl", "parquet"]) -> dict[Path, int]:
    """Write all annotations of a store, and return how many records each file has.

    Raises:
        MmedgeError: A file cannot be written, or Parquet is asked for and pyarrow is not installed.
    """
    written = {}
    for kind, name in (("cot", "cots"), ("evaluation", "evaluations")):
        path = folder / f"{name}.{form}"
        if path.exists():
            raise MmedgeError(f"{path} already exists", "move it away, or name another folder")
        with atomic_file(path) as temporary:
            write = _write_jsonl if form == "jsonl" else _write_parquet
            written[path] = write(temporary, _records(store, kind), kind)
    return written


def export_questions(questions: Sequence[NewQuestion], folder: Path) -> tuple[Path, int]:
    """Write synthesized questions as a recorded teacher reads them; return the file and how many there are.

    Raises:
        MmedgeError: The file is there already, or cannot be written.
    """
    path = folder / "questions.jsonl"
    if path.exists():
        raise MmedgeError(f"{path} already exists", "move it away, or name another folder")
    with atomic_file(path) as temporary:
        records = (
            {"id": one.id, "kind": one.kind, "teacher": one.teacher, "text": f"Question: {_with_choices(one)}"} for one in questions
        )
        return path, _write_jsonl(temporary, records, "question")


def _with_choices(question: NewQuestion) -> str:
    choices = " ".join(f"({chr(ord('a') + place)}) {choice}" for place, choice in enumerate(question.choices))
    return question.question + (f"\nChoices: {choices}" if choices else "")


def _records(store: AnnotationStore, kind: str) -> Iterator[dict[str, Any]]:
    for each in store.annotations(kind):
        record: dict[str, Any] = {"id": each.example_id, "sample": each.sample, "teacher": each.teacher}
        yield record | ({"text": each.text} if kind == "cot" else {"evaluation": each.text, "verdict": each.verdict})


def _write_jsonl(path: Path, records: Iterator[dict[str, Any]], kind: str) -> int:
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, records: Iterator[dict[str, Any]], kind: str) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", "data") from None
    text = pyarrow.string()
    fields = [("id", text), ("sample", pyarrow.int32()), ("teacher", text)]
    fields += [("text", text)] if kind == "cot" else [("evaluation", text), ("verdict", text)]
    schema = pyarrow.schema(fields)
    count = 0
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(records, BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count
