"""The teacher that was recorded before: two JSON-lines files, raw and dirty as real teachers write.

    teacher_cots.jsonl         {"id": "svamp-train-0000", "sample": 1, "teacher": "llama-3", "text": " Rationale: To find …"}
    teacher_evaluations.jsonl  {"id": "svamp-train-0000", "sample": 1, "evaluation": "The solution …", "verdict": "correct"}

Records about questions that the task does not have are left out; a chain of thought may be empty, an id may not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmedge.errors import MmedgeError
from mmedge.storage import Json, iterate_jsonl, sha256_file, sha256_json, text_field
from mmedge.tasks import Example
from mmedge.teachers.base import Annotation


@dataclass(frozen=True)
class RecordedTeacher:
    """A teacher whose annotations lie in files.

    Attributes:
        cots: The file of chains of thought.
        evaluations: The file of self-evaluations, or None.
        max_cots: The largest number of chains of thought per question that is used, lowest `sample` first; None for all.
    """

    cots: Path
    evaluations: Path | None = None
    max_cots: int | None = None

    def fingerprint(self) -> str:
        files = [sha256_file(path) for path in (self.cots, self.evaluations) if path is not None]
        return sha256_json({"kind": "recorded", "files": files, "max_cots": self.max_cots})

    def chains_of_thought(self, examples: Sequence[Example]) -> Iterator[Annotation]:
        wanted = {example.id for example in examples}
        seen: set[tuple[str, int]] = set()
        for number, record in iterate_jsonl(self.cots):
            id_, sample = text_field(record, "id", self.cots, number), _sample(record, self.cots, number)
            if (id_, sample) in seen:
                raise MmedgeError(f"{self.cots}:{number}: sample {sample} of {id_!r} occurs twice")
            seen.add((id_, sample))
            text = record.get("text")
            if not isinstance(text, str):
                raise MmedgeError(f"{self.cots}:{number}: field 'text' must be text")
            if id_ in wanted and (self.max_cots is None or sample < self.max_cots):
                origin = f"{self.cots.name}:{number}"
                yield Annotation(id_, "cot", sample, 0, text, None, str(record.get("teacher", "unknown")), origin)

    def self_evaluations(self, cots: Sequence[tuple[Example, Annotation]]) -> Iterator[Annotation]:
        if self.evaluations is None:
            return
        known = {(cot.example_id, cot.sample) for _, cot in cots}
        counts: Counter[tuple[str, int]] = Counter()
        for number, record in iterate_jsonl(self.evaluations):
            id_ = text_field(record, "id", self.evaluations, number)
            key = (id_, _sample(record, self.evaluations, number))
            text, verdict = record.get("evaluation"), record.get("verdict")
            if not isinstance(text, str) or not isinstance(verdict, (str, type(None))):
                raise MmedgeError(f"{self.evaluations}:{number}: fields 'evaluation' and 'verdict' must be text")
            if key in known:
                origin = f"{self.evaluations.name}:{number}"
                teacher = str(record.get("teacher", "unknown"))
                yield Annotation(id_, "evaluation", key[1], counts[key], text, verdict, teacher, origin)
                counts[key] += 1


def _sample(record: Json, path: Path, number: int) -> int:
    sample = record.get("sample", 0)
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 0:
        raise MmedgeError(f"{path}:{number}: field 'sample' must be a whole number from 0, found {sample!r:.40}")
    return sample
