"""Make the pictures of the documentation: the chat page in Chromium, the chat in a terminal.

    PYTHONPATH=. python tests/support/pictures.py [page] [chat]

Both show the embedded model, at work when they are made. Needs chromium, and tmux.
"""

import io
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from live_server import live_server
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.text import Text

import hybridmoe

__all__: list[str] = []

PICTURES = Path(__file__).parents[2] / "docs" / "pictures"
QUESTIONS = ("My name is Bokira.", "What is 47 + 38?", "What is my name?", "Tell me a joke.")
COLUMNS, LINES = 84, 22
MAX_BYTES = 120_000
TIMEOUT_S = 600.0


def main() -> None:
    wanted = sys.argv[1:] or ["page", "chat"]
    PICTURES.mkdir(exist_ok=True)
    if "page" in wanted:
        picture_page(PICTURES / "page.png")
    if "chat" in wanted:
        picture_chat(PICTURES / "chat.svg")
    for path in sorted(PICTURES.iterdir()):
        size = path.stat().st_size
        print(f"{path.name}: {size / 1000:.0f} kB")
        assert size <= MAX_BYTES, path


def picture_page(path: Path) -> None:
    """Take the page in the middle of a conversation, with experts of RAM and disk in the strip."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    with (
        hybridmoe.load(context_tokens=2048, expert_ram="8MiB") as llm,
        live_server(llm, model_name="hybridmoe-demo") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 700}, device_scale_factor=1.5)
        page.set_default_timeout(1000 * TIMEOUT_S)
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        for questions in (["What is the capital of France?"], ["Why is the sky blue?"], QUESTIONS):
            page.goto(server.url)
            page.wait_for_selector("#dot.here")
            for question in questions:
                _ask(page, question)
        page.mouse.move(700, 300)
        page.wait_for_timeout(500)
        data = page.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def _ask(page: Page, question: str) -> None:
    page.fill("#text", question)
    page.press("#text", "Enter")
    page.wait_for_selector("#send[aria-label='Send']")
    page.wait_for_selector("li.assistant:last-child .stats")


def picture_chat(path: Path) -> None:
    """Take the screen of a terminal after a conversation."""
    name = "hybridmoe-picture"
    command = f"{shlex.quote(sys.executable)} -m hybridmoe chat --temperature 0"
    size = ["-x", str(COLUMNS), "-y", str(LINES)]
    _tmux("new-session", "-d", "-s", name, *size, "-e", "TERM=xterm-256color", command)
    try:
        _screen(name, prompts=1)
        for number, question in enumerate(QUESTIONS, 2):
            _tmux("send-keys", "-t", name, "-l", question)
            _tmux("send-keys", "-t", name, "Enter")
            screen = _screen(name, prompts=number)
    finally:
        _tmux("kill-session", "-t", name)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(screen.rstrip()))
    svg = console.export_svg(title="hybridmoe chat", unique_id="chat")
    path.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))  # of another host


def _screen(name: str, prompts: int) -> str:
    """Wait until the screen has this many prompts, of which the last is empty; return it."""
    until = time.monotonic() + TIMEOUT_S
    while time.monotonic() < until:
        time.sleep(0.3)
        lines = _tmux("capture-pane", "-p", "-t", name).rstrip().splitlines()
        found = [line for line in lines if line.startswith(">")]
        if len(found) >= prompts and lines[-1].rstrip() == ">":
            return _tmux("capture-pane", "-e", "-p", "-t", name)
    raise TimeoutError("\n".join(lines))


def _tmux(*args: str) -> str:
    return subprocess.run(["tmux", *args], check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
