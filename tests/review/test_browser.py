"""The page in a real Chromium: by keyboard alone, light and dark, wide and narrow; text is only text (`make test-serve`)."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mmedge.annotations.decisions import Decisions, Item
from mmedge.annotations.store import AnnotationStore
from tests.review.test_page import EVIL, _write_run, page_of

pytestmark = [pytest.mark.serve, pytest.mark.slow]

SIZES = {"wide": (1200, 900), "narrow": (360, 740)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-serve installs it")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as one:
        found = one.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.mark.parametrize(("size", "scheme"), list(itertools.product(SIZES, ("light", "dark"))))
def test_a_review_by_keyboard(browser: Any, tmp_path: Path, size: str, scheme: str) -> None:
    _write_run(tmp_path)
    run = tmp_path / "run"
    width, height = SIZES[size]
    with page_of(run, tmp_path / "err") as shown:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(20_000)
        page = context.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(f"http://127.0.0.1:{shown.port}/{shown.token}/")
        page.wait_for_selector("article")
        assert page.inner_text("article h2") == f"Is it 0? {EVIL}" and page.locator("article").count() == 10
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.keyboard.press("d")  # drop the first, and go on to the second
        page.wait_for_selector("article.dropped")
        page.keyboard.press("u")
        page.wait_for_selector("article.dropped", state="detached")
        page.keyboard.press("e")  # edit the second
        page.keyboard.type("Really? ")
        page.keyboard.press("Tab")
        page.keyboard.press("Control+A")
        page.keyboard.type("no")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".state.mend")
        page.keyboard.press("a")  # accept the third
        page.wait_for_selector(".state.accept")
        page.locator("article").nth(4).locator(".text [data-what=drop]").first.click()
        page.wait_for_selector(".text.dropped")
        assert "3 of 15 questions decided" in page.inner_text("#progress")
        page.locator("article").nth(5).locator("input").first.fill("perhaps")
        page.locator("article").nth(5).locator("[data-what=accept]").first.click()
        page.wait_for_selector("#error:has-text('the label is not an answer')")
        page.select_option("#show", "new")
        page.wait_for_selector("article:has-text('Is it new?')")
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert [one for one in complaints if "400" not in one] == []  # the label that was refused
        context.close()
    with AnnotationStore(run / "annotations.sqlite") as store:
        found = Decisions(store).current()
    assert {item: decision.what for item, decision in found.items()} == {
        Item("q1", "question"): "mend",
        Item("q2", "question"): "accept",
        Item("q4", "cot", 0): "drop",
    }
    assert found[Item("q1", "question")].label == "no" and "Really?" in str(found[Item("q1", "question")].question)
