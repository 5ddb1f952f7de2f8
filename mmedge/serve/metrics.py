"""Counters and histograms in Prometheus' text format.

metrics.count("mmedge_requests_total", route="/v1/answer", status="200")
metrics.observe("mmedge_request_seconds", 0.012, model="quickstart/bundle-int8")
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
HISTOGRAMS = {
    "mmedge_request_seconds": ("Seconds from request to response.", SECONDS),
    "mmedge_queue_seconds": ("Seconds that a request waited for its turn.", SECONDS),
    "mmedge_confidence": ("Confidence of the students' answers.", SHARES),
    "mmedge_batch_rows": ("Answers and rationales that were written together, at each step.", ROWS),
}
COUNTERS = {
    "mmedge_requests_total": "Requests, by route and status.",
    "mmedge_answers_total": "Answers, by model, source (student or the bigger model) and outcome: given, withheld or degraded.",
    "mmedge_tokens_total": "Tokens read and written by the students.",
    "mmedge_escalation_cost_total": "What the bigger model's answers cost, in the currency of its prices.",
    "mmedge_reloads_total": "Replaced bundles, by outcome: done, or refused where the old one goes on.",
    "mmedge_vanished_total": "Requests whose client went away.",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Everything that is counted, safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], tuple[list[int], list[float]]] = {}

    def count(self, name: str, by: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            self._counters[key] = self._counters.get(key, 0) + by

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        bounds = HISTOGRAMS[name][1]
        key = name, tuple(sorted(labels.items()))
        with self._lock:
            counts, total = self._histograms.setdefault(key, ([0] * (len(bounds) + 1), [0.0]))
            counts[bisect_left(bounds, value)] += 1
            total[0] += value

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Return everything, with some values of this moment: `{name: (help, value)}`."""
        lines = []
        with self._lock:
            for name, (about, bounds) in HISTOGRAMS.items():
                lines += [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
                for (of, labels), (counts, total) in sorted(self._histograms.items()):
                    if of != name:
                        continue
                    sum_ = 0
                    for bound, count in zip((*map(str, bounds), "+Inf"), counts, strict=True):
                        sum_ += count
                        lines.append(f"{name}_bucket{_shown((*labels, ('le', bound)))} {sum_}")
                    lines += [f"{name}_sum{_shown(labels)} {total[0]:.9g}", f"{name}_count{_shown(labels)} {sum_}"]
            for name, about in COUNTERS.items():
                lines += [f"# HELP {name} {about}", f"# TYPE {name} counter"]
                found = sorted((labels, value) for (of, labels), value in self._counters.items() if of == name)
                lines += [f"{name}{_shown(labels)} {value:.15g}" for labels, value in found]
        for name, (about, value) in gauges.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} gauge", f"{name} {value:.9g}"]
        return "\n".join(lines) + "\n"


def _shown(labels: Labels) -> str:
    quoted = (value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for _, value in labels)
    pairs = (f'{name}="{value}"' for (name, _), value in zip(labels, quoted, strict=True))
    return "{" + ",".join(pairs) + "}" if labels else ""
