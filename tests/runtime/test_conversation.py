"""What was read once stays read, and nobody can tell: conversations, drafts, samples and small batches write the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mmedge.runtime.bundle import open_bundle
from mmedge.runtime.decoding import open_engine
from mmedge.runtime.generation import Decoding
from mmedge.runtime.student import load_tokenizer
from mmedge.tasks.encoding import Kind, Prompt, PromptEncoder
from mmedge.tasks.evaluation_set import read_evaluation_set
from mmedge.tasks.prompts import Context

RUNS = ["tiny_run", "llama_run"]


class Opened:
    """A bundle's engine, and prompts about its questions."""

    def __init__(self, run: Path, precision: str) -> None:
        bundle = open_bundle(run / f"bundle-{precision}")
        tokenizer = load_tokenizer(bundle.folder / "tokenizer.json")
        self.encoder = PromptEncoder(tokenizer, bundle.family, bundle.prompts, bundle.special, bundle.max_input_tokens)
        self.engine = open_engine(bundle)
        held = read_evaluation_set(run / "evaluation.jsonl").cots["verdict_test"]
        self.cots = [(item.example.question, item.cot) for item in held]
        self.questions = list(dict.fromkeys(question for question, _ in self.cots))

    def prompts(self, kind: Kind, questions: Sequence[str]) -> list[Prompt]:
        return [self.encoder.prompt(kind, self.encoder.prompts.reasoning_context(question)) for question in questions]

    def judged(self, kind: Kind, count: int) -> list[Prompt]:
        contexts: list[Context] = [self.encoder.prompts.evaluation_context(*item) for item in self.cots[:count]]
        return [self.encoder.prompt(kind, context) for context in contexts]


@pytest.fixture(params=[(run, precision) for run in RUNS for precision in ("fp32", "int8")], ids=str)
def opened(request: pytest.FixtureRequest) -> Opened:
    return Opened(request.getfixturevalue(request.param[0]), request.param[1])


@pytest.mark.parametrize("rows", [1, 3])
def test_a_conversation_writes_what_fresh_calls_write(opened: Opened, rows: int) -> None:
    asked = opened.questions[:rows]
    rounds = [opened.prompts("predict", asked), opened.prompts("explain", asked), opened.judged("predict", rows)]
    rounds += [opened.judged("explain", rows), opened.prompts("predict", asked), opened.prompts("predict", asked)]
    talk = opened.engine.conversation()
    for prompts in rounds:
        found, alone = talk.generate(prompts, 30), opened.engine.generate(prompts, 30)
        assert found.tokens == alone.tokens
        left, right = talk.next_logits(prompts, [5, 6]), opened.engine.next_logits(prompts, [5, 6])
        assert np.abs(left - right).max() < 1e-3


def test_a_batch_writes_what_each_row_alone_writes_also_when_rows_leave(opened: Opened) -> None:
    prompts = opened.prompts("explain", opened.questions[:8])
    together = opened.engine.generate(prompts, 30)
    assert together.tokens == [opened.engine.generate([prompt], 30).tokens[0] for prompt in prompts]

    def stop(written: Sequence[int]) -> bool:
        return sum(written) % 5 == 0

    # rows that stop one after the other: the batch shrinks, the others go on as before
    drawn = [opened.engine.generate([prompt], 30, Decoding(temperature=1.5, seeds=(row,))) for row, prompt in enumerate(prompts)]
    done: list[tuple[int, int]] = []
    seeds = tuple(range(len(prompts)))
    how = Decoding(temperature=1.5, seeds=seeds, stop=stop, on_token=lambda row, token: done.append((row, token)))
    found = opened.engine.generate(prompts, 30, how)
    for tokens, whole in zip(found.tokens, (one.tokens[0] for one in drawn), strict=True):
        ends = [place for place in range(1, len(whole) + 1) if stop(whole[:place])]
        assert tokens == whole[: (ends or [len(whole)])[0]]
    assert len({len(tokens) for tokens in found.tokens}) > 1
    for row, tokens in enumerate(found.tokens):
        assert [token for of, token in done if of == row] == tokens


def test_drafts_change_nothing_but_the_steps(opened: Opened) -> None:
    for question in opened.questions[:12]:
        (prompt,) = opened.prompts("explain", [question])
        greedy = opened.engine.generate([prompt], 40)
        # the best phrases there are, and the worst: the same text, and one token of it changed
        spoiled = [token if place % 3 else token + 1 for place, token in enumerate(greedy.tokens[0])]
        for phrases in ([greedy.tokens[0]], [spoiled], [prompt.context], ()):
            talk = opened.engine.conversation()
            for _ in range(2):  # the second time, the cache holds what the first one wrote
                drafted = talk.generate([prompt], 40, Decoding(draft=True, phrases=phrases))
                assert drafted.tokens == greedy.tokens
                assert drafted.ended == greedy.ended
        if len(greedy.tokens[0]) > 20:
            assert opened.engine.generate([prompt], 40, Decoding(draft=True, phrases=[greedy.tokens[0]])).steps < greedy.steps


def test_a_draft_never_writes_beyond_the_limit(opened: Opened) -> None:
    (prompt,) = opened.prompts("explain", opened.questions[:1])
    whole = opened.engine.generate([prompt], 40).tokens[0]
    for limit in range(1, 12):
        found = opened.engine.generate([prompt], limit, Decoding(draft=True, phrases=[whole]))
        assert found.tokens[0] == whole[:limit]


def test_samples_depend_on_their_own_seeds_alone(opened: Opened) -> None:
    (prompt,) = opened.prompts("explain", opened.questions[:1])
    other = opened.prompts("explain", opened.questions[1:2])
    how = Decoding(temperature=1.0, seeds=(1, 2, 3))
    found = opened.engine.generate([prompt] * 3, 30, how).tokens
    assert found == opened.engine.generate([prompt] * 3, 30, how).tokens
    assert len({tuple(tokens) for tokens in found}) > 1
    mixed = opened.engine.generate([*other, prompt, prompt], 30, Decoding(temperature=1.0, seeds=(9, 3, 1))).tokens
    assert mixed[1:] == [found[2], found[0]]
    cold = opened.engine.generate([prompt] * 2, 30, Decoding(temperature=1e-4, seeds=(1, 2))).tokens
    narrow = opened.engine.generate([prompt] * 2, 30, Decoding(temperature=2.0, top_p=1e-6, seeds=(1, 2))).tokens
    greedy = opened.engine.generate([prompt], 30).tokens[0]
    assert cold == narrow == [greedy] * 2


def test_scores_are_the_log_probabilities_of_what_was_written(opened: Opened) -> None:
    (prompt,) = opened.prompts("predict", opened.questions[:1])
    found = opened.engine.generate([prompt], 12, Decoding(scored=True))
    written = [*found.tokens[0], opened.encoder.special.eos] if found.ended[0] else found.tokens[0]
    logits = opened.engine.forced_logits(prompt, written).astype(np.float64)
    expected = logits[np.arange(len(written)), written] - np.log(np.exp(logits).sum(-1))
    assert found.log_probabilities[0] == pytest.approx(expected.tolist(), abs=1e-3)
