"""Bounds of `hybridmoe doctor`: what limits decode and prompts on this machine, from its limits."""

from collections.abc import Iterator
from dataclasses import replace

from hybridmoe.cli.doctor_checks import Check
from hybridmoe.gguf.quant_types import QuantType
from hybridmoe.hardware.limits import Limits, Rate, Units
from hybridmoe.hardware.machine import Machine
from hybridmoe.planning.kernel_rates import MEASURED_ON
from hybridmoe.planning.rates import PRODUCTS, rates_of
from hybridmoe.units import format_bytes

__all__ = ["bounds", "measured_units"]

# Kimi K2 (moonshotai/Kimi-K2-Instruct, config.json): 60 MoE layers, 8 of 384 experts per token,
# three matrices of 7168 x 2048 each. Q4_K is 144 bytes for 256 weights.
_LAYERS, _EXPERTS, _TOP_K, _WEIGHTS = 60, 384, 8, 3 * 7168 * 2048
_EXPERT_BYTES = _WEIGHTS * 144 // 256
_MODEL_BYTES, _TOKEN_BYTES = (_LAYERS * n * _EXPERT_BYTES for n in (_EXPERTS, _TOP_K))
_TOKEN_OPERATIONS = 2 * _LAYERS * _TOP_K * _WEIGHTS

_SATURATED = 0.95  # of the greatest rate of memory


def measured_units(machine: Machine, limits: Limits, units: Units) -> Iterator[Check]:
    """List the rates of the units: memory, caches, products of each instruction set."""
    yield Check("memory read", _text(limits.read, 1e9, "GB/s"))
    caches = (("L2 read", units.l2, "one core"), ("L3 read", units.l3, "all threads"))
    for name, rate, by in caches:
        if rate is not None:
            yield Check(name, f"{rate / 1e9:.0f} GB/s {by}")
    products = [(machine.isa_active, limits.int8, limits.float32)]
    products += [(name, found.int8, found.float32) for name, found in units.other_isa.items()]
    for name, int8, float32 in products:
        yield Check(f"{name} int8", _text(int8, 1e12, "TOPS"))
        yield Check(f"{name} float32", _text(float32, 1e12, "TFLOPS"))
    for name, tile, unit in (
        ("AMX int8", limits.amx_int8, "TOPS"),
        ("AMX bf16", limits.amx_bf16, "TFLOPS"),
    ):
        if tile is not None:
            yield Check(name, _text(tile, 1e12, unit))


def bounds(machine: Machine, limits: Limits, units: Units, product_bytes: float) -> Iterator[Check]:
    """Say what bounds decode and prompts. product_bytes: of Q4_K a second, from the cache."""
    yield _decode(machine, limits, units, product_bytes)
    yield _prompts(machine, limits)
    yield _kernels(machine, limits, product_bytes)


def _decode(machine: Machine, limits: Limits, units: Units, product_bytes: float) -> Check:
    memory = limits.read.all
    rate = min(memory, product_bytes)
    most = f"at most {rate / _TOKEN_BYTES:.1f} tokens/s of Kimi K2 in Q4_K"
    enough = _saturating(units)
    cores = f"{enough} of {machine.kernel_threads} threads saturate it"
    if product_bytes < memory:
        value = (
            f"bound by products: {product_bytes / 1e9:.1f} GB/s of Q4_K, where memory reads"
            f" {memory / 1e9:.1f}; {most}"
        )
        why = "memory waits for the cores: more of them, or a wider instruction set, would help"
        return Check("decode", value, "warn", why)
    value = f"bound by memory: {memory / 1e9:.1f} GB/s, {cores}; {most}"
    if machine.available_bytes is None or machine.available_bytes >= _MODEL_BYTES:
        return Check("decode", value, "ok")
    why = (
        f"a token reads {format_bytes(_TOKEN_BYTES)} of its experts, which take"
        f" {format_bytes(_MODEL_BYTES)}; {format_bytes(machine.available_bytes)} are free, and the"
        " others are read from disk, at the disk's speed"
    )
    return Check("decode", value, "ok", why, "hybridmoe plan kimi-k2 --quant Q4_K_M")


def _saturating(units: Units) -> int:
    """Least number of threads that read about as fast as any."""
    most = max(units.read_by_threads.values())
    return min(n for n, rate in units.read_by_threads.items() if rate >= _SATURATED * most)


def _prompts(machine: Machine, limits: Limits) -> Check:
    unit, name, products = limits.int8, "TOPS", "int8 products"
    if limits.amx_bf16 is not None:
        unit, name, products = limits.amx_bf16, "TFLOPS", "bfloat16 tiles"
    # An expert is read once for all of its tokens: with few, that takes longer than they do.
    tokens = unit.all * _EXPERT_BYTES / (2 * _WEIGHTS * limits.read.all)
    value = (
        f"bound by {products} ({machine.isa_active}): {unit.all / 1e12:.2f} {name}, at most"
        f" {unit.all / _TOKEN_OPERATIONS:.0f} tokens/s of Kimi K2; by memory below about"
        f" {_rounded(tokens * _EXPERTS / _TOP_K)} tokens"
    )
    return Check("prompts", value, "ok")


def _kernels(machine: Machine, limits: Limits, product_bytes: float) -> Check:
    """Compare the kernels' rates that `hybridmoe plan` assumes with those of Q4_K here."""
    active = machine.isa_active
    rates = rates_of(active, dram=limits.read.all, peak_ops=limits.prompts.all)
    if limits.amx_bf16 is not None:
        rates = replace(rates, int8_ops=limits.int8.all)
    assumed = rates.product_bytes(QuantType.Q4_K)
    assert assumed is not None
    value = (
        f"plan takes those of {MEASURED_ON}, over the peaks above: one token's products of Q4_K"
        f" {assumed / 1e9:.1f} GB/s (here {product_bytes / 1e9:.1f}), prompts"
        f" {PRODUCTS[active].share:.0%} of the peak"
    )
    return Check("kernels", value)


def _rounded(number: float) -> int:
    """Round to two digits."""
    return int(float(f"{number:.2g}"))


def _text(rate: Rate, unit: float, name: str) -> str:
    return f"{rate.one / unit:.2f} {name} one core, {rate.all / unit:.2f} all threads"
