"""Recorder of routing traces: greedy responses to workloads, with every token's experts.

Besides the choices it records predictions: each layer's router applied to the states of earlier
layers, as an expert prefetch would apply it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from hybridmoe.llm.progress import Progress, ProgressCallback
from hybridmoe.model.decoder import Decoder
from hybridmoe.model.router import Routing
from hybridmoe.model.trace import trace_header
from hybridmoe.model.weights import Weights, routed_experts
from hybridmoe.planning.kv_plan import plan_kv

__all__ = ["Recording", "record"]

_PREFILL, _DECODE = PHASES.index("prefill"), PHASES.index("decode")


@dataclass(frozen=True)
class Recording:
    """Routing trace, and the early gates' predictions."""

    trace: Trace
    predictions: NDArray[np.int16]  # (D, HORIZONS, L, G) for the D decoded tokens; see `Gates`


def record(
    llm: LLM,
    workloads: Sequence[Workload],
    response_tokens: int,
    seed: int,
    progress: ProgressCallback = lambda _: None,
) -> Recording:
    """Respond to each workload greedily, within `response_tokens`, with an empty KV cache each.

    Errors: UnsupportedModelError for a model without routed experts; ConfigError as `encode_chat`.
    """
    recorder = _Recorder(llm)
    described = []
    for number, workload in enumerate(workloads):
        progress(Progress("record", number, len(workloads), "responses"))
        described.append({"id": number, "category": workload.category})
        ids = llm.encode_chat(workload.messages, workload.tools or None)
        prompt = ids[: llm.context_tokens - response_tokens]
        recorder.respond(number, prompt, response_tokens)
    return recorder.finish(described, seed)


class _Recorder:
    """Greedy decoder that keeps the routing of every token."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._experts = routed_experts(Weights(llm.file), llm.config)
        if not self._experts.layers:
            name = llm.file.path.name
            raise UnsupportedModelError(f"{name} has no routed experts: nothing to cache")
        self._model = Decoder(Weights(llm.file), llm.config, CpuExperts(self._experts))
        self._gates = Gates(llm.file, llm.config)
        self._engine = EngineConfig(context_tokens=llm.context_tokens, max_running=1)
        self._steps: list[tuple[NDArray[np.int16], NDArray[np.float16]]] = []
        self._predictions: list[NDArray[np.int16]] = []
        self._conversations: list[int] = []
        self._phases: list[int] = []

    def respond(self, conversation: int, prompt: Sequence[int], response_tokens: int) -> None:
        """Record a prompt in chunks, then its response token by token."""
        cache = KvCache(self._llm.config, plan_kv(self._llm.config, self._engine, 0))
        chunk_tokens = self._engine.chunk_tokens
        for start in range(0, len(prompt), chunk_tokens):
            chunk = prompt[start : start + chunk_tokens]
            token = self._step(cache, conversation, chunk, start, _PREFILL)
        for position in range(len(prompt), len(prompt) + response_tokens - 1):
            if token in self._llm.tokenizer.eos_ids:
                break
            token = self._step(cache, conversation, [token], position, _DECODE)

    def finish(self, conversations: list[dict[str, Any]], seed: int) -> Recording:
        """Join the steps. conversations: what the header says of them."""
        file = self._llm.file
        source = f"greedy responses of {file.path.name} to generated questions"
        header = {
            **trace_header(file, self._llm.config, self._experts, source),
            "version": 1,
            "seed": seed,
            "sampler": "greedy",
            "phases": list(PHASES),
            "conversations": conversations,
        }
        ids, weights = (np.concatenate(column) for column in zip(*self._steps, strict=True))
        trace = Trace(
            header,
            ids,
            weights,
            np.array([len(ids) for ids, _ in self._steps], np.int32),
            np.array(self._conversations, np.int32),
            np.array(self._phases, np.uint8),
        )
        none = np.empty((0, *self._gates.predictions().shape), np.int16)
        return Recording(trace, np.stack(self._predictions) if self._predictions else none)

    def _step(
        self, cache: KvCache, conversation: int, ids: Sequence[int], position: int, phase: int
    ) -> int:
        """Run one step and record it. Returns the most likely next token."""
        routing: list[Routing] = []
        span = Span(len(ids), position, range(cache.plan.num_pages))
        with self._model.observe(self._gates.observe):
            states = self._model.forward(ids, [span], cache.layers, routing)
        experts, weights = (torch.stack(of, 1).numpy() for of in zip(*routing, strict=True))
        self._steps.append((experts.astype(np.int16), weights.astype(np.float16)))
        if phase == _DECODE:
            self._predictions.append(self._gates.predictions())
        self._conversations += [conversation] * len(ids)
        self._phases += [phase] * len(ids)
        return int(torch.argmax(self._model.logits(states[-1:])))
