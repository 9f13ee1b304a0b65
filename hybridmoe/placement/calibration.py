"""Rates of decoding on the GPUs of a model that is placed: what uploads cost, what speed to expect.

Measured once the decoder has put its weights into VRAM, so that they are the model's own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from hybridmoe.device.cuda import CudaDevice
from hybridmoe.device.cuda_errors import loading_onto_gpu
from hybridmoe.experts.gpu.calibrate_decode import DenseMatrices
from hybridmoe.experts.gpu.hand_over import HandOver
from hybridmoe.experts.gpu.host_registration import HostRegistration
from hybridmoe.experts.gpu.slot_pool import SlotPool
from hybridmoe.experts.routed_experts import RoutedExperts
from hybridmoe.placement.gpu_runtime import GpuRuntime, GpuStreams
from hybridmoe.planning.layer_cost import upload_hits
from hybridmoe.planning.plan import Plan
from hybridmoe.planning.rates import Rates
from hybridmoe.planning.stage_cost import StagedCost

__all__ = ["Calibration", "GpuCalibration"]

_DIRECT_SHARE = 0.5  # of the experts' bytes that are registered: most uploads are direct
_POSITION = 1024  # tokens into a conversation, for which the speed is said


@dataclass(slots=True, kw_only=True)
class GpuCalibration:
    """One GPU, and what its rates are for."""

    plan: Plan  # of its layers
    runtime: GpuRuntime
    device: CudaDevice
    dense: DenseMatrices
    experts: RoutedExperts
    streams: GpuStreams
    slots: SlotPool | None
    hand_over: HandOver | None
    rates: Rates  # of prompts, and the CPU's
    registration: HostRegistration  # of the experts' memory

    def measure(self) -> None:
        """Add the rates of decoding. Errors: DeviceError if the GPU fails."""
        with (
            self.device.active(),
            loading_onto_gpu("calibration", self.plan.problem.budgets.vram_bytes),
        ):
            found = self.runtime.measure_decode(
                self.experts, self.dense, self.slots, self.hand_over, self.streams.main
            )
        self.dense.forget()
        assert self.rates.gpu is not None
        self.rates = replace(self.rates, gpu=found.added_to(self.rates.gpu))

    def price_uploads(self) -> None:
        """Tell the cache what an upload costs, now that it is known from which memory they come."""
        if self.slots is None:
            return
        sizes, share = self.plan.problem.sizes, self.plan.num_vram_slots / self.plan.num_experts
        is_direct = self.registration.expected_share > _DIRECT_SHARE
        hits = upload_hits(
            sizes.experts[0], self.rates, sizes.config.top_k, share, is_direct=is_direct
        )
        self.slots.cache.price_uploads(hits)


class Calibration:
    """All GPUs of a plan; nothing is known of one that has no experts, or streams none."""

    def __init__(self, plan: Plan, gpus: Sequence[GpuCalibration]) -> None:
        self._plan, self._gpus = plan, gpus
        self.rates: tuple[Rates, ...] = ()  # with each GPU; none until they have been measured
        self.lines: tuple[str, ...] = ()  # on the speed; none until it has been measured
        # Makes more lines, from the rates with each GPU of the plan.
        self.remarks: Callable[[Sequence[Rates]], Iterable[str]] = lambda rates: ()

    def measure(self) -> None:
        """Measure all, after the decoder was built. Errors: DeviceError."""
        for gpu in self._gpus:
            gpu.measure()
        rates = self.rates = tuple(gpu.rates for gpu in self._gpus)
        if rates and len(rates) == len(self._plan.stages):
            self.lines = (*self._speed(rates), *self.remarks(rates))

    def price_uploads(self) -> None:
        """Tell each GPU's cache what an upload costs, after `measure`."""
        for gpu in self._gpus:
            gpu.price_uploads()

    def _speed(self, rates: Sequence[Rates]) -> Iterator[str]:
        """Yield the speed to expect, unless something is read from disk."""
        cost = StagedCost(self._plan, rates[0], [r.gpu for r in rates if r.gpu is not None])
        if cost.hits.disk > 0:
            return
        step = cost.decode(min(_POSITION, self._plan.kv.context_tokens))
        yield (
            f"decoding: {step.tokens_per_s:.3g} tokens/s expected with {cost.hits.vram:.0%} of the"
            f" chosen experts in VRAM ({', '.join(map(_measured, rates))})"
        )


def _measured(rates: Rates) -> str:
    gpu = rates.gpu
    assert gpu is not None
    found = [(kind.name, rate) for kind, rate in gpu.one_token.items()]
    if gpu.slots is not None:
        found.append(("experts in slots", gpu.slots))
    said = [f"{name} {rate / 1e9:.3g} GB/s" for name, rate in found]
    return ", ".join([*said, f"{gpu.hand_over_s * 1e6:.3g} us a layer to the CPU and back"])
