"""Fixtures of the endpoint's tests: a server on the fake LLM, and a client of it.

For the chat page's: one Chromium, and a page that may make no fault.
"""

import shutil
from collections.abc import Iterator

import httpx2
import pytest
from chat_page import ChatPage
from fake_engine import FakeLLM
from live_server import LiveServer, live_server
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright
from waiting import HANG_S

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm) as server:
        yield server


@pytest.fixture(scope="module")
def http(server: LiveServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as client:
        yield client


@pytest.fixture(scope="module")
def page_server() -> Iterator[LiveServer]:
    with live_server(FakeLLM()) as server:
        yield server


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    expect.set_options(timeout=1000 * HANG_S)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(chromium: Browser) -> BrowserContext:
    return chromium.new_context()


@pytest.fixture
def chat(page_server: LiveServer, context: BrowserContext) -> Iterator[ChatPage]:
    """Open the page. Fails at the end if it had an error, or requested anything of another host."""
    with ChatPage.opened(context, page_server) as chat:
        yield chat
