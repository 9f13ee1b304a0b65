"""The chat page in a real browser, as its user sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fake_engine import FakeEngine
from live_server import LiveServer
from playwright.sync_api import BrowserContext, ConsoleMessage, Locator, Page, Request, expect
from waiting import HANG_S

__all__ = ["ChatPage"]

_CLEAR = """new Promise((done) => {
  localStorage.clear();
  sessionStorage.clear();
  indexedDB.deleteDatabase("hybridmoe").onsuccess = done;
})"""


class ChatPage:
    """A page with an empty database, and the server behind it."""

    def __init__(self, page: Page, server: LiveServer) -> None:
        self.page = page
        self.server = server

    @classmethod
    @contextmanager
    def opened(cls, context: BrowserContext, server: LiveServer) -> Iterator[ChatPage]:
        """Open the page. Errors: AssertionError at the end, for faults and requests elsewhere."""
        wrong: list[str] = []

        def check(request: Request) -> None:
            if not request.url.startswith((server.url, "blob:", "data:")):
                wrong.append(request.url)

        page = context.new_page()
        page.set_default_timeout(1000 * HANG_S)
        page.on("request", check)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda m: wrong.append(m.text) if _is_fault(m) else None)
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.goto(f"{server.url}/static/icon.svg")  # of the same origin
        page.evaluate(_CLEAR)
        page.goto(server.url)
        expect(page.locator("#dot")).to_have_class("dot here")
        expect(page.locator("#empty, #messages > li").first).to_be_attached()
        yield cls(page, server)
        page.close()
        assert wrong == []

    @property
    def engine(self) -> FakeEngine:
        engine = self.server.service.models.slot("test").model.llm.engine
        assert isinstance(engine, FakeEngine)
        return engine

    @property
    def prompt(self) -> str:
        """The last request's prompt."""
        llm = self.server.service.models.slot("test").model.llm
        return str(llm.tokenizer.decode(llm.engine.requests[-1].prompt_ids, skip_special=False))

    @property
    def answers(self) -> Locator:
        return self.page.locator("li.assistant .content")

    @property
    def questions(self) -> Locator:
        return self.page.locator("li.user .content")

    def write(self, text: str) -> None:
        """Write a message and press Enter."""
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def ask(self, text: str) -> None:
        """Write a message and wait for the end of its response."""
        self.write(text)
        self.ended()

    def ended(self) -> None:
        expect(self.page.locator("#send")).to_have_attribute("aria-label", "Send")
        expect(self.page.locator("li.assistant").last).to_be_attached()

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def set(self, field: str, value: str) -> None:
        """Change a setting."""
        self.page.click("#open-settings")
        self.page.evaluate("document.querySelector('#settings details').open = true")
        self.page.fill(f"#{field}", value)
        self.page.keyboard.press("Escape")


def _is_fault(message: ConsoleMessage) -> bool:
    """Tell faults from the 400s and lost connections that tests cause, which Chromium logs too."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")
