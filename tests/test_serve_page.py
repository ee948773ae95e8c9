"""The web page in real Chromium: completing, filling in, chat, replay, keys, themes, narrow screens, no network."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from serving import CHATTY

import localdiff

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed, run tools/dev test")
PICTURES = os.environ.get("LOCALDIFF_PICTURES")  # a folder for screenshots, to be looked at


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any, server: str) -> Iterator[Any]:
    """The page, opened; requests to other addresses and errors of its scripts fail the test."""
    context = chromium.new_context(viewport={"width": 1200, "height": 800})
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("request", lambda sent: None if sent.url.startswith((server, "data:")) else wrong.append(sent.url))
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    opened.goto(f"{server}/")
    sync_api.expect(opened.locator("#model option")).to_have_count(2)
    sync_api.expect(opened.locator("#decoder option").nth(5)).to_be_attached()
    yield opened
    context.close()
    assert [each for each in wrong if "status of 4" not in each] == []


def picture(page: Any, name: str) -> None:
    if PICTURES:
        page.screenshot(path=f"{PICTURES}/{name}.png", full_page=True)


def finished(page: Any) -> None:
    sync_api.expect(page.locator("#canvas")).to_have_attribute("aria-busy", "false", timeout=30_000)
    sync_api.expect(page.locator("#step")).to_be_enabled()


def test_a_text_denoises_and_is_replayed(page: Any) -> None:
    page.fill("#prompt", "Once upon a time")
    page.fill("#max_tokens", "40")
    page.fill("#steps", "12")
    page.fill("#seed", "3")
    page.select_option("#decoder", "topk")
    page.keyboard.press("Control+Enter")
    finished(page)
    with localdiff.load(threads=1) as model:
        out = model.generate("Once upon a time", max_new_tokens=40, steps=12, seed=3, decoder="topk")
    assert page.locator("#canvas").text_content() == "Once upon a time" + out.text
    assert page.locator("#step-text").text_content() == f"step {out.nfe} of {out.nfe}"
    figures = page.locator("#figures").inner_text()
    for name in ("forwards", "tokens/s", "memory", "seconds"):
        assert name in figures
    assert str(out.nfe) in figures
    shown = page.locator("#canvas .cell.settled").first
    shown.hover()
    assert re.search(r"\d %\s+when written", page.locator("#tip").inner_text())
    assert page.locator("#tip tr").count() == 5
    picture(page, "complete")
    page.locator("#step").focus()
    page.keyboard.press("Home")
    assert page.locator("#step-text").text_content() == f"step 1 of {out.nfe}"
    masked = page.locator("#canvas .masked").count()
    assert 0 < masked < 40
    assert page.locator("#canvas .fresh").count() > 0
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert page.locator("#canvas .masked").count() < masked
    picture(page, "replay")
    page.click("#play")
    sync_api.expect(page.locator("#step-text")).to_have_text(f"step {out.nfe} of {out.nfe}", timeout=15_000)


def test_holes_are_written_marked_and_filled(page: Any) -> None:
    page.click("#tab-fill")
    page.click("#clear")
    page.click("#editor")
    page.keyboard.type("The cat ")
    page.keyboard.press("Control+Space")
    page.keyboard.type("5")
    page.click("#editor", position={"x": 400, "y": 10})
    page.keyboard.press("End")
    page.keyboard.type(" and then it ")
    page.click("#hole")
    page.keyboard.press("Delete")
    page.fill("#seed", "4")
    page.fill("#steps", "6")
    with page.expect_request("**/v1/infill") as sent:
        page.keyboard.press("Control+Enter")
    asked = sent.value.post_data_json
    assert asked["parts"][:3] == ["The cat ", {"hole": 5}, " and then it "]
    assert asked["parts"][3] == {"hole": None}
    finished(page)
    assert page.locator("#canvas .given").count() > 0
    text = page.locator("#canvas").text_content()
    assert text.startswith("The cat")
    assert " and then it" in text
    picture(page, "fill")


def test_a_chat_keeps_its_history(page: Any) -> None:
    page.click("#tab-chat")
    sync_api.expect(page.locator("#notice")).to_contain_text("has no chat template")
    assert page.locator("#go").is_disabled()
    page.select_option("#model", CHATTY)
    page.fill("#max_tokens", "12")
    for turn, said in enumerate(("Hello", "And now?"), 1):
        page.fill("#prompt", said)
        page.click("#go")
        finished(page)
        sync_api.expect(page.locator("#talk .said")).to_have_count(2 * turn)
    assert page.locator("#talk .user").all_text_contents() == ["Hello", "And now?"]
    picture(page, "chat")


def test_stopping_and_refusals_are_shown(page: Any) -> None:
    page.fill("#max_tokens", "200")
    page.fill("#steps", "200")
    page.click("#go")
    sync_api.expect(page.locator("#canvas .cell").first).to_be_visible()
    page.keyboard.press("Escape")
    sync_api.expect(page.locator("#stop")).to_be_hidden()
    page.fill("#max_tokens", "100000")
    page.click("#go")
    sync_api.expect(page.locator("#notice")).to_contain_text("the canvas holds")
    assert page.locator("#notice").get_attribute("role") == "alert"


def test_keys_themes_and_narrow_screens(page: Any, chromium: Any, server: str) -> None:
    page.focus("#tab-complete")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-fill"
    assert page.locator("#editor").is_visible()
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after
    picture(page, "dark")
    narrow = chromium.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    phone = narrow.new_page()
    phone.goto(f"{server}/")
    phone.fill("#max_tokens", "30")
    phone.click("#go")
    finished(phone)
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(phone, "narrow")
    narrow.close()
