"""Progress: plain lines where there is no terminal, with rate and time left."""

from __future__ import annotations

import pytest

from mmedge import progress
from mmedge.progress import Progress


def test_without_a_terminal_progress_is_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with Progress().task("stage 2", total=4, done=1) as step:
        step.advance(1, loss="0.420")
        step.advance(1, rate="512 tokens/s")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("stage 2: 2/4, ") and " left, loss 0.420  rate " in first and first.endswith("/s")
    assert second.startswith("stage 2: 3/4, ") and second.endswith("rate 512 tokens/s")


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(quiet=True)
    shown.line("a line")
    with shown.task("work", total=1) as step:
        step.advance()
    assert capsys.readouterr() == ("", "")
