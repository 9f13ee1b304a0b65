"""Jobs of Pydantic AI: agents with tools, schemas and streams, over both of OpenAI's APIs.

Its model for Anthropic's API does not work with the anthropic package of these pins.
"""

from typing import Any

from joblist import ASK_WEATHER, KEY, MODEL, RESULT, SUM, V1, Sum, job, run
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

SETTINGS: Any = {"temperature": 0.0, "max_tokens": 90}


def _models() -> list[Any]:
    openai = OpenAIProvider(base_url=V1, api_key=KEY)
    return [
        OpenAIChatModel(MODEL, provider=openai),
        OpenAIResponsesModel(MODEL, provider=openai),
    ]


@job
async def answers_and_remembers() -> None:
    for model in _models():
        agent = Agent(model, model_settings=SETTINGS)
        first = await agent.run("My name is Bokira.")
        second = await agent.run("What is my name?", message_history=first.all_messages())
        assert "Bokira" in second.output, (model, second)
        assert second.usage.output_tokens > 1


@job
async def loops_over_a_tool() -> None:
    for model in _models():
        agent = Agent(model, model_settings=SETTINGS)
        cities = []

        @agent.tool_plain
        def get_weather(city: str, cities: Any = cities) -> str:
            """Get the weather in a city"""
            return RESULT

        answer = await agent.run(ASK_WEATHER)
        assert "foggy" in answer.output, (model, answer)


@job
async def answers_by_schema() -> None:
    for model in _models():
        for form in (ToolOutput(Sum), NativeOutput(Sum)):
            agent: Any = Agent(model, model_settings=SETTINGS, output_type=form)
            answer = await agent.run("Hello!")
            assert isinstance(answer.output, Sum), (model, form, answer)


@job
async def streams() -> None:
    for model in _models():
        async with Agent(model, model_settings=SETTINGS).run_stream(SUM) as stream:
            pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
        assert len(pieces) > 3 and "".join(pieces).endswith("85"), (model, pieces)


@job
async def tells_errors() -> None:
    model = OpenAIChatModel("gpt-9", provider=OpenAIProvider(base_url=V1, api_key=KEY))
    try:
        await Agent(model).run("Hello!")
    except ModelHTTPError as error:
        assert error.status_code == 404, error
    else:
        raise AssertionError("no ModelHTTPError")


run()
