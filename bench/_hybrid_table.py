"""Table of the hybrid benchmark: what its parts measured, beside the peer and the bars. Pure."""

from collections.abc import Mapping
from typing import Any

from bench._harness import Row, bar
from bench._layers_fit import fit_rows
from bench._peer import PeerSpeed, best_of

__all__ = ["PARTS", "table_of"]

# The bars.
GEMV_SHARE, FEW_SHARE = 0.75, 0.6  # of the rate of copies: one token and slots; 2 to 16 tokens
DECODE_TIMES, PROMPT_TIMES = 2.5, 2.0  # the peer's best
OVERLAP, INSIDE, PREDICTION = 0.95, 0.95, 0.85  # a prediction is off by 15 % at most
FIRST_PROMPT = 0.8  # of the later ones

# Parts, and what each measures.
PARTS: Mapping[str, str] = {
    "gemv": (
        f"copies in VRAM, the link, one token's products and experts in slots (>= {GEMV_SHARE} of"
        f" the copies), products of 2 to 16 tokens (>= {FEW_SHARE})"
    ),
    "decode": (
        f"decode with and without VRAM slots (without: >= {DECODE_TIMES} x the peer; overlap >="
        f" {OVERLAP}, inside kernels >= {INSIDE}, predictions within 15 %)"
    ),
    "prompts": (
        f"prompts (>= {PROMPT_TIMES:g} x the peer; the first after loading >= {FIRST_PROMPT} of"
        " the later ones)"
    ),
    "layers": "time of a decode step and of each of its MoE layers (--fit-layers)",
    "peer": "another program on the same file (--peer)",
}


def table_of(parts: Mapping[str, Any]) -> list[Row]:
    """Make the rows of all parts that were measured, by name."""
    prompts, decode = best_of(PeerSpeed(**speed) for speed in parts.get("peer", ()))
    rows = []
    if "gemv" in parts:
        rows += _gemv_rows(parts["gemv"])
    if "decode" in parts:
        rows += _decode_rows(parts["decode"], decode or None)
    if "prompts" in parts:
        rows += _prompt_rows(parts["prompts"], prompts)
    if "layers" in parts:
        rows += fit_rows(parts["layers"])
    if "peer" in parts:
        rows += [Row(f"peer, prompt of {n}", speed, "tok/s") for n, speed in prompts.items()]
        rows.append(Row("peer, decode", decode, "tok/s"))
    return rows


def _gemv_rows(found: Mapping[str, Any]) -> list[Row]:
    copied = found["copy"]
    rows = [Row("copy within the GPU", copied, "GB/s"), Row("link", found["link"], "GB/s")]
    least = bar(limit=copied, share=GEMV_SHARE)
    for name, rate in found["products"].items():
        rows.append(Row(f"one token {name}", rate, "GB/s", copied, None, least))
    for name, rate in found["slots"].items():
        rows.append(Row(f"one token, experts {name}", rate, "GB/s", copied, None, least))
    least = bar(limit=copied, share=FEW_SHARE)
    for name, rate in found["few_tokens"].items():
        rows.append(Row(name, rate, "GB/s", copied, None, least))
    return rows


def _decode_rows(ways: list[Mapping[str, Any]], peer: float | None) -> list[Row]:
    """Rows of each way to decode; slots must not make it slower."""
    plain = next((way["tokens_per_s"] for way in ways if way["num_slots"] == 0), None)
    rows = []
    for way in ways:
        name, speed, num_slots = way["name"], way["tokens_per_s"], way["num_slots"]
        note = f"p90 {1e3 * way['p90_s']:.1f} ms"
        if way["hit_rate"] is not None:
            note += f", hit rate {way['hit_rate']:.2f}, {way['uploads']:.2f} uploads a token"
        least = None
        if num_slots:
            least = plain
        elif num_slots == 0:
            least = bar(peer=peer, times=DECODE_TIMES)
        against = None if num_slots is None else peer
        rows.append(Row(f"decode, {name}", speed, "tok/s", None, against, least, note))
        if num_slots == 0:
            rows.append(Row("overlap", way["overlap"], "of 1", 1.0, bar=OVERLAP))
            rows.append(Row("inside kernels", way["inside"], "of 1", 1.0, bar=INSIDE))
        if num_slots is not None:
            error = abs(way["predicted"] / speed - 1)
            note = f"predicted {way['predicted']:.1f} tok/s"
            good = 1 - error
            rows.append(Row(f"prediction, {name}", good, "of 1", 1.0, bar=PREDICTION, note=note))
    return rows


def _prompt_rows(found: list[Mapping[str, Any]], peer: Mapping[int, float]) -> list[Row]:
    rows = []
    for prompt in found:
        num_tokens, speed = prompt["num_tokens"], prompt["tokens_per_s"]
        theirs = peer.get(num_tokens)
        least = bar(peer=theirs, times=PROMPT_TIMES)
        alone = prompt["cpu_tokens_per_s"]
        note = "" if alone is None else f"CPU only {alone:.1f}"
        rows.append(Row(f"prompt of {num_tokens}", speed, "tok/s", None, theirs, least, note))
        if prompt["first"] is not None:
            least = bar(limit=speed, share=FIRST_PROMPT)
            rows.append(
                Row(f"first prompt of {num_tokens}", prompt["first"], "tok/s", speed, None, least)
            )
    return rows
