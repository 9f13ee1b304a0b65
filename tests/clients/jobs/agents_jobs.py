"""Jobs of OpenAI's Agents SDK: an agent that loops over tools, over both of OpenAI's APIs."""

from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from joblist import ASK_WEATHER, KEY, MODEL, RESULT, SUM, V1, Sum, job, run
from openai import AsyncOpenAI

set_tracing_disabled(True)
GREEDY = ModelSettings(temperature=0.0, max_tokens=90)
CITIES: list[str] = []


@function_tool(description_override="Get the weather in a city")
def get_weather(city: str) -> str:
    CITIES.append(city)
    return RESULT


def _models() -> list[Any]:
    client = AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0)
    return [
        OpenAIChatCompletionsModel(model=MODEL, openai_client=client),
        OpenAIResponsesModel(model=MODEL, openai_client=client),
    ]


@job
async def answers() -> None:
    for model in _models():
        agent = Agent(name="A", model=model, model_settings=GREEDY)
        answer = await Runner.run(agent, SUM)
        assert answer.final_output.endswith("85"), answer
        assert answer.context_wrapper.usage.output_tokens > 3


@job
async def loops_over_a_tool() -> None:
    for model in _models():
        CITIES.clear()
        agent = Agent(name="A", model=model, model_settings=GREEDY, tools=[get_weather])
        answer = await Runner.run(agent, ASK_WEATHER)
        assert CITIES == ["Oslo"]
        assert "foggy" in answer.final_output, answer


@job
async def streams_a_loop() -> None:
    for model in _models():
        CITIES.clear()
        agent = Agent(name="A", model=model, model_settings=GREEDY, tools=[get_weather])
        streamed = Runner.run_streamed(agent, ASK_WEATHER)
        kinds = [event.type async for event in streamed.stream_events()]
        assert kinds.count("raw_response_event") > 6
        assert CITIES == ["Oslo"] and "foggy" in streamed.final_output, streamed


@job
async def answers_by_schema() -> None:
    for model in _models():
        agent = Agent(name="A", model=model, model_settings=GREEDY, output_type=Sum)
        answer = await Runner.run(agent, SUM)
        assert isinstance(answer.final_output, Sum), answer


@job
async def remembers_a_session() -> None:
    for number, model in enumerate(_models()):
        session = SQLiteSession(f"session {number}")
        agent = Agent(name="A", model=model, model_settings=GREEDY)
        await Runner.run(agent, "My name is Bokira.", session=session)
        answer = await Runner.run(agent, "What is my name?", session=session)
        assert "Bokira" in answer.final_output, answer


run()
