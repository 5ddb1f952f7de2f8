"""How likely an answer is right, from what the student shows while it answers; calibrated when the bundle was exported.

Four signals, each with its price:

    answer          the probability of the answer's own tokens                                     free
    answer_verdict  that and the verdict after the bare answer, of a student that learned it      a few tokens
    evaluation      the student's verdict on its rationale and answer (P(correct), from logits)    a rationale and one look
    combined        both, and whether the rationale comes to the same answer                       the same

Each becomes a score, and a map that export fitted on validation questions turns the score into P(right). The bundle's manifest
says what was fitted, how well it did on questions that it was not fitted on, and which signal was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmedge.engines.speaker import Evidence
from mmedge.errors import MmedgeError, WrongOption
from mmedge.statistics import proportion

Signal = Literal["answer", "answer_verdict", "evaluation", "combined"]
SIGNALS: tuple[Signal, ...] = ("answer", "answer_verdict", "evaluation", "combined")
OF_THE_ANSWER = ("answer", "answer_verdict")  # what is known without a rationale
OF_SEVERAL = ("answer_verdict", "combined")  # those with several features

CHEAP = 1.3  # times the cost of an answer that a confidence may cost unasked
FEWEST_GIVEN = 20  # the fewest validation answers above a threshold, or a tenth of them
_LARGEST = 30.0  # log-odds are clipped to this


def features_of(evidence: Evidence, signal: Signal) -> NDArray[np.float64]:
    """Return the features of a signal: (1,); (2,) for the answer with its verdict; (4,) for the combined one: answer, evaluation,
    agreement, rationale.

    Raises:
        ValueError: The signal needs the verdict, and it was not asked.
    """
    if signal == "answer":
        return np.array([_log_odds(evidence.answer)])
    if signal == "answer_verdict":
        if evidence.answer_verdict is None:
            raise ValueError(f"the signal {signal!r} needs the verdict on the answer")
        return np.array([_log_odds(evidence.answer), float(np.clip(evidence.answer_verdict, -_LARGEST, _LARGEST))])
    if evidence.evaluation is None:
        raise ValueError(f"the signal {signal!r} needs the verdict")
    evaluation = float(np.clip(evidence.evaluation, -_LARGEST, _LARGEST))
    if signal == "evaluation":
        return np.array([evaluation])
    return np.array([_log_odds(evidence.answer), evaluation, evidence.agreement, evidence.rationale])


def has_signal(evidence: Evidence, signal: Signal) -> bool:
    """Whether a student showed what a signal needs."""
    if signal == "answer_verdict":
        return evidence.answer_verdict is not None
    return signal in OF_THE_ANSWER or evidence.evaluation is not None


def field_features(evidence: Evidence) -> NDArray[np.float64]:
    """Return the features of an answer's fields: the log-odds of each one's tokens and of the whole answer, (fields, 2)."""
    whole = _log_odds(evidence.answer)
    return np.array([[_log_odds(value), whole] for value in evidence.fields.values()]).reshape(-1, 2)


def fields_of(confidence: Confidence | None, evidence: Evidence) -> dict[str, float] | None:
    """Return P(right) of each field of an answer, by path; that of its tokens where nothing was calibrated. None without fields."""
    if not evidence.fields:
        return None
    if confidence is None or confidence.fields is None:
        return {path: math.exp(min(0.0, value)) for path, value in evidence.fields.items()}
    return dict(zip(evidence.fields, map(float, confidence.fields(field_features(evidence))), strict=True))


def _log_odds(log_probability: float) -> float:
    """Return the log-odds of a probability given by its logarithm."""
    p = min(log_probability, -1e-12)
    return max(-_LARGEST, min(_LARGEST, p - math.log(-math.expm1(p))))


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return 1 / (1 + e^-x), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * values)))


@dataclass(frozen=True)
class LinearMap:
    """P(right) = sigmoid(weights · features + bias): temperature scaling with one weight and no bias, else Platt's or logistic.

    Attributes:
        kind: `temperature`, `platt` or `logistic`.
        weights: One for each feature.
        bias: Log-odds where all features are 0.
    """

    kind: str
    weights: tuple[float, ...]
    bias: float = 0.0

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(right) for features (n, k), as (n,)."""
        return sigmoid(features @ np.array(self.weights) + self.bias)

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of its parameters."""
        return (*self.weights, self.bias)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "weights": list(self.weights), "bias": self.bias}


@dataclass(frozen=True)
class StepMap:
    """Isotonic regression (Zadrozny and Elkan 2002): P(right) rises with the score, in straight lines between points.

    Attributes:
        scores: Rising.
        probabilities: At each, never falling.
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    kind: str = "isotonic"

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return P(right) for features (n, 1), as (n,)."""
        return np.interp(features[:, 0], self.scores, self.probabilities)

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of its parameters."""
        return (*self.scores, *self.probabilities)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "scores": list(self.scores), "probabilities": list(self.probabilities)}


AnyMap = LinearMap | StepMap


def map_from_json(value: Mapping[str, Any]) -> AnyMap:
    """Return the map that a manifest holds."""
    if value["kind"] == "isotonic":
        return StepMap(tuple(value["scores"]), tuple(value["probabilities"]))
    return LinearMap(str(value["kind"]), tuple(value["weights"]), float(value["bias"]))


@dataclass(frozen=True)
class Threshold:
    """The confidence below which an answer is withheld or escalated.

    Attributes:
        value: Answers with this confidence or more are given.
        accuracy: The share of right answers among those given on validation questions.
        withheld: The share of validation questions that fall below.
        questions: How many validation questions these figures rest on.
        interval: 95 % interval of the accuracy.
    """

    value: float
    accuracy: float
    withheld: float
    questions: int
    interval: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Confidence:
    """A bundle's calibrated confidence.

    Attributes:
        maps: By signal.
        chosen: The signal that did best on validation questions.
        fields: P(right) of a structured answer's fields, from `field_features`; None where that was not calibrated.
        fields_given: By path, what `fields` gives the validation questions in scope; for fields that all of their answers have.
        default: The best of those that cost at most `CHEAP` times what an answer costs; answers have it unasked.
        known: By signal, the confidences of validation questions (each from maps fitted without it) and whether the answers were
            right.
        given: By signal, the confidences that the final maps give the same questions; thresholds are on their scale.
    """

    maps: Mapping[Signal, AnyMap]
    chosen: Signal
    known: Mapping[Signal, tuple[Sequence[float], Sequence[bool]]]
    given: Mapping[Signal, Sequence[float]] = field(default_factory=dict)
    default: Signal = "answer"
    fields: AnyMap | None = None
    fields_given: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @classmethod
    def from_manifest(cls, value: Mapping[str, Any] | None) -> Confidence | None:
        """Return a manifest's `confidence`; None if it has none, such as when there were too few validation questions.

        Raises:
            MmedgeError: It is not what export writes.
        """
        if not value or not value.get("signals"):
            return None
        try:
            signals: dict[Signal, Any] = {name: value["signals"][name] for name in SIGNALS if name in value["signals"]}
            right = [bool(one) for one in value["right"]]
            found = cls(
                {name: map_from_json(stated["map"]) for name, stated in signals.items()},
                value["chosen"],
                {name: ([float(p) for p in stated["confidences"]], right) for name, stated in signals.items()},
                {name: [float(p) for p in stated["given"]] for name, stated in signals.items()},
                value.get("default", "answer"),
                map_from_json(value["fields"]["map"]) if value.get("fields") else None,
                {path: [float(p) for p in given] for path, given in (value.get("fields") or {}).get("given", {}).items()},
            )
            numbers = [p for name in signals for p in (*found.known[name][0], *found.given[name], *found.maps[name].numbers)]
            numbers += [p for given in found.fields_given.values() for p in given]
            if found.chosen not in signals or found.default not in OF_THE_ANSWER or found.default not in signals:
                raise ValueError("a signal without a map")
            if not np.isfinite([*numbers, *(found.fields.numbers if found.fields else ())]).all():
                raise ValueError("a number is not finite")
            if any(len(found.known[name][0]) != len(right) or len(found.given[name]) != len(right) for name in signals):
                raise ValueError("not one confidence for each question")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MmedgeError(f"the manifest's confidence is invalid ({error})", "export the student again") from None
        return found

    def of(self, evidence: Sequence[Evidence], signal: Signal | None = None) -> list[float]:
        """Return P(right) of some answers, by the chosen signal or another."""
        name = signal or self.chosen
        if not evidence:
            return []
        return [float(p) for p in self.maps[name](np.stack([features_of(one, name) for one in evidence]))]

    def threshold(
        self, *, target_accuracy: float | None = None, max_withheld: float | None = None, signal: Signal | None = None
    ) -> Threshold:
        """Return the lowest threshold that reaches an accuracy, or the highest that escalates no more than a share.

        Args:
            target_accuracy: Of the answers that are given, from 0 to 1.
            max_withheld: Of all questions, from 0 to 1.
            signal: Whose confidence; the chosen one by default.

        Raises:
            MmedgeError: No threshold reaches the accuracy on validation questions, or not exactly one aim is given.
        """
        name = signal or self.chosen
        confidences, right = self.known[name]
        found = choose_threshold(confidences, right, target_accuracy=target_accuracy, max_withheld=max_withheld)
        if name not in self.given:
            return found
        # `known` comes from maps fitted without the question, new questions get the final maps' scale: take the same share of it
        below = round(found.withheld * len(right))
        return replace(found, value=sorted(self.given[name])[below] if below else 0.0)

    def field_threshold(self, path: str, max_withheld: float) -> float:
        """Return the highest threshold on a field's confidence that withholds no more than a share of the validation questions.

        Args:
            path: A field that every answer has, such as a call's `name`.
            max_withheld: Of the validation questions in scope, from 0 to 1.

        Raises:
            MmedgeError: The bundle does not know how sure the student was of that field.
        """
        if path not in self.fields_given:
            known = ", ".join(self.fields_given)
            raise WrongOption(
                "max_withheld_by_field",
                f"max_withheld_by_field: no confidences of the field {path!r:.60} on validation questions are known",
                f"known are {known}"[:300] if known else "export the student again, or give abstain_field_below",
            )
        confidences = sorted(self.fields_given[path])
        below = min(math.floor(max_withheld * len(confidences) + 1e-9), len(confidences) - 1)
        return confidences[below] if below else 0.0


def choose_threshold(
    confidences: Sequence[float],
    right: Sequence[bool],
    *,
    target_accuracy: float | None = None,
    max_withheld: float | None = None,
) -> Threshold:
    """Choose a threshold on questions whose answers are known; see `Confidence.threshold`."""
    if (target_accuracy is None) == (max_withheld is None):
        raise MmedgeError("a threshold needs one aim", "give either target_accuracy or max_withheld")
    values, truth = np.asarray(confidences, dtype=float), np.asarray(right, dtype=bool)
    order = np.unique(values)
    least = max(1, min(FEWEST_GIVEN, len(values) // 10))
    shares = [(float(value), given) for value in order if (given := values >= value).sum() >= least]
    if max_withheld is not None:
        fitting = [(value, given) for value, given in shares if 1 - given.mean() <= max_withheld + 1e-12]
        value, given = fitting[-1]  # the lowest value withholds nothing, so there always is one
    else:
        assert target_accuracy is not None
        # the best of many thresholds looks better than it is: half a standard error is subtracted
        found = next(((value, given) for value, given in shares if _with_margin(truth[given].tolist()) >= target_accuracy), None)
        if found is None:
            best = max(_with_margin(truth[given].tolist()) for _, given in shares)
            raise WrongOption(
                "target_accuracy",
                f"no threshold reaches {100 * target_accuracy:g} % on validation questions, with a safety margin"
                f" (the best: {100 * best:.1f} %)",
                "aim lower, or withhold a share of the questions: max_withheld 0.3",
            )
        value, given = found
    value = 0.0 if given.all() else value
    right_given = proportion(truth[given].tolist())
    return Threshold(value, right_given.value, float(1 - given.mean()), len(values), right_given.interval)


def _with_margin(right: Sequence[bool]) -> float:
    """Return the accuracy less a quarter of its interval's lower half, about half a standard error."""
    found = proportion(right)
    return found.value - (found.value - found.interval[0]) / 4
