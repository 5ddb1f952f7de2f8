"""The official client, as it is, against students of both families."""

from __future__ import annotations

import openai
import pytest

from tests.serve.conftest import LLAMA, T5
from tests.serve.running import QUESTION, Running

ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)


@pytest.mark.parametrize("model", [T5, LLAMA])
def test_chats_streams_and_probabilities(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=ASKED, logprobs=True)
    choice = whole.choices[0]
    assert choice.message.content is not None and choice.logprobs is not None and whole.usage is not None
    assert len(choice.logprobs.content) == whole.usage.completion_tokens
    assert 0 <= choice.model_extra["mmedge"]["confidence"] <= 1
    with client.chat.completions.create(model=model, messages=ASKED, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == choice.message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert client.completions.create(model=model, prompt=QUESTION).choices[0].text == choice.message.content


def test_models_and_extensions(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [T5, LLAMA]
    assert client.models.retrieve(T5).owned_by == "mmedge"
    withheld = client.chat.completions.create(model=T5, messages=ASKED, extra_body={"mmedge": {"abstain_below": 1.0}})
    assert withheld.choices[0].message.content is None and withheld.choices[0].message.refusal


def test_errors_are_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=T5, messages=ASKED, response_format={"type": "json_object"})
    assert refused.value.param == "response_format" and refused.value.code == "unsupported_parameter"


@pytest.mark.parametrize("model", [T5, LLAMA])
def test_a_question_longer_than_the_student_reads_is_refused_unless_it_may_be_cut(client: openai.OpenAI, model: str) -> None:
    long = [{"role": "user", "content": QUESTION * 20}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=model, messages=long, stream=stream)
        assert refused.value.code == "context_length_exceeded" and refused.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=model, prompt=[QUESTION, "a " * 500_000])
    assert refused.value.code == "context_length_exceeded"
    cut = client.chat.completions.create(model=model, messages=long, extra_body={"mmedge": {"cut": True}})
    assert cut.usage is not None and cut.usage.prompt_tokens > 100


def test_an_aborted_stream_harms_nobody(client: openai.OpenAI, server: Running) -> None:
    for _ in range(5):
        stream = client.chat.completions.create(model=T5, messages=ASKED, stream=True)
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(model=T5, messages=ASKED).choices[0].message.content is not None
