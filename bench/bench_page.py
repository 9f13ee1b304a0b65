"""Time to open a conversation of the chat page among many, in a headless Chromium.

    python bench/bench_page.py [--conversations 200] [--messages 100]

Fills the browser's database with conversations of Markdown, then opens some of them from the list:
until the last message is in view, and until all messages are rendered. Bound: 100 ms to open.
Measures the first paint of the empty page too, with nothing in the browser's cache. Bound: 300 ms.
And its bytes: of all files, vendored ones and those loaded on demand included. Bound: 400 kB.
"""

import argparse
import gzip
import json
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from fake_engine import FakeLLM
from live_server import live_server
from playwright.sync_api import Browser, sync_playwright

_FILL = """async ([count, messages]) => {
  const { Store } = await import("/static/store.js");
  const store = new Store();
  await store.open();
  const text = "## Head\\n\\nSome *words* and `code`, 12 of them, in a paragraph that wraps"
    + " once or twice on a usual screen.\\n\\n- one\\n- two\\n\\n"
    + "```python\\nfor i in range(10):\\n    print(i)\\n```\\n";
  for (let i = 0; i < count; i++) {
    const id = `chat${i}`, all = [];
    for (let j = 0; j < messages; j++) {
      const role = j % 2 ? "assistant" : "user";
      all.push({ id: `${j}`, chat: id, parent: j ? `${j - 1}` : null, role, created: j,
        content: role === "user" ? `Question ${j} of ${i}` : text, state: "done" });
    }
    const chat = { id, title: id, created: i, updated: i, leaf: `${messages - 1}`, queue: [] };
    await store.put(chat, all);
  }
}"""
_OPEN = """async ([id, messages]) => {
  const list = document.getElementById("messages"), began = performance.now();
  const next = () => new Promise((done) => setTimeout(done));
  location.hash = id;
  const last = () => list.lastElementChild?.dataset.id;
  while (last() !== `${messages - 1}` || document.title.split(" ")[0] !== id) await next();
  document.body.getBoundingClientRect();
  const opened = performance.now() - began;
  while (list.querySelector("li.assistant .plain")) await next();
  return [opened, performance.now() - began];
}"""

_STATIC = Path(__file__).parent.parent / "hybridmoe" / "serve" / "static"
_FILES = [path for path in _STATIC.rglob("*") if path.suffix in (".js", ".css", ".html", ".svg")]
_PAINT = 'performance.getEntriesByName("first-contentful-paint")'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--messages", type=int, default=100)
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with live_server(FakeLLM()) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        paints = [_first_paint(browser, server.url) for _ in range(9)]
        page = browser.new_page()
        page.goto(server.url)
        page.evaluate(_FILL, [given.conversations, given.messages])
        page.reload()
        page.wait_for_selector("#chats a")
        times = [
            page.evaluate(_OPEN, [f"chat{i * given.conversations // 20}", given.messages])
            for i in range(20)
        ]
        browser.close()
    opened, rendered = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{given.conversations} conversations of {given.messages} messages, median of 20:")
    print(f"opened after {opened:.0f} ms, all rendered after {rendered:.0f} ms")
    paint = statistics.median(paints)
    print(f"first paint after {paint:.0f} ms, median of {len(paints)}")
    size = sum(len(gzip.compress(path.read_bytes())) for path in _FILES)
    print(f"{size / 1000:.0f} kB compressed, {len(_FILES)} files")
    figures = {"opened_ms": opened, "rendered_ms": rendered, "first_paint_ms": paint, "bytes": size}
    print(json.dumps({name: round(value) for name, value in figures.items()}))


def _first_paint(browser: Browser, url: str) -> float:
    """Return the milliseconds from the start of navigation to the first text on the page."""
    page = browser.new_page()
    page.goto(url)
    page.wait_for_function(f"{_PAINT}.length > 0")
    milliseconds = page.evaluate(f"{_PAINT}[0].startTime")
    page.close()
    return float(milliseconds)


if __name__ == "__main__":
    main()
