"""The worker of `mmedge bench`, slowed by a tenth on purpose where the variant's folder is called `slowed`.

For `bench_noise.py`, which checks that so much is found. After each call it computes on for a tenth of the time the call took.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from mmedge.bench import worker
from mmedge.bench.asker import Asker, TimedAnswers
from mmedge.bench.settings import Ask
from mmedge.tasks.base import Example

SHARE = 0.1


class _Slowed(Asker):
    def ask(self, examples: Sequence[Example], ask: Ask, batch: int) -> TimedAnswers:
        found = super().ask(examples, ask, batch)
        end = time.perf_counter() + SHARE * found.seconds
        while time.perf_counter() < end:
            pass
        found.seconds *= 1 + SHARE
        return found


if __name__ == "__main__":
    worker.main(_Slowed if json.loads(sys.argv[1])["place"].endswith("slowed") else None)
