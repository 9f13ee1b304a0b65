"""`hybridmoe generate`: answer one prompt, or continue one text, for scripts."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hybridmoe.cli.loading import check_params, open_model
from hybridmoe.cli.options import (
    SERVER_NAMES,
    SectionedCommand,
    load_options,
    load_options_of,
    model_argument,
)
from hybridmoe.cli.progress_bar import ProgressBar
from hybridmoe.cli.ranks import has_served_experts
from hybridmoe.cli.render import Screen
from hybridmoe.cli.sampling_options import sampling_of, sampling_options
from hybridmoe.cli.thinking import thinking_of, thinking_options

if TYPE_CHECKING:
    from hybridmoe import LLM, Result, ResultStream

__all__ = ["generate_command"]

# Without --max-tokens. Chat responses end by themselves, but for a mishap; texts often do not.
_MAX_RESPONSE, _MAX_TEXT = 4096, 256


@click.command("generate", cls=SectionedCommand)
@model_argument
@click.option("-p", "--prompt", required=True, help="Prompt; - reads standard input")
@click.option(
    "--raw", is_flag=True, help="Continue the prompt as plain text, without the chat template"
)
@click.option("--chat", "must_chat", is_flag=True, help="Fail if the model has no chat template")
@click.option("--system", metavar="TEXT", help="System message")
@thinking_options
@sampling_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end")
@load_options(without=SERVER_NAMES)
def generate_command(
    model: Path | None,
    prompt: str,
    raw: bool,
    must_chat: bool,
    system: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer one prompt with MODEL.gguf, or with the embedded model.

    The prompt becomes a user message in the model's chat template. With --raw, or without a
    template, it is continued as plain text, in which names of special tokens stand for those
    tokens. Without --max-tokens, a response has at most 4096 tokens, a continued text 256.
    """
    loading = load_options_of(options)
    if has_served_experts(model, loading):
        return
    thinking = thinking_of(options)
    thinks = thinking.mode is not None or thinking.budget_tokens is not None
    must_chat = must_chat or system is not None or thinks
    if raw and must_chat:
        raise click.UsageError(
            "--raw uses no chat template, but --chat, --system and --think need it",
            click.get_current_context(),
        )
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8-sig", "replace")
    params = sampling_of(options)
    check_params(params)
    with open_model(model, loading) as llm, ProgressBar() as bar:
        is_chat = must_chat or (not raw and llm.can_chat)
        if not is_chat and not raw:
            _say("no chat template: the prompt is continued as plain text")
        if raw and model is None:
            _say("the embedded model knows conversations only; without --raw it answers")
        is_limited = "max_tokens" in params
        params.setdefault("max_tokens", _MAX_RESPONSE if is_chat else _MAX_TEXT)
        if is_chat:
            params["thinking"] = thinking
        stream = _start(llm, prompt, system, is_chat=is_chat, progress=bar, **params)
        screen = Screen()
        for text, is_reasoning in stream.pieces():
            bar.close()
            if not as_json:
                screen.write(text, is_reasoning=is_reasoning)
        screen.end_line()
        if stream.result.finish_reason == "length" and not is_limited:
            _say("cut off (raise --max-tokens, up to the end of the context)")
        if as_json:
            response = _as_json(llm.config.name, stream.result)
            experts = llm.expert_stats()
            if experts is not None:
                response["experts"] = asdict(experts)
            click.echo(json.dumps(response, ensure_ascii=False))


def _start(
    llm: "LLM", prompt: str, system: str | None, *, is_chat: bool, **options: Any
) -> "ResultStream":
    if not is_chat:
        return llm.generate(prompt, stream=True, **options)
    head = [{"role": "system", "content": system}] if system else []
    return llm.chat([*head, {"role": "user", "content": prompt}], stream=True, **options)


def _say(message: str) -> None:
    print(f"hybridmoe: {message}", file=sys.stderr, flush=True)


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
            "draft_tokens": timing.draft_tokens,
            "accepted_tokens": timing.accepted_tokens,
        },
    }
    if result.reasoning:
        out["reasoning"] = result.reasoning
    return out | {"tool_calls": result.tool_calls} if result.tool_calls else out
