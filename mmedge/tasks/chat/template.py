"""Chat templates: messages become the text that an instruct model was trained on, and that text becomes tokens.

    template = ChatTemplate.load(folder / "chat.json")
    template.render([{"role": "user", "content": "Turn off the lights"}])   → "<|im_start|>user\\nTurn off …"

The text is byte for byte what transformers' `apply_chat_template` gives, and so are its tokens. Control tokens, such as
`<|im_start|>`, come out of the template alone: where a message has the same characters, they are encoded as ordinary text. What a
control token is, and how it becomes text, is up to `mmedge.tasks.chat.control`, by marks in what the template is given.

Templates look into the assistant's earlier messages, which clients send back whole: Qwen 3's leaves out reasoning between
`<think>` and `</think>`. Where marks would change what the template writes, the assistant's messages keep the control tokens that
the tokenizer does not call special. So a hostile client can put a reasoning block or a tool call into the assistant's mouth, as it
can with `reasoning_content` and `tool_calls`; it cannot end a message or begin another, and no message of a user, a tool or the
system gets a control token. A user's message that the template would look into, such as one whole `<tool_response>`, stays marked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from mmedge.errors import MmedgeError
from mmedge.storage import read_json, write_json
from mmedge.tasks.chat.control import ControlTokens, control_tokens, encode_marked, marked, unmarked

FILE_NAME = "chat.json"
DATE = "2026-01-01"  # what templates that print today's date are told unless the recipe says otherwise
LONGEST_TEMPLATE = 200_000  # characters; the longest published ones have 20,000
LONGEST_CHAT = 2_000_000  # characters of what is rendered
REASONING = ("<think>", "</think>")
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # transformers': the first is what templates read

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template and what is always the same in a student's chats.

    Attributes:
        template: The Jinja2 source.
        tokens: The texts of special tokens, by transformers' names: `bos_token`, `eos_token`, …
        system: The system message of every question; none where empty.
        date: What the template is told when it asks for today's date, as year-month-day.
    """

    template: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    system: str = ""
    date: str = DATE

    @classmethod
    def load(cls, path: Path) -> ChatTemplate:
        """Read a template that `save` wrote.

        Raises:
            MmedgeError: The file is missing or damaged.
        """
        try:
            found = cls(**read_json(path))
            texts = (found.template, found.system, found.date, *found.tokens, *found.tokens.values())
            if not all(isinstance(text, str) for text in texts):
                raise TypeError
            datetime.fromisoformat(found.date)
        except (TypeError, ValueError, AttributeError):
            raise MmedgeError(f"{path} is not a chat template of mmedge", "distil or export the student again") from None
        return found

    @classmethod
    def beside(cls, folder: Path) -> ChatTemplate | None:
        """Return the template in the folder of a student or bundle; None where questions are read as they are."""
        return cls.load(folder / FILE_NAME) if (folder / FILE_NAME).is_file() else None

    def save(self, folder: Path) -> None:
        """Write it into the folder of a student or bundle."""
        write_json(folder / FILE_NAME, asdict(self))

    @property
    def reasons(self) -> bool:
        """Whether the model writes its reasoning in a block of its own, in front of the answer."""
        return all(mark in self.template for mark in REASONING)

    @cached_property
    def _compiled(self) -> tuple[Any, Any]:
        try:
            import jinja2

            from mmedge.tasks.chat.sandbox import Sandbox
        except ImportError:
            raise MmedgeError("chat templates need Jinja2, which is not installed", "pip install 'jinja2>=3.1.6'") from None
        if len(self.template) > LONGEST_TEMPLATE:
            raise MmedgeError(f"the chat template has {len(self.template):,} characters", "use prompt: plain")
        try:
            sandbox = Sandbox(datetime.fromisoformat(self.date))
            return sandbox, sandbox.from_string(self.template)
        except (jinja2.TemplateError, RecursionError) as error:
            raise _unusable(error) from None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **settings: Any,
    ) -> str:
        """Return the text of a chat.

        Args:
            messages: Each with `role` and `content`; others that the template knows, such as `tool_calls`.
            tools: JSON Schemas of functions that the model may call.
            add_generation_prompt: Whether the text ends where the assistant begins to write.
            settings: Other variables of the template, such as `enable_thinking`.

        Raises:
            MmedgeError: The template refuses these messages, or does too much.
        """
        import jinja2

        sandbox, compiled = self._compiled
        sandbox.begin()
        values = {**self.tokens, **settings, "messages": _plain_messages(messages), "tools": list(tools) if tools else None}
        found, length = [], 0
        try:
            for part in compiled.generate(**_plain(values), documents=None, add_generation_prompt=add_generation_prompt):
                length += len(part)
                if length > LONGEST_CHAT:
                    raise MmedgeError(f"the chat template writes more than {LONGEST_CHAT:,} characters", "use prompt: plain")
                found.append(part)
        except (jinja2.TemplateError, RecursionError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise _unusable(error) from None
        return "".join(found)

    # ------------------------------------------------------------------------------------------------- to tokens

    def encode(self, tokenizer: Any, messages: Sequence[Message], **settings: Any) -> list[int]:
        """Return a chat's tokens; control tokens come from the template alone.

        Args:
            tokenizer: The student's, as `tokenizers` has it.
            messages: As for `render`.
            settings: As for `render`.
        """
        control = control_tokens(tokenizer, self.template)
        return encode_marked(tokenizer, self._render_marked(control, messages, **settings), control)

    def _render_marked(self, control: ControlTokens, messages: Sequence[Message], **settings: Any) -> str:
        """Return the text of a chat in which the control tokens that do not come from the template are marked."""
        given, plain = marked([messages, settings], control.anywhere), unmarked([messages, settings])
        rendered = self.render(given[0], **given[1])
        if given == plain or unmarked(rendered) == self.render(plain[0], **plain[1]):
            return rendered
        less = [
            marked(message, control.special) if message.get("role") == "assistant" else everything
            for message, everything in zip(messages, given[0], strict=True)
        ]
        return self.render(less, **given[1])

    def question(self, tokenizer: Any, text: str, before: Sequence[tuple[str, str]] = ()) -> list[int]:
        """Return the tokens of a question, up to where the assistant begins to write; a reasoning block is not begun.

        Args:
            tokenizer: The student's, as `tokenizers` has it.
            text: The question.
            before: Role and text of what was said before; a system message takes the place of the student's own.

        Raises:
            MmedgeError: The template refuses these messages.
        """
        control = control_tokens(tokenizer, self.template)
        rendered = self._render_marked(control, self._messages(text, before))
        until, found, behind = rendered.rpartition(REASONING[0])
        if found and not behind.replace(REASONING[1], "").strip():
            rendered = until
        return encode_marked(tokenizer, rendered, control)

    def _messages(self, text: str, before: Sequence[tuple[str, str]] = ()) -> list[dict[str, str]]:
        own = self.system and not (before and before[0][0] == "system")
        said = [*([("system", self.system)] if own else []), *before, ("user", text)]
        return [{"role": role, "content": content} for role, content in said]

    def ends(self, tokenizer: Any) -> int | None:
        """Return the control token with which the assistant's message ends; None where it ends without one."""
        answer = "mmedge"
        chat = [*self._messages(answer), {"role": "assistant", "content": answer}]
        behind = self.render(chat, add_generation_prompt=False).rpartition(answer)[2]
        found = control_tokens(tokenizer, self.template).written.search(behind)
        return None if found is None else int(tokenizer.token_to_id(found[0]))


def _plain_messages(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages as transformers gives them to templates: without what is None, reasoning under the names of all templates."""
    found = []
    for message in messages:
        kept = {name: value for name, value in message.items() if value is not None}
        reasoning = next((kept[name] for name in _REASONING_FIELDS if name in kept), None)
        found.append(kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning})
    return found


def _plain(value: Any) -> Any:
    """Return a value in JSON's types alone: a template can call the methods of what it is given."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return json.loads(json.dumps(value, default=str))


def _unusable(error: Exception) -> MmedgeError:
    reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return MmedgeError(f"the chat template cannot be used: {reason}", "use prompt: plain, or another chat")
