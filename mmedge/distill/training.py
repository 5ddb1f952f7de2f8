"""One stage of training: steps, validations, checkpoints, and resuming as if nothing had happened.

Every random draw of a step depends on (seed, stage, step), so a stage that is killed and resumed takes the same steps as one
that is not, on however many processes. What a stage leaves on disk: `durable`. What a step computes: `step`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mmedge.distill.devices import Devices
from mmedge.distill.durable import Position, StageFolder, StageResult
from mmedge.distill.step import StagePlan, StepRunner
from mmedge.distill.streams import EncodedStream
from mmedge.distill.trackers import StageTracker
from mmedge.distill.validation import Validated, selectable
from mmedge.errors import MmedgeError
from mmedge.progress import Progress
from mmedge.storage import Json
from mmedge.students.rounding import Rounding
from mmedge.students.student import TorchStudent

LOG_EVERY = 10
SHORTEST_EPOCH = 10  # steps; an epoch of a tiny task is shorter, and is not validated each time
OBSERVE_SECONDS = 5.0


def _between_validations(steps: int, per_epoch: int) -> int:
    """Return after how many steps a stage is validated by default: five times in all, or more to validate in every epoch."""
    if steps < 5 * SHORTEST_EPOCH:
        return math.ceil(steps / 5)
    return min(max(per_epoch, SHORTEST_EPOCH), steps // 5)


@dataclass
class Session:
    """Where a training happens, and who watches.

    Attributes:
        devices: Where it is trained.
        progress: Where progress is shown.
        folder: The run's; trackers keep their files in it.
        observe: Called when there is something new to look at, not more often than every few seconds.
    """

    devices: Devices
    progress: Progress
    folder: Path
    observe: Callable[[], None] | None = None


class StageTrainer:
    """Trains one stage.

    Args:
        student: The student, changed in place.
        plan: What is trained.
        session: Where.

    Raises:
        MmedgeError: There is nothing to learn from.
    """

    def __init__(self, student: TorchStudent, plan: StagePlan, session: Session) -> None:
        self.student, self.plan, self.session = student, plan, session
        self.files = StageFolder(plan.folder, plan.key)
        limit = plan.training.max_target_tokens
        self.streams = [
            EncodedStream(stream, student.encoder, limit, plan.seed, f"{plan.name}/{number}")
            for number, stream in enumerate(plan.streams)
        ]
        per_epoch, section = self.streams[0].per_epoch, plan.section
        self.steps = section.max_steps or max(1, round((section.epochs or 1) * per_epoch))
        self.evaluate_every = section.evaluate_every or _between_validations(self.steps, per_epoch)
        self.runner = StepRunner(student, plan, self.streams, self.steps, session.devices, session.progress)
        self.at = Position()
        self._rounding: Rounding | None = None
        self._rounds_from = self.steps if plan.rounds is None else self.steps - max(1, round(plan.rounds[1] * self.steps))
        self._tracker: StageTracker | None = None
        self._observed = 0.0

    def run(self) -> StageResult:
        """Train to the end (from a checkpoint, where there is one) and leave the best weights in the student.

        Raises:
            MmedgeError: The loss becomes NaN or infinite, a single lesson does not fit into memory, the disk is full, or the folder
                holds another stage.
        """
        devices, name = self.session.devices, self.plan.name
        if self.plan.rounds is not None and devices.sharded:
            raise MmedgeError("training.quantize: weights that are spread over processes (FSDP) cannot be rounded", "use DDP")
        if devices.main:
            self.files.open()
        devices.wait()
        finished = self.files.result()
        if finished is not None:
            self.session.progress.line(f"{name}: already done ({finished.steps} steps), kept")
            self._end()
            return finished
        if (self.plan.folder / "done.json").is_file():
            self.session.progress.line(f"{name}: its weights are missing from {self.plan.folder}, so it is trained again")
        self._begin()
        started, last_checkpoint = time.monotonic() - self.at.seconds, time.monotonic()
        torch.set_grad_enabled(True)
        with self.session.progress.task(name.replace("stage", "stage "), self.steps, self.at.step) as shown:
            while self.at.step < self.steps and not self._stops_early():
                if self.at.step >= self._rounds_from:
                    self._round()
                losses, tokens = self.runner.take(self.at.step)
                self.at.step += 1
                if self._rounding is not None:
                    self._rounding.refresh()
                self.at.tokens += tokens
                self.at.seconds = time.monotonic() - started
                rate = f"{self.at.tokens / max(self.at.seconds, 1e-9):.0f} tokens/s"
                shown.advance(1, loss=f"{losses['loss']:.3f}", rate=rate)
                last = self.at.step == self.steps
                if self.at.step % LOG_EVERY == 0 or last:
                    counts = {"tokens": self.at.tokens, "seconds": round(self.at.seconds, 1)}
                    self._log({"step": self.at.step, "steps": self.steps, **losses, **counts})
                validates = self.at.step % self.evaluate_every == 0 or last
                if validates:
                    self._validate()
                    self.at.seconds = time.monotonic() - started
                if validates or self._checkpoint_is_due(last_checkpoint):
                    self._checkpoint()
                    last_checkpoint = time.monotonic()
        return self._finish()

    def _begin(self) -> None:
        """Compute what objectives refer to, take up a checkpoint where there is one, and get ready to train."""
        devices = self.session.devices
        devices.wait()  # all have looked for a result
        if devices.main:
            self.files.begin()
        self._refer()
        kept = self.files.load_checkpoint(self.student.model)
        self.runner.prepare()
        if kept is not None:
            self.at, moments = kept
            self.runner.restore(moments)
            self.session.progress.line(f"{self.plan.name}: continuing from step {self.at.step}")
        if devices.main:
            self.files.cut_log(self.at.step)
            if self.plan.training.tracker != "none":
                kind, run = self.plan.training.tracker, self.session.folder
                self._tracker = StageTracker(kind, run, self.plan.folder, self.plan.name, self.at.step)

    def _refer(self) -> None:
        """Give targets their log-probabilities under the weights that the stage begins with, where an objective needs them."""
        wanted = {str(n): stream for n, stream in enumerate(self.streams) if stream.stream.objective.reference}
        if not wanted:
            return
        lessons = {number: stream.distinct(self.steps) for number, stream in wanted.items()}
        devices = self.session.devices
        if devices.main and self.files.load_reference() is None:
            self.session.progress.line(f"{self.plan.name}: log-probabilities under its initial weights")
            self.files.save_reference({number: self.runner.log_probabilities(some) for number, some in lessons.items()})
        devices.wait()
        for number, values in (self.files.load_reference() or {}).items():
            wanted[number].refer(values.tolist())

    def _validate(self) -> None:
        self.runner.check_weights(self.at.step - 1)
        self.runner.gather()
        devices, name = self.session.devices, self.plan.name
        if devices.main:
            self.student.model.eval()
        found = devices.from_main(self.plan.validate)
        entry = Validated(step=self.at.step, score=found.score, items=found.items, **found.details)
        self.at.history.append(entry)
        self._log({"validation": entry.model_dump(), "step": entry.step})
        self.session.progress.line(f"{name} step {entry.step}/{self.steps}: {found.text}")
        enough, best = selectable(self.at.history), self.plan.training.keep == "best"
        if best and not enough and len(self.at.history) == 1:
            self.session.progress.line(
                f"{name}: {found.items} validation items are too few to choose a checkpoint by, so the last one is taken"
            )
        chosen = self.at.best if self.at.best is not None and self._counts(self.at.best) == self._counts(entry) else None
        if chosen is None or not (best and enough) or entry.score > chosen.score:
            self.at.best = entry
            if devices.main:
                self.files.save_best(self.student.model)

    def _checkpoint(self) -> None:
        self.runner.gather()
        moments = self.runner.moments()
        if self.session.devices.main:
            self.files.save_checkpoint(self.student.model, moments, self.at)

    def _checkpoint_is_due(self, last: float) -> bool:
        """Whether a checkpoint is due; the main process's clock decides, and is not asked at every step."""
        devices = self.session.devices
        if devices.count > 1 and self.at.step % LOG_EVERY:
            return False
        return devices.from_main(lambda: time.monotonic() - last > 60 * self.plan.training.checkpoint_minutes)

    def _stops_early(self) -> bool:
        history = [entry for entry in self.at.history if self._counts(entry)]
        patience = self.plan.section.patience
        if patience is None or not history or not selectable(history):
            return False
        scores = [entry.score for entry in history]
        return len(scores) - 1 - scores.index(max(scores)) >= patience

    def _finish(self) -> StageResult:
        at, best = self.at, self.at.best
        assert best is not None  # the last step always validates
        result = StageResult(
            key=self.plan.key,
            steps=at.step,
            planned_steps=self.steps,
            tokens=at.tokens,
            seconds=round(at.seconds, 1),
            best=best,
            validations=at.history,
        )
        if self.session.devices.main:
            self.files.finish(result)
        self.session.devices.wait()
        self.runner.release()
        self._end()
        if self._tracker is not None:
            self._tracker.close()
        return result

    def _counts(self, entry: Validated) -> bool:
        """Whether a validation is of weights as the stage ends with them: rounded, where they are rounded at the end."""
        return self.plan.rounds is None or entry.step > self._rounds_from

    def _round(self) -> None:
        """Compute with rounded weights from now on."""
        if self._rounding is None and self.plan.rounds is not None:
            precision, _ = self.plan.rounds
            self.session.progress.line(f"{self.plan.name}: weights are rounded to {precision} from step {self._rounds_from} on")
            self._rounding = Rounding(self.student.model, precision)

    def _end(self) -> None:
        """Leave the best weights in the student, rounded where they were learned so."""
        self.files.load_best(self.student.model)
        if self.plan.rounds is not None:
            (self._rounding or Rounding(self.student.model, self.plan.rounds[0])).settle()

    def _log(self, entry: Json) -> None:
        if not self.session.devices.main:
            return
        self.files.log(entry)
        if self._tracker is not None:
            self._tracker.log(entry)
        observe = self.session.observe
        if observe is not None and ("validation" in entry or time.monotonic() - self._observed > OBSERVE_SECONDS):
            observe()
            self._observed = time.monotonic()
