"""Dialogues: messages as OpenAI's API has them become what was said before a question, and the question.

    [{"role": "user", "content": "book a table for two at the bar"},
     {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function":
        {"name": "BookRestaurant", "arguments": "{\\"party_size_number\\": \\"two\\", \\"restaurant_type\\": \\"bar\\"}"}}]},
     {"role": "user", "content": "and for eight people too"}]

One rule holds for what the assistant said, be it text or calls: what is an answer of the task's form is spelled as the student
writes it, and anything else stands as it is. The last message is the question. Knows no student: whether one reads dialogues, or
system messages, is its prompts' business.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mmedge.tasks.base import Example, Role, Turn
from mmedge.tasks.forms.form import AnswerForm
from mmedge.tasks.prompts import render_question
from mmedge.tasks.reading import one_paragraph

_ROLES: Mapping[object, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id"}
SHOWN = 40  # characters of a name or value that an error repeats


class WrongMessage(ValueError):
    """A list of messages that is not a dialogue.

    Attributes:
        place: Where, such as `messages[1].content`.
    """

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place} {problem}")
        self.place = place


def read_messages(messages: object, form: AnswerForm | None) -> tuple[tuple[Turn, ...], str]:
    """Return what was said before a question, and the question.

    Args:
        messages: A list of messages; the last one is the user's.
        form: What the task's answers look like; None where that is not known, and all texts stand as they are.

    Raises:
        WrongMessage: It is not such a list.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise WrongMessage("messages", "must be a list of at least one message")
    turns = [turn for place, message in enumerate(messages) for turn in _turns(message, place, form)]
    last = len(messages) - 1
    if _ROLES[messages[last]["role"]] != "user":
        raise WrongMessage(f"messages[{last}]", "must be the user's: the last message is the question")
    return tuple(turns[:-1]), turns[-1].text


def _turns(message: object, place: int, form: AnswerForm | None) -> list[Turn]:
    """Return a message as turns: one, or one for each call."""
    at = f"messages[{place}]"
    role = message.get("role") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(role, str):
        raise WrongMessage(at, "must be an object with role and content")
    if role not in _ROLES:
        raise WrongMessage(f"{at}.role", f"must be user, assistant, tool or system, found {role[:SHOWN]!r}")
    if _ROLES[role] == "system" and place:
        raise WrongMessage(at, "is a system message: only the first message can be one")
    if extra := sorted(str(name) for name, value in message.items() if name not in _FIELDS and value not in (None, [], "")):
        raise WrongMessage(f"{at}.{extra[0][:SHOWN]}", "is not read: a message has role, content and tool_calls")
    calls = message.get("tool_calls")
    if calls is not None and (role != "assistant" or not isinstance(calls, list)):
        raise WrongMessage(f"{at}.tool_calls", "must be a list of calls, in a message of the assistant")
    texts = [_text(message.get("content"), f"{at}.content")]
    if role == "assistant":
        texts += [_call(call, f"{at}.tool_calls[{number}]") for number, call in enumerate(calls or ())]
        texts = [_as_written(text, form) for text in texts if text]
    if not all(texts) or not texts:
        raise WrongMessage(f"{at}.content", "is empty")
    return [Turn(_ROLES[role], text) for text in texts]


def _text(content: object, at: str) -> str:
    """Return the text of a message; several parts are joined."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise WrongMessage(at, "must be text: students read nothing else")
        content = "\n".join(str(part) for part in parts)
    if content is not None and not isinstance(content, str):
        raise WrongMessage(at, "must be text")
    return one_paragraph(content or "")


def _call(call: object, at: str) -> str:
    """Return a call as JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise WrongMessage(at, "must be a call of a function, with its name and arguments")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise WrongMessage(f"{at}.function.arguments", "must be JSON") from None
    if arguments is not None and not isinstance(arguments, Mapping):
        raise WrongMessage(f"{at}.function.arguments", "must be a JSON object")
    return json.dumps({"name": name, "arguments": arguments or {}}, ensure_ascii=False)


def _as_written(text: str, form: AnswerForm | None) -> str:
    """Return what the assistant said as the student would write it, where it is an answer."""
    return (form.canonical(text) if form is not None else None) or text


def opening(example: Example) -> str:
    """Return the words that an example's dialogue begins with: the first message of the user."""
    return next((turn.text for turn in example.turns if turn.role == "user"), example.question)


def shown_dialogue(example: Example, form: AnswerForm | None = None) -> str:
    """Return a question with its choices and all that was said before it, a line each, for people and for bigger models.

    Args:
        example: The question.
        form: Where given, earlier structured answers are shown as JSON, which nobody else spells as the student does.
    """
    if not example.turns:
        return render_question(example)
    lines = [f"{turn.role}: {_readable(turn, form)}" for turn in example.turns]
    return "\n".join([*lines, f"user: {render_question(example)}"])


def asked_dialogue(example: Example, form: AnswerForm, question: str) -> str:
    """Return what a teacher is asked: a question, or a whole dialogue with the words that it is one.

    Args:
        example: The question.
        form: What answers look like.
        question: Its text, where it stands alone.
    """
    if not example.turns:
        return question
    return f"what the last message of this conversation asks for\n{shown_dialogue(example, form)}"


def _readable(turn: Turn, form: AnswerForm | None) -> str:
    return turn.text if form is None or turn.role != "assistant" else form.readable(turn.text)


def messages_of(example: Example) -> list[dict[str, str]]:
    """Return a question and what was said before it as `read_messages` reads them."""
    said = [{"role": turn.role, "content": turn.text} for turn in example.turns]
    return [*said, {"role": "user", "content": example.question}]


def characters(example: Example) -> int:
    """Return how long a question is, with its choices and what was said before it."""
    return len(example.question) + sum(map(len, example.choices)) + sum(len(turn.text) for turn in example.turns)
