"""Rates of this machine's CPU, measured: `planning`, which is pure, takes them as they come."""

from hybridmoe.hardware import isa
from hybridmoe.hardware.limits import measure
from hybridmoe.planning.rates import GpuRates, Rates, rates_of

__all__ = ["measured_rates"]


def measured_rates(*, disk: float | None = None, gpu: GpuRates | None = None) -> Rates:
    """Measure the CPU for about a second, and add what is known of disk and GPU."""
    limits = measure(quick=True)
    return rates_of(
        isa.active(),
        dram=limits.read.all,
        peak_ops=limits.prompts.all,
        float_ops=limits.float32.all,
        disk=disk,
        gpu=gpu,
        has_vbmi=isa.has_vbmi(),
    )
