"""Jobs of OpenAI's Python client in its Responses API: what its README and guides show."""

import json
from typing import Any

import openai
from joblist import ASK_WEATHER, KEY, MODEL, RESULT, SUM, V1, WEATHER_SCHEMA, Sum, fails, job, run

client = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0, timeout=120)
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city",
    "parameters": WEATHER_SCHEMA,
}


def respond(text: str | list[Any], **options: Any) -> Any:
    arguments = {"model": MODEL, "temperature": 0.0, "max_output_tokens": 60, **options}
    return client.responses.create(input=text, **arguments)


@job
def responds() -> None:
    answer = respond(SUM, instructions="Be brief.")
    assert answer.status == "completed"
    assert answer.output_text.endswith("85"), answer
    assert answer.usage.output_tokens > 3
    assert client.responses.retrieve(answer.id).output_text == answer.output_text
    client.responses.delete(answer.id)
    fails(openai.NotFoundError, lambda: client.responses.retrieve(answer.id))


@job
def responds_in_a_stream() -> None:
    events = list(respond(SUM, stream=True))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == events[-1].response.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(model=MODEL, input=SUM, temperature=0.0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == text


@job
def responds_with_tools_and_history() -> None:
    first = respond(ASK_WEATHER, tools=[TOOL])
    (call,) = (item for item in first.output if item.type == "function_call")
    assert json.loads(call.arguments) == {"city": "Oslo"}
    result = {"type": "function_call_output", "call_id": call.call_id, "output": RESULT}
    second = respond([result], previous_response_id=first.id, tools=[TOOL])
    assert "foggy" in second.output_text, second
    asked = {"role": "user", "content": ASK_WEATHER}
    history = [asked, *first.output, result]  # the same without the store
    assert respond(history, tools=[TOOL], store=False).output_text == second.output_text


@job
def responds_by_schema() -> None:
    answer = client.responses.parse(
        model=MODEL, input=SUM, text_format=Sum, temperature=0.0, max_output_tokens=90
    )
    assert isinstance(answer.output_parsed, Sum), answer


@job
def counts_a_responses_tokens() -> None:
    counted = client.responses.input_tokens.count(model=MODEL, input=SUM, instructions="Be brief.")
    answer = respond(SUM, instructions="Be brief.")
    assert counted.input_tokens == answer.usage.input_tokens


@job
def keeps_a_conversation() -> None:
    conversation = client.conversations.create(metadata={"topic": "demo"})
    respond("My name is Bokira.", conversation=conversation.id)
    answer = respond("What is my name?", conversation=conversation.id)
    assert "Bokira" in answer.output_text, answer
    items = list(client.conversations.items.list(conversation.id, order="asc"))
    assert len(items) == 4, items


@job
def says_that_the_context_is_full() -> None:
    error = fails(openai.BadRequestError, lambda: respond("word " * 1500))
    assert error.code == "context_length_exceeded"


run()
