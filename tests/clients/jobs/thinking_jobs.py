"""Jobs of several clients with a model that thinks unless it is told not to."""

from typing import Any

import litellm
import ollama
from anthropic import Anthropic
from joblist import KEY, SUM, URL, V1, job, run
from langchain_anthropic import ChatAnthropic
from openai import OpenAI
from pydantic_ai import Agent
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

THINKER = "thinker"
QUESTION: Any = [{"role": "user", "content": SUM}]
BUDGET = {"type": "enabled", "budget_tokens": 6}
client = OpenAI(base_url=V1, api_key=KEY, max_retries=0)
claude = Anthropic(base_url=URL, api_key=KEY, max_retries=0)


def chat(**more: Any) -> Any:
    options = {"model": THINKER, "messages": QUESTION, "temperature": 0.0, "max_tokens": 40}
    return client.chat.completions.create(**{**options, **more}).choices[0].message


def ask(**more: Any) -> Any:
    greedy = {"temperature": 0.0}
    options = {"model": THINKER, "messages": QUESTION, "max_tokens": 40, "extra_body": greedy}
    return claude.messages.create(**{**options, **more})


@job
def openai_switches_thoughts() -> None:
    for off in (
        {"reasoning_effort": "none"},
        {"extra_body": {"chat_template_kwargs": {"thinking": False}}},
        {"extra_body": {"enable_thinking": False}},
    ):
        message = chat(**off)
        assert message.content and not hasattr(message, "reasoning_content"), (off, message)
    message = chat(reasoning_effort="high", extra_body={"thinking": BUDGET})
    assert message.reasoning_content and message.content, message


@job
def openai_streams_thoughts() -> None:
    chunks = client.chat.completions.create(
        model=THINKER,
        messages=QUESTION,
        temperature=0.0,
        max_tokens=40,
        stream=True,
        extra_body={"thinking": BUDGET},
    )
    kinds = []
    for chunk in chunks:
        delta = chunk.choices[0].delta
        kinds += ["thought"] if getattr(delta, "reasoning_content", None) else []
        kinds += ["text"] if delta.content else []
    assert kinds == sorted(kinds, reverse=True) and {*kinds} == {"thought", "text"}, kinds


@job
def openai_responds_with_reasoning() -> None:
    options: Any = {"model": THINKER, "input": QUESTION, "max_output_tokens": 40, "temperature": 0}
    answer = client.responses.create(**options, reasoning={"max_tokens": 6})  # as OpenRouter
    assert [item.type for item in answer.output] == ["reasoning", "message"], answer
    assert answer.output[0].content[0].text  # type: ignore[union-attr,index]
    answer = client.responses.create(**options, reasoning={"effort": "none"})
    assert [item.type for item in answer.output] == ["message"], answer
    history: Any = [*QUESTION, *answer.output, {"role": "user", "content": "And 12 + 34?"}]
    again = client.responses.create(**{**options, "input": history}, reasoning={"effort": "none"})
    assert again.output_text


@job
def anthropic_thinks() -> None:
    answer = ask(thinking=BUDGET)
    assert [block.type for block in answer.content] == ["thinking", "text"], answer
    assert answer.content[0].thinking and isinstance(answer.content[0].signature, str)
    history = [*QUESTION, {"role": "assistant", "content": answer.content}, *QUESTION]
    plain = ask(messages=history, thinking={"type": "disabled"})
    assert [block.type for block in plain.content] == ["text"], plain


@job
def anthropic_streams_thoughts() -> None:
    with claude.messages.stream(
        model=THINKER,
        messages=QUESTION,
        max_tokens=40,
        thinking=BUDGET,  # type: ignore[arg-type]
        extra_body={"temperature": 0.0},
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds.index("thinking") < kinds.index("text"), kinds
    assert [block.type for block in final.content] == ["thinking", "text"]


@job
def litellm_thinks() -> None:
    other: Any = {"extra_body": {"thinking": BUDGET}}
    for model, base, more in (
        (f"hosted_vllm/{THINKER}", V1, other),
        (f"anthropic/{THINKER}", URL, {"thinking": BUDGET, "allowed_openai_params": ["thinking"]}),
    ):
        answer: Any = litellm.completion(
            model=model, api_base=base, api_key=KEY, messages=QUESTION, max_tokens=40, **more
        )
        message = answer.choices[0].message
        assert message.reasoning_content and message.content, (model, message)


@job
def langchain_thinks() -> None:
    model: Any = ChatAnthropic(
        base_url=URL, api_key=KEY, model_name=THINKER, max_tokens=40, thinking=BUDGET
    )
    kinds = [block["type"] for block in model.invoke(SUM).content]
    assert kinds == ["thinking", "text"], kinds


@job
async def pydantic_ai_thinks() -> None:
    provider = OpenAIProvider(base_url=V1, api_key=KEY)
    for kind, more in (
        (OpenAIChatModel, {"thinking": BUDGET}),
        (OpenAIResponsesModel, {"reasoning": {"max_tokens": 6}}),
    ):
        model: Any = kind(THINKER, provider=provider)
        settings: Any = {"temperature": 0.0, "max_tokens": 40, "extra_body": more}
        answer = await Agent(model, model_settings=settings).run(SUM)
        parts = answer.all_messages()[-1].parts
        assert isinstance(parts[0], ThinkingPart), (kind, parts)
        assert parts[0].content or (parts[0].provider_details or {})["raw_content"]
        assert answer.output


@job
def ollama_thinks() -> None:
    other = ollama.Client(host=URL, headers={"Authorization": f"Bearer {KEY}"})
    options = {"temperature": 0, "num_predict": 40}
    plain = other.chat(model=THINKER, messages=QUESTION, options=options, think=False)
    assert plain.message.content and not plain.message.thinking, plain
    thoughtful = other.chat(model=THINKER, messages=QUESTION, options=options, think=True)
    assert thoughtful.message.thinking, thoughtful


run()
