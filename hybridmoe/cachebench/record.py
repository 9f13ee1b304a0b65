"""Recording a routing trace: greedy answers to workloads, every token's experts and weights.

Beside the choices, guesses are recorded: each layer's router applied to the states of layers before
it, which is what a prefetch would go by.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.cachebench.gates import Gates
from hybridmoe.cachebench.workloads import Workload
from hybridmoe.config import EngineConfig
from hybridmoe.engine.kv_cache import KvCache
from hybridmoe.errors import UnsupportedModelError
from hybridmoe.experts.backend import CpuExperts
from hybridmoe.experts.routing_trace import PHASES, Trace
from hybridmoe.kernels.paged_mla import Span
from hybridmoe.llm.llm import LLM
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.weights import Weights, routed_experts, trace_header
from hybridmoe.planning.kv_plan import plan_kv

__all__ = ["Recording", "record"]

_PREFILL, _DECODE = PHASES.index("prefill"), PHASES.index("decode")


@dataclass(frozen=True)
class Recording:
    """A trace, and what routers would have guessed earlier."""

    trace: Trace
    guesses: NDArray[np.int16]  # (D, HORIZONS, L, G) of the D decoded tokens; see `Gates.taken`


def record(llm: LLM, workloads: Iterable[Workload], answer_tokens: int, seed: int) -> Recording:
    """Answer each workload greedily, with at most so many tokens, each with an empty cache.

    Errors: UnsupportedModelError for a model without routed experts; ConfigError as `encode_chat`.
    """
    c = llm.config
    experts = routed_experts(Weights(llm.file), c)
    if not experts.layers:
        raise UnsupportedModelError(f"{llm.file.path.name} has no routed experts: nothing to cache")
    model = Decoder(Weights(llm.file), c, CpuExperts(experts))
    gates = Gates(llm.file, c)
    steps: list[tuple[NDArray[np.int16], NDArray[np.float16]]] = []
    guesses: list[NDArray[np.int16]] = []
    conversations: list[int] = []
    phases: list[int] = []
    described = []
    engine = EngineConfig(context_tokens=llm.context_tokens, max_running=1)
    for number, workload in enumerate(workloads):
        described.append({"id": number, "category": workload.category})
        ids = llm.encode_chat(workload.messages, workload.tools or None)
        ids = ids[: llm.context_tokens - answer_tokens]
        cache = KvCache(c, plan_kv(c, engine, 0))
        pages = range(cache.plan.num_pages)
        position, num_answered = 0, 0
        chunk = ids
        while num_answered < answer_tokens:
            for start in range(0, len(chunk), engine.chunk_tokens):
                part = chunk[start : start + engine.chunk_tokens]
                trace: list[Routing] = []
                span = Span(len(part), position, pages)
                with model.observe(gates.observe):
                    states = model.forward(part, [span], cache.layers, trace)
                ids_, weights = (torch.stack(of, 1).numpy() for of in zip(*trace, strict=True))
                steps.append((ids_.astype(np.int16), weights.astype(np.float16)))
                if num_answered:
                    guesses.append(gates.taken())
                conversations += [number] * len(part)
                phases += [_PREFILL if num_answered == 0 else _DECODE] * len(part)
                position += len(part)
            token = int(torch.argmax(model.logits(states[-1:])))
            if token in llm.tokenizer.eos_ids:
                break
            chunk, num_answered = [token], num_answered + 1
    header = {
        **trace_header(
            llm.file, c, experts, f"greedy answers of {llm.file.path.name} to generated questions"
        ),
        "version": 1,
        "seed": seed,
        "sampler": "greedy",
        "phases": list(PHASES),
        "conversations": described,
    }
    ids_, weights = (np.concatenate(column) for column in zip(*steps, strict=True))
    lengths = np.array([len(step[0]) for step in steps], np.int32)
    recorded = Trace(
        header, ids_, weights, lengths, np.array(conversations, np.int32),
        np.array(phases, np.uint8),
    )  # fmt: skip
    none = np.empty((0, *gates.taken().shape), np.int16)
    return Recording(recorded, np.stack(guesses) if guesses else none)
