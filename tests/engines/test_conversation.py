"""What was read once stays read, and nobody can tell: conversations, drafts, samples and small batches write the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.bundle import open_bundle
from mmedge.engines.ahead import Drafting
from mmedge.engines.drafting import Drafter, HitRates, PhraseTable, StepCosts
from mmedge.engines.generation import Decoding
from mmedge.engines.onnx.decoding import open_engine
from mmedge.engines.onnx.graphs import FusedReading
from mmedge.errors import MmedgeError
from mmedge.tasks.encoding import Prompt, PromptEncoder, load_tokenizer
from mmedge.tasks.evaluation_set import read_evaluation_set
from mmedge.tasks.prompts import Context, Kind

RUNS = ["tiny_run", "llama_run"]


class Opened:
    """A bundle's engine, and prompts about its questions."""

    def __init__(self, run: Path, precision: str) -> None:
        bundle = open_bundle(run / f"bundle-{precision}")
        tokenizer = load_tokenizer(bundle.folder / "tokenizer.json")
        self.encoder = PromptEncoder(
            tokenizer,
            bundle.manifest.family,
            bundle.manifest.prompts,
            bundle.manifest.special_tokens,
            bundle.manifest.max_input_tokens,
        )
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


def _drafting(opened: Opened, phrases: Sequence[Sequence[int]]) -> Any:
    """Give a small student's engine what export gives to large ones."""
    engine: Any = opened.engine
    table = PhraseTable.of([phrase for phrase in phrases for _ in range(2)])
    costs = StepCosts({1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.4, 6: 1.5})
    engine.drafts, engine.drafting = True, Drafting(table, costs, HitRates())
    return engine


def test_drafts_change_nothing_but_the_steps(opened: Opened) -> None:
    for question in opened.questions[:12]:
        (prompt,) = opened.prompts("explain", [question])
        greedy = opened.engine.generate([prompt], 40)
        whole = [*prompt.begun, *greedy.tokens[0], opened.encoder.special.eos]
        # the best phrases there are, and the worst: the same text, and one token of it changed
        spoiled = [token if place % 3 else token + 1 for place, token in enumerate(whole)]
        for phrases in ([whole], [spoiled], [prompt.context], ()):
            talk = _drafting(opened, phrases).conversation()
            for _ in range(2):  # the second time, the cache holds what the first one wrote
                drafted = talk.generate([prompt], 40, Decoding(draft=True))
                assert drafted.tokens == greedy.tokens
                assert drafted.ended == greedy.ended
        if len(greedy.tokens[0]) > 20:
            assert _drafting(opened, [whole]).generate([prompt], 40, Decoding(draft=True)).steps < greedy.steps


def test_int8_steps_of_decoder_only_students_are_alike_to_the_bit(llama_run: Path) -> None:
    opened = Opened(llama_run, "int8")
    engine: Any = opened.engine
    assert engine.decoder.steps_alike
    (prompt,) = opened.prompts("explain", opened.questions[:1])
    tokens = np.array([(*prompt.context, *prompt.begun)], dtype=np.int64)
    size = tokens.shape[1]

    def read(cuts: Sequence[int]) -> np.ndarray:
        reading, found = FusedReading(engine.decoder, 1, size), []
        for start, end in zip([0, *cuts], [*cuts, size], strict=True):
            part = tokens[:, start:end]
            found.append(np.array(reading.read(part, np.array([end - start]), np.arange(end - start))))
        return np.concatenate(found)

    whole = read([])
    for cuts in ([size - 1], [size - 3, size - 1], list(range(4, size)), [2, 3, 9, 10]):
        assert np.array_equal(read(cuts)[4:], whole[4:])


def test_a_draft_never_writes_beyond_the_limit(opened: Opened) -> None:
    (prompt,) = opened.prompts("explain", opened.questions[:1])
    whole = opened.engine.generate([prompt], 40).tokens[0]
    engine = _drafting(opened, [[*prompt.begun, *whole]])
    for limit in range(1, 12):
        found = engine.generate([prompt], limit, Decoding(draft=True))
        assert found.tokens[0] == whole[:limit]


def test_a_table_of_phrases_says_what_most_often_follows(tmp_path: Path) -> None:
    table = PhraseTable.of([[1, 2, 3, 4], [1, 2, 3, 4], [9, 2, 3, 5], [9, 2, 3, 5], [9, 2, 3, 5], [7, 8]])
    assert table.guess([1, 2, 3]) == pytest.approx((4, 2 / 2.5), abs=0.01)
    assert table.guess([9, 2, 3]) == pytest.approx((5, 3 / 3.5), abs=0.01)
    assert table.guess([0, 2, 3]) == pytest.approx((5, 3 / 5.5), abs=0.01)
    assert table.guess([7]) is None  # seen once
    table.save(tmp_path / "t.npz")
    again = PhraseTable.load(tmp_path / "t.npz")
    assert again.guess([1, 2, 3]) == table.guess([1, 2, 3])
    small = again.renumbered({2: 0, 3: 1, 4: 2, 1: 3})
    assert small.guess([3, 0, 1]) == pytest.approx((2, 2 / 2.5), abs=0.01)
    assert len(PhraseTable.of([[1, 2, 3, 4]] * 3, most=2).following) == 2
    (tmp_path / "t.npz").write_bytes(b"no table")
    with pytest.raises(MmedgeError, match="cannot read"):
        PhraseTable.load(tmp_path / "t.npz")


def test_guesses_stop_where_they_do_not_pay() -> None:
    table = PhraseTable.of([[1, 2, 3, 4, 5, 6]] * 20)
    cheap, dear = StepCosts({1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3, 5: 1.4, 6: 1.5}), StepCosts({1: 1.0, 2: 2.5})
    assert Drafter(table, [1], cheap, HitRates()).guess(5) == [2, 3, 4, 5, 6]
    assert Drafter(table, [1], cheap, HitRates()).guess(2) == [2, 3]
    assert Drafter(table, [1], dear, HitRates()).guess(5) == []
    hit_rates, tried = HitRates(), 0
    for _ in range(300):  # guesses that never come true are given up, and tried again some time
        drafter = Drafter(table, [1], StepCosts({1: 1.0, 2: 1.2, 3: 1.4, 4: 1.6, 5: 1.8, 6: 2.0}), hit_rates)
        tried += bool(drafter.guess(5))
        drafter.came_true(0)
    assert 5 < tried < 60
    copying = Drafter(PhraseTable.of([]), [5, 6, 7, 8, 9, 10, 0, 5, 6, 7], cheap, HitRates())
    assert copying.guess(3) == [8, 9, 10]


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
