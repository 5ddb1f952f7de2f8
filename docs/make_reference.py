"""Writes the parts of docs/ that are made from code: the recipe reference, and the files that pages quote.

    python docs/make_reference.py            writes them
    python docs/make_reference.py --check    exit code 1 if one is out of date

The reference comes from the recipe's JSON Schema (`mmedge schema`), so descriptions are those of the sections in `mmedge/recipe/`.
A page quotes a file where a code block follows `<!-- path/of/the/file -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmedge.recipe import Recipe

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
REFERENCE = "recipe-reference.md"
QUOTE = re.compile(r"(<!-- (?P<path>[\w.-]+/[\w./-]+) -->\n+```(?P<language>\w+)\n)(?P<text>.*?)(\n```\n)", re.DOTALL)

OPENING = """# Recipe reference

<!-- Made by docs/make_reference.py (`make docs`); edit the descriptions in mmedge/recipe/ instead. -->

A recipe is one YAML file. It needs `task` and `student`; `name` defaults to the file's name, everything else has defaults.
Unknown fields are refused. `--set section.field=value` on the command line overrides any field, and `${MMEDGE_DATA}` in a path
stands for that environment variable. `mmedge schema` prints the same as JSON Schema, which editors use to complete and check
recipes.
"""

Schema = dict[str, Any]


def reference() -> str:
    """Return the text of the reference page."""
    schema = Recipe.model_json_schema()
    definitions = schema["$defs"]
    top = {name: field for name, field in schema["properties"].items() if not _sections(field, definitions)}
    parts = [OPENING, "## Top level\n", *_table({**schema, "properties": top}, definitions)]
    for name, field in schema["properties"].items():
        parts += _section(name, field, definitions, 2)
    return "\n".join(parts).rstrip() + "\n"


def _section(path: str, field: Schema, definitions: Schema, level: int) -> Iterator[str]:
    """Yield the lines of a section: heading, description, fields, then the sections within it."""
    found = _sections(field, definitions)
    if not found:
        return
    yield f"{'#' * level} `{path}`\n"
    if len(found) > 1 and (text := field.get("description")):
        yield f"{text}\n"
    for section in found:
        if len(found) > 1:
            yield f"{'#' * (level + 1)} `{path}` of kind {_kinds(section)}\n"
        if text := section.get("description"):
            yield f"{text}\n"
        yield from _table(section, definitions)
        for name, inner in section["properties"].items():
            yield from _section(f"{path}.{name}", inner, definitions, level + 1)


def _table(section: Schema, definitions: Schema) -> Iterator[str]:
    """Yield the lines of a table of a section's fields."""
    yield "| field | value | default | what it is |"
    yield "|---|---|---|---|"
    for name, field in sorted(section["properties"].items(), key=lambda item: item[0] != "kind"):
        required = name in section.get("required", ())
        default = "required" if required else _default(field, definitions)
        text = " ".join(str(field.get("description", "")).split())
        cells = (f"`{name}`", _value(field, definitions), default, text)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""


def _kinds(section: Schema) -> str:
    kind = section["properties"]["kind"]
    return " or ".join(f"`{name}`" for name in kind.get("enum", [kind.get("const")]))


def _sections(field: Schema, definitions: Schema) -> list[Schema]:
    """Return the sections that a field may hold."""
    if "$ref" in field:
        field = definitions[field["$ref"].rpartition("/")[2]]
    if field.get("properties"):
        return [field]
    return [found for each in (*field.get("anyOf", ()), *field.get("oneOf", ())) for found in _sections(each, definitions)]


def _default(field: Schema, definitions: Schema) -> str:
    if "default" not in field:
        return ""
    default = field["default"]
    if default is None or (default in ({}, []) and default is not False) or _sections(field, definitions):
        return ""
    return f"`{json.dumps(default)}`" if not isinstance(default, str) else f"`{default or '(empty)'}`"


def _value(field: Schema, definitions: Schema) -> str:
    """Return in words what a field may be."""
    if "$ref" in field:
        field = definitions[field["$ref"].rpartition("/")[2]]
    if field.get("properties"):
        return "section"
    for name in ("anyOf", "oneOf"):
        if name in field:
            words = [_value(each, definitions) for each in field[name]]
            return " or ".join(dict.fromkeys(word for word in words if word != "null"))
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    kind: str = field.get("type", "any")
    if kind == "array":
        items = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_value(items, definitions)}"
    if kind == "object":
        inner: Any = field.get("additionalProperties") or next(iter(field.get("patternProperties", {}).values()), {})
        return f"mapping of names to {_value(inner, definitions)}" if isinstance(inner, dict) else "mapping"
    names = {"string": "text", "number": "number", "integer": "integer", "boolean": "`true` or `false`", "any": "any value"}
    return names.get(kind, kind) + _bounds(field)


def _bounds(field: Schema) -> str:
    """Return the range of a number: ` from 0 to 1`, ` above 0`."""
    least, most, above, below = (field.get(name) for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
    if field.get("type") == "integer" and above is not None:
        least, above = above + 1, None
    if least is not None and most is not None:
        return f" from {least:,.10g} to {most:,.10g}"
    found = [f"at least {least:,.10g}"] if least is not None else []
    found += [f"above {above:,.10g}"] if above is not None else []
    found += [f"at most {most:,.10g}"] if most is not None else []
    found += [f"below {below:,.10g}"] if below is not None and below < 2**31 else []
    return f" {', '.join(found)}" if found else ""


def quoting(page: str) -> str:
    """Return a page with the files that it quotes as they are now."""

    def current(match: re.Match[str]) -> str:
        text = (REPOSITORY / match["path"]).read_text(encoding="utf-8").rstrip("\n")
        return f"{match[1]}{text}{match[5]}"

    return QUOTE.sub(current, page)


def made() -> dict[Path, str]:
    """Return what the pages should be, by file; only those with generated parts."""
    pages = {path: quoting(path.read_text(encoding="utf-8")) for path in sorted(DOCS.glob("*.md")) if path.name != REFERENCE}
    return {DOCS / REFERENCE: reference(), **pages}


def stale() -> list[str]:
    """Return the names of pages that are out of date."""
    return [path.name for path, text in made().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]


def main() -> int:
    """Write the pages, or with --check say which are out of date."""
    if "--check" in sys.argv[1:]:
        found = stale()
        for name in found:
            print(f"docs/{name} is out of date\n  → run: python docs/make_reference.py")
        return min(1, len(found))
    for path, text in made().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: docs/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
