"""The chat page's expert map: by tier and frequency, at any size, and what is kept of it."""

import struct
from pathlib import Path
from typing import Any

import pytest
from chat_page import ChatPage
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser]
DRAWN = "id => document.getElementById(id).toDataURL()"
K2 = """async () => {
  const { ExpertTrace } = await import("/static/experts.js");
  const { Strip } = await import("/static/heat.js");
  const { MapView } = await import("/static/mapview.js");
  const trace = new ExpertTrace({ layers: 60, experts: 384, first: 1 });
  const token = Array.from({ length: 60 }, (_, i) => [i, 383 - i, 7, 8, 9, 10, 11, 12]);
  const tiers = Array(60).fill("VVRRRRRD");
  trace.add([token, token], [tiers, tiers]);
  const counts = trace.counts(0, 2), view = new MapView();
  view.open(trace);
  view.draw();
  const strip = document.createElement("canvas");
  new Strip(strip).show(trace);
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const { layout, canvas } = view;
  return [counts.total(383), counts.total(59 * 384 + 59), counts.total(1), layout.cell >= 3,
    layout.high >= 3, canvas.clientWidth > 3 * 384, strip.width, strip.height];
}"""


def test_the_map_shows_what_fired_by_pointer_and_keys(chat: ChatPage) -> None:
    chat.ask("say a b c d")
    expect(chat.page.locator("#strip-row")).to_be_visible()
    chat.page.click("#open-map")
    canvas = chat.page.get_by_role("img", name="Heat map of chosen experts")
    canvas.focus()
    for key, words in (
        ("Right", "layer 1, expert 0: 4 of 4 tokens (100.0 %) · VRAM 4"),
        ("Right", "layer 1, expert 1: 4 of 4 tokens (100.0 %) · RAM 4"),
        ("Down", "layer 2, expert 1: 0 of"),
    ):
        canvas.press(f"Arrow{key}")
        expect(chat.page.locator("#expert")).to_contain_text(words)
    canvas.hover(position={"x": 46, "y": 60})
    expect(chat.page.locator("#expert")).to_contain_text("expert 0")
    expect(chat.page.locator("#expert")).to_contain_text("(100.0 %)")
    canvas.hover(position={"x": 5, "y": 5})
    expect(chat.page.locator("#expert")).to_contain_text("VRAM 17 %, RAM 50 %, disk 33 %")
    chat.page.locator("#map-token").fill("2")
    expect(chat.page.locator("#map-at")).to_contain_text("token 2 of")
    with chat.page.expect_download() as download:
        chat.button("Save as PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_kimi_k2s_experts_are_drawn_at_a_readable_size(chat: ChatPage) -> None:
    drawn = chat.page.evaluate(K2)
    assert drawn == [2, 2, 0, True, True, True, 96, 8]
    chat.page.set_viewport_size({"width": 390, "height": 844})  # upright: experts go down
    canvas: Any = chat.page.locator("#experts").bounding_box()
    frame: Any = chat.page.locator("#map-frame").bounding_box()
    assert canvas["width"] <= frame["width"]
    assert canvas["height"] > 3 * 384
    chat.page.locator("#experts").press("ArrowRight")
    chat.page.locator("#experts").press("Shift+ArrowRight")
    expect(chat.page.locator("#expert")).to_contain_text("layer 11, expert 0")
    chat.page.locator("#experts").press("ArrowUp")
    for _ in range(30):
        chat.page.locator("#experts").press("Shift+ArrowDown")
    expect(chat.page.locator("#expert")).to_contain_text("layer 11, expert 300")
    expect(chat.page.locator("#expert")).to_be_in_viewport()
    expect(chat.page.locator("#map-mark")).to_be_in_viewport()


def test_the_strip_follows_the_systems_theme(chat: ChatPage) -> None:
    chat.page.emulate_media(color_scheme="light")
    chat.ask("say a b")
    drawn = "document.getElementById('strip').toDataURL()"
    chat.page.wait_for_function("document.getElementById('strip').width > 1")
    light = chat.page.evaluate(drawn)
    chat.page.emulate_media(color_scheme="dark")
    chat.page.wait_for_function(f"light => {drawn} !== light", arg=light)


def test_colours_are_by_tier_or_by_frequency_and_stay(chat: ChatPage) -> None:
    chat.ask("say a b c d")
    chat.page.click("#open-map")
    choice = chat.page.get_by_label("Colour")
    expect(choice).to_have_value("tier")  # of several
    pictures = [(chat.page.evaluate(DRAWN, "experts"), chat.page.evaluate(DRAWN, "strip"))]
    choice.select_option("frequency")
    chat.page.wait_for_function(f"was => ({DRAWN})('strip') !== was", arg=pictures[0][1])
    assert chat.page.evaluate(DRAWN, "experts") != pictures[0][0]
    chat.page.reload()
    chat.page.click("#strip-button")
    expect(choice).to_have_value("frequency")


def test_traces_are_kept_with_the_conversation(chat: ChatPage) -> None:
    words = chat.page.locator("#expert")
    for text in ("say a b c d", "say a"):
        chat.ask(text)
    chat.page.reload()
    expect(chat.page.locator("#strip-row")).to_be_visible()
    chat.page.click("#open-map")
    expect(chat.page.locator("#map-at")).to_have_text("token 1 of 1")
    chat.page.keyboard.press("Escape")
    chat.button("Experts of this response").first.click()
    expect(chat.page.locator("#map-at")).to_have_text("token 4 of 4")
    expect(words).to_contain_text("VRAM 17 %, RAM 50 %, disk 33 %")
    chat.page.keyboard.press("Escape")
    chat.page.get_by_role("button", name="Delete say").click()
    expect(chat.page.locator("#chats a")).to_have_count(0)
    assert traced(chat) == 0
    chat.button("Undo").click()
    expect(chat.answers).to_have_count(2)
    assert traced(chat) == 2
    chat.button("Experts of this response").first.click()
    expect(chat.page.locator("#map-at")).to_have_text("token 4 of 4")


def test_old_traces_make_room_for_new_ones(chat: ChatPage) -> None:
    removed = chat.page.evaluate(
        """async () => {
          const { Store } = await import("/static/store.js");
          const store = new Store(), removed = [];
          await store.open();
          for (const id of ["first", "second", "third"]) {
            const ids = new Int16Array(9e6), tiers = new Uint8Array(9e6);
            const at = Date.now() + removed.length;
            removed.push(await store.putTrace({ chat: "x", id, at, ids, tiers }));
          }
          return removed;
        }"""
    )
    assert removed == [[], [], ["first"]]
    assert traced(chat) == 2


def test_a_picture_has_the_whole_map_of_a_large_model(chat: ChatPage) -> None:
    chat.page.evaluate(K2)
    with chat.page.expect_download() as download:
        chat.button("Save as PNG").last.click()
    data = Path(download.value.path()).read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert width > 2 * 3 * 384
    assert height > 2 * 3 * 60


def traced(chat: ChatPage) -> int:
    """Count the traces in the database."""
    count: int = chat.page.evaluate(
        """async () => {
          const { Store } = await import("/static/store.js");
          const store = new Store();
          await store.open();
          return (await store.traced()).length;
        }"""
    )
    return count
