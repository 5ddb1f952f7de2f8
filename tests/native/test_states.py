"""Layers with states on the native engine: published models' switches, and texts that nothing can be taken back from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from mmedge.engines.conversation import Conversation
from mmedge.engines.generation import Decoding, Logits
from mmedge.engines.native import library
from mmedge.engines.native.engine import NativeEngine
from mmedge.engines.reading import Reading
from mmedge.errors import MmedgeError
from mmedge.tasks.encoding import Prompt
from tests.export.published import CONFIGS
from tests.native.students import RECURRENT, VOCABULARY, exported, sequences
from tests.native.test_native import PRECISIONS, forced

pytestmark = [
    pytest.mark.skipif(library.problem() is not None, reason=f"the native engine: {library.problem()}"),
    pytest.mark.skipif(not RECURRENT, reason="needs transformers 5"),
]
FAMILIES = {"lfm2": "lfm2", "qwen3_5": "qwen3_5_text"}
PUBLISHED = [name for name, config in CONFIGS.items() if config["model_type"] in [FAMILIES[kind] for kind in RECURRENT]]
SCORED = Decoding(scored=True)


def engine_of(kind: str, precision: str = "int8", threads: int = 1) -> NativeEngine:
    return NativeEngine(exported(kind, precision).bundle, threads)


def read(reading: Reading, rows: Sequence[tuple[int, ...]]) -> Logits:
    """Read tokens of every row, and return the logits behind each."""
    counts = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), counts.max()), dtype=np.int64)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return reading.read(ids, counts, np.arange(len(rows)) * ids.shape[1] + counts - 1).copy()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_write_what_transformers_writes(name: str) -> None:
    student, engine = exported(name, "fp32"), engine_of(name, "fp32", 2)
    engine.special = replace(engine.special, eos=-1)
    rows = [tuple(np.random.default_rng(length).integers(0, VOCABULARY, length).tolist()) for length in (150, 41, 9, 2)]
    together = engine.next_logits([Prompt(tokens, ()) for tokens in rows], ())
    for tokens, logits in zip(rows, together, strict=True):
        assert np.abs(logits - student.logits(tokens)[-1]).max() < 1e-4
    for tokens, written in zip(rows, engine.generate([Prompt(tokens, ()) for tokens in rows], 64).tokens, strict=True):
        assert len(written) == 64
        logits = student.logits((*tokens, *written))[len(tokens) - 1 : -1]
        best = np.sort(logits, axis=-1)
        clear = best[:, -1] - best[:, -2] > 1e-4  # a tie may fall either way
        assert (logits.argmax(-1) == written)[clear].all() and clear.mean() > 0.9


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", RECURRENT)
def test_texts_are_read_in_any_parts_and_go_on_in_other_rows(kind: str, precision: str) -> None:
    engine = engine_of(kind, precision, 2)
    rows = [tokens for tokens in sequences(6, 40) if len(tokens) > 20][:4]
    whole = [forced(engine, tokens) for tokens in rows]
    for seed in range(5):
        chance, reading = random.Random(seed), engine.reading(4, 64, {})
        order = chance.choices(range(4), k=4)
        ends = [0] * 4
        while True:
            parts = [rows[row][end : end + chance.randint(1, 7)] for row, end in zip(order, ends, strict=True)]
            if not all(parts):
                break
            for place, (logits, part) in enumerate(zip(read(reading, parts), parts, strict=True)):
                ends[place] += len(part)
                assert np.array_equal(logits, whole[order[place]][ends[place] - 1])
            if chance.random() < 0.3:
                kept = np.array(chance.choices(range(4), k=4))
                reading = reading.rows(kept, reading.capacity + 3)
                order, ends = [order[place] for place in kept], [ends[place] for place in kept]


@pytest.mark.parametrize("kind", RECURRENT)
def test_what_was_read_is_taken_back_to_where_it_was_saved_and_nowhere_else(kind: str) -> None:
    engine = engine_of(kind)
    assert not engine.rewinds and not engine.reads_ahead and not engine.drafts
    rows, tails = [tokens[:12] for tokens in sequences(7, 20) if len(tokens) > 12][:2], list(sequences(8, 4, 20))
    reading = engine.reading(2, 64, {})
    read(reading, [row[:8] for row in rows])
    saved = reading.saved()
    for tail in tails:
        reading.back(saved)
        reading.back(saved)
        found = read(reading, [row[8:] for row in rows])
        for logits, row in zip(found, rows, strict=True):
            assert np.array_equal(logits, forced(engine, row)[-1])
        read(reading, [tail, tail[:1]])
    reading.rewind(reading.lengths)
    with pytest.raises(ValueError, match="cannot be rewound"):
        reading.rewind(5)
    reading.lengths = reading.lengths - 1
    with pytest.raises(MmedgeError, match="hold another number of tokens"):
        reading.step(np.array([1, 2]))
    with pytest.raises(MmedgeError, match="hold another number of tokens"):
        reading.rows(np.array([0]), 70)
    reading.lengths = np.zeros(2, dtype=np.int64)  # from the beginning on, whatever was there
    assert np.array_equal(read(reading, rows)[1], forced(engine, rows[1])[-1])


@pytest.mark.parametrize("kind", RECURRENT)
def test_other_prompts_of_the_same_contexts_go_on_behind_them(kind: str) -> None:
    engine = engine_of(kind)
    talk = engine.conversation()
    assert isinstance(talk, Conversation)
    contexts = [tokens for tokens in sequences(9, 20) if len(tokens) > 5][:3]
    readings = []
    for begun in ((3,), (4,), (9,), (3, 1)):
        prompts = [Prompt(context, begun) for context in contexts]
        found = talk.generate(prompts, 5, SCORED)
        for row, prompt in enumerate(prompts):
            alone = engine.generate([prompt], 5, SCORED)
            assert (found.tokens[row], found.log_probabilities[row]) == (alone.tokens[0], alone.log_probabilities[0])
        readings.append(talk._reading)
    assert readings[0] is readings[1] is readings[2]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", RECURRENT)
def test_rows_join_and_leave_and_go_on_behind_whole_texts(kind: str, precision: str) -> None:
    engine = engine_of(kind, precision, 2)
    texts = list(sequences(10, 8, 40))
    begun = [engine.generate([Prompt(text, ())], 6).tokens[0] for text in texts[:4]]
    prompts = [Prompt(text, ()) for text in texts]
    prompts += [Prompt(text, (*written, 5, 7)) for text, written in zip(texts, begun, strict=False)]
    prompts += [Prompt(text[:4], ()) for text in texts[:4]]
    alone = [engine.generate([prompt], 9, SCORED) for prompt in prompts]
    for seed, memory in enumerate((512 << 20, 512 << 20, 64 << 10)):
        chance, rows = random.Random(seed), engine.rows(3, memory)
        waiting, there = chance.choices(range(len(prompts)), k=30), dict[int, int]()
        while waiting or there:
            if waiting and chance.random() < 0.5:
                which = waiting.pop()
                there[rows.join(prompts[which], 9, SCORED)] = which
            if there and chance.random() < 0.05:
                rows.leave(there.popitem()[0])
            for number, token in rows.step():
                if token is None:
                    found, expected = rows.leave(number), alone[there.pop(number)]
                    assert (found.tokens, found.log_probabilities) == (expected.tokens, expected.log_probabilities)
