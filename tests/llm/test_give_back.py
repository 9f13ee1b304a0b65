"""Memory of closed models."""

import threading
import weakref

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


def test_a_request_that_is_just_ending_is_waited_for() -> None:
    request = [Model()]
    closed = weakref.ref(request[0])
    threading.Timer(0.2, request.clear).start()
    give_back_memory(closed)
    assert closed() is None
