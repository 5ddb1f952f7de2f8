"""What requests ask for, read from their bodies: chat, completions, and answers in mmedge's own words.

Everything that a student cannot do is refused by name; nothing is ignored but what only labels a request (`user`, `metadata`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmedge.engines.speaker import Sampling
from mmedge.errors import LimitTooLow, MmedgeError, TooLong
from mmedge.runtime import AnswerOptions
from mmedge.runtime.options import AIMS
from mmedge.runtime.strategies import COLDEST
from mmedge.serve.failures import ApiError, invalid, refused, unsupported
from mmedge.serve.fields import SHOWN, Fields
from mmedge.serve.models import Model
from mmedge.tasks.base import Example, Turn
from mmedge.tasks.dialogue import WrongMessage, read_messages
from mmedge.tasks.forms.schema import SchemaForm
from mmedge.tasks.forms.structured.form import StructuredForm
from mmedge.tasks.forms.tools import ToolsForm

MOST_CHOICES = 16  # answers to one request
MOST_STOPS = 4
MOST_NAMED = 26  # choices of a question, each named by a letter
HOTTEST = 2.0
# each with the only value that changes nothing
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "top_p": (1,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "store": (False,),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none",),
    "function_call": ("none",),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
}
WHY = {
    "top_logprobs": "only the probabilities of written tokens are known",
    "logprobs": "only the probabilities of written tokens are known, so it is 0 or 1 here",
    "tools": "this student answers {form}, and calls no tools",
    "functions": "this student answers {form}, and calls no functions",
    "tool_choice": "this student calls no tools",
    "function_call": "this student calls no functions",
    "response_format": "this student answers {form}; leave it out, or ask for text",
}
STATED = 2000  # characters of a schema or of definitions that an error repeats


_Said = tuple[str, tuple[Turn, ...]]  # a question, and what was said before it


@dataclass(frozen=True)
class Asked:
    """What one request asks of one student.

    Attributes:
        model: Who is asked.
        examples: The questions.
        options: What is asked for besides answers.
        sampling: How answers are sampled; greedy where None.
        max_tokens: The longest answer; None for the student's.
        stop: Texts that end an answer, and are not part of it.
        logprobs: Whether tokens and their log-probabilities are wanted.
        stream: Whether text is sent while it is written.
        with_usage: Whether a stream ends with how many tokens were read and written.
        running_usage: Whether each part of a stream says how many there are so far, as vLLM's streams can.
        calls: Whether answers come as tool calls.
        cut: Whether a question may be cut that is longer than the student reads.
        asked_in: The field that holds the questions.
        within: What stands before the names of mmedge's own fields.
    """

    model: Model
    examples: tuple[Example, ...]
    options: AnswerOptions
    sampling: Sampling | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    stream: bool = False
    with_usage: bool = False
    running_usage: bool = False
    calls: bool = False
    cut: bool = False
    asked_in: str = "question"
    within: str = "mmedge."

    def refused(self, error: MmedgeError) -> ApiError:
        """Return the error of this request, where the student refuses it."""
        if isinstance(error, LimitTooLow) and self.max_tokens is not None:
            return invalid(f"{error.what}; raise max_tokens, or leave it out", "max_tokens")
        return refused(error, self.asked_in, self.within)

    def check_lengths(self) -> None:
        """Refuse questions of which the student would not read all.

        Raises:
            TooLong: One is longer than that.
        """
        speaker = self.model.student.speaker
        for example in self.examples:
            self.model.student.check(example)
            if over := speaker.encoder.surplus(speaker.reasoning_context(example)):
                most = speaker.encoder.max_input_tokens
                said = f"the question is at least {over:,} tokens too long, since this student reads {most:,}"
                raise TooLong(said, f"shorten it, or have its end left out with {self.within}cut")

    @property
    def samples(self) -> int:
        """How many answers each question gets."""
        return self.sampling.samples if self.sampling else 1


def read_chat(document: dict[str, Any], models: Mapping[str, Model], defaults: AnswerOptions) -> Asked:
    """Read the body of `/v1/chat/completions`.

    Args:
        document: The body.
        models: Who can be asked, by name.
        defaults: What is asked for where a request does not say.

    Raises:
        ApiError: Something is wrong, or not possible.
    """
    fields = Fields(document)
    model = _model(fields, models)
    said = _messages(fields.take("messages"), model)
    logprobs = fields.flag("logprobs") or False
    limits = [fields.whole(name, 1, 10**9) for name in ("max_tokens", "max_completion_tokens")]
    calls = _calls(fields, model)
    structured = _has_schema(fields, model) or calls
    own = document.get("mmedge")
    if structured and isinstance(own, dict) and own.get("constrained") is False:
        raise invalid("answers of a schema or of tools that a request names are constrained", "mmedge.constrained")
    asked = _rest(fields, model, (said,), "messages", defaults, logprobs, [limit for limit in limits if limit is not None])
    return replace(asked, calls=calls, options=replace(asked.options, constrained=True)) if structured else asked


def read_completion(document: dict[str, Any], models: Mapping[str, Model], defaults: AnswerOptions) -> Asked:
    """Read the body of `/v1/completions`; the prompt is the question. See `read_chat`."""
    fields = Fields(document)
    model = _model(fields, models)
    questions = fields.texts("prompt", MOST_CHOICES)
    if not questions or not all(question.strip() for question in questions):
        raise invalid("prompt must be the question, as text, or a list of them", "prompt")
    logprobs = fields.take("logprobs")
    if logprobs is not None and (logprobs not in (0, 1) or isinstance(logprobs, float)):
        raise unsupported("logprobs", WHY["logprobs"])
    limit = fields.whole("max_tokens", 1, 10**9)
    return _rest(
        fields,
        model,
        tuple((one, ()) for one in questions),
        "prompt",
        defaults,
        logprobs is not None and logprobs is not False,
        [limit] if limit else [],
    )


def read_answer(document: dict[str, Any], models: Mapping[str, Model], defaults: AnswerOptions) -> Asked:
    """Read the body of `/v1/answer`, whose fields are those of `AnswerOptions`. See `read_chat`."""
    fields = Fields(document)
    model = _model(fields, models, needed=len(models) > 1)
    question, messages = fields.text("question"), fields.take("messages")
    turns: tuple[Turn, ...] = ()
    if messages is not None:
        if question is not None:
            raise invalid("give either question or messages", "messages")
        question, turns = _messages(messages, model)
    if question is None or not question.strip():
        raise invalid("question must be the question, as text, or messages a dialogue that ends in it", "question")
    stream = fields.flag("stream") or False
    choices, options = _own(fields, model, defaults)
    cut = fields.flag("cut") or False
    fields.finish()
    examples, asked_in = (Example("question", question, None, choices, turns),), "question" if messages is None else "messages"
    return Asked(model, examples, options, stream=stream, cut=cut, asked_in=asked_in, within="")


def _rest(
    fields: Fields,
    model: Model,
    questions: tuple[_Said, ...],
    asked_in: str,
    defaults: AnswerOptions,
    logprobs: bool,
    limits: list[int],
) -> Asked:
    """Read what chat and completions have in common."""
    stream = fields.flag("stream") or False
    streaming = fields.object("stream_options")
    with_usage = running_usage = False
    if streaming is not None:
        if not stream:
            raise invalid("stream_options requires stream", "stream_options")
        with_usage = streaming.flag("include_usage") or False
        running_usage = (streaming.flag("continuous_usage_stats") or False) and with_usage
        streaming.flag("include_obfuscation")
        streaming.finish()
    stop = fields.texts("stop", MOST_STOPS)
    form = model.student.bundle.form
    if isinstance(form, StructuredForm) and stop:
        raise unsupported("stop", "answers are whole JSON")
    if form.respells and logprobs and not (isinstance(form, StructuredForm) and form.spelling == "json"):
        raise unsupported("logprobs", "this student writes a compact spelling, whose tokens are not those of the reply")
    if not all(stop):
        raise fields.wrong("stop", "texts of at least one character")
    sampling = _sampling(fields)
    for label in ("user", "metadata", "safety_identifier", "prompt_cache_key"):
        fields.take(label)
    for name, neutral in NEUTRAL.items():
        value = fields.take(name)
        if value is not None and not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in neutral):
            advice = f"leave it out, or set it to {json.dumps(neutral[0])}"
            raise unsupported(name, WHY[name].format(form=model.form[:STATED]) if name in WHY else advice)
    own = fields.object("mmedge")
    own = own or Fields({}, "mmedge")
    choices, options = _own(own, model, defaults)
    cut = own.flag("cut") or False
    own.finish()
    fields.finish()
    if sampling is not None and model.decides_by_samples(options):
        raise unsupported("temperature", "this bundle's strategy samples by itself")
    examples = tuple(Example(f"question {place}", text, None, choices, turns) for place, (text, turns) in enumerate(questions))
    if len(examples) * (sampling.samples if sampling else 1) > MOST_CHOICES:
        raise invalid(f"at most {MOST_CHOICES} answers are written for one request", "n")
    limit = min(limits, default=None)
    return Asked(
        model, examples, options, sampling, limit, stop, logprobs, stream, with_usage, running_usage, cut=cut, asked_in=asked_in
    )


def _model(fields: Fields, models: Mapping[str, Model], needed: bool = True) -> Model:
    name = fields.text("model")
    if name is None and not needed:
        return next(iter(models.values()))
    if name is None:
        raise invalid("model is missing: GET /v1/models lists those that are served", "model", "missing_required_parameter")
    if name not in models:
        raise ApiError(404, f"there is no model {name[:SHOWN]!r}: GET /v1/models lists those there are", "model_not_found", "model")
    return models[name]


def _messages(messages: Any, model: Model) -> _Said:
    """Return the question of a chat, and what was said before it.

    Raises:
        ApiError: It is not a chat, or has messages that the student does not read.
    """
    if not model.student.reads_dialogues:
        return _question(messages), ()
    try:
        turns, question = read_messages(messages, model.student.bundle.form)
    except WrongMessage as error:
        raise invalid(str(error), error.place) from None
    if turns and turns[0].role == "system" and not model.student.reads_system_messages:
        raise unsupported("messages[0]", "this student was not trained with system messages; leave it out")
    return question, turns


def _question(messages: Any) -> str:
    """Return the question of a chat for a student that reads single questions.

    Raises:
        ApiError: The chat is more than one question.
    """
    if not isinstance(messages, list) or not messages:
        raise invalid("messages must be a list with the question", "messages")
    for place, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str):
            raise invalid(f"messages[{place}] must be an object with role and content", f"messages[{place}]")
        if role in ("system", "developer"):
            raise unsupported(f"messages[{place}]", f"this student was not trained with {role} messages; leave it out")
    last = messages[-1]
    if last["role"] != "user":
        raise invalid("the last message must be the user's question", f"messages[{len(messages) - 1}]")
    if len(messages) > 1:
        raise unsupported("messages", "this student was trained on single questions; send the last message alone")
    if extra := sorted(name for name, value in last.items() if name not in ("role", "content", "name") and value is not None):
        raise unsupported(f"messages[0].{extra[0][:SHOWN]}", "a message has role and content")
    content = last.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise unsupported("messages[0].content", "this student reads text alone")
        content = "\n".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str) or not content.strip():
        raise invalid("the question is empty", "messages[0].content")
    return content


def _has_schema(fields: Fields, model: Model) -> bool:
    """Return whether a request asks for JSON of a schema.

    Raises:
        ApiError: It is not the schema that the student was trained for.
    """
    wanted = fields.object("response_format")
    kind = wanted.text("type") if wanted is not None else "text"
    if wanted is None or kind == "text":
        if wanted is not None:
            wanted.finish()
        return False
    form = model.student.bundle.form
    if not isinstance(form, SchemaForm) or kind not in ("json_schema", "json_object"):
        raise unsupported("response_format", WHY["response_format"].format(form=model.form[:STATED]))
    if kind == "json_schema":
        given = wanted.object("json_schema") or Fields({}, "response_format.json_schema")
        for name in ("name", "description"):
            given.text(name)
        given.flag("strict")
        if not form.says_the_same(given.take("schema")):
            raise _another("response_format.json_schema.schema", "schema", "")
        given.finish()
    wanted.finish()
    return True


def _calls(fields: Fields, model: Model) -> bool:
    """Return whether a request asks for tool calls.

    Raises:
        ApiError: The tools are not those that the student was trained for, or are to be chosen from otherwise.
    """
    form = model.student.bundle.form
    if not isinstance(form, ToolsForm):
        return False  # refused by `NEUTRAL`, as far as it would change anything
    tools, choice = fields.take("tools"), fields.take("tool_choice")
    fields.flag("parallel_tool_calls")  # there is one call in every answer
    if not tools:
        if choice not in (None, "none"):
            raise invalid("tool_choice needs tools", "tool_choice")
        return False
    if not form.says_the_same(tools):
        raise _another("tools", "tools", _difference(tools, form))
    only = {"type": "function", "function": {"name": next(iter(form.functions))}}
    if choice not in (None, "auto", "required") and not (len(form.functions) == 1 and choice == only):
        raise unsupported("tool_choice", "this student calls one of its functions in every answer; leave it out")
    return True


def _another(param: str, what: str, difference: str) -> ApiError:
    """Return the error of a schema, or of tools, that are not the bundle's."""
    why = f"{param} must say the same as the {what} that this student was trained for, which GET /v1/models lists{difference}"
    return invalid(why, param, f"another_{what}")


def _difference(tools: object, form: ToolsForm) -> str:
    """Return which function is missing or unknown, as the end of a sentence; empty where it is another difference."""
    entries = [entry.get("function", entry) for entry in tools if isinstance(entry, dict)] if isinstance(tools, list) else []
    names = {entry.get("name") for entry in entries if isinstance(entry, dict) and isinstance(entry.get("name"), str)}
    missing, unknown = [name for name in form.functions if name not in names], sorted(map(str, names - set(form.functions)))
    if unknown:
        return f": function {unknown[0]!r:.80} is not among them"
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return f": function {missing[0]!r:.80}{more} is missing" if missing else ""


def _sampling(fields: Fields) -> Sampling | None:
    temperature = fields.number("temperature", 0, HOTTEST) or 0.0
    samples = fields.whole("n", 1, MOST_CHOICES) or 1
    seed = fields.whole("seed", -(2**63), 2**64 - 1)
    if temperature < COLDEST:
        if samples > 1:
            raise invalid("n above 1 needs a temperature above 0: without one, all answers are the same", "n")
        return None
    return Sampling(temperature, secrets.randbits(31) if seed is None else seed, samples)


def _own(fields: Fields, model: Model, defaults: AnswerOptions) -> tuple[tuple[str, ...], AnswerOptions]:
    """Read mmedge's own fields: choices, and those of `AnswerOptions`."""
    choices = fields.texts("choices", MOST_NAMED)
    takes = model.student.bundle.form.takes_choices
    if choices and takes and not (len(choices) > 1 and all(choice.strip() for choice in choices)):
        raise fields.wrong("choices", f"a list of 2 to {MOST_NAMED} texts, none of them empty")
    if bool(choices) != takes:
        why = "questions of this task have choices to choose from" if takes else "questions of this task have no choices"
        raise invalid(why, fields.name("choices"), "missing_choices" if takes else "unsupported_parameter")
    given: dict[str, Any] = {
        name: fields.flag(name) for name in ("explain", "evaluate", "confidence", "probabilities", "constrained")
    }
    changes = {name: value for name, value in given.items() if value is not None}
    aims = {name: fields.number(name, 0, 1) for name in AIMS}
    if any(value is not None for value in aims.values()):
        changes |= aims
    if (field := fields.numbers("abstain_field_below", 0, 1)) is not None:
        changes["abstain_field_below"] = field
    if (shares := fields.numbers("max_withheld_by_field", 0, 1)) is not None:
        if not isinstance(shares, dict):
            raise fields.wrong("max_withheld_by_field", 'an object of shares by field, such as {"name": 0.05}')
        changes["max_withheld_by_field"] = shares
    return choices, replace(defaults, **changes)
