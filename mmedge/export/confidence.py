"""Calibrating a bundle's confidence on validation questions: which signal, which map, and how well it does.

Everything is judged on questions that a map was not fitted on (cross-validation), and a signal that costs more must do clearly
better to be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmedge.engines.bundles import engine_of
from mmedge.engines.speaker import Evidence, Wanted
from mmedge.progress import Progress
from mmedge.runtime.confidence import (
    CHEAP,
    OF_SEVERAL,
    SIGNALS,
    AnyMap,
    LinearMap,
    Signal,
    StepMap,
    features_of,
    field_features,
    has_signal,
    sigmoid,
)
from mmedge.runtime.student import Student
from mmedge.statistics import auroc, calibration_error
from mmedge.tasks.base import Example

Array = NDArray[np.float64]
FOLDS, REPEATS = 5, 4
LEAST_OF_EACH = 8  # the fewest right and wrong answers to fit on
BATCH = 16  # questions asked together


def calibrated(student: Student, examples: Sequence[Example], progress: Progress, constrained: bool) -> dict[str, Any]:
    """Return what the manifest says about confidence: maps by signal, the chosen one, what validation questions gave, and which
    engine gave it.

    Args:
        student: The bundle, opened.
        examples: Validation questions; any answer to one that is out of scope is wrong.
        progress: Where progress is shown.
        constrained: Whether the bundle will allow only answers of the task's form.
    """
    labelled = [example for example in examples if example.label is not None or example.out_of_scope]
    evidence: list[Evidence] = []
    right: list[bool] = []
    fields: list[Mapping[str, bool]] = []
    with progress.task("confidence on validation questions", len(labelled)) as step:
        for start in range(0, len(labelled), BATCH):
            batch = labelled[start : start + BATCH]
            for example, (text, shown) in zip(batch, student.examined(batch, constrained), strict=True):
                evidence.append(shown)
                right.append(not example.out_of_scope and student.bundle.form.agrees(text, example.label or "", example.choices))
                fields.append(student.bundle.form.fields_right(text, example.label or ""))
            step.advance(len(batch))
    found = fitted(evidence, right, prices(student, labelled[:BATCH], constrained)) | {"engine": engine_of(student.bundle.manifest)}
    of_fields = fitted_fields(evidence, fields, [not example.out_of_scope for example in labelled])
    return found | ({"fields": of_fields} if of_fields else {})


def fitted_fields(
    evidence: Sequence[Evidence], right: Sequence[Mapping[str, bool]], inside: Sequence[bool]
) -> dict[str, Any] | None:
    """Fit one map for the fields of structured answers.

    Args:
        evidence: What the student showed of each answer.
        right: By path, whether each of its fields is right.
        inside: Whether each question is in scope.

    Returns:
        The map, what it gives the fields that all answers to questions in scope have (`given`, by path),
        and how well it does on questions that it was not fitted on; None where there is too little to learn from.
    """
    features, truth, question = [], [], []
    for number, (shown, fields) in enumerate(zip(evidence, right, strict=True)):
        for row, path in zip(field_features(shown), shown.fields, strict=True):
            if path in fields:
                features.append(row)
                truth.append(float(fields[path]))
                question.append(number)
    if min(sum(truth), len(truth) - sum(truth)) < LEAST_OF_EACH:
        return None
    table, wanted, groups = np.stack(features), np.array(truth), np.array(question)
    fold = np.random.default_rng(0).permutation(len(evidence))[groups] % FOLDS  # a question's fields stay together
    confidences = np.empty(len(wanted))
    for number in range(FOLDS):
        out = fold == number
        confidences[out] = logistic(table[~out], wanted[~out])(table[out])
    final = logistic(table, wanted)
    known = [one for one, within in zip(evidence, inside, strict=True) if within]
    always = [path for path in (known[0].fields if known else ()) if all(path in one.fields for one in known)]
    confidences_of = [dict(zip(one.fields, final(field_features(one)).tolist(), strict=True)) for one in known]
    return {
        "map": final.to_json(),
        "given": {path: [found[path] for found in confidences_of] for path in always},
        "fields": len(wanted),
        "questions": len(set(question)),
        "right": float(wanted.mean()),
        "auroc": auroc(confidences, wanted > 0),
        "calibration_error": calibration_error(confidences.tolist(), (wanted > 0).tolist()),
    }


def prices(student: Student, examples: Sequence[Example], constrained: bool) -> dict[str, float]:
    """Return what an answer with each signal costs, in passes through the model, as a multiple of the answer alone.

    Passes, and not seconds, so that the same student gives the same bundle: one for reading a prompt, one for each token written.
    """
    learned = bool(student.speaker.encoder.prompts.answer_verdict)
    thoughts = student.speaker.thoughts(examples, Wanted(judgement=student.judges, constrained=constrained)) if examples else []
    written = [thought.written for thought in thoughts if thought.written is not None]
    answer = 1.0 + sum(len(one.tokens) + one.ended for one in written) / max(1, len(written))
    rationale = 1.0 + sum(one.rationale_tokens for one in written) / max(1, len(written))
    judged = (answer + rationale + 1) / answer
    found = {"answer": 1.0} | ({"evaluation": judged, "combined": judged} if student.judges else {})
    return {
        name: round(price, 3) for name, price in (found | ({"answer_verdict": (answer + 1) / answer} if learned else {})).items()
    }


def fitted(evidence: Sequence[Evidence], right: Sequence[bool], prices: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Fit every signal's map and choose.

    Args:
        evidence: What the student showed of each answer.
        right: Whether it is right.
        prices: What each signal costs, as a multiple of the answer alone; the answer's own probability is free.

    Returns:
        `signals` is empty, and `why` says so, where there are too few right or wrong answers to learn from.
    """
    truth = np.array(right, dtype=float)
    counts = {"questions": len(right), "right": [int(value) for value in right]}
    if min(truth.sum(), len(truth) - truth.sum()) < LEAST_OF_EACH:
        few = "wrong" if truth.mean() > 0.5 else "right"
        return counts | {"signals": {}, "chosen": None, "why": f"fewer than {LEAST_OF_EACH} {few} answers to learn from"}
    signals: dict[str, dict[str, Any]] = {}
    losses: dict[Signal, Array] = {}
    known = [signal for signal in SIGNALS if has_signal(evidence[0], signal)]
    for signal in known:
        features = np.stack([features_of(one, signal) for one in evidence])
        candidates: dict[str, Callable[[Array, Array], AnyMap]] = (
            {"logistic": logistic} if signal in OF_SEVERAL else {"temperature": temperature, "platt": platt, "isotonic": isotonic}
        )
        tried = {kind: _out_of_fold(features, truth, fit) for kind, fit in candidates.items()}
        mean_losses = {kind: float(_log_loss(found, truth).mean()) for kind, found in tried.items()}
        kind = min(mean_losses, key=lambda name: mean_losses[name])
        losses[signal] = _log_loss(tried[kind], truth)
        confidences = tried[kind].mean(0)
        chosen_map = candidates[kind](features, truth)
        signals[signal] = {
            "map": chosen_map.to_json(),
            "given": [math.floor(1e5 * float(value)) / 1e5 for value in chosen_map(features)],
            # rounded down, or a threshold of 1 would withhold every answer of a student that is almost certain
            "confidences": [math.floor(1e5 * float(value)) / 1e5 for value in confidences],
            "log_loss": {name: round(value, 5) for name, value in mean_losses.items()},
            "auroc": auroc(features[:, 0].tolist() if signal not in OF_SEVERAL else confidences.tolist(), list(right)),
            "calibration_error": calibration_error(confidences.tolist(), list(right)),
        }
    costs: Mapping[str, float] = prices or {}
    cheap = {name: loss for name, loss in losses.items() if name == "answer" or costs.get(name, math.inf) <= CHEAP}
    return counts | {"signals": signals, "chosen": _chosen(losses), "default": _chosen(cheap), "prices": dict(costs)}


def _chosen(losses: dict[Signal, Array]) -> Signal:
    """Return the cheapest signal that no other beats by more than the standard error of their difference."""
    best = min(losses, key=lambda name: float(losses[name].mean()))
    for signal in losses:  # the cheapest first
        difference = (losses[signal] - losses[best]).mean(0)
        if difference.mean() <= difference.std(ddof=1) / np.sqrt(len(difference)):
            return signal
    return best


def _log_loss(p: Array, truth: Array) -> Array:
    clipped = np.clip(p, 1e-4, 1 - 1e-4)
    return np.asarray(-(truth * np.log(clipped) + (1 - truth) * np.log(1 - clipped)))


def _out_of_fold(features: Array, truth: Array, fit: Callable[[Array, Array], AnyMap]) -> Array:
    """Return P(right) of every question by maps that were fitted without it, (repeats, questions)."""
    rng = np.random.default_rng(0)
    found = np.empty((REPEATS, len(truth)))
    for repeat in range(REPEATS):
        fold = np.empty(len(truth), dtype=int)
        for value in (0.0, 1.0):  # as many right and wrong ones in every fold
            members = rng.permutation(np.flatnonzero(truth == value))
            fold[members] = np.arange(len(members)) % FOLDS
        for number in range(FOLDS):
            out = fold == number
            found[repeat, out] = fit(features[~out], truth[~out])(features[out])
    return found


def logistic(features: Array, truth: Array) -> LinearMap:
    """Fit P(right) = sigmoid(weights · features + bias), with a weak pull of the standardized weights towards 0 (ridge 1)."""
    mean, spread = features.mean(0), features.std(0) + 1e-9
    weights, bias = _newton((features - mean) / spread, truth, ridge=1.0)
    own = weights / spread
    return LinearMap("logistic", tuple(float(value) for value in own), float(bias - own @ mean))


def platt(features: Array, truth: Array) -> LinearMap:
    """Fit a scale and an offset of one score (Platt 1999)."""
    found = logistic(features, truth)
    return LinearMap("platt", found.weights, found.bias)


def temperature(features: Array, truth: Array) -> LinearMap:
    """Fit the scale of one score alone (Guo et al. 2017), by golden section on its logarithm."""
    score = features[:, 0]

    def loss(scale: float) -> float:
        return float(_log_loss(sigmoid(score * scale), truth).mean())

    low, high, ratio = -5.0, 4.0, 0.618033988749895
    for _ in range(40):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(np.exp(left)) < loss(np.exp(right)) else (left, high)
    return LinearMap("temperature", (float(np.exp((low + high) / 2)),))


def isotonic(features: Array, truth: Array) -> StepMap:
    """Fit a never falling map of one score, by pooling neighbours that are out of order (Ayer et al. 1955).

    Every block's share is drawn a little towards the whole's, as one more pair of right and wrong would, so that no confidence
    is 0 or 1 on the strength of a few questions.
    """
    score, value = features[:, 0], truth
    mean = float(truth.mean())
    blocks: list[list[float]] = []  # sum, count, sum of scores
    distinct, place, count = np.unique(score, return_inverse=True, return_counts=True)  # equal scores are one block from the start
    for x, y, many in zip(distinct, np.bincount(place, value), count, strict=True):
        blocks.append([float(y), float(many), float(x * many)])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    scores = [block[2] / block[1] for block in blocks]
    shares = np.maximum.accumulate([(block[0] + 2 * mean) / (block[1] + 2) for block in blocks])
    return StepMap(tuple(scores), tuple(float(share) for share in shares))


def _newton(features: Array, truth: Array, ridge: float) -> tuple[Array, float]:
    """Minimize the logistic loss plus ridge/2 · |weights|², by Newton's method."""
    design = np.column_stack([features, np.ones(len(truth))])
    penalty = np.diag([ridge] * features.shape[1] + [1e-6])
    found = np.zeros(design.shape[1])
    for _ in range(50):
        p = sigmoid(design @ found)
        gradient = design.T @ (p - truth) + penalty @ found
        curvature = (design * (p * (1 - p) + 1e-9)[:, None]).T @ design + penalty
        move = np.linalg.solve(curvature, gradient)
        size = float(np.abs(move).max())
        found -= move if size < 5 else move * (5 / size)
        if size < 1e-8:
            break
    return found[:-1], float(found[-1])
