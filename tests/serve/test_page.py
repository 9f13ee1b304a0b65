"""The chat page in a real, headless Chromium, on the fake engine."""

import json
import re
import shutil
from collections.abc import Iterator

import pytest
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    Route,
    expect,
    sync_playwright,
)
from waiting import HANG_S, eventually

from hybridmoe.experts.stats import ExpertCounters, ExpertStats

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed"),
]


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=1000 * HANG_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(server: LiveServer, browser: Browser) -> Iterator[Page]:
    """Open the page. Fails if it has an error or requests anything of another host."""
    wrong: list[str] = []

    def check(request: Request) -> None:
        if not request.url.startswith(server.url):
            wrong.append(request.url)

    page = browser.new_page()  # with a session of its own
    page.set_default_timeout(1000 * HANG_S)
    page.on("request", check)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if is_fault(m) else None)
    page.goto(server.url)
    expect(page.locator("#model")).to_contain_text("test")
    yield page
    page.close()
    assert wrong == []


def is_fault(message: ConsoleMessage) -> bool:
    """Tell faults from the 400s and lost connections that tests cause, which Chromium logs too."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


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


def test_the_tiers_that_experts_were_found_in_are_shown(page: Page, llm: FakeLLM) -> None:
    ask(page, "say one")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#figures")).not_to_contain_text("VRAM")
    ram = ExpertStats(2, 2, 8, 1, ExpertCounters(3, 1, bytes_read=2_500_000_000, read_wait_s=0.5))
    llm.engine.experts = ExpertStats(4, 3, 8, 1, ExpertCounters(6, 4), place="VRAM", below=ram)
    try:
        for _ in range(2):
            ask(page, "say two")
            expect(page.locator("#send")).to_have_text("Send")
            figures = page.locator("#figures")
            expect(figures).to_contain_text("60.0 % VRAM, 30.0 % RAM, 10.0 % disk")
            expect(figures).to_contain_text("2.50 GB read, 0.50 s waited")
    finally:
        llm.engine.experts = None


def test_stop_ends_the_answer_and_the_engines_work(page: Page, llm: FakeLLM) -> None:
    ask(page, "slow")
    expect(page.locator("li.assistant .content")).to_contain_text("b")
    expect(page.locator("#send")).to_have_text("Stop")
    page.click("#send")
    expect(page.locator("#status")).to_have_text("stopped")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("li.note")).to_have_text("stopped")
    expect(page.locator("li.error")).to_have_count(0)
    assert llm.engine.tickets[-1].finished.wait(HANG_S)
    assert llm.engine.tickets[-1].cancelled.is_set()


def test_an_answer_that_is_cut_off_says_so(page: Page) -> None:
    page.locator("#settings summary").click()
    page.fill("#max-tokens", "3")
    ask(page, "count 9")
    expect(page.locator("li.note")).to_contain_text("cut off")
    expect(page.locator("li.error")).to_have_count(0)


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
    expect(page.locator("#figures")).to_contain_text(re.compile("6 of [0-9]+ chosen"))
    is_lit = """([layer, expert, cell]) => {
      const context = document.getElementById("experts").getContext("2d");
      return context.getImageData((expert + .3) * cell, (layer + .3) * cell, 1, 1).data[3] > 0;
    }"""
    for layer, expert in ((0, 0), (1, 3), (2, 5)):  # drawn with the next frame
        at = [layer, expert, cell]
        eventually(
            lambda at=at: page.evaluate(is_lit, at)
        )  # the page's policy forbids its own polls
    assert not page.evaluate(is_lit, [0, 3, cell])
    canvas.hover(position={"x": 2, "y": 2})
    expect(page.locator("#expert")).to_contain_text("expert 0")


def test_enter_while_an_answer_runs_ends_nothing(page: Page, llm: FakeLLM) -> None:
    ask(page, "slow")
    expect(page.locator("li.assistant .content")).to_contain_text("b")
    ask(page, "say next")
    expect(page.locator("#text")).to_have_value("say next")
    expect(page.locator("#send")).to_have_text("Stop")
    length = len(page.locator("li.assistant .content").inner_text())
    longer = re.compile(f".{{{length + 1},}}", re.DOTALL)
    expect(page.locator("li.assistant .content")).to_have_text(longer)
    assert not llm.engine.tickets[-1].cancelled.is_set()
    page.click("#send")
    expect(page.locator("#send")).to_have_text("Send")
    page.press("#text", "Enter")
    expect(page.locator("li.assistant .content").last).to_have_text("next")


def test_a_double_click_on_send_is_no_stop(page: Page, llm: FakeLLM) -> None:
    page.fill("#text", "slow")
    page.dblclick("#send")
    expect(page.locator("li.assistant .content")).to_contain_text("b")
    assert not llm.engine.tickets[-1].cancelled.is_set()
    page.click("#send")
    expect(page.locator("#send")).to_have_text("Send")


def test_an_error_in_mid_answer_keeps_what_was_there(page: Page) -> None:
    ask(page, "break")
    expect(page.locator("li.assistant .content")).to_have_text("Hello")
    expect(page.locator("li.error")).to_contain_text("out of order")
    expect(page.locator("#send")).to_have_text("Send")


def test_a_message_that_failed_is_in_view_and_not_sent_again(page: Page, llm: FakeLLM) -> None:
    for _ in range(6):  # more than fits the window
        ask(page, "say " + "a\n" * 20)
        expect(page.locator("#send")).to_have_text("Send")
    page.locator("#messages").evaluate("list => list.scrollTo(0, 0)")
    too_long = "x y z " * 1000
    ask(page, too_long)
    error = page.locator("li.error")
    expect(error).to_contain_text("maximum context length is 1024 tokens")
    expect(error).to_be_in_viewport()
    expect(page.locator("li.failed")).to_have_count(1)
    error.get_by_text("Try again").click()
    expect(error).to_contain_text("maximum context length")
    error.get_by_text("Edit").click()
    expect(page.locator("li.failed textarea")).to_have_value(too_long.strip())
    page.locator("li.failed textarea").fill("say short")
    page.locator("li.failed").get_by_text("Send").click()
    expect(page.locator("li.assistant .content").last).to_have_text("short")
    expect(page.locator("li.failed, li.error")).to_have_count(0)
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids)
    assert "x y z" not in prompt
    assert prompt.count("say a") == 6


def test_another_answer_that_fails_leaves_the_one_before(page: Page) -> None:
    ask(page, "say one")
    expect(page.locator("#send")).to_have_text("Send")
    page.route("**/v1/chat/completions", lambda route: route.abort("connectionrefused"))
    page.get_by_text("Regenerate").click()
    expect(page.locator("li.error")).to_contain_text("no connection to the server")
    expect(page.locator("li.assistant .content")).to_have_text(["one"])
    page.unroute("**/v1/chat/completions")
    page.get_by_text("Try again").click()
    expect(page.locator("li.error")).to_have_count(0)
    expect(page.locator("li.assistant .content")).to_have_text(["one"])


def test_a_connection_lost_in_mid_answer_keeps_what_was_there(page: Page, llm: FakeLLM) -> None:
    def cut(route: Route) -> None:
        event = {"choices": [{"index": 0, "delta": {"content": "half of"}}]}
        body = f"data: {json.dumps(event)}\n\n"
        route.fulfill(status=200, content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", cut)
    ask(page, "say half of it")
    expect(page.locator("li.assistant .content")).to_have_text("half of")
    expect(page.locator("li.error")).to_have_text(
        "the connection was lost before the response ended"
    )
    expect(page.locator("li.error")).to_be_in_viewport()
    page.unroute("**/v1/chat/completions")
    ask(page, "say fine")
    expect(page.locator("li.assistant .content").last).to_have_text("fine")
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids)
    assert "half of" in prompt
    assert "connection" not in prompt


def test_a_reload_keeps_the_conversation(page: Page, llm: FakeLLM) -> None:
    page.locator("#settings summary").click()
    page.fill("#system", "Be brief.")
    ask(page, "say <think>hm</think>one")
    expect(page.locator("#send")).to_have_text("Send")
    ask(page, "x y z " * 1000)
    expect(page.locator("li.error")).to_have_count(1)
    page.reload()
    expect(page.locator("li.assistant .content")).to_have_text(["one"])
    expect(page.locator("li.assistant .reasoning")).to_have_text(["hm"])
    expect(page.locator("li.failed")).to_have_count(1)
    ask(page, "say two")
    expect(page.locator("li.assistant .content")).to_have_text(["one", "two"])
    prompt = llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids)
    assert "Be brief." in prompt
    assert "one" in prompt
    page.click("#new")
    page.reload()
    expect(page.locator("#model")).to_contain_text("test")
    expect(page.locator("#messages li")).to_have_count(0)


def test_a_reload_in_mid_answer_keeps_what_was_there(page: Page, llm: FakeLLM) -> None:
    ask(page, "slow")
    expect(page.locator("li.assistant .content")).to_contain_text("b")
    page.reload()
    expect(page.locator("li.assistant .content")).to_contain_text("b")
    expect(page.locator("li.error")).to_have_count(1)
    assert llm.engine.tickets[-1].finished.wait(HANG_S)


def test_what_is_kept_over_a_reload_is_bounded(page: Page) -> None:
    page.evaluate(
        """() => {
          const content = "x".repeat(300_000), turns = [];
          for (let i = 0; i < 8; i++) turns.push({ role: i % 2 ? "assistant" : "user", content });
          const state = { turns, failed: null, isCut: false, attempt: null };
          sessionStorage.setItem("hybridmoe.conversation", JSON.stringify(state));
          addEventListener("pagehide", () => {  // after the page's own, which saves what it has
            sessionStorage.setItem("hybridmoe.conversation", JSON.stringify(state));
          });
        }"""
    )
    page.reload()
    expect(page.locator("#messages li")).to_have_count(8)
    page.reload()
    expect(page.locator("#status")).to_contain_text("too long to keep")
    expect(page.locator("#messages li")).to_have_count(2)
    assert page.evaluate("sessionStorage.getItem('hybridmoe.conversation').length") < 1_000_000


def test_what_another_page_has_stored_is_no_conversation(page: Page) -> None:
    for state in ('{"turns": [{"role": 7}]}', "[", '"x"', "{}"):
        page.evaluate(
            """(state) => addEventListener("pagehide", () =>
              sessionStorage.setItem("hybridmoe.conversation", state))""",
            state,
        )
        page.reload()
        expect(page.locator("#model")).to_contain_text("test")
        expect(page.locator("#messages li")).to_have_count(0)
    ask(page, "say fine")
    expect(page.locator("li.assistant .content")).to_have_text("fine")


def test_the_api_page_lists_every_route(page: Page, server: LiveServer) -> None:
    page.goto(f"{server.url}/docs")
    expect(page.locator("details.route")).to_have_count(14)
    chat = page.locator("details.route", has_text="/v1/chat/completions")
    chat.locator("summary").click()
    expect(chat.locator("table").first).to_contain_text("max_completion_tokens")
