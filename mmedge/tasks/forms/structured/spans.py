"""Where in a written answer each of its fields stands, so that a field's own tokens can be told from the others'.

    spans(compact_pieces(place, {"name": "Oslo", "size": 3}))     ("name: Oslo; size: 3", {"name": (0, 10), "size": (12, 19)})

Pieces are what the writers of `compact` and of JSON write, cut at the fields. Paths are those of `comparing.fields_of`: an array is
one field.
"""

from __future__ import annotations

from collections.abc import Iterator

from mmedge.tasks.forms.structured import compact
from mmedge.tasks.forms.structured.compact import Place
from mmedge.tasks.forms.structured.values import Value, to_json

Pieces = Iterator[tuple[str, str]]  # the path of a field, "" for what belongs to none, and a text
Span = tuple[int, int]  # in characters


def spans(pieces: Pieces) -> tuple[str, dict[str, Span]]:
    """Return the whole text, and by path where in it each field stands, its key included."""
    text, found = "", dict[str, Span]()
    for path, piece in pieces:
        if path:
            found[path] = (found[path][0] if path in found else len(text), len(text) + len(piece))
        text += piece
    return text, found


def _inside(value: Value, path: str) -> bool:
    """Return whether a value's members are fields of their own."""
    return isinstance(value, dict) and bool(value or not path)


def json_pieces(value: Value, path: str = "") -> Pieces:
    """Yield a value as JSON."""
    if not _inside(value, path):
        yield path or "value", to_json(value)
        return
    yield "", "{"
    for number, (key, one) in enumerate(value.items()):
        own = f"{path}.{key}" if path else key
        yield "", "," if number else ""
        yield "" if _inside(one, own) else own, f"{to_json(key)}:"
        yield from json_pieces(one, own)
    yield "", "}"


def compact_pieces(place: Place, value: Value, path: str = "") -> Pieces:
    """Yield a whole value as `compact.write` does."""
    if isinstance(value, dict) and value and place.only_objects:
        yield from member_pieces(place, value, path)
    else:
        yield from _within(place, value, path)


def member_pieces(place: Place, value: Value, path: str) -> Pieces:
    """Yield an object's members as `compact.call` writes arguments."""
    for number, (key, one) in enumerate(value.items()):
        own = f"{path}.{key}" if path else key
        yield "", "; " if number else ""
        yield "" if _inside(one, own) else own, f"{place.names.get(key) or to_json(key)}: "
        yield from _within(place.member(key), one, own)


def _within(place: Place, value: Value, path: str) -> Pieces:
    if not _inside(value, path):
        yield path or "value", compact.written(place, value)
        return
    yield "", "("
    yield from member_pieces(place, value, path)
    yield "", ")"
