"""Memory of closed models."""

import weakref
from types import SimpleNamespace

import pytest

from hybridmoe.llm import give_back
from hybridmoe.llm.give_back import give_back_memory


class Model:
    """Object that refers to itself, as models do."""

    def __init__(self) -> None:
        self.own = self


def test_what_refers_to_itself_is_collected() -> None:
    model = Model()
    closed = weakref.ref(model)
    del model
    give_back_memory(closed)
    assert closed() is None


def test_a_request_that_is_just_ending_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    request = [Model()]
    closed = weakref.ref(request[0])
    pauses = iter((lambda: None, request.clear))  # it ends in the second one
    monkeypatch.setattr(give_back, "time", SimpleNamespace(sleep=lambda _: next(pauses)()))
    give_back_memory(closed)
    assert closed() is None
