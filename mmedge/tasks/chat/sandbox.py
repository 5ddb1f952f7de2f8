"""Jinja2 as transformers sets it up for chat templates (`utils/chat_template_utils.py` of 5.24), with bounded work.

A template comes with a model, from whoever made that. It can reach no file, no attribute of Python's insides and no clock: the
date is a setting. It has the filters and methods that chat templates use and no others; each is charged to a budget of loop turns,
of characters read and made, and of characters written, before it is computed (`budget.py`). A broken or hostile template ends with
an error in about a second. Knows templates, and no tokenizer.
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
import jinja2.runtime
import jinja2.sandbox

from mmedge.tasks.chat.budget import (
    RenderingBudget,
    TooMuch,
    check_format,
    check_number,
    fits,
    settled,
    size_of,
    weight_of,
)

__all__ = ["Sandbox", "TooMuch"]

# filters that look at a collection and not at what lies in it, or hand its items to other filters and tests
_SHALLOW = ("length", "count", "list", "first", "last", "map", "select", "selectattr", "reject", "rejectattr", "items", "reverse",
            "default", "d", "attr", "abs", "float", "int", "round", "safe")  # fmt: skip
_DEEP = ("string", "tojson", "join", "trim", "upper", "lower", "title", "capitalize", "replace", "indent", "center", "format", "e",
         "escape", "truncate", "sort", "dictsort", "unique", "groupby", "min", "max", "sum")  # fmt: skip
_TESTS = ("eq", "==", "equalto", "ne", "!=", "lt", "<", "lessthan", "gt", ">", "greaterthan", "ge", ">=", "le", "<=", "in")
_OF_TEXTS = """
strip lstrip rstrip split rsplit splitlines partition rpartition startswith endswith removeprefix removesuffix lower upper title
capitalize swapcase casefold replace join format format_map find rfind index rindex count zfill ljust rjust center isalnum isalpha
isascii isdecimal isdigit isidentifier islower isnumeric isprintable isspace istitle isupper
"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_OF_TEXTS.split()),
    dict: frozenset(("get", "items", "keys", "values", "copy")),
    list: frozenset(("index", "count", "copy")),
    tuple: frozenset(["index", "count"]),
    int: frozenset(),
    float: frozenset(("is_integer",)),
    bytes: frozenset(),
    range: frozenset(["index", "count"]),
}
_PADDING = ("zfill", "ljust", "rjust", "center")
_MOST_DIGITS = 30  # after a point
_DEEPEST_INDENT = 16


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
    """`dict` for templates: makes dictionaries, and is not a way into the class."""

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
        self._budget, self._of_macros = RenderingBudget(), dict[str, int]()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols], finalize=self._printed
        )
        known = self.filters | {"tojson": _to_json}
        self.filters = {name: self._bounded(name, known[name], deep=name in _DEEP) for name in (*_SHALLOW, *_DEEP)}
        self.filters |= {
            "_counted": self._counted,
            "_joined": self._joined,
            "_compared": self._compared,
            "_searched": self._searched,
        }
        tests: dict[str, Any] = self.tests
        tests |= {name: self._bounded(name, tests[name], deep=True) for name in _TESTS}
        self.globals = {
            **{name: self.globals[name] for name in ("range", "cycler", "joiner")},
            "namespace": _Namespace,
            "dict": _Dictionaries(),
            "raise_exception": _raise,
            "strftime_now": lambda format: _date_as(date, format),  # called by its name too
        }

    def begin(self) -> None:
        """Allow the work of one rendering."""
        self._budget.begin()

    # ----------------------------------------------------------------------------------------------- the template

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        """Parse a template; loops are counted, and what is joined, compared or cut is measured."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            if loop.recursive:
                raise jinja2.TemplateSyntaxError("loops that call themselves are not supported", loop.lineno, name, filename)
            loop.iter = _through(loop.iter, "_counted", jinja2.nodes.Const(_own_text(loop), lineno=loop.lineno))
        for block in tree.find_all((jinja2.nodes.Macro, jinja2.nodes.CallBlock)):
            called = getattr(block, "name", "caller")
            self._of_macros[called] = max(self._of_macros.get(called, 0), _own_text(block))
        for compared in list(tree.find_all(jinja2.nodes.Compare)):
            compared.expr = _through(compared.expr, "_compared")
            for operand in compared.ops:
                operand.expr = _through(operand.expr, "_searched" if operand.op in ("in", "notin") else "_compared")
        for cut in list(tree.find_all(jinja2.nodes.Getitem)):
            if isinstance(cut.arg, jinja2.nodes.Slice):
                cut.node = _through(cut.node, "_searched")
        _measure_joins(tree)
        tree.set_environment(self)
        return tree

    def _compile(self, source: str, filename: str) -> Any:
        """Compile what a template became; Python's own limits are errors of the template."""
        try:
            return super()._compile(source, filename)
        except (SyntaxError, MemoryError, ValueError) as error:
            raise jinja2.TemplateError(f"it cannot be compiled: {error}") from None

    # -------------------------------------------------------------------------------------------------- its steps

    def _counted(self, items: Iterable[Any], written: int) -> Iterator[Any]:
        for item in items:
            self._budget.step(written)
            yield item

    def _joined(self, parts: list[Any]) -> str:
        self._budget.work(weight_of(parts))
        return "".join(map(str, parts))

    def _compared(self, value: Any) -> Any:
        self._budget.compared(value)
        return value

    def _searched(self, value: Any) -> Any:
        """Note a value that is searched or cut: in a dictionary only its keys are looked at."""
        self._budget.work(
            1 if isinstance(value, dict) else weight_of(value) if isinstance(value, (list, tuple)) else size_of(value)
        )
        return value

    @jinja2.pass_context
    def _printed(self, _: Any, value: Any) -> Any:
        """Note what is written; with a context, so that Jinja2 does not call it while it compiles."""
        if not isinstance(value, jinja2.Undefined):
            self._budget.write(weight_of(value))
        return value

    def _bounded(self, name: str, function: Callable[..., Any], *, deep: bool) -> Callable[..., Any]:
        """Return a filter or test that is charged for what it reads, before, and for what it makes."""
        passes = getattr(function, "jinja_pass_arg", None)

        def bounded(*args: Any, **kwargs: Any) -> Any:
            hidden, given = (args[:1], args[1:]) if passes is not None else ((), args)
            if deep:
                given = tuple(map(settled, given))
            for one in (*given, *kwargs.values()):
                self._budget.work(weight_of(one) if deep else size_of(one))
            if check := _CHECKS.get(name):
                check(*given, **kwargs)
            found = function(*hidden, *given, **kwargs)
            self._budget.made(found)
            return found

        if passes is not None:
            bounded.jinja_pass_arg = passes  # type: ignore[attr-defined]
        return bounded

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an operator whose result may be much larger than what goes in."""
        sizes = [len(one) for one in (left, right) if isinstance(one, (str, bytes, list, tuple))]
        largest = max((abs(one) for one in (left, right) if isinstance(one, (int, float))), default=0)
        fits(sum(sizes) * (largest if operator == "*" else 1))
        if largest > 1e18 or (operator == "**" and largest > 64):
            raise TooMuch(f"a result of {operator!r} is too large")
        if operator == "%" and isinstance(left, str):
            check_format(left, right, "%")
        found = super().call_binop(context, operator, left, right)
        self._budget.made(found)
        return found

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # Jinja2's own signature
        """Call what a template calls: charged, and a value's methods only where chat templates use them."""
        budget = __self._budget
        budget.step(__self._of_macros.get(__obj.name, 0) if isinstance(__obj, jinja2.runtime.Macro) else 0)
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja2 wraps a text's `format`
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
        if kind is not None:
            if name not in _METHODS[kind]:
                raise jinja2.exceptions.SecurityError(f"{kind.__name__}.{name} is not for chat templates")
            args = tuple(map(settled, args))
            budget.work(size_of(owner) + sum(map(weight_of, (*args, *kwargs.values()))))
            if isinstance(owner, str):
                _check_method(owner, name, args, kwargs)
        found = super().call(__context, __obj, *args, **kwargs)
        budget.made(found)
        return found


# ------------------------------------------------------------------------------------------------------- what is parsed


def _through(value: Any, filter_: str, *args: Any) -> Any:
    return jinja2.nodes.Filter(value, filter_, list(args), [], None, None, lineno=value.lineno)


def _own_text(block: Any) -> int:
    """Return how many characters a block writes of itself."""
    return sum(len(one.data) for one in block.find_all(jinja2.nodes.TemplateData))


def _measure_joins(tree: Any) -> None:
    """Let a filter join the parts of every `a ~ b`, so that their length is known first."""
    for node in [tree, *tree.find_all(jinja2.nodes.Node)]:
        for field, value in list(node.iter_fields()):
            if isinstance(value, jinja2.nodes.Concat):
                setattr(node, field, _measured(value))
            elif isinstance(value, list):
                value[:] = [_measured(one) if isinstance(one, jinja2.nodes.Concat) else one for one in value]


def _measured(joined: Any) -> Any:
    return _through(jinja2.nodes.List(list(joined.nodes), lineno=joined.lineno), "_joined")


# ------------------------------------------------------------------------------------------------------- what may grow


def _check_method(text: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse a method of a text whose result would be too long."""
    if name == "replace":
        _check_replace(text, *args[:2])
    elif name == "join" and args:
        _check_join(args[0], text)
    elif name in ("format", "format_map"):
        check_format(text, [*args, *kwargs.values()], "{")
    elif name in _PADDING and args:
        check_number(args[0])


def _check_replace(text: Any, old: Any = "", new: Any = "", *_: Any, **kwargs: Any) -> None:
    old, new = str(kwargs.get("old", old)), str(kwargs.get("new", new))
    text = str(text)
    fits(len(text) + text.count(old) * len(new))


def _check_join(parts: Any, between: Any = "", *_: Any, **kwargs: Any) -> None:
    fits(weight_of(parts) + size_of(parts) * size_of(kwargs.get("d", between)))


def _check_indent(text: Any, width: Any = 4, *_: Any, **kwargs: Any) -> None:
    width = kwargs.get("width", width)
    check_number(width)
    fits(len(str(text)) + (str(text).count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)))


def _check_json(value: Any, *args: Any, **kwargs: Any) -> None:
    named = dict(zip(("ensure_ascii", "indent", "separators"), args, strict=False)) | kwargs
    indent, between = named.get("indent"), named.get("separators") or ()
    if (len(indent) if isinstance(indent, str) else indent or 0) > _DEEPEST_INDENT or weight_of(list(between)) > 100:
        raise TooMuch("tojson with so wide an indent or so long separators")
    fits(2 * weight_of(value))


def _check_sum(_: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise TooMuch("a sum of other things than numbers")


_CHECKS: dict[str, Callable[..., None]] = {
    "replace": _check_replace,
    "join": _check_join,
    "indent": _check_indent,
    "tojson": _check_json,
    "sum": _check_sum,
    "format": lambda text, *values, **named: check_format(str(text), [*values, *named.values()], "%"),
    "center": lambda _, width=80: check_number(width),
    "truncate": lambda _, length=255, *more, **named: check_number(length),
    "round": lambda _, precision=0, *more, **named: check_number(precision, _MOST_DIGITS),
}


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:  # as transformers has it: Jinja2's own escapes HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _date_as(date: datetime, form: str) -> str:
    """Return the date in a format of `strftime`; one with widths, or a long one, is refused."""
    if len(form) > 200 or any(character.isdigit() for character in form):
        raise TooMuch("so long a format of the date, or one with widths")
    return date.strftime(form)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
