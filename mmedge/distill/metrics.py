"""What a distillation reports, as `metrics.json` holds it."""

from __future__ import annotations

from pydantic import BaseModel

from mmedge.distill.durable import StageResult
from mmedge.machine import MachineFacts
from mmedge.storage import Json


class StageVerdicts(BaseModel):
    """How well a student's verdicts on held-out chains of thought agree with the truth; None where there are none."""

    verdict: Json | None


class Scores(StageVerdicts):
    """What a student scores.

    Attributes:
        answer: By split, the share of right answers with its interval.
        signals: By split, how often a right answer has a higher score than a wrong one (AUROC), by what scores: the answer's own
            probability, and the verdict on it where the student has learned one.
    """

    answer: dict[str, Json]
    signals: dict[str, dict[str, float | None]] = {}


class RunMetrics(BaseModel):
    """What a run ended with.

    Attributes:
        key: Hash of everything that the student depends on.
        before: Scores of the untrained student.
        after_stage1: StageVerdicts after stage 1; None without it.
        after: Scores of the finished student.
        stages: What each stage ended with, by its name.
        annotations: How much of the annotations could be read.
        machine: Where it was trained.
    """

    key: str
    before: Scores
    after_stage1: StageVerdicts | None
    after: Scores
    stages: dict[str, StageResult]
    annotations: Json
    machine: MachineFacts
