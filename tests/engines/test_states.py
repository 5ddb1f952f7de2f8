"""Graphs with recurrent states: rows of any length, read on and read anew, give what each gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from mmedge.engines.conversation import Conversation
from mmedge.engines.generation import Decoding
from mmedge.engines.onnx.decoding import FusedDecoderOnlyEngine
from mmedge.engines.onnx.graphs import FusedReading
from mmedge.export.builder import DataFile, GraphBuilder
from mmedge.tasks.encoding import Prompt, SpecialTokens
from tests.bundles import bundle_of

VOCABULARY, EOS = 11, 0


def summing_graph(data: DataFile) -> GraphBuilder:
    """Return a decoder whose one state is the sum of all that it has read; the next token is that sum plus 1, modulo 11."""
    g = GraphBuilder("sums", data)
    ids = g.input("input_ids", TensorProto.INT64, ("batch", "new"))
    wanted = g.input("wanted", TensorProto.INT64, ("rows",))
    state = g.input("past_states.sum", TensorProto.FLOAT, ("batch", 1))
    counts = g.node("Unsqueeze", [g.input("counts", TensorProto.INT32, ("batch",)), g.integers(1)], "counts.column")
    length = g.node("Squeeze", [g.node("Shape", [ids], start=1, end=2), g.integers(0)], "length")
    places = g.node("Cast", [g.node("Range", [g.integer(0), length, g.integer(1)], "places")], "places.int", to=TensorProto.INT32)
    read = g.node("Cast", [g.node("Less", [places, counts], "less")], "read", to=TensorProto.FLOAT)
    values = g.node("Mul", [g.node("Cast", [ids], "floats", to=TensorProto.FLOAT), read], "values")  # padding adds nothing
    sums = g.node("Add", [g.node("CumSum", [values, g.integer(1)], "prefix"), state], "sums")
    total = g.node("ReduceSum", [values, g.integers(1)], "total", keepdims=1)
    g.output(g.node("Add", [state, total], "after"), "present_states.sum", ("batch", 1))
    flat = g.node("Gather", [g.node("Reshape", [sums, g.integers(-1)], "flat"), wanted], "picked")
    modulus = g.constant("n", np.array(VOCABULARY, np.float32))
    raised = g.node("Add", [flat, g.constant("one", np.array(1.0, np.float32))], "raised")
    follows = g.node("Mod", [raised, modulus], "next", fmod=1)
    column = g.node("Unsqueeze", [follows, g.integers(1)], "column")
    apart = g.node("Sub", [column, g.constant("tokens", np.arange(VOCABULARY, dtype=np.float32)[None])], "apart")
    g.output(g.node("Neg", [g.node("Mul", [apart, apart])], "scores"), "logits", ("rows", VOCABULARY))
    return g


def write_summing_graph(path: Path) -> None:
    """Write that decoder and its empty weights file."""
    with DataFile(path.parent / "weights.data") as data:
        summing_graph(data).save(path)


@pytest.fixture
def engine(tmp_path: Path) -> FusedDecoderOnlyEngine:
    """The engine of a bundle that is nothing but this graph."""
    write_summing_graph(tmp_path / "model.onnx")
    return FusedDecoderOnlyEngine(bundle_of(tmp_path, SpecialTokens(eos=EOS, pad=5)), 1)


def expected(read: Sequence[int], limit: int) -> list[int]:
    total, written = sum(read), list[int]()
    while len(written) < limit:
        token = (total + 1) % VOCABULARY
        if token == EOS:
            break
        written.append(token)
        total += token
    return written


PROMPTS = [Prompt((1, 2), (3,)), Prompt((7,), (1,)), Prompt((1, 1, 1, 1), (2,)), Prompt((2, 2), (9,))]


def test_rows_of_unequal_length_write_what_each_writes_alone(engine: FusedDecoderOnlyEngine) -> None:
    found = engine.generate(PROMPTS, 6)
    assert found.tokens == [expected([*p.context, *p.begun], 6) for p in PROMPTS]
    assert found.tokens == [engine.generate([p], 6).tokens[0] for p in PROMPTS]


def test_a_conversation_goes_on_and_begins_anew(engine: FusedDecoderOnlyEngine) -> None:
    conversation = engine.conversation()
    for begun in ((3,), (4, 4), (3,), (3, 1)):  # what differs from before cannot be taken back: it is read anew
        prompts = [Prompt(prompt.context, begun) for prompt in PROMPTS]
        assert conversation.generate(prompts, 5, Decoding(draft=True)).tokens == [
            expected([*p.context, *p.begun], 5) for p in prompts
        ]
        assert conversation.next_logits(prompts, [2]).argmax(1).tolist() == [(sum([*p.context, *begun]) + 3) % 11 for p in prompts]


def test_another_prompt_of_the_same_contexts_goes_on_behind_them(engine: FusedDecoderOnlyEngine) -> None:
    for prompts in (PROMPTS, PROMPTS[:1]):
        conversation = engine.conversation()
        assert isinstance(conversation, Conversation)
        readings = []
        for begun in ((3,), (4,), (9,), (3, 1), (2, 2, 2)):
            asked = [Prompt(prompt.context, begun) for prompt in prompts]
            assert conversation.generate(asked, 5).tokens == [expected([*p.context, *p.begun], 5) for p in asked]
            readings.append(conversation._reading)
        assert readings[0] is readings[1] is readings[2]  # one that is read anew is another
        other = [Prompt((9, *prompt.context), (3,)) for prompt in prompts]
        assert conversation.generate(other, 5).tokens == [expected([*p.context, *p.begun], 5) for p in other]


def test_prompts_that_grow_by_unequal_parts_are_read_anew(engine: FusedDecoderOnlyEngine) -> None:
    conversation = engine.conversation()
    assert conversation.generate(PROMPTS, 1).tokens == [expected([*p.context, *p.begun], 1) for p in PROMPTS]
    longer = [Prompt(prompt.context, (*prompt.begun, *[4] * (1 + row % 2))) for row, prompt in enumerate(PROMPTS)]
    assert conversation.generate(longer, 5).tokens == [expected([*p.context, *p.begun], 5) for p in longer]


def test_what_was_read_cannot_be_taken_back(engine: FusedDecoderOnlyEngine) -> None:
    reading = FusedReading(engine.decoder, 1, 8)
    reading.read(np.array([[1, 2]]), np.array([2]), np.array([1]))
    reading.rewind(2)
    with pytest.raises(ValueError, match="cannot be rewound"):
        reading.rewind(1)
