"""Cost of a constraint: responses without and under a grammar, turn by turn, in one run.

    python bench/bench_constrained.py                                # the embedded model
    python bench/bench_constrained.py --synthetic k2-slice --layers 2 --experts 16 --turns 5

The grammar allows any text, and special tokens are forbidden in both, so that a model that writes
text writes the same; a random one also writes bytes that are none, and a note says so. Figures are
medians; the bar allows the constraint a twentieth.
"""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue
from statistics import median

import click

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import hybridmoe
from bench._harness import Row, print_report
from bench.bench_generate import SHAPES, changed
from bench.synthetic import write_synthetic
from hybridmoe.engine.request import Event, Finished, Request, TokenEvent
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.text.grammar_compiler import GrammarCompiler
from hybridmoe.text.output_format import OutputFormat

_LEAST_SHARE = 0.95  # of the free pace
_ANY_TEXT = OutputFormat.regex(r"(.|\n)*")


class Generator:
    """Generates responses with or without a constraint."""

    def __init__(self, llm: hybridmoe.LLM, num_tokens: int) -> None:
        self._llm = llm
        self._grammar = GrammarCompiler(llm.tokenizer, llm.tool_syntax)
        ids = {i for i in range(llm.tokenizer.num_tokens) if llm.tokenizer.is_special(i)}
        self._params = SamplingParams(
            temperature=0.0,
            max_tokens=num_tokens,
            logit_bias={i: float("-inf") for i in ids | llm.tokenizer.eos_ids},
        )
        self._prompt_ids = llm.tokenizer.encode("Hello there, how are you? I am")

    def generate(self, *, is_constrained: bool, num_responses: int) -> tuple[float, list[int]]:
        """Tokens/s of all responses, and the first one's ids."""
        events: SimpleQueue[tuple[int, Event]] = SimpleQueue()
        for number in range(num_responses):
            constraint = self._grammar.compile_format(_ANY_TEXT) if is_constrained else None
            request = Request(
                prompt_ids=self._prompt_ids, params=self._params, constraint=constraint
            )
            self._llm.engine.submit(request, lambda event, n=number: events.put((n, event)))
        ids: list[int] = []
        ends: list[Finished] = []
        while len(ends) < num_responses:
            number, event = events.get()
            if isinstance(event, Finished):
                ends.append(event)
            elif isinstance(event, TokenEvent) and number == 0:
                ids.append(event.token_id)
        if any(end.reason != "length" for end in ends):
            raise RuntimeError(f"a response ended early: {ends}")
        pace = sum((end.usage.generated_tokens - 1) / end.usage.decode_s for end in ends)
        return pace, ids


@click.command(help=__doc__.split("\n\n")[0])
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--synthetic",
    type=click.Choice(list(SHAPES)),
    help="Synthetic model of this shape, with random weights.",
)
@click.option("--layers", type=int, help="Layers of the synthetic model.")
@click.option("--experts", type=int, help="Experts per layer of the synthetic model.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Keep the synthetic file at this path."
)
@click.option("--decode", "num_tokens", default=64, show_default=True, help="Tokens of a response.")
@click.option(
    "--responses",
    multiple=True,
    type=int,
    default=(1, 8),
    show_default=True,
    help="Responses at the same time; may be repeated.",
)
@click.option("--turns", default=31, show_default=True, help="Turns of each; figures are medians.")
def main(
    model: Path | None,
    synthetic: str | None,
    layers: int | None,
    experts: int | None,
    keep: Path | None,
    num_tokens: int,
    responses: tuple[int, ...],
    turns: int,
) -> None:
    with ExitStack() as stack:
        if synthetic:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            model = keep or Path(folder) / f"{synthetic}.gguf"
            if not model.exists():
                shape = changed(SHAPES[synthetic], layers, experts)
                write_synthetic(model, shape, expert_type=QuantType.Q4_K)
        llm = stack.enter_context(hybridmoe.load(model, context_tokens=num_tokens + 64))
        generator = Generator(llm, num_tokens)
        rows = [_row(generator, count, turns) for count in responses]
    print_report(rows)


def _row(generator: Generator, num_responses: int, turns: int) -> Row:
    free, bound = [], []
    is_same = True
    for turn in range(turns + 1):
        freely, ids = generator.generate(is_constrained=False, num_responses=num_responses)
        constrained, same_ids = generator.generate(is_constrained=True, num_responses=num_responses)
        is_same = is_same and ids == same_ids
        if turn:  # the first one warms up
            free.append(freely)
            bound.append(constrained)
    share = median(b / f for b, f in zip(bound, free, strict=True))
    return Row(
        f"{num_responses} constrained responses",
        median(bound),
        "tok/s",
        limit=median(free),
        bar=_LEAST_SHARE * median(free),
        note=f"{share:.3f} turn by turn" + ("" if is_same else "; other tokens"),
    )


if __name__ == "__main__":
    main()
