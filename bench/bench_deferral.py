"""Effect of expert deferral on the embedded model's distributions.

    python bench/bench_deferral.py

Held-out questions are answered greedily without deferral. The same tokens are then decoded one at a
time with the N least weighted experts of each layer added one layer later. Prefill never defers.
"""

import json
import random
import sys
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hybridmoe
from hybridmoe.config import EngineConfig
from hybridmoe.demo.corpus import dialogue, messages
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.kv_plan import plan_kv

Floats = NDArray[np.float64]


@click.command(help=__doc__.split("\n\n")[0])
@click.option("--prompts", type=int, default=60, help="held-out questions")
@click.option("--seed", type=int, default=5)
def main(prompts: int, seed: int) -> None:
    rng = random.Random(seed)
    with hybridmoe.load() as llm:
        c = llm.config
        experts = CpuExperts(routed_experts(Weights(llm.file), c))
        exact, cases = Decoder(Weights(llm.file), c, experts), []
        for _ in range(prompts):
            drawn = dialogue(rng, "held")
            chat = messages(drawn)
            last = max(i for i, message in enumerate(chat) if message["role"] == "user")
            prompt = llm.encode_chat(chat[: last + 1], drawn.tools)
            text = llm.tokenizer.decode(prompt, skip_special=False)
            response = llm.generate(text, temperature=0.0, max_tokens=64).token_ids
            cases.append((prompt, response, log_probabilities(exact, prompt, response)))
        print(f"{prompts} questions, {sum(len(ids) for _, ids, _ in cases)} decoded tokens")
        rows = []
        print(f"| deferred of {c.top_k} | mean KL, nats | same likeliest token | same response |")
        print("|---|---|---|---|")
        for num_deferred in range(1, c.top_k + 1):
            model = Decoder(Weights(llm.file), c, experts, num_deferred=num_deferred)
            kl, same, whole = [], [], []
            for prompt, response, p in cases:
                q = log_probabilities(model, prompt, response)
                kl += (np.exp(p) * (p - q)).sum(1).tolist()
                equal = p.argmax(1) == q.argmax(1)
                same += equal.tolist()
                whole.append(bool(equal.all()))
            found = float(np.mean(kl)), 100 * float(np.mean(same)), 100 * float(np.mean(whole))
            print(f"| {num_deferred} | {found[0]:.4f} | {found[1]:.1f} % | {found[2]:.0f} % |")
            rows.append((num_deferred, *found))
    names = ("deferred", "kl", "same_token_percent", "same_response_percent")
    print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))


def log_probabilities(model: Decoder, prompt: list[int], response: list[int]) -> Floats:
    """Compute (response tokens, V), each given the true tokens before it."""
    ids = [*prompt, *response]
    engine = EngineConfig(context_tokens=len(ids), max_running=1)
    cache = KvCache(model.config, plan_kv(model.config, engine, 0))
    pages = range(cache.plan.num_pages)
    rows: list[Floats] = []
    states = model.forward(prompt, [Span(len(prompt), 0, pages)], cache.layers)
    for position in range(len(prompt), len(ids)):
        rows.append(model.logits(states[-1:]).numpy()[0].astype(np.float64))
        span = Span(1, position, pages)
        states = model.forward(ids[position : position + 1], [span], cache.layers)
    logits = np.array(rows).reshape(-1, model.config.vocab_size)
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


if __name__ == "__main__":
    main()
