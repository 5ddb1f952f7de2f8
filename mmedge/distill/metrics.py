"""What a distillation reports, as `metrics.json` holds it."""

from __future__ import annotations

from dataclasses import dataclass, field

from mmedge.distill.durable import StageResult
from mmedge.machine import MachineFacts
from mmedge.storage import Json


@dataclass(frozen=True)
class Scores:
    """What a student scores.

    Attributes:
        answer: By split, the share of right answers with its interval.
        verdict: How well its verdicts on held-out chains of thought agree with the truth; None where there are none.
    """

    answer: dict[str, Json] = field(default_factory=dict)
    verdict: Json | None = None

    def to_json(self) -> Json:
        return ({"answer": self.answer} if self.answer else {}) | {"verdict": self.verdict}

    @classmethod
    def from_json(cls, found: Json) -> Scores:
        return cls(found.get("answer", {}), found["verdict"])


@dataclass(frozen=True)
class RunMetrics:
    """What a run ended with.

    Attributes:
        key: Hash of everything that the student depends on.
        before: Scores of the untrained student.
        after_stage1: Those after stage 1, verdicts alone; None without it.
        after: Those of the finished student.
        stages: What each stage ended with, by its name.
        annotations: How much of the annotations could be read.
        machine: Where it was trained.
    """

    key: str
    before: Scores
    after_stage1: Scores | None
    after: Scores
    stages: dict[str, StageResult]
    annotations: Json
    machine: MachineFacts

    def scores(self) -> Json:
        """Return the scores alone, which the student carries."""
        middle = self.after_stage1.to_json() if self.after_stage1 else None
        return {"before": self.before.to_json(), "after_stage1": middle, "after": self.after.to_json()}

    def to_json(self) -> Json:
        stages = {name: result.to_json() for name, result in self.stages.items()}
        rest = {"stages": stages, "annotations": self.annotations, "machine": self.machine}
        return {"key": self.key, **self.scores(), **rest}

    @classmethod
    def from_json(cls, found: Json) -> RunMetrics:
        middle = found["after_stage1"]
        return cls(
            key=found["key"],
            before=Scores.from_json(found["before"]),
            after_stage1=Scores.from_json(middle) if middle else None,
            after=Scores.from_json(found["after"]),
            stages={name: StageResult.from_json(stage) for name, stage in found["stages"].items()},
            annotations=found["annotations"],
            machine=found["machine"],
        )
