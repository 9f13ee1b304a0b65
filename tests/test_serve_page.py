"""The chat page in a real, headless Chromium, with an engine that answers by rule."""

import re
import shutil
from collections.abc import Iterator

import pytest
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from playwright.sync_api import Page, Request, expect, sync_playwright
from waiting import HANG_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm) as server:
        yield server


@pytest.fixture
def page(server: LiveServer) -> Iterator[Page]:
    """The page, opened; fails where it asks another host for anything or has an error."""
    wrong: list[str] = []

    def check(request: Request) -> None:
        if not request.url.startswith(server.url):
            wrong.append(request.url)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(1000 * HANG_S)
        page.on("request", check)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.goto(server.url)
        expect(page.locator("#model")).to_contain_text("test")
        yield page
        browser.close()
    assert wrong == []


def ask(page: Page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")


def test_an_answer_streams_and_its_figures_are_shown(page: Page) -> None:
    ask(page, "say Hello <b>there</b> °é")
    answer = page.locator("li.assistant .content")
    expect(answer).to_have_text("Hello <b>there</b> °é")
    expect(page.locator("#status")).to_contain_text("tokens/s")
    expect(page.locator("#figures")).to_contain_text("first token")
    expect(page.locator("#send")).to_have_text("Send")


def test_thoughts_are_shown_apart(page: Page) -> None:
    ask(page, "say <think>hm</think>yes")
    expect(page.locator("li.assistant .reasoning")).to_have_text("hm")
    expect(page.locator("li.assistant .content")).to_have_text("yes")


def test_stop_ends_the_answer_and_the_engines_work(page: Page, llm: FakeLLM) -> None:
    ask(page, "slow")
    expect(page.locator("li.assistant .content")).to_contain_text("b")
    expect(page.locator("#send")).to_have_text("Stop")
    page.click("#send")
    expect(page.locator("#status")).to_have_text("stopped")
    expect(page.locator("#send")).to_have_text("Send")
    assert llm.engine.tickets[-1].finished.wait(HANG_S)
    assert llm.engine.tickets[-1].cancelled.is_set()


def test_editing_replaces_the_rest_of_the_conversation(page: Page) -> None:
    for text in ("say one", "say two"):
        ask(page, text)
        expect(page.locator("li.assistant .content").last).to_have_text(text.removeprefix("say "))
        expect(page.locator("#send")).to_have_text("Send")
    page.locator("li.user").first.get_by_text("Edit").click()
    page.locator("li.user textarea").fill("say three")
    page.locator("li.user").get_by_text("Send").click()
    expect(page.locator("li.assistant .content")).to_have_text(["three"])
    expect(page.locator("li.user .content")).to_have_text(["say three"])


def test_regenerating_asks_again(page: Page, llm: FakeLLM) -> None:
    ask(page, "say one")
    expect(page.get_by_text("Regenerate")).to_be_visible()
    before = len(llm.engine.requests)
    page.get_by_text("Regenerate").click()
    expect(page.get_by_text("Regenerate")).to_be_visible()
    expect(page.locator("li.assistant .content")).to_have_text(["one"])
    assert len(llm.engine.requests) == before + 1


def test_the_experts_that_fired_are_drawn(page: Page, llm: FakeLLM) -> None:
    layers = llm.config.num_layers - llm.config.num_dense_layers
    canvas = page.locator("#experts")
    cell = page.evaluate("document.getElementById('experts').width") // llm.config.num_experts
    assert page.evaluate("document.getElementById('experts').height") == layers * cell
    ask(page, "say a b c d")
    expect(page.locator("#figures")).to_contain_text(re.compile("6 of [0-9]+ fired"))
    is_lit = """([layer, expert, cell]) => {
      const context = document.getElementById("experts").getContext("2d");
      return context.getImageData((expert + .3) * cell, (layer + .3) * cell, 1, 1).data[3] > 0;
    }"""
    for layer, expert in ((0, 0), (1, 3), (2, 5)):  # drawn with the next frame
        page.wait_for_function(is_lit, arg=[layer, expert, cell])
    assert not page.evaluate(is_lit, [0, 3, cell])
    canvas.hover(position={"x": 2, "y": 2})
    expect(page.locator("#expert")).to_contain_text("expert 0")


def test_an_error_is_shown_where_the_answer_would_be(page: Page) -> None:
    ask(page, "break")
    expect(page.locator("li.error")).to_contain_text("out of order")
    expect(page.locator("#send")).to_have_text("Send")


def test_the_api_page_lists_every_route(page: Page, server: LiveServer) -> None:
    page.goto(f"{server.url}/docs")
    expect(page.locator("details.route")).to_have_count(12)
    chat = page.locator("details.route", has_text="/v1/chat/completions")
    chat.locator("summary").click()
    expect(chat.locator("table").first).to_contain_text("max_completion_tokens")
