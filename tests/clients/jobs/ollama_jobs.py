"""Jobs of ollama's Python client: its own API, as its README shows it."""

from typing import Any

import ollama
from joblist import ASK_WEATHER, KEY, MODEL, RESULT, SUM, URL, Sum, fails, job, run

HEADERS = {"Authorization": f"Bearer {KEY}"}
client = ollama.Client(host=URL, headers=HEADERS)
GREEDY = {"temperature": 0, "num_predict": 90}


def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return RESULT


def chat(text: str | list[Any], **more: Any) -> Any:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return client.chat(model=MODEL, messages=messages, **{"options": GREEDY, **more})


@job
def chats_and_remembers() -> None:
    answer = chat(SUM)
    assert answer.message.content.endswith("85"), answer
    assert answer.done and answer.done_reason == "stop"
    assert answer.eval_count > 3 and answer.prompt_eval_count > 3 and answer.total_duration > 0
    messages: list[Any] = [{"role": "user", "content": "My name is Bokira."}]
    messages += [chat(messages).message, {"role": "user", "content": "What is my name?"}]
    assert "Bokira" in chat(messages).message.content


@job
def streams() -> None:
    *parts, last = chat(SUM, stream=True)
    assert "".join(part.message.content for part in [*parts, last]).endswith("85")
    assert last.done and not any(part.done for part in parts)
    assert last.eval_count > 3


@job
def calls_a_tool() -> None:
    question = {"role": "user", "content": ASK_WEATHER}
    first = chat([question], tools=[get_weather])
    (call,) = first.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", {"city": "Oslo"})
    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather("Oslo")}
    final = chat([question, first.message, result], tools=[get_weather])
    assert "foggy" in final.message.content, final


@job
def answers_by_schema() -> None:
    answer = chat(SUM, format=Sum.model_json_schema())
    Sum.model_validate_json(answer.message.content)


@job
def generates() -> None:
    answer = client.generate(model=MODEL, prompt=SUM, options=GREEDY)
    assert answer.response.endswith("85"), answer
    parts = client.generate(model=MODEL, prompt=SUM, options=GREEDY, stream=True)
    assert "".join(part.response for part in parts) == answer.response
    raw = client.generate(model=MODEL, prompt="What is", raw=True, options={"num_predict": 4})
    assert raw.done_reason == "length"


@job
def stops_and_limits() -> None:
    assert chat(SUM, options={"temperature": 0, "num_predict": 3}).done_reason == "length"
    assert "4+3" not in chat(SUM, options={"temperature": 0, "stop": ["4+3"]}).message.content


@job
def lists_and_shows_models() -> None:
    assert MODEL in [model.model for model in client.list().models]
    shown = client.show(MODEL)
    assert "completion" in (shown.capabilities or []), shown
    assert "tools" in (shown.capabilities or []), shown


@job
async def chats_asynchronously() -> None:
    other = ollama.AsyncClient(host=URL, headers=HEADERS)
    messages = [{"role": "user", "content": SUM}]
    parts: Any = await other.chat(model=MODEL, messages=messages, options=GREEDY, stream=True)
    assert "".join([part.message.content async for part in parts]).endswith("85")


@job
def tells_errors() -> None:
    error = fails(ollama.ResponseError, lambda: client.chat(model="llama9", messages=[]))
    assert error.status_code == 404, error
    error = fails(ollama.ResponseError, lambda: client.embed(model=MODEL, input="text"))
    assert error.status_code == 501, error


run()
