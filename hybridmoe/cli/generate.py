"""`hybridmoe generate`: one text continued, or one question answered, for scripts."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridmoe.cli.loading import open_model
from hybridmoe.cli.options import (
    engine_options,
    load_options,
    model_argument,
    opening_of,
    sampling_of,
    sampling_options,
)
from hybridmoe.cli.render import ProgressBar, Screen

if TYPE_CHECKING:
    from hybridmoe import LLM, Result, ResultStream

__all__ = ["generate_command"]


@click.command("generate")
@model_argument
@click.option("-p", "--prompt", required=True, help="The text; - reads standard input.")
@click.option("--chat", "is_chat", is_flag=True, help="Ask it as a question, by the template.")
@click.option("--system", metavar="TEXT", help="With --chat: the system message.")
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@engine_options
@load_options
def generate_command(
    model: Path | None,
    prompt: str,
    is_chat: bool,
    system: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Continue a text with MODEL.gguf, or with the model that comes with the package.

    Names of special tokens in the text stand for those tokens, unless --chat is given.
    """
    if system is not None and not is_chat:
        raise click.UsageError("--system needs --chat", click.get_current_context())
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    params = sampling_of(options)
    with (
        open_model(model, params, **opening_of(options)) as llm,
        ProgressBar() as bar,
    ):
        stream = _start(llm, prompt, system, is_chat=is_chat, progress=bar, **params)
        screen = Screen()
        for text, is_thought in stream.pieces():
            bar.close()
            if not as_json:
                screen.write(text, is_thought=is_thought)
        screen.end_line()
        if as_json:
            answer = _as_json(llm.config.name, stream.result)
            experts = llm.expert_stats()
            if experts is not None:
                answer["experts"] = asdict(experts)
            click.echo(json.dumps(answer, ensure_ascii=False))


def _start(
    llm: "LLM", prompt: str, system: str | None, *, is_chat: bool, **options: Any
) -> "ResultStream":
    if not is_chat:
        return llm.generate(prompt, stream=True, **options)
    head = [{"role": "system", "content": system}] if system else []
    return llm.chat([*head, {"role": "user", "content": prompt}], stream=True, **options)


def _as_json(model: str, result: "Result") -> dict[str, Any]:
    timing = result.timing
    out = {
        "model": model,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "prompt_tokens": timing.prompt_tokens,
        "timing": {
            "cached_tokens": timing.cached_tokens,
            "prompt_s": timing.prompt_s,
            "prompt_tokens_per_s": timing.prompt_tokens_per_s,
            "generated_tokens": timing.generated_tokens,
            "decode_s": timing.decode_s,
            "decode_tokens_per_s": timing.decode_tokens_per_s,
        },
    }
    if result.reasoning:
        out["reasoning"] = result.reasoning
    return out | {"tool_calls": result.tool_calls} if result.tool_calls else out
