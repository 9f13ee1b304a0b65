"""Distances of logits from exact arithmetic on the same weights, beside llama.cpp's.

    python bench/bench_exactness.py                     # both with their defaults
    python bench/bench_exactness.py --kv-type bf16 --isa avx2

The embedded model in every tensor type, on held-out conversations, and small random models of every
type and variant. Exact is the network in float64 on the weights that a file really holds. A
distance is the relative error of a position's logits in the L2 norm, the median over positions;
`value` is ours over llama.cpp's: 1 is as far, less is closer. llama.cpp gets the file's YaRN betas,
which 0.3.36 does not read for deepseek2; all else is its default.
"""

import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from exact_network import exact_logits
from tiny_config import VARIANTS
from tiny_gguf import requantize, write_tiny

import hybridmoe
from bench._harness import Row, print_report
from bench._llama_cpp import LlamaCpp
from hybridmoe.config import KV_TYPES
from hybridmoe.demo import demo_path
from hybridmoe.demo.corpus import dialogue, messages
from hybridmoe.gguf.quant_types import QuantType as Type
from hybridmoe.hardware import isa

FLOATS = (Type.F32, Type.F16, Type.BF16)
QUANTIZED = (
    Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1,
    Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K,
    Type.IQ1_S, Type.IQ1_M, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S,
    Type.IQ3_XXS, Type.IQ3_S, Type.IQ4_NL, Type.IQ4_XS, Type.MXFP4,
)  # fmt: skip
CALM = 0.7  # in the default random model, errors grow tenfold
Logits = NDArray[np.floating]


class Case(NamedTuple):
    """A file's name, and what writes it and returns its weights."""

    name: str
    variant: str | None  # None: the embedded model
    type: Type | None  # None: as its file is

    def write(self, path: Path) -> dict[str, np.ndarray]:
        if self.variant is None:
            return requantize(demo_path(), self.type, path)
        assert self.type is not None
        return write_tiny(path, variant=self.variant, type=self.type, gain=CALM)


def cases() -> Iterator[Case]:
    yield Case("embedded as it is", None, None)
    for kind in (*FLOATS, *QUANTIZED):
        yield Case(f"embedded {kind.name}", None, kind)
    for kind in (*FLOATS, *QUANTIZED):
        yield Case(f"random k2 {kind.name}", "k2", kind)
    for variant in VARIANTS:
        if variant != "k2":
            yield Case(f"random {variant} Q8_0", variant, Type.Q8_0)


@click.command()
@click.option("--kv-type", type=click.Choice(KV_TYPES), default=KV_TYPES[0], show_default=True)
@click.option("--isa", "isa_name", type=click.Choice(isa.supported()), help="Our kernels.")
@click.option("--tokens", type=int, default=192, show_default=True)
@click.option("--only", default="", help="Files whose names contain this.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON here, too.")
def main(kv_type: str, isa_name: str | None, tokens: int, only: str, out: Path | None) -> None:
    """Print ours / llama.cpp's distance from exact arithmetic for each file, and the medians."""
    rows, chosen = [], [case for case in cases() if only in case.name]
    with isa.forced(isa_name) if isa_name else nullcontext():
        for case in chosen:
            ours, theirs = _distances(case, kv_type, tokens)
            note = f"ours {ours:.2e}, llama.cpp's {theirs:.2e}"
            rows.append(Row(case.name, ours / theirs, "times", note=note))
            click.echo(f"{case.name}: {ours / theirs:.2f} ({note})", err=True)
        for group in ("embedded", "random"):
            ratios = [row.value for row in rows if row.name.startswith(group)]
            if ratios:
                rows.append(Row(f"median of {group}", float(np.median(ratios)), "times"))
        print_report(rows, about={"kv_type": kv_type, "tokens": tokens}, out=out)


def _distances(case: Case, kv_type: str, num_tokens: int) -> tuple[float, float]:
    """Ours and llama.cpp's."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        weights = case.write(path)
        with hybridmoe.load(path, kv_type=kv_type, device="cpu") as llm:
            c = llm.config
            ids = _conversations(llm) if case.variant is None else _noise(c.vocab_size)
            ids = ids[:num_tokens]
            ours = llm.logits(ids)
        betas = (c.yarn.beta_fast, c.yarn.beta_slow) if c.yarn else None
        # With AMX, llama.cpp cannot run such files with its default.
        extra = "amx" not in isa.supported()
        with LlamaCpp(
            path, context_tokens=num_tokens, yarn_betas=betas, use_extra_bufts=extra
        ) as peer:
            theirs = peer.logits(ids)
        exact = exact_logits(c, weights, ids)
    return _distance(exact, ours), _distance(exact, theirs)


def _conversations(llm: hybridmoe.LLM) -> list[int]:
    """Held-out ones of the embedded model's corpus, one after the other."""
    rng, ids = random.Random(5), list[int]()
    for _ in range(100):
        drawn = dialogue(rng, "held")
        ids += llm.encode_chat(messages(drawn), drawn.tools)
    return ids


def _noise(vocab_size: int) -> list[int]:
    return np.random.default_rng(105).integers(0, vocab_size, 2048).tolist()


def _distance(exact: Logits, logits: Logits) -> float:
    errors = np.linalg.norm(logits - exact, axis=1) / np.linalg.norm(exact, axis=1)
    return float(np.median(errors))


if __name__ == "__main__":
    main()
