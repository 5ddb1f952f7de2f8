"""The accuracy budget: an export that loses too much is tried again with the most costly layers kept in a finer format.

First no layer is, then an eighth of them, a quarter, and so on. Where an encoder's activations are quantized with static ranges,
these are given up first, and come back if it was the weights that cost. Where scales can be learned from the student, that is done
before any layer is kept finer. Knows nothing of what is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmedge.manifest import BudgetStep, Verification

FIRST_SHARE = 1 / 8  # of the layers that are kept in a finer format when accuracy asks for it; doubled until it holds
# of the KL with static ranges: above, dynamic ranges help too little to justify encoding contexts one by one
STATIC_IS_FINE = 0.9


def within_budget(
    attempt: Callable[[Sequence[str], bool], Verification],
    problems: Callable[[Verification], Sequence[str]],
    keep: Callable[[float, str], Sequence[str]],
    tell: Callable[[str], None],
    *,
    static: bool = False,
    recover: Callable[[], None] | None = None,
    recovered: bool = False,
) -> tuple[Verification, tuple[BudgetStep, ...]]:
    """Attempt an export until it stays within its accuracy budget.

    Args:
        attempt: Writes an export that keeps the named layers finer, with static activation ranges or dynamic ones, and compares it.
        problems: Says what is wrong with a comparison; nothing where it holds.
        keep: Names the layers to keep finer for a share of them, the most costly first; is told what was wrong, and raises
            MmedgeError where nothing more can be done.
        tell: Takes a line of progress.
        static: Whether activations can be quantized with static ranges.
        recover: Learns the scales of what is attempted from then on; None where that is not possible or already done.
        recovered: Whether it is already done.

    Returns:
        The comparison that holds, and all attempts, which it ends.
    """
    finer: Sequence[str] = ()
    steps: list[BudgetStep] = []
    share, static_first = FIRST_SHARE, static
    while True:
        found = attempt(finer, static)
        said = tuple(problems(found))
        steps.append(BudgetStep(len(finer), said, found.drop, found.mean_kl, static, recovered))
        if not said:
            return found, tuple(steps)
        wrong = "; ".join(said)
        if static_first and len(steps) == 1:
            tell(f"{wrong}; quantizing the encoder's activations dynamically")
            static = False
            continue
        if static_first and len(steps) == 2:
            static = found.mean_kl > STATIC_IS_FINE * steps[0].mean_kl
        if recover is not None and not recovered:
            tell(f"{wrong}; learning from the student")
            recover()
            recovered = True
            continue
        finer = keep(share, wrong)
        tell(f"{wrong}; keeping {len(finer)} layers in a finer format")
        share *= 2
