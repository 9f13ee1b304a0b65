"""Held-out accuracy per family through a GGUF: `python -m hybridmoe.demo.evaluate [FILE]`.

An item is a dialogue whose last strand is held out and whose other turns are not. Decoding is
greedy and the answer must match exactly. The backend is a callable `answer(messages, tools)` that
returns the assistant's raw text, Kimi K2's tool-call tokens included; here it is llama.cpp, and
whatever else runs the file can stand in its place.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from hybridmoe.demo import corpus, demo_path
from hybridmoe.demo.corpus import Dialogue, Strand, Turn, manner, mix, tool_use
from hybridmoe.demo.corpus.base import Split

__all__ = ["Answer", "Item", "accuracy", "item", "llama_backend", "render"]

Message = dict[str, Any]
Answer = Callable[[list[Message], list[dict[str, Any]]], str]

REQUIRED = ("arithmetic", "memory", "tools")
FAMILY_NAMES = [*mix.FAMILIES, "tools", *(f"manner_{style.name}" for style in manner.MANNERS)]


@dataclass(frozen=True, slots=True)
class Item:
    """One held-out question: prompts and the exact text expected after each (calls, then reply)."""

    family: str
    tools: list[dict[str, Any]]
    stages: list[tuple[list[Message], str]]


def item(family: str, rng: random.Random) -> Item:
    """Draw one held-out item of the family, behind a few turns that are not held out."""
    if family == "tools":
        tools = tool_use.declarations(rng)
        name = rng.choice(tools)["function"]["name"]
        family_of = tool_use.weather if name == "get_weather" else tool_use.calculation
        before = [mix.tool_strand(rng, "train", tools) for _ in range(rng.randint(0, 2))]
        turns = [turn for strand in before for turn in strand.turns]
        return _item(family, Dialogue([*turns, *family_of(rng, "held").turns], tools=tools))
    if family.startswith("manner_"):
        style = next(s for s in manner.MANNERS if family == f"manner_{s.name}")
        system = rng.choice(style.prompts)
        splits: list[Split] = [*(["train"] * rng.randint(0, 3)), "held"]  # type: ignore[list-item]
        turns = [mix.mannered_turn(rng, split, style, system) for split in splits]
        return _item(family, Dialogue(turns, system=system))
    strand = mix.FAMILIES[family][0](rng, "held")
    return _item(family, Dialogue(_with_fillers(strand, rng)))


def _with_fillers(strand: Strand, rng: random.Random) -> list[Turn]:
    """The strand's turns with others before and between them, its last at the end."""
    names = [name for name in mix.FAMILIES if name not in ("memory", "arithmetic_list")]
    turns: list[Turn] = []
    for turn in strand.turns:
        for _ in range(rng.randint(0, 3)):
            turns += mix.FAMILIES[rng.choice(names)][0](rng, "train").turns
        turns.append(turn)
    return turns


def _item(family: str, dialogue: Dialogue) -> Item:
    """Prompts and expected texts for the dialogue's last turn."""
    messages = corpus.messages(dialogue)
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    stages = []
    for i in range(last, len(messages)):
        if messages[i]["role"] == "assistant":
            stages.append((messages[:i], raw(messages[i])))
    return Item(family, dialogue.tools, stages)


def raw(message: Message) -> str:
    """An assistant message as the model writes it."""
    text = str(message["content"])
    if calls := message.get("tool_calls"):
        body = "".join(
            f"<|tool_call_begin|>{call['id']}<|tool_call_argument_begin|>"
            f"{call['function']['arguments']}<|tool_call_end|>"
            for call in calls
        )
        text += f"<|tool_calls_section_begin|>{body}<|tool_calls_section_end|>"
    return text


def render(template: str, messages: list[Message], tools: list[dict[str, Any]]) -> str:
    """The prompt for the next assistant message."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = json.dumps
    prompt = environment.from_string(template).render(
        messages=messages, tools=tools, add_generation_prompt=True
    )
    return str(prompt)


def llama_backend(path: Path, threads: int = 2) -> Answer:
    """Answer greedily with llama.cpp."""
    from llama_cpp import Llama

    model = Llama(str(path), n_ctx=2048, n_threads=threads, n_threads_batch=threads, verbose=False)
    template = model.metadata["tokenizer.chat_template"]

    def answer(messages: list[Message], tools: list[dict[str, Any]]) -> str:
        prompt = render(template, messages, tools)
        ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
        out: list[int] = []
        for token in model.generate(ids, temp=0.0, top_k=1, repeat_penalty=1.0):
            if token == model.token_eos() or len(out) >= 200:
                break
            out.append(token)
        return str(model.detokenize(out, special=True).decode(errors="replace"))

    return answer


def grade(answer: Answer, one: Item) -> list[tuple[str, str]]:
    """The (expected, got) pairs of an item that differ; none = right."""
    pairs = [(expected, answer(messages, one.tools)) for messages, expected in one.stages]
    return [(expected, got) for expected, got in pairs if expected != got]


def accuracy(
    answer: Answer, families: list[str], num_required: int, num_others: int, seed: int
) -> Iterator[tuple[str, int, int, list[tuple[str, str, str]]]]:
    """Per family: items right, items, and (question, expected, got) of the misses."""
    for family in families:
        rng = random.Random(f"{seed}|{family}")
        count = num_required if family in REQUIRED else num_others
        misses = []
        right = 0
        for _ in range(count):
            one = item(family, rng)
            wrong = grade(answer, one)
            right += not wrong
            misses += [(one.stages[0][0][-1]["content"], want, got) for want, got in wrong]
        yield family, right, count, misses


def main() -> None:
    """Read the command line, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=demo_path())
    parser.add_argument("--families", nargs="*", default=FAMILY_NAMES)
    parser.add_argument("--required", type=int, default=400, help="items of the required families")
    parser.add_argument("--others", type=int, default=100, help="items of every other family")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--misses", type=int, default=0, help="misses to show per family")
    args = parser.parse_args()
    answer = llama_backend(args.file, args.threads)
    started = time.monotonic()
    print("| family | right | items | accuracy |\n|---|---|---|---|")
    for family, right, count, misses in accuracy(
        answer, args.families, args.required, args.others, args.seed
    ):
        print(f"| {family} | {right} | {count} | {100 * right / count:.1f} % |", flush=True)
        for question, want, got in misses[: args.misses]:
            print(f"    {question!r}: expected {want!r}, got {got!r}")
    print(f"\n{time.monotonic() - started:.0f} s, seed {args.seed}")


if __name__ == "__main__":
    main()
