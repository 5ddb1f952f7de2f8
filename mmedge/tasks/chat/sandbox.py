"""Jinja2 as transformers sets it up for chat templates (`utils/chat_template_utils.py` of 5.24), with bounded work.

A template comes with a model, from whoever made that. It can reach no file, no attribute of Python's insides and no clock: the
date is a setting. It gets so many loop turns and calls, and no text or list of more than so many characters or items, so that a
broken or hostile one ends with an error. Knows templates, and no tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

STEPS = 200_000  # loop turns and calls of one rendering; long conversations take a few thousand
LONGEST = 4_000_000  # characters of a text, items of a list
_GROWING = ("ljust", "rjust", "center", "zfill", "expandtabs", "format", "format_map", "replace", "join")
_REMOVED = ("wordwrap", "urlize", "xmlattr", "pprint", "random")  # filters that no chat template uses
_PADDING = ("center", "format", "indent")  # filters whose numbers are looked at


class TooMuch(jinja2.TemplateRuntimeError):
    """A template that does more than a chat template may need."""


class _Namespace(jinja2.utils.Namespace):
    """Jinja2's namespace without names that begin with an underscore, as transformers has it."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, given = args[0], dict(*args[1:], **kwargs)
        for name in given:
            _refuse_hidden(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_hidden(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _refuse_hidden(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


class _Dictionaries:
    """`dict` for templates: makes dictionaries, and is no way into the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args, **kwargs)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant writes, for training elsewhere; here its content is written as it is."""

    tags = {"generation"}  # noqa: RUF012  # Jinja2's own attribute

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Callable[[], str]) -> str:
        return caller()


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment of one template.

    Args:
        date: What the template is told when it asks for the date.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%", "//"})

    def __init__(self, date: datetime) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
        self._left = STEPS
        for name in _REMOVED:
            self.filters.pop(name, None)
        self.filters |= {name: _padding(self.filters[name]) for name in _PADDING}
        self.filters |= {"tojson": _to_json, "_counted": self._counted, "_joined": self._joined}
        self.globals = {
            **{name: self.globals[name] for name in ("range", "cycler", "joiner")},
            "namespace": _Namespace,
            "dict": _Dictionaries(),
            "raise_exception": _raise,
            "strftime_now": date.strftime,
        }

    def begin(self) -> None:
        """Allow the steps of one rendering."""
        self._left = STEPS

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TooMuch(f"the template takes more than {STEPS} loop turns and calls")

    # -------------------------------------------------------------------------------------------------- what grows

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        """Parse a template; loops are counted, and joined texts are measured."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            loop.iter = jinja2.nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        _measure_joins(tree)
        tree.set_environment(self)
        return tree

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._step()
            yield item

    def _joined(self, parts: list[Any]) -> str:
        if sum(len(part) for part in parts if isinstance(part, str)) > LONGEST:
            raise TooMuch(f"a text of more than {LONGEST} characters")
        return "".join(map(str, parts))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator whose result may be much larger than what goes in."""
        sizes = [len(one) for one in (left, right) if isinstance(one, (str, list, tuple))]
        largest = max((abs(one) for one in (left, right) if isinstance(one, (int, float))), default=0)
        grown = sum(sizes) * (largest if operator == "*" else 1)
        if grown > LONGEST or largest > 1e18 or (operator == "**" and largest > 64):
            raise TooMuch(f"a result of {operator!r} is too large")
        if operator == "%" and isinstance(left, str):
            _check_widths(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # Jinja2's own signature
        """Call what a template calls, counted; methods that make long texts of short ones are looked at first."""
        __self._step()
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja2 wraps a text's `format`
        if getattr(method, "__name__", "") in _GROWING and isinstance(owner := getattr(method, "__self__", None), str):
            _check_widths(owner, [*args, *kwargs.values()])
            lengths = [len(one) for one in args if isinstance(one, str)]
            if (len(owner) + 1) * (max(lengths, default=0) + 1) > LONGEST and method.__name__ == "replace":
                raise TooMuch("a result of replace is too large")
        return super().call(__context, __obj, *args, **kwargs)


def _measure_joins(tree: Any) -> None:
    """Let a filter join the parts of every `a ~ b`, so that their length is known first."""
    for node in [tree, *tree.find_all(jinja2.nodes.Node)]:
        for field, value in list(node.iter_fields()):
            if isinstance(value, jinja2.nodes.Concat):
                setattr(node, field, _measured(value))
            elif isinstance(value, list):
                value[:] = [_measured(one) if isinstance(one, jinja2.nodes.Concat) else one for one in value]


def _measured(joined: Any) -> Any:
    parts = jinja2.nodes.List(list(joined.nodes), lineno=joined.lineno)
    return jinja2.nodes.Filter(parts, "_joined", [], [], None, None, lineno=joined.lineno)


def _check_widths(text: str, values: Any) -> None:
    """Refuse widths in a format or among arguments that would make a long text of a short one."""
    numbers = values if isinstance(values, (list, tuple)) else [values]
    wide = any(isinstance(one, int) and abs(one) > LONGEST for one in numbers)
    if wide or any(len(digits) > 6 for digits in "".join(one if one.isdigit() else " " for one in text).split()):
        raise TooMuch("a format asks for too wide a text")


def _padding(filter_: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that refuses to make a long text of a short one."""

    def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
        _check_widths(value if isinstance(value, str) else "", [*args, *kwargs.values()])
        return filter_(value, *args, **kwargs)

    return checked


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:  # as transformers has it: Jinja2's own escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
