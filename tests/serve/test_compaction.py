"""Compaction in /v1/responses: on request, carried by an item that stands for all before it."""

from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from endpoint_requests import WEATHER, prompt
from fake_engine import FakeLLM
from live_server import LiveServer
from thinking_templates import OPENS
from waiting import HANG_S

from hybridmoe.text.chat_template import ChatTemplate

SUMMARY = "Hello! How can I help?"  # what the fake engine says to all it does not know
MANAGE: list[Any] = [{"type": "compaction", "compact_threshold": 60}]


@pytest.fixture
def client(server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def turns(*texts: str) -> list[Any]:
    out: list[Any] = []
    for text in texts:
        out.append({"type": "message", "role": "user", "content": f"say {text}"})
        out.append({"type": "message", "role": "assistant", "content": text})
    return out


ITEMS = [*turns("apple " * 20, "pear", "plum"), {"role": "user", "content": "say fig"}]


def test_above_the_threshold_the_oldest_turns_are_summarized(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    answer = client.responses.create(
        model="test", input=ITEMS, instructions="Be brief.", context_management=MANAGE
    )
    assert [item.type for item in answer.output] == ["compaction", "message"]
    assert answer.output_text == "fig"
    request, final = prompt(llm, -2), prompt(llm)
    assert "apple" in request and "Summarize our conversation" in request
    assert "apple" not in final and SUMMARY in final and "say fig" in final
    assert final.count("Be brief.") == 1


@pytest.mark.parametrize("is_stored", [True, False])
def test_the_item_stands_for_all_before_it(
    client: openai.OpenAI, llm: FakeLLM, is_stored: bool
) -> None:
    first = client.responses.create(
        model="test", input=ITEMS, instructions="Be brief.", context_management=MANAGE
    )
    new: list[Any] = [{"role": "user", "content": "say kiwi"}]
    if is_stored:
        again = client.responses.create(
            model="test", previous_response_id=first.id, input=new, instructions="Be kind."
        )
    else:
        output = [item.model_dump(exclude_none=True) for item in first.output]
        given: Any = [*ITEMS, *output, *new]
        again = client.responses.create(model="test", input=given, instructions="Be kind.")
    assert again.output_text == "kiwi"
    final = prompt(llm)
    assert "apple" not in final and "Be brief." not in final
    parts = [
        "Be kind.",
        SUMMARY,
        "say fig",
        "<|im_assistant|>assistant<|im_middle|>fig",
        "say kiwi",
    ]
    places = [final.index(part) for part in parts]
    assert places == sorted(places)


def test_a_stream_begins_with_the_item(client: openai.OpenAI) -> None:
    with client.responses.create(
        model="test", input=ITEMS, context_management=MANAGE, stream=True
    ) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[2:4] == ["response.output_item.added", "response.output_item.done"]
    assert kinds[-1] == "response.completed"
    last: Any = events[-1]
    assert [item.type for item in last.response.output] == ["compaction", "message"]
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize(
    ("items", "threshold"),
    [(ITEMS, 900), (ITEMS, None), ([{"role": "user", "content": "say " + "fig " * 90}], 60)],
)
def test_below_it_or_with_one_turn_nothing_is_summarized(
    client: openai.OpenAI, llm: FakeLLM, items: list[Any], threshold: int | None
) -> None:
    manage: list[Any] = [{"type": "compaction", "compact_threshold": threshold}]
    before = len(llm.engine.requests)
    answer = client.responses.create(model="test", input=items, context_management=manage)
    assert [item.type for item in answer.output] == ["message"]
    assert len(llm.engine.requests) == before + 1


def test_a_threshold_beyond_the_context_counts_as_its_end(
    client: openai.OpenAI, llm: FakeLLM
) -> None:
    manage: list[Any] = [{"type": "compaction", "compact_threshold": 200_000}]
    items = [*turns(*["apple " * 21] * 6), {"role": "user", "content": "say fig"}]
    assert client.responses.input_tokens.count(model="test", input=items).input_tokens > 896
    answer = client.responses.create(model="test", input=items, context_management=manage)
    assert answer.output[0].type == "compaction"
    assert len(llm.engine.requests[-1].prompt_ids) < 700


def test_compact_gives_the_item_alone(client: openai.OpenAI, llm: FakeLLM) -> None:
    found = client.responses.compact(model="test", input=ITEMS, instructions="Be brief.")
    assert found.object == "response.compaction"
    assert [item.type for item in found.output] == ["compaction"]
    assert found.usage.output_tokens > 0
    output: Any = [item.model_dump(exclude_none=True) for item in found.output]
    answer = client.responses.create(model="test", input=output)
    assert answer.output_text == "fig"
    assert SUMMARY in prompt(llm) and "plum" not in prompt(llm)
    alone = client.responses.compact(model="test", input="say fig")
    output = [item.model_dump(exclude_none=True) for item in alone.output]
    assert client.responses.create(model="test", input=output).output_text == "fig"


def test_a_summary_calls_no_tools_and_has_no_thoughts_or_format(
    client: openai.OpenAI, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "template", ChatTemplate(OPENS))
    tool: Any = {"type": "function", **WEATHER["function"], "strict": False}
    form: Any = {"format": {"type": "json_object"}}
    client.responses.create(
        model="test", input=ITEMS, context_management=MANAGE, tools=[tool], tool_choice="required",
        text=form, temperature=0.5, max_output_tokens=3,
    )  # fmt: skip
    request = llm.engine.requests[-2]
    assert prompt(llm, -2).endswith("<think></think>")
    assert (request.params.temperature, request.params.max_tokens) == (0.5, 64)
    mask_free = request.constraint is None or request.constraint.is_inactive()
    assert mask_free


@pytest.mark.parametrize(
    "content",
    [
        "", "gAAAA", "[]", '{"messages": 1}', '{"messages": []}', '{"messages": [{"x": 1}]}',
        f'{{"messages": [{{"role": "user", "content": "x", "y": [{"[]," * 600_000}0]}}]}}',
        f'{{"messages": {"[" * 100_000}',
    ],
    ids=range(8),
)  # fmt: skip
def test_another_servers_item_is_named(server: LiveServer, content: str) -> None:
    items = [{"type": "compaction", "encrypted_content": content}]
    with httpx2.Client(base_url=server.url, timeout=HANG_S) as http:
        answer = http.post("/v1/responses", json={"input": items})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "input[0].encrypted_content"
