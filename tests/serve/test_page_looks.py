"""The page's list of conversations, settings, map, sizes, themes and accessibility."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from chat_page import ChatPage
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser]
OVERFLOW = "document.querySelector('dialog[open]').scrollWidth"
AXE = Path(__file__).parent.parent / "vendor" / "axe.min.js"


def test_conversations_are_listed_renamed_found_deleted_and_undone(chat: ChatPage) -> None:
    for text in ("say apples", "say pears"):
        chat.page.click("#new")
        chat.ask(text)
    titles = chat.page.locator("#chats a")
    expect(titles).to_have_text(["say pears", "say apples"])
    chat.page.get_by_role("button", name="Rename say pears").click()
    chat.page.get_by_label("Title").fill("Fruit")
    chat.page.get_by_label("Title").press("Enter")
    expect(titles).to_have_text(["Fruit", "say apples"])
    chat.page.fill("#search", "APPLES")
    expect(titles).to_have_text(["say apples"])
    chat.page.fill("#search", "pears")  # in the text only
    expect(titles).to_have_text(["Fruit"])
    chat.page.fill("#search", "")
    chat.page.get_by_role("button", name="Delete Fruit").click()
    expect(titles).to_have_text(["say apples"])
    expect(chat.page.locator("#empty")).to_be_visible()
    chat.button("Undo").click()
    expect(titles).to_have_text(["Fruit", "say apples"])
    expect(chat.answers).to_have_text(["pears"])


@pytest.mark.parametrize("width", [1280, 390])
def test_keys_reach_the_search_at_any_width(chat: ChatPage, width: int) -> None:
    chat.page.set_viewport_size({"width": width, "height": 800})
    if width == 1280:
        chat.button("Conversations").click()  # hides the list
        expect(chat.page.locator("#search")).to_be_hidden()
    chat.page.keyboard.press("Control+K")
    expect(chat.page.locator("#search")).to_be_focused()


def test_what_is_exported_can_be_imported(chat: ChatPage, tmp_path: Path) -> None:
    chat.ask("say <think>hm</think>one")
    with chat.page.expect_download() as download:
        chat.button("Export all").click()
    path = tmp_path / "chats.json"
    download.value.save_as(path)
    chat.page.get_by_role("button", name="Delete say").click()
    expect(chat.page.locator("#chats a")).to_have_count(0)
    chat.page.set_input_files("#import", path)
    chat.page.locator("#chats a").click()
    expect(chat.answers).to_have_text(["one"])
    expect(chat.page.locator(".reasoning")).to_have_text("hm")


_DAMAGES: tuple[Callable[[Any], None], ...] = (
    lambda chat: chat["messages"][0].update(content=7),
    lambda chat: chat["messages"][1].update(parent="x"),
    lambda chat: chat["messages"][0].update(parent="2"),
    lambda chat: chat["messages"][0].update(role="system"),
    lambda chat: chat.update(messages={}),
    lambda chat: chat.update(id=None),
)


def test_a_damaged_file_is_not_imported(chat: ChatPage) -> None:
    for damage in _DAMAGES:
        shared = {"chat": "a", "created": 1}
        one: dict[str, Any] = {
            "id": "a", "title": "t", "updated": 1, "created": 1, "leaf": "2",
            "messages": [
                {**shared, "id": "1", "parent": None, "role": "user", "content": "hi"},
                {**shared, "id": "2", "parent": "1", "role": "assistant", "content": "ho"},
            ],
        }  # fmt: skip
        damage(one)
        given = {"format": "hybridmoe.conversations", "version": 1, "conversations": [one]}
        file: Any = {"name": "x.json", "mimeType": "application/json"}
        file["buffer"] = json.dumps(given).encode()
        chat.page.evaluate("document.getElementById('toast').replaceChildren()")
        chat.page.set_input_files("#import", [file])
        expect(chat.page.locator("#toast")).to_contain_text("conversation 1 of the file is damaged")
        expect(chat.page.locator("#chats a")).to_have_count(0)


def test_settings_reach_the_request_and_stay(chat: ChatPage) -> None:
    chat.set("temperature", "0.5")
    chat.set("top_n_sigma", "2")
    chat.page.reload()
    chat.ask("say one")
    params = chat.engine.requests[-1].params
    assert (params.temperature, params.top_n_sigma) == (0.5, 2.0)
    chat.page.click("#open-settings")
    chat.page.select_option("#preset", "Exact")
    chat.page.keyboard.press("Escape")
    chat.ask("say two")
    params = chat.engine.requests[-1].params
    assert params.temperature == 0
    assert params.top_n_sigma != 2.0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("temperature", "5", "Temperature"),
        ("top_k", "1.5", "Top k"),
        ("schema", "{", "JSON schema"),
    ],
)
def test_a_wrong_setting_is_named_and_nothing_is_lost(
    chat: ChatPage, field: str, value: str, words: str
) -> None:
    chat.set(field, value)
    chat.write("say one")
    expect(chat.page.locator("#toast")).to_contain_text(f"Not sent. {words}:")
    expect(chat.page.locator("#text")).to_have_value("say one")


def test_what_is_no_number_is_not_taken_for_the_default(chat: ChatPage) -> None:
    chat.page.click("#open-settings")
    chat.page.locator("#temperature").press_sequentially("1e")
    chat.page.keyboard.press("Escape")
    chat.write("say one")
    expect(chat.page.locator("#toast")).to_contain_text("Not sent. Temperature:")


def test_text_files_are_sent_and_others_refused(chat: ChatPage) -> None:
    files = [("a.txt", b"alpha ``` beta"), ("b.bin", b"\0\1"), ("c.txt", b"\xff\xfe\xfa")]
    chat.page.set_input_files(
        "#attach", [{"name": n, "mimeType": "text/plain", "buffer": b} for n, b in files]
    )
    expect(chat.page.locator(".chip")).to_have_count(1)
    expect(chat.page.locator("#toast")).to_contain_text("is not a text file")
    chat.ask("say one")
    assert "File a.txt:\n````\nalpha ``` beta\n````\n\nsay one" in chat.prompt
    expect(chat.page.locator("li.user .file")).to_contain_text("a.txt")


def test_a_long_paste_is_a_file(chat: ChatPage) -> None:
    chat.page.evaluate(
        """() => {
          const clipboardData = new DataTransfer(), fields = { bubbles: true, cancelable: true };
          clipboardData.setData("text/plain", "line of a log\\n".repeat(400));
          document.getElementById("text").dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, ...fields }));
        }"""
    )
    expect(chat.page.locator(".chip")).to_contain_text("pasted.txt · 5.6 kB")
    expect(chat.page.locator("#text")).to_have_value("")


def test_the_page_fits_and_breaks_no_rule_of_accessibility(chat: ChatPage) -> None:
    page = chat.page
    problems = axe(chat)
    chat.ask("say <think>hm</think># Head\n\n```python\nx = 1  # a\n```\n\n| a |\n|---|\n| 1 |")
    chat.ask("say " + "longword" * 40)
    views: tuple[tuple[int, int, Literal["light", "dark"]], ...]
    # A phone, small, and on its side; a desk's screen, also at 200 and 400 % (WCAG 1.4.10)
    views = (
        (320, 640, "light"), (390, 844, "dark"), (844, 390, "light"), (640, 400, "dark"),
        (320, 256, "light"), (1280, 800, "light"), (1280, 800, "dark"),
    )  # fmt: skip
    for width, height, scheme in views:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.set_viewport_size({"width": width, "height": height})
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("document.getElementById('scroller').scrollWidth") <= width
        assert page.locator("header").bounding_box()["height"] <= 60  # type: ignore[index]
        box: Any = page.locator("#ask").bounding_box()
        assert box["y"] + box["height"] <= height
        talk: Any = page.locator("#scroller").bounding_box()
        assert talk["height"] >= 0.5 * height
        if width < 500:
            for name in ("Send", "Settings", "Expert map", "Conversations"):
                size: Any = chat.button(name).bounding_box()
                assert min(size["width"], size["height"]) >= 44
        problems += axe(chat)
        if width == 390:
            chat.button("Conversations").click()
            problems += axe(chat)
            page.locator("#shade").click(position={"x": 380, "y": 400})
        if width == 390 or (scheme, width) == ("light", 1280):
            continue
        for name in ("#open-settings", "#open-map"):
            page.click(name)
            assert page.evaluate(OVERFLOW) <= width
            problems += axe(chat) if height >= 640 else []
            page.keyboard.press("Escape")
    assert problems == []


def axe(chat: ChatPage) -> list[str]:
    """Find violations of axe-core's rules."""
    page = chat.page
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def test_long_questions_are_folded(chat: ChatPage) -> None:
    chat.ask("say " + "a\n" * 100)
    question: Any = chat.questions.bounding_box()
    assert question["height"] < 300
    chat.button("Show all").click()
    question = chat.questions.bounding_box()
    assert question["height"] > 1000
    expect(chat.button("Show less")).to_be_attached()


def test_the_title_names_the_conversation_and_the_model(chat: ChatPage) -> None:
    expect(chat.page).to_have_title("test · hybridmoe")
    chat.ask("say one")
    expect(chat.page).to_have_title("say one · test")


def test_an_answer_is_announced_once_and_speakers_are_named(chat: ChatPage) -> None:
    chat.page.evaluate(
        """() => {
          window.said = [];
          const place = document.getElementById("announce");
          const watcher = new MutationObserver(() => said.push(place.textContent));
          watcher.observe(place, { childList: true });
        }"""
    )
    chat.ask("say one two three")
    assert chat.page.evaluate("said") == ["one two three"]
    expect(chat.page.locator("#messages h2")).to_have_text(["You", "hybridmoe"])
    assert chat.page.locator("#messages [aria-live], #messages [role=status]").count() == 0


def test_the_theme_is_toggled_and_kept(chat: ChatPage) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = chat.page.evaluate(colour)
    chat.button("Dark or light").click()
    dark = chat.page.evaluate(colour)
    assert light != dark
    chat.page.reload()
    assert chat.page.evaluate(colour) == dark


def test_the_end_stays_in_view_when_the_window_shrinks(chat: ChatPage) -> None:
    chat.ask("say " + "a\n\n" * 40 + "end")
    expect(chat.answers.get_by_text("end")).to_be_in_viewport()
    chat.page.set_viewport_size({"width": 390, "height": 400})
    expect(chat.answers.get_by_text("end")).to_be_in_viewport()


def test_the_box_grows(chat: ChatPage) -> None:
    box = chat.page.locator("#text")
    before: Any = box.bounding_box()
    box.fill("\n".join("abcdefgh"))
    after: Any = box.bounding_box()
    assert after["height"] > before["height"] + 60


def test_the_api_page_lists_every_route(chat: ChatPage) -> None:
    page = chat.page
    page.goto(f"{chat.server.url}/docs")
    routes = page.locator("main details.route")
    expect(routes.first).to_be_visible()
    assert routes.count() > 30
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    expect(page.locator("main table").first).to_contain_text("max_completion_tokens")
    assert "`" not in page.locator("main").inner_text()
    seed = page.locator("tr", has=page.get_by_text("seed", exact=True)).first
    expect(seed).to_contain_text("from -9223372036854775808 to 18446744073709551615")
    for width in (1280, 320):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert axe(chat) == []


def test_the_api_page_sends_its_examples(chat: ChatPage) -> None:
    chat.page.goto(f"{chat.server.url}/docs#post/v1/messages")
    one = chat.page.locator("details.route", has_text="POST/v1/messages").first
    expect(one.locator("pre").first).to_contain_text('"model": "test"')  # the served one
    one.get_by_role("button", name="Send").click()
    expect(one.get_by_label("Reply")).to_contain_text("200 OK")
    expect(one.get_by_label("Reply")).to_contain_text("How can I help?")
