"""Conversion of traces to other simulators' formats and from other programs' recorders.

Out: libCacheSim's oracleGeneral (binary) and CSV, one request for each choice. In: vLLM's output
with `--enable-return-routed-experts` (int16 [tokens, layers, top_k] of one request), and the files
of SGLang's expert distribution recorder in its per-token mode.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.cachebench.belady import next_uses
from hybridmoe.cachebench.simulator import Requests
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import PHASES, Trace

__all__ = ["from_sglang", "from_vllm", "write_csv", "write_oracle_general"]

# libCacheSim's oracleGeneral record, packed, little-endian.
_ORACLE = np.dtype(
    [("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next_access", "<i8")], align=False
)


def write_oracle_general(path: Path, requests: Requests) -> None:
    """Write flat requests, one record each, all of size 1. Errors: OSError.

    next_access: index of the next request for the same key; -1 = none.
    """
    keys, following = requests.keys(), next_uses(requests)
    records = np.zeros(len(keys), _ORACLE)
    records["time"] = np.repeat(requests.steps, np.diff(requests.starts))
    records["object"] = keys
    records["size"] = 1
    records["next_access"] = np.where(following < len(requests.layers), following, -1)
    records.tofile(path)


def write_csv(path: Path, requests: Requests) -> None:
    """Write columns step, layer, expert, key; one row per request. Errors: OSError."""
    counts = np.diff(requests.starts)
    layers = np.repeat(requests.layers, counts)
    columns = np.stack([np.repeat(requests.steps, counts), layers, requests.experts,
                        requests.keys()], 1)  # fmt: skip
    np.savetxt(path, columns, "%d", ",", header="step,layer,expert,key", comments="")


def from_vllm(
    responses: Sequence[NDArray[Any]], prompt_tokens: Sequence[int], num_experts: int
) -> Trace:
    """Join responses of vLLM's API (tokens, layers, top_k), prompts first, into a trace.

    prompt_tokens: of each response, run in one step; the rest is decoded one by one.
    Errors: ConfigError for arrays of other shapes or ids.
    """
    if not responses or len(responses) != len(prompt_tokens):
        raise ConfigError(f"{len(responses)} responses, but {len(prompt_tokens)} prompt lengths")
    shape = np.shape(responses[0])[1:]
    steps, phases = [], []
    for number, (routed, prompt) in enumerate(zip(responses, prompt_tokens, strict=True)):
        if np.ndim(routed) != 3 or np.shape(routed)[1:] != shape:
            raise ConfigError(f"response {number}: shape {np.shape(routed)}, expected (T, L, K)")
        if not 1 <= prompt <= len(routed):
            raise ConfigError(f"response {number}: {prompt} prompt tokens of {len(routed)}")
        steps += [prompt, *[1] * (len(routed) - prompt)]
        phases += [0] * prompt + [1] * (len(routed) - prompt)
    ids = np.concatenate([np.asarray(routed) for routed in responses])
    conversations = np.repeat(np.arange(len(responses)), [len(routed) for routed in responses])
    return _trace("vLLM's routed experts", ids, steps, conversations, phases, num_experts)


def from_sglang(path: Path, num_experts: int) -> Trace:
    """Read a file of SGLang's recorder in per-token mode: a torch file with `records`.

    Its ids are those of physical experts, replicas included. It has no conversations.
    Errors: ConfigError for another kind of file; OSError.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        records = [record["topk_ids_of_layer"] for record in content["records"]]
        ids = [record.permute(1, 0, 2).numpy() for record in records if record.shape[1]]
        steps = [len(step) for step in ids]
        joined = np.concatenate(ids)
    except OSError:
        raise
    except Exception:  # torch.load raises many kinds for other files
        raise ConfigError(f"{path.name}: expected a per-token record of SGLang") from None
    phases = np.repeat([1 if step == 1 else 0 for step in steps], steps)
    return _trace("SGLang's recorder", joined, steps, np.zeros(len(joined)), phases, num_experts)


def _trace(
    source: str,
    ids: NDArray[Any],
    steps: Sequence[int],
    conversations: NDArray[Any],
    phases: Any,
    num_experts: int,
) -> Trace:
    if ids.ndim != 3 or not ids.size or not -1 <= ids.min() <= ids.max() < num_experts <= 32767:
        raise ConfigError(f"{source}: expected ids (T, L, K) of -1 to {num_experts - 1}")
    header = {
        "version": 1,
        "source": source,
        "model": None,
        "num_layers": ids.shape[1],
        "num_experts": num_experts,
        "top_k": ids.shape[2],
        "expert_bytes": [1] * ids.shape[1],  # unknown
        "phases": list(PHASES),
        "conversations": [{"id": int(c)} for c in np.unique(conversations)],
    }
    return Trace(
        header,
        ids.astype(np.int16),
        np.zeros(ids.shape, np.float16),  # unknown
        np.array(steps, np.int32),
        conversations.astype(np.int32),
        np.asarray(phases, np.uint8),
    )
