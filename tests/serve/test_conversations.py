"""Stored conversations, input items and token counts of the Responses API, by the openai client."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from endpoint_requests import CALL, WEATHER, prompt
from fake_engine import FakeLLM
from live_server import LiveServer, live_server

TOOL: Any = {"type": "function", "strict": False, **WEATHER["function"]}


@pytest.fixture(scope="module")
def server(llm: FakeLLM) -> Iterator[LiveServer]:
    with live_server(llm, max_stored_responses=8, max_stored_bytes=10_000) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, input: Any = "say Hi", **more: Any) -> Any:
    return client.responses.create(model="test", input=input, **more)


def texts(page: Any) -> list[str]:
    return [item.content[0].text for item in page]


def user(text: str) -> Any:
    return {"type": "message", "role": "user", "content": text}


def test_a_conversation_is_made_changed_and_deleted(client: openai.OpenAI) -> None:
    made = client.conversations.create(metadata={"a": "b"})
    assert made.id.startswith("conv_") and made.metadata == {"a": "b"}
    assert client.conversations.retrieve(made.id) == made
    changed = client.conversations.update(made.id, metadata={"c": "d"})
    assert changed.metadata == {"c": "d"} and changed.created_at == made.created_at
    assert client.conversations.retrieve(made.id) == changed
    assert client.conversations.delete(made.id).deleted
    for act in (
        lambda: client.conversations.retrieve(made.id),
        lambda: client.conversations.update(made.id, metadata={}),
        lambda: client.conversations.delete(made.id),
        lambda: client.conversations.items.list(made.id),
        lambda: client.conversations.items.create(made.id, items=[user("x")]),
        lambda: ask(client, conversation=made.id),
    ):
        with pytest.raises(openai.NotFoundError, match=f"Conversation with id '{made.id}'"):
            act()


def test_a_response_continues_a_conversation_which_grows(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    made = client.conversations.create(items=[user("I am Ada."), {"role": "user", "content": "-"}])
    first = ask(client, "say one", conversation=made.id)
    assert first.conversation.id == made.id
    with client.responses.stream(
        model="test", input="say two", conversation=made.id, store=False
    ) as stream:
        assert stream.get_final_response().output_text == "two"
    for text in ("I am Ada.", "say one", "one<|im_end|>", "say two"):
        assert prompt(llm).count(text) == 1 + (text == "one<|im_end|>")  # "say one" has it too
    items = list(client.conversations.items.list(made.id, order="asc"))
    assert texts(items) == ["I am Ada.", "-", "say one", "one", "say two", "two"]
    assert len({item.id for item in items}) == 6
    assert [item.role for item in items] == ["user"] * 3 + ["assistant", "user", "assistant"]  # type: ignore[union-attr]
    assert ask(client, "say x").conversation is None
    with pytest.raises(openai.BadRequestError, match="not both"):
        ask(client, conversation=made.id, previous_response_id=first.id)


def test_a_response_that_fails_leaves_the_conversation_as_it_was(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    with pytest.raises(openai.InternalServerError):
        ask(client, "break", conversation=made.id)
    assert list(client.conversations.items.list(made.id)) == []


def test_items_are_listed_in_pages_and_removed(client: openai.OpenAI) -> None:
    made = client.conversations.create(items=[user(f"t{i}") for i in range(3)])
    added = client.conversations.items.create(
        made.id, items=[user("t3"), {"role": "assistant", "content": "t4", "type": "message"}]
    )
    assert texts(added.data) == ["t3", "t4"]
    assert added.data[1].content[0].type == "output_text"  # type: ignore[union-attr]
    newest = client.conversations.items.list(made.id, limit=2)
    assert texts(newest.data) == ["t4", "t3"] and newest.has_more
    assert texts(client.conversations.items.list(made.id, limit=2)) == [
        f"t{i}" for i in (4, 3, 2, 1, 0)
    ]
    item = client.conversations.items.retrieve(added.data[0].id, conversation_id=made.id)  # type: ignore[arg-type]
    assert texts([item]) == ["t3"]
    client.conversations.items.delete(added.data[0].id, conversation_id=made.id)  # type: ignore[arg-type]
    assert texts(client.conversations.items.list(made.id, order="asc")) == ["t0", "t1", "t2", "t4"]
    for act in (client.conversations.items.retrieve, client.conversations.items.delete):
        with pytest.raises(openai.NotFoundError, match="Item with id"):
            act(added.data[0].id, conversation_id=made.id)  # type: ignore[arg-type]
    with pytest.raises(openai.BadRequestError, match="after: no item"):
        client.conversations.items.list(made.id, after="msg_none")
    for limit in (0, 101):
        with pytest.raises(openai.BadRequestError, match="limit"):
            client.conversations.items.list(made.id, limit=limit)


def test_items_that_no_response_could_use_are_refused(client: openai.OpenAI) -> None:
    made = client.conversations.create()
    bad: Any = [user("x"), {"type": "dance"}]
    for act in (
        lambda: client.conversations.create(items=bad),
        lambda: client.conversations.items.create(made.id, items=bad),
    ):
        with pytest.raises(openai.BadRequestError, match=r"items\[1\]\.type: 'dance'"):
            act()
    assert list(client.conversations.items.list(made.id)) == []


def test_a_conversation_that_is_too_large_is_refused_and_stays(client: openai.OpenAI) -> None:
    made = client.conversations.create(items=[user("a" * 6000)])
    with pytest.raises(openai.BadRequestError, match="at most 10000 bytes"):
        client.conversations.items.create(made.id, items=[user("b" * 6000)])
    assert len(list(client.conversations.items.list(made.id))) == 1
    client.conversations.items.create(made.id, items=[user("c")])
    assert len(list(client.conversations.items.list(made.id))) == 2


def test_responses_and_conversations_share_one_bound(client: openai.OpenAI) -> None:
    oldest = client.conversations.create()
    kept = [client.conversations.create() for _ in range(4)]
    for _ in range(3):
        ask(client)
    client.conversations.retrieve(oldest.id)
    ask(client)
    assert client.conversations.retrieve(oldest.id) == oldest
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(kept[0].id)
    client.conversations.retrieve(kept[1].id)


def test_a_response_is_no_conversation(client: openai.OpenAI) -> None:
    response, made = ask(client), client.conversations.create()
    with pytest.raises(openai.NotFoundError):
        client.conversations.delete(response.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(made.id)
    assert client.responses.retrieve(response.id).id == response.id


def test_input_items_of_a_response(client: openai.OpenAI, llm: FakeLLM) -> None:
    first = ask(client, [user("say one")], instructions="Be brief.")
    second = ask(client, "say two", previous_response_id=first.id)
    listed = list(client.responses.input_items.list(second.id, order="asc"))
    assert texts(listed) == ["say one", "one", "say two"]
    assert texts(client.responses.input_items.list(second.id, limit=1).data) == ["say two"]
    # An id that this server gave to an input item names it from now on.
    ask(client, [{"type": "item_reference", "id": listed[2].id}, user("say three")])
    assert "say two" in prompt(llm) and "say one" not in prompt(llm)
    with pytest.raises(openai.NotFoundError):
        client.responses.input_items.list("resp_none")


def test_input_items_of_calls(client: openai.OpenAI) -> None:
    call = ask(client, f"say {CALL}", tools=[TOOL]).output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    response = ask(client, [user("weather?"), call.to_dict(), result], tools=[TOOL])
    listed = list(client.responses.input_items.list(response.id, order="asc"))
    assert [item.type for item in listed] == ["message", "function_call", "function_call_output"]
    assert listed[1].id == call.id and listed[2].output == "sunny"  # type: ignore[union-attr]


def test_input_tokens_are_those_of_the_response(client: openai.OpenAI, llm: FakeLLM) -> None:
    num_requests = len(llm.engine.requests)
    conversation = client.conversations.create(items=[user("I am Ada.")])
    for fields in (
        {"input": "say Hi"},
        {"input": [user("say Hi")], "instructions": "Be brief.", "tools": [TOOL]},
        {"input": "say Hi", "conversation": conversation.id},
    ):
        counted = client.responses.input_tokens.count(model="test", **fields)  # type: ignore[arg-type]
        assert counted.object == "response.input_tokens"
        assert len(llm.engine.requests) == num_requests
        answer = client.responses.create(model="test", **fields)  # type: ignore[call-overload]
        assert counted.input_tokens == answer.usage.input_tokens
        num_requests += 1
    alone = client.responses.input_tokens.count(model="test", conversation=conversation.id)
    assert 0 < alone.input_tokens < counted.input_tokens + 30


def test_many_references_to_one_item_do_not_outgrow_the_store(client: openai.OpenAI) -> None:
    said = ask(client).output[0]
    made = client.conversations.create(items=[{"type": "item_reference", "id": said.id}])
    references: Any = [{"type": "item_reference", "id": said.id}] * 400
    too_large = r"a conversation of 10\d\d\d bytes or more is not stored"
    with pytest.raises(openai.BadRequestError, match=too_large):
        client.conversations.create(items=references)
    with pytest.raises(openai.BadRequestError, match=too_large):
        client.conversations.items.create(made.id, items=references)
    assert len(client.conversations.items.list(made.id).data) == 1
