"""Jobs of LangChain's chat models for OpenAI's and Anthropic's APIs."""

import warnings
from typing import Any

from joblist import ASK_WEATHER, KEY, MODEL, SUM, URL, V1, Sum, job, run
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

warnings.filterwarnings("ignore")
chat = ChatOpenAI(base_url=V1, api_key=KEY, model=MODEL, temperature=0, max_completion_tokens=60)
claude = ChatAnthropic(
    base_url=URL,
    api_key=KEY,
    model_name=MODEL,
    max_tokens=60,
    model_kwargs={"extra_body": {"temperature": 0.0}},
)


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city"""
    return f'{{"sky":"foggy","temp":7,"in":"{city}"}}'


@job
def invokes_and_counts() -> None:
    answer = chat.invoke([SystemMessage("Be brief."), HumanMessage(SUM)])
    assert answer.content.endswith("85"), answer
    assert answer.usage_metadata["output_tokens"] > 3
    assert answer.response_metadata["finish_reason"] == "stop"


@job
def streams_with_usage() -> None:
    chunks = list(chat.stream(SUM, stream_usage=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content.endswith("85") and len(chunks) > 4
    assert whole.usage_metadata and whole.usage_metadata["input_tokens"] > 4


@job
def batches_a_chain() -> None:
    chain = ChatPromptTemplate.from_messages([("user", "What is {a} + 7?")]) | chat
    answers = chain.batch([{"a": number} for number in range(11, 15)])
    assert [a.content[-2:] for a in answers] == ["18", "19", "20", "21"], answers


@job
async def streams_asynchronously() -> None:
    text = "".join([str(chunk.content) async for chunk in chat.astream(SUM)])
    assert text.endswith("85")


def _calls_a_tool(model: Any) -> None:
    with_tools = model.bind_tools([get_weather])
    first = with_tools.invoke(ASK_WEATHER)
    assert [(c["name"], c["args"]) for c in first.tool_calls] == [("get_weather", {"city": "Oslo"})]
    result = get_weather.invoke(first.tool_calls[0])
    assert isinstance(result, ToolMessage)
    final = with_tools.invoke([HumanMessage(ASK_WEATHER), first, result])
    assert final.content, final
    forced = model.bind_tools([get_weather], tool_choice="get_weather").invoke("Hello!")
    assert [call["name"] for call in forced.tool_calls] == ["get_weather"]


@job
def calls_a_tool() -> None:
    _calls_a_tool(chat)
    _calls_a_tool(chat.model_copy(update={"use_responses_api": True}))


@job
def answers_by_schema() -> None:
    long = chat.model_copy(update={"max_tokens": 120})
    for method in ("json_schema", "function_calling"):
        answer = long.with_structured_output(Sum, method=method).invoke(SUM)
        assert isinstance(answer, Sum), (method, answer)


@job
def speaks_to_anthropics_api() -> None:
    assert claude.invoke(SUM).text.endswith("85")
    assert "".join(chunk.text for chunk in claude.stream(SUM)).endswith("85")
    _calls_a_tool(claude)
    assert isinstance(claude.with_structured_output(Sum).invoke(SUM), Sum)


@job
def completes_and_gives_log_probabilities() -> None:
    text = OpenAI(base_url=V1, api_key=KEY, model=MODEL, temperature=0, max_tokens=8)
    assert text.invoke("What is")
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(SUM)
    entries = answer.response_metadata["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == answer.content


run()
