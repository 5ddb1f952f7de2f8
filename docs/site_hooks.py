"""What mkdocs is told beside mkdocs.yml: measurements and recipes lie outside of docs/, and are part of the site.

Pages link to them as GitHub shows them (`../benchmarks/results/quickstart.md`, `../recipes/quickstart.yaml`); on the site they are
`results/quickstart.md` and a file to download.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parent.parent
OUTSIDE = {"benchmarks/results": "results", "recipes": "recipes", "mmedge/bench": "bench"}  # in the repository, on the site
SHOWN = (".md", ".svg", ".yaml", ".json")
_ROWS = re.compile(r"\[([^\]]+)\]\((?:rows/[\w./-]+)\)")  # raw rows are folders of JSON, which the site leaves out


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    for folder, place in OUTSIDE.items():
        for path in sorted((REPOSITORY / folder).iterdir()):
            if path.suffix in SHOWN:
                file = File.generated(config, f"{place}/{path.name}", abs_src_path=str(path), inclusion=InclusionLevel.NOT_IN_NAV)
                files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make links to what lies outside of docs/ links within the site."""
    for folder, place in OUTSIDE.items():
        markdown = markdown.replace(f"](../{folder}/", f"]({place}/")
    return _ROWS.sub(r"\1", markdown)
