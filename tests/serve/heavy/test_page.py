"""The page at `/` in a real Chromium: ask, stream, threshold, error; wide and narrow, light and dark, by keyboard."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import LLAMA
from tests.serve.heavy.conftest import needed
from tests.serve.running import QUESTION, Running, serving

DONE = '#result[aria-busy="false"] dt:has-text("time")'
SIZES = {"wide": (1200, 900), "narrow": (360, 740)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: make test-serve installs it")
    chromium = needed("chromium", "chromium-browser", "google-chrome")
    with playwright.sync_playwright() as one:
        found = one.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(params=itertools.product(SIZES, ("light", "dark")), ids="-".join)
def page(request: pytest.FixtureRequest, browser: Any, server: Running) -> Iterator[Any]:
    """The page, opened; whatever it complains of fails the test."""
    size, scheme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(20_000)
    found = context.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    found.goto(f"http://127.0.0.1:{server.port}/")
    found.wait_for_selector("#model option", state="attached")
    found.complaints = complaints
    yield found
    context.close()


def _shot(page: Any, name: str, folder: Path) -> None:
    """Keep a screenshot, and check that nothing is cut off at the side."""
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def _contrast(page: Any, selector: str) -> float:
    """Return the contrast of a text on the page's background, by WCAG."""
    measured: float = page.evaluate(
        """selector => {
          const light = colour => {
            const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(one => one / 255)
              .map(one => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const probe = document.createElement("i");
          probe.hidden = false;
          document.body.append(probe);
          probe.style.setProperty("color", "Canvas");
          const back = light(getComputedStyle(probe).color);
          probe.remove();
          const front = light(getComputedStyle(document.querySelector(selector)).color);
          return (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
        }""",
        selector,
    )
    return measured


def test_ask_see_and_withhold(page: Any, tmp_path: Path) -> None:
    _shot(page, "empty", tmp_path)
    page.fill("#question", QUESTION)
    page.check("#evaluate")
    page.click("#ask")
    page.wait_for_selector(DONE)
    facts = dict(zip(page.locator("dt").all_inner_texts(), page.locator("dd").all_inner_texts(), strict=True))
    assert {"confidence", "rationale", "verdict", "time"} <= facts.keys() and "P(correct)" in facts["verdict"]
    answered = page.inner_text("#text")
    _shot(page, "answer", tmp_path)
    page.focus("#threshold")
    page.keyboard.press("End")
    assert page.inner_text("#shown") == "1.00" and page.get_attribute("#text", "class") == "withheld"
    assert "withheld" in page.locator("dt").all_inner_texts() and page.inner_text("#text") == answered
    _shot(page, "withheld", tmp_path)
    page.keyboard.press("Home")
    assert page.get_attribute("#text", "class") == ""
    for selector in ("#text", "dt", "dd", "#about", "label"):
        assert _contrast(page, selector) >= 4.5, selector
    assert page.complaints == []


def test_by_keyboard_alone(page: Any) -> None:
    order = []
    for _ in range(7):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id"))
    assert order[:6] == ["model", "question", "explain", "evaluate", "threshold", "ask"]
    page.focus("#question")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(DONE)
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_an_answer_streams_in_and_can_be_stopped(page: Any) -> None:
    page.select_option("#model", LLAMA)
    page.fill("#question", QUESTION * 5)
    page.check("#evaluate")
    page.evaluate(
        """() => { window.seen = []; new MutationObserver(() => window.seen.push(document.querySelector("#result").innerText))
             .observe(document.querySelector("#result"), {childList: true, subtree: true, characterData: true}); }"""
    )
    page.click("#ask")
    page.wait_for_selector(DONE)
    assert page.evaluate("new Set(window.seen).size") > 3, "it came in parts"
    page.evaluate("() => { document.querySelector('#ask').click(); document.querySelector('#stop').click(); }")
    page.wait_for_selector("#ask:enabled")
    assert not page.is_visible("#result")
    assert page.inner_text("#error") == "" and page.complaints == []


def test_what_goes_wrong_is_said(browser: Any, tmp_path: Path, tiny_run: Path) -> None:
    folder = tmp_path / "served"
    shutil.copytree(tiny_run / "bundle-int8", folder)
    with serving(tmp_path, [folder], "--timeout", 0.1, "--max-body", 1000) as running:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{running.port}/")
        page.wait_for_selector("#model option", state="attached")
        page.fill("#question", QUESTION * 30)
        page.click("#ask")
        page.wait_for_selector("#error:not(:empty)")
        assert "larger than 1,000 bytes" in page.inner_text("#error") and not page.is_visible("#result")
        _shot(page, "error", tmp_path)
        assert _contrast(page, "#error") >= 4.5
        running.process.kill()
        page.fill("#question", QUESTION)
        page.click("#ask")
        page.wait_for_selector("#ask:enabled")
        assert re.search(r"fetch|network", page.inner_text("#error"), re.IGNORECASE)
        page.close()


def test_a_browser_is_asked_for_the_key(browser: Any, tmp_path: Path, tiny_run: Path) -> None:
    (tmp_path / "keys").write_text("a-long-random-word\n", encoding="utf-8")
    with serving(tmp_path, [tiny_run / "bundle-int8"], "--api-key-file", tmp_path / "keys") as running:
        address = f"http://127.0.0.1:{running.port}/"
        context = browser.new_context(http_credentials={"username": "me", "password": "a-long-random-word"})
        page = context.new_page()
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        page.fill("#question", QUESTION)
        page.click("#ask")
        page.wait_for_selector(DONE)
        context.close()
        plain = browser.new_page()
        with pytest.raises(Exception, match="ERR_INVALID_AUTH_CREDENTIALS"):  # it asked, and nobody was there
            plain.goto(address)
        plain.close()
