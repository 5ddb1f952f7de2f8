"""What a collector may have in flight, counted at its highest possible cost until the bill for it is stored.

Grants are reserved in the store, where other collectors see them, and where they stay if this one is killed.
"""

from __future__ import annotations

from mmedge.annotations.records import Spending
from mmedge.teachers.plan import Limits


class Budget:
    """Requests and their cost: exposed (in flight, or not stored yet), granted, spent.

    Args:
        limits: The most that all collections of the store may send and spend.
        most_in_flight: The most requests that are ever in flight.
    """

    def __init__(self, limits: Limits, most_in_flight: int) -> None:
        self._limits, self._most_in_flight = limits, most_in_flight
        self.allowed = limits.spending()
        self._requests, self._cost = 0, 0.0  # exposed
        self._dearest = 0.0  # the most that a request seen so far may cost
        self.granted = self.spent = Spending()

    @property
    def limited(self) -> bool:
        return self.allowed is not None

    def admits(self, worst: float) -> bool:
        """Whether a request that costs `worst` at most may be sent."""
        within = self._requests + 1 <= self.granted.requests and self._cost + worst <= self.granted.cost
        return within or not self.limited

    def sent(self, worst: float) -> None:
        """Note that a request was sent."""
        self._requests += 1
        self._cost += worst

    def stored(self, requests: int, worst: float) -> None:
        """Note that the bill for some requests is stored: what was spent is neither exposed nor granted any longer."""
        self._requests -= requests
        self._cost = max(0.0, self._cost - worst)
        self.granted = Spending(self.granted.requests - requests, self.granted.cost - worst)

    def wish(self, worst: float | None, room: int) -> Spending:
        """Return what is to be reserved for what is in flight and what may be sent next.

        Without limits this only records what a kill may leave unbilled, so as much as possible is reserved at once.

        Args:
            worst: What the next request may cost at most; None where there is none.
            room: How many requests may be in flight.
        """
        self._dearest = max(self._dearest, worst or 0.0)
        if self.limited:
            each, more = worst or 0.0, 0 if worst is None else max(1, room - self._requests)
        else:
            each, more = self._dearest, self._most_in_flight
        return Spending(self._requests + more, self._cost + 1.5 * each * more)

    def exceeded_by(self, worst: float) -> str:
        """Return the limit that one more request could exceed, as the option that sets it, or an empty string."""
        if self.granted.requests < 1:
            return f"--max-requests {self._limits.max_requests}"
        return f"--max-cost {self._limits.max_cost:g}" if self.granted.cost < worst else ""
