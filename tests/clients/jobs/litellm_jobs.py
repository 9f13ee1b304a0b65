"""Jobs of LiteLLM, the gateway that many programs call models through."""

import asyncio
import json
from typing import Any

import litellm
from joblist import (
    ASK_WEATHER,
    KEY,
    MODEL,
    RESULT,
    SUM,
    URL,
    V1,
    WEATHER_SCHEMA,
    Sum,
    fails,
    job,
    run,
)

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city",
        "parameters": WEATHER_SCHEMA,
    },
}


def options(text: str | list[Any], **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    here = {"model": f"hosted_vllm/{MODEL}", "api_base": V1, "api_key": KEY, "num_retries": 0}
    return {**here, "messages": messages, "temperature": 0.0, "max_tokens": 60, **more}


def ask(text: str | list[Any], **more: Any) -> Any:
    return litellm.completion(**options(text, **more))


@job
def asks_by_each_provider() -> None:
    for provider in ("hosted_vllm", "openai", "custom_openai", "lm_studio"):
        answer = ask(SUM, model=f"{provider}/{MODEL}")
        assert answer.choices[0].message.content.endswith("85"), (provider, answer)
        assert answer.usage.completion_tokens > 3


@job
def asks_as_anthropic() -> None:
    answer = ask(SUM, model=f"anthropic/{MODEL}", api_base=URL, temperature=1.0, top_k=1)
    assert answer.choices[0].message.content.endswith("85"), answer
    assert answer.choices[0].finish_reason == "stop"


@job
def streams() -> None:
    chunks = list(ask(SUM, stream=True, stream_options={"include_usage": True}))
    whole = litellm.stream_chunk_builder(chunks)
    assert len(chunks) > 4
    assert whole.choices[0].message.content.endswith("85"), whole  # type: ignore[union-attr]
    assert whole.usage.prompt_tokens > 4  # type: ignore[union-attr]


@job
async def asks_asynchronously() -> None:
    numbers = range(11, 17)
    answers = await asyncio.gather(
        *(litellm.acompletion(**options(f"What is {n} + 7?")) for n in numbers)
    )
    for number, answer in zip(numbers, answers, strict=True):
        assert answer.choices[0].message.content.endswith(str(number + 7)), answer
    stream: Any = await litellm.acompletion(**options(SUM, stream=True))
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text.endswith("85")


@job
def uses_a_tool() -> None:
    first = ask(ASK_WEATHER, tools=[TOOL]).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    history = [{"role": "user", "content": ASK_WEATHER}, first.message]
    history.append({"role": "tool", "tool_call_id": call.id, "content": RESULT})
    assert "foggy" in ask(history, tools=[TOOL]).choices[0].message.content


@job
def streams_a_tool_call() -> None:
    chunks = list(ask(ASK_WEATHER, tools=[TOOL], stream=True))
    whole: Any = litellm.stream_chunk_builder(chunks)
    (call,) = whole.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Oslo"}


@job
def answers_by_schema() -> None:
    answer = ask(SUM, response_format=Sum, max_tokens=90)
    Sum.model_validate_json(answer.choices[0].message.content)


@job
def completes_text() -> None:
    answer: Any = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}",
        prompt="What is",
        api_base=V1,
        api_key=KEY,
        max_tokens=8,
        temperature=0.0,
    )
    assert answer.choices[0].text


@job
def responds() -> None:
    answer: Any = litellm.responses(
        model=f"openai/{MODEL}",
        input=SUM,
        api_base=V1,
        api_key=KEY,
        temperature=0.0,
        max_output_tokens=60,
    )
    (message,) = answer.output
    assert message.content[0].text.endswith("85"), answer


@job
async def speaks_anthropics_form_over_openais() -> None:
    answer: Any = await litellm.anthropic_messages(
        model=f"hosted_vllm/{MODEL}",
        messages=[{"role": "user", "content": SUM}],
        max_tokens=60,
        temperature=0.0,
        api_base=V1,
        api_key=KEY,
    )
    assert answer["content"][0]["text"].endswith("85"), answer


@job
def tells_errors_apart() -> None:
    fails(litellm.AuthenticationError, lambda: ask(SUM, api_key="wrong"))
    fails(litellm.NotFoundError, lambda: ask(SUM, model="hosted_vllm/gpt-9"))
    fails(litellm.ContextWindowExceededError, lambda: ask("word " * 1500))
    fails(litellm.BadRequestError, lambda: ask(SUM, top_p=3.0))


@job
def falls_back_and_routes() -> None:
    broken = {"model": "hosted_vllm/gpt-9", "api_base": V1, "api_key": KEY}
    sound = {"model": f"hosted_vllm/{MODEL}", "api_base": V1, "api_key": KEY}
    router = litellm.Router(
        model_list=[
            {"model_name": "broken", "litellm_params": broken},
            {"model_name": "sound", "litellm_params": sound},
        ],
        fallbacks=[{"broken": ["sound"]}],
        num_retries=0,
    )
    answer: Any = router.completion(
        model="broken",
        messages=[{"role": "user", "content": SUM}],
        temperature=0.0,
        max_tokens=60,
    )
    assert answer.choices[0].message.content.endswith("85"), answer


run()
