"""Published chat templates, rendered by mmedge and by transformers: are the texts the same, byte for byte?

    python benchmarks/chat_templates.py FOLDER        of files *.jinja, such as `models/templates` of llama.cpp's source

Each template renders nine conversations: one message, a system message, several turns with a reasoning block, tools, calls and
their results, reasoning in a field of its own, contents in parts, and 120 messages with twenty tools; with and without the
beginning of an answer. A template may refuse a conversation, in transformers too. Ends with 1 where any text differs, or where
mmedge refuses what transformers renders.
"""

from __future__ import annotations

import copy
import datetime
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from mmedge.errors import MmedgeError
from mmedge.tasks.chat.template import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
CITY = {"type": "string", "description": "é Ü"}
PARAMETERS = {
    "type": "object",
    "properties": {"city": CITY, "days": {"type": "integer", "enum": [1, 2]}, "at": {"type": "array", "items": {"type": "number"}}},
    "required": ["city"],
}
TOOL = {"type": "function", "function": {"name": "weather", "description": 'Of a\n"city"', "parameters": PARAMETERS}}
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 2}}}
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Hello <b> ünï\n\n {% x %} 'q' \"z\""}
ASSISTANT = {"role": "assistant", "content": "Hi there."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": '{"t": 3}'}
CHATS: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = [
    ([USER], None),
    ([SYSTEM, USER], None),
    ([SYSTEM, USER, ASSISTANT, USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes."}, USER], None),
    ([SYSTEM, USER], [TOOL, TOOL]),
    ([USER, CALLING, RESULT], [TOOL]),
    ([SYSTEM, USER, CALLING, RESULT, ASSISTANT, USER], [TOOL]),
    ([USER, {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}, USER], None),
    ([{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}], None),
    ([SYSTEM, *[USER, ASSISTANT] * 60, USER], [TOOL] * 20),
]


def theirs(template: str, chat: list[dict[str, Any]], tools: Any, begins: bool) -> str | None:
    """Return transformers' text; None where the template refuses the conversation."""
    try:
        found = render_jinja_template(
            [copy.deepcopy(chat)], tools=tools, chat_template=template, add_generation_prompt=begins, **TOKENS
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError):
        return None
    return str(found[0][0])


def main() -> int:
    """Run from the command line."""
    if len(sys.argv) != 2 or not (files := sorted(Path(sys.argv[1]).glob("*.jinja"))):
        raise SystemExit((__doc__ or "").strip())
    counts: Counter[str] = Counter()
    slowest = 0.0
    for file in files:
        template = file.read_text(encoding="utf-8")
        ours = ChatTemplate(template, TOKENS, date=datetime.date.today().isoformat())
        for number, (chat, tools) in enumerate(CHATS):
            for begins in (True, False):
                expected, found = theirs(template, chat, tools, begins), None
                started = time.thread_time()
                try:
                    found = ours.render(chat, tools=tools, add_generation_prompt=begins)
                except MmedgeError as error:
                    if expected is not None:
                        print(f"{file.name}, conversation {number}: {error}")
                slowest = max(slowest, time.thread_time() - started)
                if expected is None:
                    counts["refused by both" if found is None else "refused by transformers alone"] += 1
                    continue
                same = "the same" if found == expected else "refused by mmedge alone" if found is None else "another"
                counts[same] += 1
                if same == "another":
                    print(f"{file.name}, conversation {number}: another text")
    print(f"{len(files)} templates, {len(CHATS)} conversations: {dict(counts)}; slowest {slowest:.2f} s")
    return int(bool(counts["another"] + counts["refused by mmedge alone"]))


if __name__ == "__main__":
    sys.exit(main())
