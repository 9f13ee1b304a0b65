"""The chat page: responses, errors, and what is kept. On the fake engine."""

import json
import time
from contextlib import ExitStack

import pytest
from chat_page import ChatPage
from fake_engine import FakeLLM
from live_server import live_server
from playwright.sync_api import BrowserContext, Route, expect
from waiting import HANG_S

pytestmark = [pytest.mark.browser]
CHAT = "**/v1/chat/completions"


def test_an_answer_streams_and_its_figures_are_shown(chat: ChatPage) -> None:
    chat.ask("say Hello <b>there</b> °é")
    expect(chat.answers).to_have_text("Hello <b>there</b> °é")
    chat.page.locator(".stats summary").click()
    for words in ("tokens/s", "first token", "6 of 128 chosen"):
        expect(chat.page.locator(".stats")).to_contain_text(words)


def test_thoughts_are_folded_above_the_answer(chat: ChatPage) -> None:
    chat.ask("say <think>hm</think>yes")
    thoughts = chat.page.locator("li.assistant .thoughts")
    expect(thoughts.locator(".reasoning")).to_be_hidden()
    thoughts.locator("summary").click()
    expect(thoughts.locator(".reasoning")).to_have_text("hm")
    expect(chat.answers).to_have_text("yes")


def test_tool_calls_are_shown(chat: ChatPage) -> None:
    def call(route: Route) -> None:
        given = {"name": "get_weather", "arguments": '{"city": "Oslo"}'}
        calls = [{"index": 0, "id": "call_1", "type": "function", "function": given}]
        stream(route, {"tool_calls": calls}, reason="tool_calls")

    chat.page.route(CHAT, call)
    chat.ask("say what is the weather")
    expect(chat.page.locator(".call")).to_contain_text("get_weather")
    expect(chat.page.locator(".call")).to_contain_text('"city": "Oslo"')


def test_stop_and_escape_end_the_answer_and_the_engines_work(chat: ChatPage) -> None:
    for stop in (
        lambda: chat.page.click("#send"),
        lambda: chat.page.press("#text", "Escape"),
    ):
        chat.write("slow")
        expect(chat.answers.last).to_contain_text("b")
        stop()
        chat.ended()
        expect(chat.page.locator("li.assistant .note").last).to_contain_text("Stopped")
        expect(chat.page.locator(".error")).to_have_count(0)
        assert chat.engine.tickets[-1].finished.wait(HANG_S)
        assert chat.engine.tickets[-1].cancelled.is_set()


def test_an_answer_that_is_cut_off_says_so_and_can_be_continued(chat: ChatPage) -> None:
    chat.set("max_tokens", "3")
    chat.ask("count 9")
    expect(chat.page.locator(".note")).to_contain_text("Cut off at the token limit")
    before = chat.answers.inner_text()
    chat.button("Continue").click()
    chat.ended()
    expect(chat.page.locator("li.assistant")).to_have_count(1)
    assert len(chat.answers.inner_text()) > len(before)
    assert chat.prompt.endswith(before)


def test_enter_while_an_answer_runs_lets_the_message_wait(chat: ChatPage) -> None:
    held: list[Route] = []
    chat.page.route(CHAT, lambda route: held.append(route), times=1)
    chat.write("say first")
    chat.write("say next")
    chat.write("say last")
    expect(chat.page.locator("#queue li")).to_have_count(2)
    expect(chat.page.locator("#send")).to_have_attribute("aria-label", "Stop")
    stream(first(chat, held), {"content": "first"})
    expect(chat.answers).to_have_text(["first", "next", "last"])
    chat.ended()
    expect(chat.questions).to_have_text(["say first", "say next", "say last"])
    expect(chat.page.locator("#queue li")).to_have_count(0)


def test_a_waiting_message_can_be_taken_back_and_survives_a_stop(chat: ChatPage) -> None:
    chat.write("slow")
    expect(chat.answers).to_contain_text("b")
    chat.write("say next")
    chat.page.click("#send")
    chat.ended()
    expect(chat.page.locator("#queue")).to_contain_text("Not sent")
    chat.page.reload()
    chat.button("Take back").click()
    expect(chat.page.locator("#text")).to_have_value("say next")


def test_a_double_click_on_send_is_no_stop(chat: ChatPage) -> None:
    chat.page.fill("#text", "slow")
    chat.page.dblclick("#send")
    expect(chat.answers).to_contain_text("b")
    assert not chat.engine.tickets[-1].cancelled.is_set()
    chat.page.click("#send")
    chat.ended()


def test_an_error_in_mid_answer_keeps_what_was_there(chat: ChatPage) -> None:
    chat.ask("break")
    expect(chat.answers).to_have_text("Hello")
    expect(chat.page.locator(".error")).to_contain_text("out of order")
    expect(chat.button("Retry")).to_be_in_viewport()


def test_a_message_that_failed_is_in_view_and_not_sent_again(chat: ChatPage) -> None:
    for _ in range(4):  # more than fits the window
        chat.ask("say " + "a\n\n" * 20)
    chat.page.locator("#scroller").evaluate("list => list.scrollTo(0, 0)")
    too_long = "x y z " * 1000
    chat.ask(too_long)
    error = chat.page.locator(".error")
    expect(error).to_contain_text("maximum context length is 1024 tokens")
    expect(error.get_by_text("Retry")).to_be_in_viewport()
    expect(chat.page.locator("li.failed")).to_have_count(1)
    error.get_by_text("Retry").click()
    expect(error).to_contain_text("maximum context length")
    chat.ask("say short")
    expect(chat.answers.last).to_have_text("short")
    assert "x y z" not in chat.prompt
    assert chat.prompt.count("say a") == 4


def test_retry_after_a_lost_server_sends_the_question_once(chat: ChatPage) -> None:
    chat.page.route(CHAT, lambda route: route.abort("connectionrefused"))
    chat.ask("say one")
    expect(chat.page.locator(".error")).to_contain_text("no connection to the server")
    chat.page.unroute(CHAT)
    chat.button("Retry").click()
    expect(chat.answers).to_have_text(["one"])
    expect(chat.page.locator(".error")).to_have_count(0)
    assert chat.prompt.count("say one") == 1


def test_a_connection_lost_in_mid_answer_keeps_what_was_there(chat: ChatPage) -> None:
    chat.page.route(CHAT, lambda route: stream(route, {"content": "half of"}, is_whole=False))
    chat.ask("say half of it")
    expect(chat.answers).to_have_text("half of")
    expect(chat.page.locator(".error")).to_contain_text(
        "the connection was lost before the response ended"
    )
    expect(chat.page.locator(".error")).to_be_in_viewport()
    chat.page.unroute(CHAT)
    chat.ask("say fine")
    expect(chat.answers.last).to_have_text("fine")
    assert "half of" in chat.prompt
    assert "connection" not in chat.prompt


def test_a_server_that_ends_and_comes_back(context: BrowserContext) -> None:
    with ExitStack() as first, ExitStack() as browser:
        server = first.enter_context(live_server(FakeLLM()))
        chat = browser.enter_context(ChatPage.opened(context, server))
        chat.write("slow")
        expect(chat.answers).to_contain_text("b")
        first.close()
        chat.ended()
        expect(chat.answers).to_contain_text("b")
        expect(chat.page.locator(".error")).to_be_in_viewport()
        expect(chat.page.locator("#dot")).to_have_class("dot gone")
        expect(chat.page.locator("#model")).to_have_text("no connection")
        with live_server(FakeLLM(), port=server.port):
            expect(chat.page.locator("#dot")).to_have_class("dot here")
            chat.ask("say again")
            expect(chat.answers.last).to_have_text("again")
            browser.close()


def test_a_wrong_key_asks_for_the_key(context: BrowserContext) -> None:
    with live_server(FakeLLM(), api_keys=("secret",)) as server:
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#model")).to_contain_text("API key")
        page.fill("#text", "say one")
        page.press("#text", "Enter")
        expect(page.locator(".error")).to_contain_text("wants an API key")
        page.get_by_role("button", name="Enter key").click()
        page.fill("#key", "secret")
        page.press("#key", "Tab")
        page.keyboard.press("Escape")
        expect(page.locator("#dot")).to_have_class("dot here")
        page.get_by_role("button", name="Retry").click()
        expect(page.locator("li.assistant .content")).to_have_text("one")
        page.close()


def test_a_reload_in_mid_answer_keeps_what_was_there(chat: ChatPage) -> None:
    chat.write("slow")
    expect(chat.answers).to_contain_text("bbbb")
    seen = chat.answers.inner_text()
    chat.page.reload()
    expect(chat.answers).to_contain_text(seen)
    expect(chat.page.locator(".error")).to_contain_text("cut off")
    expect(chat.button("Continue")).to_be_visible()
    assert chat.engine.tickets[-1].finished.wait(HANG_S)


def test_an_answer_is_saved_while_it_streams(chat: ChatPage) -> None:
    """A tab that crashes says no goodbye: what it showed must be in the database already."""
    chat.write("slow")
    chat.page.evaluate(
        """async () => {
          const { Store } = await import("/static/store.js");
          const store = new Store();
          await store.open();
          const isSaved = ({ content, state }) => state === "streaming" && content.includes("bbbb");
          while (!(await store.messages()).some(isSaved)) {
            await new Promise((done) => setTimeout(done, 20));
          }
        }"""
    )
    chat.page.click("#send")
    chat.ended()


def test_back_from_the_api_page_finds_the_conversation_and_the_draft(chat: ChatPage) -> None:
    chat.set("system", "Be brief.")
    chat.ask("say <think>hm</think>one")
    chat.page.fill("#text", "say two")
    chat.page.get_by_role("link", name="API").click()
    expect(chat.page.locator("details.route").first).to_be_visible()
    chat.page.go_back()
    expect(chat.answers).to_have_text(["one"])
    expect(chat.page.locator("#text")).to_have_value("say two")
    chat.page.press("#text", "Enter")
    expect(chat.answers).to_have_text(["one", "two"])
    assert "Be brief." in chat.prompt
    assert "one" in chat.prompt


def test_editing_makes_a_branch(chat: ChatPage) -> None:
    chat.ask("say one")
    chat.ask("say two")
    chat.button("Edit").first.click()
    chat.page.get_by_label("Edit message").fill("say three")
    chat.page.get_by_label("Edit message").press("Enter")
    expect(chat.answers).to_have_text(["three"])
    chat.ended()
    expect(chat.page.locator(".branches")).to_have_text("2/2")
    chat.button("Previous branch").click()
    expect(chat.answers).to_have_text(["one", "two"])
    chat.page.reload()
    expect(chat.answers).to_have_text(["one", "two"])
    chat.button("Next branch").click()
    expect(chat.answers).to_have_text(["three"])


def test_escape_ends_an_edit_without_a_change(chat: ChatPage) -> None:
    chat.ask("say one")
    chat.button("Edit").click()
    chat.page.get_by_label("Edit message").fill("say three")
    chat.page.get_by_label("Edit message").press("Escape")
    expect(chat.questions).to_have_text(["say one"])
    expect(chat.page.locator("#text")).to_be_focused()


def test_regenerating_makes_a_branch(chat: ChatPage) -> None:
    chat.ask("say one")
    before = len(chat.engine.requests)
    chat.button("Regenerate").click()
    expect(chat.page.locator("li.assistant .branches")).to_have_text("2/2")
    expect(chat.answers).to_have_text(["one"])
    assert len(chat.engine.requests) == before + 1


def test_up_recalls_messages(chat: ChatPage) -> None:
    chat.ask("say one")
    chat.ask("say two")
    box = chat.page.locator("#text")
    for key, text in (("Up", "say two"), ("Up", "say one"), ("Down", "say two"), ("Down", "")):
        box.press(f"Arrow{key}")
        expect(box).to_have_value(text)


def test_a_new_chat_by_keys_keeps_the_old_one(chat: ChatPage) -> None:
    chat.ask("say one")
    chat.page.keyboard.press("Control+Shift+O")
    expect(chat.page.locator("#empty")).to_be_visible()
    expect(chat.page.locator("#text")).to_be_focused()
    chat.page.go_back()
    expect(chat.answers).to_have_text(["one"])


def test_a_response_goes_on_while_another_conversation_is_shown(chat: ChatPage) -> None:
    held: list[Route] = []
    chat.page.route(CHAT, lambda route: held.append(route), times=1)
    chat.write("say one")
    route = first(chat, held)
    chat.page.click("#new")
    chat.ask("say other")
    expect(chat.answers).to_have_text(["other"])
    stream(route, {"content": "one"})
    chat.page.locator("#chats a", has_text="say one").click()
    expect(chat.answers).to_have_text(["one"])


def stream(
    route: Route, delta: dict[str, object], reason: str = "stop", is_whole: bool = True
) -> None:
    """Respond with a stream of one delta."""
    events = [{"choices": [{"index": 0, "delta": delta}]}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    if is_whole:
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
        body += f"data: {json.dumps(end)}\n\ndata: [DONE]\n\n"
    route.fulfill(status=200, content_type="text/event-stream", body=body)


def first(chat: ChatPage, held: list[Route]) -> Route:
    """Wait until a request is held."""
    until = time.monotonic() + HANG_S
    while not held:
        assert time.monotonic() < until
        chat.page.wait_for_timeout(10)
    return held[0]
