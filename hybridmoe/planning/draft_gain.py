"""Speed with draft tokens of multi-token prediction, over the speed without.

    step of 1 + n tokens = dense weights, read once + attention of each + u(1 + n) x experts
    u(m)  = E (1 - (1 - K / E)^m) / K, the distinct experts of m tokens over those of one
    draft = the MTP layer for one token, the output head, and Python's time for a small step
    gain  = (1 + a1 + a1 a2 + ...) x step of 1 / (step of 1 + n + n drafts + KV cache of the layer)

Adjacent tokens share more experts than u says, so that the gain is rather more. On a GPU a step of
several tokens is not a graph.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.gguf.tensor_table import has_mtp_layer
from hybridmoe.option import Speculation
from hybridmoe.planning.gpu_specs import GPUS, spec_like
from hybridmoe.planning.model_sizes import ModelSizes, Part
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import LAYER_S, GpuRates, Rates, rates_of
from hybridmoe.planning.stage_cost import StagedCost

__all__ = ["DraftGain", "draft_gain", "plan_with_drafts"]

# Of the first draft, and of each further one by the same layer: assumed. DeepSeek-V3 reports 0.85
# to 0.9 for the first (arXiv 2412.19437, section 5.4.3).
_ACCEPTED = (0.8, 0.6, 0.5)
# To load the layer without being asked.
_LEAST_GAIN, _MOST_LOSS = 1.1, 0.01
_APPEND_S, _DRAFT_S = 0.1e-3, 0.3e-3  # of Python and small kernels; measured on the embedded model
# A usual workstation, by which that is decided: gains depend on bytes, and hardly on the machine.
_USUAL_DRAM, _USUAL_OPS, _USUAL_POSITION = 80e9, 20e12, 1024
_USUAL_GPU = GPUS["rtx-4090"]


class DraftGain(NamedTuple):
    """Number of drafts with the highest speed, and that speed over the one without."""

    num_drafts: int
    gain: float
    loss: float  # share of a token's time for the layer's KV cache, whether drafts pay or not

    @property
    def line(self) -> str:
        """Sentence for people."""
        share = 100 * _ACCEPTED[0]
        drafts = f"{self.num_drafts} draft{'s' if self.num_drafts > 1 else ''}"
        return f"{self.gain:.2f} x the tokens/s with {drafts} a step, {share:.0f} % accepted"


def draft_gain(plan: Plan, cost: StagedCost, rates: Rates, position: int) -> DraftGain:
    """Predict for a plan with an MTP layer. cost, rates: the plan's; rates with its first GPU's."""
    sizes = plan.problem.sizes
    one, config = cost.decode(position), sizes.config
    gpu = rates.gpu if plan.vram else None
    append_s = _append_s(sizes, rates, gpu)
    loss = append_s / one.total_s
    chance, tokens, best = 1.0, 1.0, DraftGain(1, 0.0, loss)
    draft_s = _draft_s(sizes, one.seconds, rates, gpu)
    eager_s = max(0.0, LAYER_S - rates.layer_s) * config.num_layers if gpu else 0.0
    for i, accepted in enumerate(_ACCEPTED):
        num_drafts = i + 1
        chance *= accepted
        tokens += chance
        more = _distinct_experts(config, 1 + num_drafts) - 1.0
        verifying = one.total_s + append_s + eager_s + num_drafts * one.seconds["attention"]
        verifying += more * (one.seconds["experts"] + one.seconds["waiting for disk"])
        gain = tokens * one.total_s / (verifying + num_drafts * draft_s)
        if gain > best.gain:
            best = DraftGain(num_drafts, gain, loss)
    return best


def plan_with_drafts(
    config: ModelConfig,
    names: Collection[str],
    speculation: Speculation,
    plan_for: Callable[[ModelConfig], Plan],
) -> Plan:
    """Plan a model with its MTP layer or without, as asked or as predicted to be faster.

    names: of the file's tensors. Errors: those of `plan_for`; ConfigError where a layer is asked
    for that is not there.
    """
    if config.runs_mtp:
        return plan_for(config)
    block = f"blk.{config.num_layers}"
    has_layer = has_mtp_layer(config, names)
    if speculation.source == "mtp":
        if not has_layer:
            raise ConfigError(
                f"speculate={speculation}: the file has no whole layer for multi-token prediction"
                f" ({block}.nextn.*)"
            )
        return plan_for(config.with_mtp())
    why = ""
    if has_layer and speculation.source == "auto":
        with suppress(ConfigError):  # no memory for the layer
            plan = plan_for(config.with_mtp())
            gain = None if plan.needs_disk else _usual_gain(plan)
            if gain is not None and gain.gain >= _LEAST_GAIN and gain.loss <= _MOST_LOSS:
                note = f"multi-token prediction: drafts tokens, predicted {gain.line}"
                return replace(plan, notes=(*plan.notes, note))
            if gain is None:
                why = ", since its drafts would be read from disk"
            elif gain.gain < _LEAST_GAIN:
                why = f": predicted {gain.line}"
            else:
                why = f", since it would take {100 * gain.loss:.0f} % of a token's time"
    plan = plan_for(config)
    if has_layer:
        note = f"multi-token prediction: {block} is not loaded{why} (--speculate mtp loads it)"
        return replace(plan, notes=(*plan.notes, note))
    return plan


def _usual_gain(plan: Plan) -> DraftGain:
    gpus = [_usual_gpu(stage) for stage in plan.stages] if plan.vram else []
    gpu = gpus[0] if gpus else None
    rates = rates_of("avx512", dram=_USUAL_DRAM, peak_ops=_USUAL_OPS, gpu=gpu)
    position = min(_USUAL_POSITION, plan.engine.context_tokens - 1)
    return draft_gain(plan, StagedCost(plan, rates, gpus), rates, position)


def _usual_gpu(stage: Plan) -> GpuRates:
    spec = spec_like(stage.problem.budgets.gpu_name) or _USUAL_GPU
    return GpuRates.assumed(spec.vram_gbs, spec.tflops, spec.pcie_gbs)


def _distinct_experts(config: ModelConfig, num_tokens: int) -> float:
    """Experts of a layer that some of the tokens use, over those of one token; routing uniform."""
    unused = (1 - config.top_k / config.num_experts) ** num_tokens
    return config.num_experts * (1 - unused) / config.top_k


def _append_s(sizes: ModelSizes, rates: Rates, gpu: GpuRates | None) -> float:
    """Seconds to append a step's tokens to the layer's KV cache: mostly reading `eh_proj`."""
    dense = sizes.by_layer[-1].dense
    share = 2 * sizes.config.hidden**2 / sum(part.num_params for part in dense)
    return _APPEND_S + share * _read_s(dense, rates, gpu)


def _read_s(parts: Sequence[Part], rates: Rates, gpu: GpuRates | None) -> float:
    return sum(map((gpu or rates).token_s, parts))


def _draft_s(
    sizes: ModelSizes, step: dict[str, float], rates: Rates, gpu: GpuRates | None
) -> float:
    """Seconds of one draft token. step: those of a token of the network, by cause."""
    config, layer = sizes.config, sizes.by_layer[-1]
    seconds = _read_s((*layer.dense, *(layer.head or sizes.head)), rates, gpu)
    of_experts = step["experts"] / max(1, config.num_moe_layers)
    return seconds + of_experts + step["attention"] / config.num_layers + _DRAFT_S
