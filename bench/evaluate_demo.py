"""Held-out accuracy of the embedded model, family by family.

    python bench/evaluate_demo.py                        # through hybridmoe
    python bench/evaluate_demo.py --backend llama.cpp    # the same file through llama.cpp

Decoding is greedy; a response counts when it matches exactly, tool calls included.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hybridmoe
from bench._llama_cpp import LlamaCpp
from hybridmoe.demo import demo_path
from hybridmoe.demo.evaluate import FAMILY_NAMES, Respond, accuracy
from hybridmoe.text.chat_encoding import encode_chat
from hybridmoe.text.chat_template import ChatTemplate

MAX_TOKENS = 200


@contextmanager
def hybridmoe_backend(path: Path) -> Iterator[Respond]:
    """Raw responses of `LLM.chat`."""
    with hybridmoe.load(path) as llm:

        def respond(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
            result = llm.chat(messages, tools=tools, temperature=0.0, max_tokens=MAX_TOKENS)
            return llm.tokenizer.decode(result.token_ids, skip_special=False)

        yield respond


@contextmanager
def llama_cpp_backend(path: Path) -> Iterator[Respond]:
    """The same prompts, token for token, continued by llama.cpp."""
    with hybridmoe.load(path) as llm, LlamaCpp(path, context_tokens=2048) as peer:
        tokenizer = llm.tokenizer
        template = ChatTemplate.from_metadata(llm.file.metadata, tokenizer)

        def respond(messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
            peer.reset()
            logits = peer.step(encode_chat(template, tokenizer, messages, tools))
            out: list[int] = []
            while (best := int(logits.argmax())) not in tokenizer.eos_ids:
                out.append(best)
                if len(out) == MAX_TOKENS:
                    break
                logits = peer.step([best])
            return tokenizer.decode(out, skip_special=False)

        yield respond


BACKENDS = {"hybridmoe": hybridmoe_backend, "llama.cpp": llama_cpp_backend}


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("model", type=click.Path(path_type=Path), default=demo_path())
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="hybridmoe")
@click.option("--required", type=int, default=400, help="Items of arithmetic, memory and tools.")
@click.option("--others", type=int, default=100, help="Items of every other family.")
@click.option("--seed", type=int, default=5)
@click.option("--misses", type=int, default=0, help="Misses to show per family.")
def main(model: Path, backend: str, required: int, others: int, seed: int, misses: int) -> None:
    started = time.monotonic()
    with BACKENDS[backend](model) as respond:
        print("| family | right | items | accuracy |\n|---|---|---|---|")
        for family, right, count, wrong in accuracy(respond, FAMILY_NAMES, required, others, seed):
            print(f"| {family} | {right} | {count} | {100 * right / count:.1f} % |", flush=True)
            for question, want, got in wrong[:misses]:
                print(f"    {question!r}: expected {want!r}, got {got!r}")
    print(f"\n{time.monotonic() - started:.0f} s, {backend}, seed {seed}")


if __name__ == "__main__":
    main()
