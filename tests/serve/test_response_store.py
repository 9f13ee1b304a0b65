"""Response store: responses are found again, within the bounds on count and bytes."""

import uuid
from typing import Any

from hybridmoe.serve.bounded_store import BoundedStore
from hybridmoe.serve.response_store import ResponseStore


def message(text: str) -> dict[str, Any]:
    return {"type": "message", "id": f"msg_{uuid.uuid4().hex}", "content": text}


def put(store: ResponseStore, id: str, *items: dict[str, Any]) -> None:
    store.put({"id": id, "object": "response"}, list(items), len(items))


def test_what_was_put_is_found() -> None:
    store = ResponseStore(BoundedStore(4, 10_000))
    first, second = message("°"), message("b")
    put(store, "resp_1", first, second)
    assert store.response("resp_1") == b'{"id":"resp_1","object":"response"}'
    assert store.items("resp_1") == [first, second]
    assert store.find({second["id"], "msg_none"}) == {second["id"]: second}
    assert store.items("resp_2") is None
    assert store.response("resp_2") is None


def test_the_least_recently_used_one_is_forgotten() -> None:
    store = ResponseStore(BoundedStore(2, 10_000))
    items = [message(str(i)) for i in range(3)]
    put(store, "a", items[0])
    put(store, "b", items[1])
    assert store.items("a")
    put(store, "c", items[2])
    assert [store.response(id) is not None for id in "abc"] == [True, False, True]
    kept = {item["id"]: item for item in (items[0], items[2])}
    assert store.find({item["id"] for item in items}) == kept


def test_bytes_are_bounded_too() -> None:
    store = ResponseStore(BoundedStore(100, 10_000))
    for i in range(50):
        put(store, str(i), message("x" * 1000))
    kept = [i for i in range(50) if store.response(str(i))]
    assert kept == list(range(50 - len(kept), 50))
    assert 6 <= len(kept) <= 9
    put(store, "large", message("x" * 10_000))
    assert store.response("large") is None
    assert store.response("49")


def test_bytes_of_what_is_forgotten_are_free_again() -> None:
    store = ResponseStore(BoundedStore(100, 3000))
    for i in range(20):
        put(store, str(i), message("x" * 1000))
        assert store.delete(str(i))
        assert not store.delete(str(i))
    put(store, "a", message("x" * 1000))
    put(store, "b", message("x" * 1000))
    assert store.response("a")
    assert store.response("b")


def test_ids_that_clients_chose_are_not_shared() -> None:
    store = ResponseStore(BoundedStore(4, 10_000))
    own = message("x")
    put(store, "a", {**message("secret"), "id": "msg_1"}, own)
    assert store.find({"msg_1", own["id"]}) == {own["id"]: own}


def test_a_store_of_none() -> None:
    store = ResponseStore(BoundedStore(0, 10_000))
    put(store, "a", message("x"))
    assert store.response("a") is None
