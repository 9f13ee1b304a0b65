"""Jobs of Instructor: answers as pydantic models, in each of its modes."""

from typing import Any

import instructor
from anthropic import Anthropic
from joblist import KEY, MODEL, SUM, URL, V1, Sum, job, run
from openai import AsyncOpenAI, OpenAI

OPTIONS: Any = {
    "model": MODEL,
    "messages": [{"role": "user", "content": SUM}],
    "response_model": Sum,
    "max_retries": 1,
    "max_tokens": 200,
}


def _answers(mode: instructor.Mode, **more: Any) -> None:
    client = instructor.from_openai(OpenAI(base_url=V1, api_key=KEY, max_retries=0), mode=mode)
    answer = client.chat.completions.create(**OPTIONS, temperature=0.0, **more)
    assert isinstance(answer, Sum), answer


@job
def answers_by_tools() -> None:
    _answers(instructor.Mode.TOOLS)
    _answers(instructor.Mode.TOOLS_STRICT)


@job
def answers_by_json_schema() -> None:
    _answers(instructor.Mode.JSON_SCHEMA)


@job
def answers_in_json() -> None:
    _answers(instructor.Mode.JSON)


@job
def answers_by_responses() -> None:
    _answers(instructor.Mode.RESPONSES_TOOLS)


@job
async def answers_in_parts() -> None:
    client = instructor.from_openai(
        AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0), mode=instructor.Mode.TOOLS
    )
    parts = client.chat.completions.create_partial(**OPTIONS, temperature=0.0)
    seen = [part async for part in parts]
    assert len(seen) > 1
    Sum.model_validate(seen[-1].model_dump())


@job
def answers_by_anthropics_tools() -> None:
    client = instructor.from_anthropic(
        Anthropic(base_url=URL, api_key=KEY, max_retries=0), mode=instructor.Mode.ANTHROPIC_TOOLS
    )
    answer = client.messages.create(**OPTIONS, extra_body={"temperature": 0.0})
    assert isinstance(answer, Sum), answer


run()
