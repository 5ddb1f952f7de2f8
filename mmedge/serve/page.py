"""The page at `/`, and the policy that lets nothing run on it but its own script."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

PAGE = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")


def policy_of(page: str) -> str:
    """Return the policy that lets nothing run on a page but its own script, and lets that ask its own server alone."""
    return (
        f"default-src 'none'; script-src 'sha256-{_hash_of(page, 'script')}'; style-src 'sha256-{_hash_of(page, 'style')}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash_of(page: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
    assert found is not None
    return base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()


PAGE_POLICY = policy_of(PAGE)
