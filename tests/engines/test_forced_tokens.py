"""Tokens that must follow are read together with the next free one: the same text to the bit, in fewer steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmedge.bundle import open_bundle
from mmedge.engines.generation import Decoding
from mmedge.engines.onnx.decoding import open_engine
from mmedge.tasks.base import Example
from mmedge.tasks.encoding import PromptEncoder, load_tokenizer
from mmedge.tasks.forms.choice import LabelForm
from mmedge.tasks.forms.constraints import Tokens
from mmedge.tasks.forms.tools import ToolsForm
from mmedge.tasks.prompts import Context
from tests.tasks.structured.test_answers import TOOLS

pytest.importorskip("llguidance")


class Asked:
    """A constraint that is asked for one token after the other."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def allowed(self, written: Sequence[int]) -> Tokens:
        found: Tokens = self._inner.allowed(written)
        return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft", [False, True])
def test_forced_tokens_are_read_together(llama_run: Path, temperature: float, draft: bool) -> None:
    bundle = open_bundle(llama_run / "bundle-int8")
    stated = bundle.manifest
    encoder = PromptEncoder(
        load_tokenizer(bundle.folder / "tokenizer.json"), stated.family, stated.prompts, stated.special_tokens, 100
    )
    engine = open_engine(bundle, threads=1)
    forms = [ToolsForm(TOOLS, "json"), LabelForm(("to the left side", "to the right side"))]
    constrainers = [form.constrainer(encoder) for form in forms]
    prompt = encoder.prompt("predict", Context("what is the weather in oslo\n"))
    for seed, constrainer in product(range(3), constrainers):
        constraint: Any = constrainer.answer(Example("q", "?"), 100)
        how = Decoding(temperature, seeds=(seed,), scored=True, draft=draft)
        together = engine.generate([prompt], 100, replace(how, constraints=(constraint,)))
        alone = engine.generate([prompt], 100, replace(how, constraints=(Asked(constraint),)))
        assert together.tokens == alone.tokens and together.ended == [True]
        np.testing.assert_allclose(together.log_probabilities, alone.log_probabilities, atol=1e-4)
        assert together.steps < alone.steps
