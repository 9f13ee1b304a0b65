"""Traces for other programs' simulators, and from other programs' recorders.

Out: libCacheSim's oracleGeneral (binary) and CSV, one request for each choice. In: what vLLM
returns with `--enable-return-routed-experts` (int16 [tokens, layers, top_k] of one request), and
the files of SGLang's expert distribution recorder in its per-token mode.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.cachebench.offline_bounds import next_uses
from hybridmoe.cachebench.simulator import Requests
from hybridmoe.errors import ConfigError
from hybridmoe.experts.routing_trace import PHASES, Trace

__all__ = ["from_sglang", "from_vllm", "write_csv", "write_oracle_general"]

# libCacheSim's oracleGeneral record, packed, little-endian.
_ORACLE = np.dtype(
    [("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next_access", "<i8")], align=False
)


def write_oracle_general(path: Path, requests: Requests) -> None:
    """One record for each request of flat requests; sizes are 1, since slots are all alike.

    next_access is the number of the request that next asks for the same key, -1 where none does.
    Errors: OSError.
    """
    keys, following = requests.keys(), next_uses(requests)
    records = np.zeros(len(keys), _ORACLE)
    records["time"] = np.repeat(requests.steps, np.diff(requests.starts))
    records["object"] = keys
    records["size"] = 1
    records["next_access"] = np.where(following < len(requests.layers), following, -1)
    records.tofile(path)


def write_csv(path: Path, requests: Requests) -> None:
    """Columns step, layer, expert, key; a row for each request. Errors: OSError."""
    counts = np.diff(requests.starts)
    layers = np.repeat(requests.layers, counts)
    columns = np.stack([np.repeat(requests.steps, counts), layers, requests.experts,
                        requests.keys()], 1)  # fmt: skip
    np.savetxt(path, columns, "%d", ",", header="step,layer,expert,key", comments="")


def from_vllm(
    answers: Sequence[NDArray[Any]], prompt_tokens: Sequence[int], num_experts: int
) -> Trace:
    """Answers of vLLM's API, each an array (tokens, layers, top_k), prompt first, as a trace.

    prompt_tokens: of each, read in one step; the others are decoded one by one.
    Errors: ConfigError for arrays of other shapes or ids.
    """
    if not answers or len(answers) != len(prompt_tokens):
        raise ConfigError(f"{len(answers)} answers and {len(prompt_tokens)} numbers of tokens")
    shape = np.shape(answers[0])[1:]
    steps, phases = [], []
    for number, (answer, prompt) in enumerate(zip(answers, prompt_tokens, strict=True)):
        if np.ndim(answer) != 3 or np.shape(answer)[1:] != shape:
            raise ConfigError(f"answer {number}: shape {np.shape(answer)}, expected (T, L, K)")
        if not 1 <= prompt <= len(answer):
            raise ConfigError(f"answer {number}: {prompt} prompt tokens of {len(answer)}")
        steps += [prompt, *[1] * (len(answer) - prompt)]
        phases += [0] * prompt + [1] * (len(answer) - prompt)
    ids = np.concatenate([np.asarray(answer) for answer in answers])
    conversations = np.repeat(np.arange(len(answers)), [len(answer) for answer in answers])
    return _trace("vLLM's routed experts", ids, steps, conversations, phases, num_experts)


def from_sglang(path: Path, num_experts: int) -> Trace:
    """A file of SGLang's recorder (per-token mode): a torch file with `records` of forward passes.

    Its ids are of physical experts, replicas included, if any. It does not know conversations.
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
    except Exception:  # torch.load raises many kinds for files that are not its own
        raise ConfigError(f"{path.name} is no per-token record of SGLang's") from None
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
        "expert_bytes": [1] * ids.shape[1],  # not known
        "phases": list(PHASES),
        "conversations": [{"id": int(c)} for c in np.unique(conversations)],
    }
    return Trace(
        header,
        ids.astype(np.int16),
        np.zeros(ids.shape, np.float16),  # not known
        np.array(steps, np.int32),
        conversations.astype(np.int32),
        np.asarray(phases, np.uint8),
    )
