"""Generating with an engine whose rows join and leave: a batch is rows that join together.

Such an engine does not need a `generate` of its own:

    def generate(self, prompts, max_new_tokens, how=GREEDY):
        return generate_by_rows(self, prompts, max_new_tokens, how)
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from mmedge.engines.engine import RowEngine
from mmedge.engines.generation import GREEDY, Decoding, Generation
from mmedge.tasks.encoding import Prompt


def generate_by_rows(engine: RowEngine, prompts: Sequence[Prompt], max_new_tokens: int, how: Decoding = GREEDY) -> Generation:
    """Continue each prompt until its end token or the limit, whatever other rows the engine has in the meantime.

    Args:
        engine: Its rows join, step and leave.
        prompts: One for each row.
        max_new_tokens: The limit.
        how: How tokens are chosen, for all rows.
    """
    started = time.perf_counter()
    numbers = {engine.join(prompt, max_new_tokens, how.of_rows([row])): row for row, prompt in enumerate(prompts)}
    found = Generation([[] for _ in prompts], 0.0, 0.0, 0, [[] for _ in prompts] if how.scored else [], [False for _ in prompts])
    waiting = set(numbers)
    try:
        while waiting:
            written = engine.step()
            found.steps += 1
            for number, token in written:
                if number not in waiting:
                    continue  # a row of another caller
                found.time_to_first_token = found.time_to_first_token or time.perf_counter() - started
                if token is None:
                    waiting.discard(number)
                    put_row(found, numbers[number], engine.leave(number))
    finally:
        for number in waiting:
            engine.leave(number)
    found.seconds = time.perf_counter() - started
    return found


def put_row(whole: Generation, row: int, part: Generation) -> None:
    """Write what a row of an engine has written into a row of a batch."""
    whole.tokens[row], whole.ended[row] = part.tokens[0], part.ended[0]
    if whole.log_probabilities and part.log_probabilities:
        whole.log_probabilities[row] = part.log_probabilities[0]
