"""The page at `/` in a real Chromium: ask, stream, threshold, error; wide and narrow, light and dark, by keyboard."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.conftest import CALLS, LLAMA, TALKS
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
    yield from _opened(browser, server, *request.param)


@pytest.fixture(params=itertools.product(SIZES, ("light", "dark")), ids="-".join)
def talking(request: pytest.FixtureRequest, browser: Any, structured: Running) -> Iterator[Any]:
    """The same of a server with a student that reads dialogues; `asked` has what was sent to it."""
    yield from _opened(browser, structured, *request.param)


def _opened(browser: Any, server: Running, size: str, scheme: str) -> Iterator[Any]:
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(20_000)
    found = context.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    found.asked = []
    found.on("request", lambda request: found.asked.append(request.post_data_json) if request.method == "POST" else None)
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
    page.fill("#question", QUESTION)
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


def _messages(talking: Any) -> list[str]:
    found: list[str] = talking.get_by_role("region", name="Conversation").get_by_role("listitem").all_text_contents()
    return found


def test_a_conversation_is_kept_shown_and_sent(talking: Any, tmp_path: Path) -> None:
    talking.select_option("#model", TALKS)
    anew, status = talking.get_by_role("button", name="New conversation"), talking.locator("#kept[role=status]")
    assert anew.is_disabled() and _messages(talking) == [] and "Later questions" in status.inner_text()
    answers: list[str] = []
    for question in (QUESTION, "and for Ben?"):
        talking.focus("#question")
        talking.keyboard.type(question)
        talking.keyboard.press("Control+Enter")
        talking.locator("#turns li").nth(2 * len(answers) + 1).wait_for()
        talking.wait_for_selector(DONE)
        answers.append(_messages(talking)[-1].removeprefix("Answer:"))
        assert talking.input_value("#question") == "" and talking.evaluate("document.activeElement.id") == "question"
    first, second = talking.asked
    assert first["question"] == QUESTION and "messages" not in first and "question" not in second
    said = [("user", QUESTION), ("assistant", answers[0]), ("user", "and for Ben?")]
    assert [(one["role"], one["content"]) for one in second["messages"]] == said
    assert _messages(talking)[0].startswith("You:") and "these 4 messages" in status.inner_text()
    _shot(talking, "conversation", tmp_path)
    for selector in ("#turns li", ".who", "#kept"):
        assert _contrast(talking, selector) >= 4.5, selector
    anew.focus()
    talking.keyboard.press("Enter")
    assert _messages(talking) == [] and not talking.is_visible("#result") and anew.is_disabled()
    assert talking.evaluate("document.activeElement.id") == "question"
    talking.keyboard.type("pears")
    talking.keyboard.press("Control+Enter")
    talking.wait_for_selector("#turns li")
    assert talking.asked[-1]["question"] == "pears" and talking.complaints == []


def test_each_bundle_has_a_conversation_of_its_own(talking: Any) -> None:
    talking.select_option("#model", TALKS)
    talking.fill("#question", "Buy 3 pears.")
    talking.click("#ask")
    talking.wait_for_selector("#turns li")
    talking.wait_for_selector(DONE)
    kept = _messages(talking)
    talking.select_option("#model", CALLS)
    assert not talking.is_visible("#conversation") and not talking.is_visible("#fresh")
    talking.fill("#question", "Buy 4 apples.")
    talking.click("#ask")
    talking.wait_for_selector("#ask:enabled")
    assert talking.asked[-1]["question"] == talking.input_value("#question") == "Buy 4 apples."
    talking.select_option("#model", TALKS)
    assert _messages(talking) == kept and talking.complaints == []


def test_a_question_that_was_stopped_is_not_remembered(talking: Any) -> None:
    talking.select_option("#model", TALKS)
    talking.fill("#question", "Buy 3 pears.")
    talking.evaluate("() => { document.querySelector('#ask').click(); document.querySelector('#stop').click(); }")
    talking.wait_for_selector("#ask:enabled")
    assert _messages(talking) == [] and talking.input_value("#question") == "Buy 3 pears." and talking.complaints == []


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
