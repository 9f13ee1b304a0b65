"""Fixtures of the command line's tests."""

import pytest
from terminal_chat import Chat


@pytest.fixture
def chat() -> Chat:
    return Chat()
