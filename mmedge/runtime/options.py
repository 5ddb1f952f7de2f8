"""What is asked of a student, as one object, with the rules that hold between its fields.

    AnswerOptions(explain=True, target_accuracy=0.9)

Python, the command line, files, pipes and servers use the same options. `settled` completes
them from a bundle's settings, and refuses contradictions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, TypedDict

from mmedge.errors import MmedgeError, WrongOption
from mmedge.runtime.strategies import Strategy

if TYPE_CHECKING:
    from mmedge.bundle import Bundle
    from mmedge.manifest import AnsweringPart
    from mmedge.runtime.confidence import Confidence, Threshold
    from mmedge.runtime.escalation import BiggerModel
    from mmedge.tasks.forms import AnswerForm

AIMS = ("abstain_below", "target_accuracy", "max_withheld")  # one of them sets the threshold
AFTERWARDS = ("samples", "retry")  # strategies that choose the answer among several


class OptionChanges(TypedDict, total=False):
    """The fields of `AnswerOptions`, as keywords of a call."""

    explain: bool
    evaluate: bool
    confidence: bool
    probabilities: bool
    strategy: Strategy | None
    constrained: bool | None
    abstain_below: float | None
    abstain_field_below: float | Mapping[str, float] | None
    target_accuracy: float | None
    max_withheld: float | None
    max_withheld_by_field: Mapping[str, float] | None
    escalate_to: BiggerModel | None


@dataclass(frozen=True)
class AnswerOptions:
    """What is asked of a student.

    Attributes:
        explain: Also return a rationale.
        evaluate: Also return the student's verdict on rationale and answer, and with `explain` the verdict's rationale.
        confidence: Compute the best confidence, even if it takes a rationale and a verdict.
        probabilities: Also return how likely each label or choice is.
        strategy: How to find an answer; None for the bundle's.
        constrained: Allow only answers of the task's form: a choice, a label, an expression. None for the bundle's setting.
        abstain_below: Withhold an answer whose confidence is lower. None for the bundle's threshold, if it has one.
        abstain_field_below: Withhold a structured answer that is not valid or has a field whose confidence is lower than this;
            or by a field's path or the end of it, for it and all that lies within, `*` for all others, such as {"name": 0.9}.
        target_accuracy: Withhold as few answers as the others need to reach this accuracy on validation questions, from 0 to 1.
        max_withheld: Withhold the least confident answers, at most this share, from 0 to 1.
        max_withheld_by_field: Withhold the structured answers that are least sure of a field that all have, at most this share of
            validation questions in scope: {"name": 0.05} withholds calls whose function is in doubt.
        escalate_to: Answers what would be withheld.
    """

    explain: bool = False
    evaluate: bool = False
    confidence: bool = False
    probabilities: bool = False
    strategy: Strategy | None = None
    constrained: bool | None = None
    abstain_below: float | None = None
    abstain_field_below: float | Mapping[str, float] | None = field(default=None, hash=False)
    target_accuracy: float | None = None
    max_withheld: float | None = None
    max_withheld_by_field: Mapping[str, float] | None = field(default=None, hash=False)
    escalate_to: BiggerModel | None = None

    def changed(self, changes: OptionChanges) -> AnswerOptions:
        """Return the same with some fields changed.

        Raises:
            MmedgeError: An option is unknown.
        """
        known = [field.name for field in fields(self)]
        if unknown := sorted(changes.keys() - set(known)):
            raise MmedgeError(f"unknown option {unknown[0]!r}", f"options are {', '.join(known)}")
        return replace(self, **changes) if changes else self

    def settled(self, bundle: Bundle, confidence: Confidence | None) -> SettledOptions:
        """Return the options completed from a bundle's settings.

        Args:
            bundle: The bundle that is asked.
            confidence: Its calibrated confidence; None where it has none.

        Raises:
            MmedgeError: Options contradict each other, a value is out of range, or the bundle cannot do what is asked.
        """
        self._check_learned(bundle.manifest.student.learned)
        stated = bundle.manifest.answering
        strategy = self.strategy if self.strategy is not None else strategy_of(bundle)
        if not isinstance(strategy, Strategy):
            raise MmedgeError(f"strategy must be a Strategy, such as Strategy('samples'), got {strategy!r}")
        threshold = self._threshold(strategy, stated, bundle, confidence)
        by_field = self._field_thresholds(bundle.form) | self._chosen_field_thresholds(bundle, confidence)
        if self.probabilities and not (bundle.form.labels or bundle.form.takes_choices):
            raise WrongOption("probabilities", "probabilities: this task's answers are not one of several texts", "leave it out")
        if self.escalate_to is not None and threshold is None and not by_field:
            raise MmedgeError("escalate_to requires a confidence threshold", "give abstain_below, target_accuracy or max_withheld")
        return SettledOptions(
            explain=self.explain,
            evaluate=self.evaluate,
            confidence=self.confidence or threshold is not None,
            strategy=strategy,
            constrained=stated.constrained if self.constrained is None else self.constrained,
            abstain_below=threshold,
            abstain_field_below=by_field,
            escalate_to=self.escalate_to,
            probabilities=self.probabilities,
        )

    def _field_thresholds(self, form: AnswerForm) -> dict[str, float]:
        """Return the thresholds of fields: by path, by the end of a path behind a dot, `*` for all others.

        Raises:
            MmedgeError: A value is out of range, or answers have no such field.
        """
        option, given = "abstain_field_below", self.abstain_field_below
        if given is None:
            return {}
        stated = {str(name).strip(): value for name, value in given.items()} if isinstance(given, Mapping) else {"*": given}
        for name, value in stated.items():
            _check_share(option if name == "*" else f"{option}: {name}", value)
        if not form.takes_json:
            raise WrongOption(option, f"{option}: this task's answers have no fields", "give abstain_below")
        names = form.field_names()
        found = {name if name == "*" or name in names else f".{name}": value for name, value in stated.items()}
        for name in found if names else ():  # a schema that names no field leaves them open
            if name != "*" and not any(_covers(name, path) for path in names):
                raise WrongOption(
                    option, f"{option}: answers have no field {name[1:]!r:.60}", f"fields are {', '.join(names)}"[:300]
                )
        return found

    def _chosen_field_thresholds(self, bundle: Bundle, confidence: Confidence | None) -> dict[str, float]:
        """Return the thresholds of fields that `max_withheld_by_field` asks for, by path.

        Raises:
            MmedgeError: A share is out of range, answers have no such field, its confidence is not calibrated, or
                `abstain_field_below` says something else of it.
        """
        option, found, given = "max_withheld_by_field", dict[str, float](), self.max_withheld_by_field or {}
        if not isinstance(given, Mapping):
            raise WrongOption(option, f"{option} must be shares by field, got {given!r:.60}", 'such as {"name": 0.05}')
        for path, share in given.items():
            _check_share(f"{option}: {path}", share)
            if not bundle.form.takes_json:
                raise WrongOption(option, f"{option}: this task's answers have no fields", "give max_withheld")
            if isinstance(self.abstain_field_below, Mapping) and path in self.abstain_field_below:
                said = f"{option} and abstain_field_below contradict each other: each sets the threshold of {path!r:.60}"
                raise WrongOption(option, said, "give one of them")
            if confidence is None or confidence.fields is None:
                few = "export needs eight right and eight wrong ones among the validation questions"
                said = f"{option}: the confidence of this bundle's fields is not calibrated: {few}"
                raise WrongOption(
                    option, said, "give abstain_field_below, or distil with more validation questions (split.validation)"
                )
            found[path] = confidence.field_threshold(path, share)
        return found

    def _check_learned(self, learned: Sequence[str] | None) -> None:
        """Refuse what a student would only pretend to write; `learned` is None where that is not known."""
        if learned is not None and self.explain and "rationale" not in learned:
            raise WrongOption(
                "explain",
                "explain: this student learned answers alone, and no rationales",
                "leave it out, or distil from chains of thought: a teacher, and method.rationales: true",
            )
        if learned is not None and self.evaluate and "verdict" not in learned:
            raise WrongOption(
                "evaluate",
                "evaluate: this student did not learn to judge its answers",
                "leave it out, or distil with a teacher's evaluations and method.self_evaluation: true",
            )

    def chosen_threshold(self, bundle: Bundle, confidence: Confidence | None) -> Threshold | None:
        """Return the threshold that reaches `target_accuracy` or `max_withheld`; None where neither is asked for.

        Raises:
            MmedgeError: The bundle's confidence was not calibrated, or no threshold reaches the aim.
        """
        if self.target_accuracy is None and self.max_withheld is None:
            return None
        for name in ("target_accuracy", "max_withheld"):
            if (aim := getattr(self, name)) is not None:
                _check_share(name, aim)
        if confidence is None:
            why = bundle.manifest.confidence.get("why", "it was exported without calibration")
            raise WrongOption(
                "target_accuracy" if self.target_accuracy is not None else "max_withheld",
                f"no threshold can be chosen: this bundle's confidence is not calibrated ({why})",
                "give abstain_below yourself, or distil with more or harder validation questions (split.validation)",
            )
        return confidence.threshold(target_accuracy=self.target_accuracy, max_withheld=self.max_withheld)

    def _threshold(self, strategy: Strategy, stated: AnsweringPart, bundle: Bundle, confidence: Confidence | None) -> float | None:
        aims = [name for name in AIMS if getattr(self, name) is not None]
        if len(aims) > 1:
            said = f"{', '.join(aims[:-1])} and {aims[-1]} contradict each other: each sets the threshold"
            raise WrongOption(aims[-1], said, "give one of them")
        chosen = aims != ["abstain_below"] and (bool(aims) or stated.threshold is not None)
        if chosen and strategy.kind in AFTERWARDS:
            raise WrongOption(
                aims[0] if aims else "strategy",
                f"thresholds are chosen for answering at once, not for the strategy {strategy.kind!r}",
                "give abstain_below",
            )
        for name in aims:
            value = getattr(self, name)
            _check_share(name, value)
        if self.abstain_below is not None:
            return float(self.abstain_below)
        found = self.chosen_threshold(bundle, confidence)
        if found is not None:
            return found.value
        return stated.threshold.value if stated.threshold is not None else None


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise MmedgeError(f"{name} must be from 0 to 1, got {value!r}")


@dataclass(frozen=True)
class SettledOptions:
    """Completed options; see `AnswerOptions` for what they mean.

    Attributes:
        abstain_below: The threshold; None where nothing is withheld.
        abstain_field_below: The thresholds of fields: by path, by the end of a path behind a dot, `*` for all others.
    """

    explain: bool
    evaluate: bool
    confidence: bool
    strategy: Strategy
    constrained: bool
    abstain_below: float | None
    escalate_to: BiggerModel | None
    abstain_field_below: Mapping[str, float] = field(default_factory=dict)
    probabilities: bool = False

    @property
    def may_withhold(self) -> bool:
        """Whether there is a threshold."""
        return self.abstain_below is not None or bool(self.abstain_field_below)

    def doubt(self, confidence: float | None, fields: Mapping[str, float] | None, *, valid: bool = True) -> str | None:
        """Return why an answer with these confidences is withheld, in words; None where it is not.

        One that is not valid has no field to be sure of.
        """
        whole, thresholds, found = confidence or 0.0, self.abstain_field_below, list[str]()
        if self.abstain_below is not None and whole < self.abstain_below:
            found.append(f"confidence {_rounded(whole, self.abstain_below)} is below {self.abstain_below:g}")
        if not valid and any(thresholds.values()):
            found.append("the answer is not valid, so no field is sure")
        elif thresholds:
            least = {path: thresholds.get(_covering(path, thresholds), 0.0) for path in fields or {}}
            doubtful = sorted((value, path) for path, value in (fields or {}).items() if value < least[path])
            found += [f"{path} {_rounded(value, least[path])} is below {least[path]:g}" for value, path in doubtful[:3]]
        return ", ".join(found) or None

    @property
    def decides_afterwards(self) -> bool:
        """Whether an answer may still be withheld or outvoted after it is written."""
        return bool(self.abstain_below or any(self.abstain_field_below.values())) or self.strategy.kind in AFTERWARDS

    def key(self) -> list[object]:
        """Return everything that answers depend on, as JSON."""
        bigger = self.escalate_to.name if self.escalate_to else None
        settings = [self.explain, self.evaluate, self.confidence, self.strategy.to_json(), self.constrained, self.abstain_below]
        return [
            *settings,
            dict(sorted(self.abstain_field_below.items())),
            bigger,
            *(["probabilities"] if self.probabilities else []),
        ]


def _rounded(value: float, below: float) -> str:
    """Return a number that is below another with as many decimals as show it, two at least."""
    return next((said for places in (2, 3, 4) if float(said := f"{value:.{places}f}") < below), f"{value:.6g}")


def _covering(path: str, names: Iterable[str]) -> str:
    """Return which of some names a field's threshold is stated by: its path, the longest that covers it, or `*`."""
    found = [name for name in names if _covers(name, path)]
    return path if path in found else max(found, key=len, default="*")


def _covers(name: str, path: str) -> bool:
    """Whether a field is the one of this name or lies within it: a path from its beginning or, behind a dot, from anywhere."""
    return f"{name}." in f".{path}." if name.startswith(".") else f"{path}.".startswith(f"{name}.")


def strategy_of(bundle: Bundle) -> Strategy:
    """Return a bundle's own strategy.

    Raises:
        MmedgeError: Its manifest states none that there is.
    """
    stated = bundle.manifest.answering.strategy
    if unknown := sorted(stated.keys() - {field.name for field in fields(Strategy)}):
        raise MmedgeError(f"{bundle.folder}: field 'answering.strategy.{unknown[0]}' is unknown", "export the student again")
    return Strategy(**stated)
