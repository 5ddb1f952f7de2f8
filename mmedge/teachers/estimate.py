"""What a collection will ask for, before it is asked: requests, tokens, money.

Prompts are made and measured, not sent. How many tokens a character is, and how long the answers are, is taken from what the
store has seen of this teacher; before there is anything, from English text (4 characters a token) and from the answers that the
prompt shows as examples. Repeats of texts that could not be read are not foreseen; the upper bound foresees all that are allowed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mmedge.annotations.store import AnnotationStore
from mmedge.tasks import Example
from mmedge.teachers.collector import Asked
from mmedge.teachers.prompting import Prompts, Template

CHARACTERS_PER_TOKEN = 4.0
SAMPLE = 500  # prompts that are made to find their mean length


@dataclass(frozen=True)
class Estimate:
    """What is still to be collected, and what that takes.

    Attributes:
        questions: All questions of the task.
        cots: Chains of thought that are missing.
        evaluations: Self-evaluations that are missing.
        requests: Requests, if every text can be read.
        requests_at_most: If every attempt that is allowed is needed.
        prompt_tokens: Tokens that are read.
        completion_tokens: Tokens that are written.
        cost: What that costs.
        cost_at_most: If every attempt is needed and every text is as long as it may be.
        measured: Whether lengths are what this teacher's texts had so far, or assumed.
    """

    questions: int
    cots: int
    evaluations: int
    requests: int
    requests_at_most: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    cost_at_most: float
    measured: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(examples: Sequence[Example], prompts: Prompts, asked: Asked, store: AnnotationStore | None) -> Estimate:
    """Return what is still to be asked.

    Args:
        examples: The questions.
        prompts: How they are asked.
        asked: What is wanted.
        store: What is there already, or None.
    """
    ids = {example.id for example in examples}
    cots_there, evaluations_there = _there(store, ids, asked)
    questions_open = sum(1 for id_ in ids if cots_there.get(id_, 0) < asked.cots)
    cots = sum(max(0, asked.cots - cots_there.get(id_, 0)) for id_ in ids)
    evaluations = len(ids) * asked.cots * asked.evaluations - evaluations_there
    means = store.token_means() if store is not None else {}
    sample = examples[:: max(1, len(examples) // SAMPLE)]
    shown = _example_length(prompts.cot) or 300.0
    cot_prompt = _mean(sum(len(text) for _, text in prompts.about_question(example)) for example in sample)
    judged = "x" * round(shown)
    evaluation_prompt = _mean(sum(len(text) for _, text in prompts.about_cot(example, judged)) for example in sample)
    judging = _example_length(prompts.evaluation) or 200.0
    per_request = asked.per_request or asked.cots
    requests_of_cots = questions_open if asked.per_request is None else _ceil(cots, per_request)
    per_request_of_evaluations = asked.per_request or max(1, asked.evaluations)
    requests_of_evaluations = _ceil(evaluations, per_request_of_evaluations)
    cot_in, cot_out = _tokens(means.get("cot"), cot_prompt, shown)
    evaluation_in, evaluation_out = _tokens(means.get("evaluation"), evaluation_prompt, judging)
    prompt_tokens = requests_of_cots * cot_in + requests_of_evaluations * evaluation_in
    completion_tokens = cots * cot_out + evaluations * evaluation_out
    worst_in = (cots * cot_in + evaluations * evaluation_in) * asked.attempts
    worst_out = (cots * asked.cot_tokens + evaluations * asked.evaluation_tokens) * asked.attempts
    return Estimate(
        questions=len(ids),
        cots=cots,
        evaluations=evaluations,
        requests=requests_of_cots + requests_of_evaluations,
        requests_at_most=round((cots + evaluations) * asked.attempts),
        prompt_tokens=round(prompt_tokens),
        completion_tokens=round(completion_tokens),
        cost=asked.cost(prompt_tokens, completion_tokens),
        cost_at_most=asked.cost(worst_in, worst_out),
        measured=bool(means),
    )


def _there(store: AnnotationStore | None, ids: set[str], asked: Asked) -> tuple[dict[str, int], int]:
    if store is None:
        return {}, 0
    query = "SELECT example_id, COUNT(*) FROM annotations WHERE kind = 'cot' AND sample < ? GROUP BY example_id"
    cots = {id_: count for id_, count in store.query(query, (asked.cots,)) if id_ in ids}
    wanted = "kind = 'evaluation' AND sample < ? AND evaluation < ?"
    query = f"SELECT example_id, COUNT(*) FROM annotations WHERE {wanted} GROUP BY example_id"
    return cots, sum(count for id_, count in store.query(query, (asked.cots, asked.evaluations)) if id_ in ids)


def _tokens(measured: tuple[int, float, float] | None, prompt: float, text: float) -> tuple[float, float]:
    """Return tokens of a prompt, and of a text."""
    if measured is not None:
        return measured[1], measured[2]
    return prompt / CHARACTERS_PER_TOKEN, text / CHARACTERS_PER_TOKEN


def _example_length(template: Template) -> float:
    """Return the mean length of the answers that a prompt shows, or 0 where it shows none."""
    return _mean(len(text) for role, text in template.messages if role == "assistant")


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _ceil(number: int, by: int) -> int:
    return -(-number // by)
