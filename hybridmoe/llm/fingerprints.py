"""Fingerprints of what computes a KV cache, by which saved ones are told apart."""

from collections.abc import Sequence
from importlib.metadata import version

from hybridmoe.config import ModelConfig
from hybridmoe.env import expands_prompts
from hybridmoe.gguf.fingerprint import fingerprint
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware import isa
from hybridmoe.model.decoder import Decoder

__all__ = ["bits_fingerprint", "model_fingerprint"]


def model_fingerprint(file: GGUFFile, config: ModelConfig) -> str:
    """Identify weights and positions: what computes the same, but for rounding."""
    return f"{fingerprint(file)} {config.rope_base} {config.yarn}"


def bits_fingerprint(
    file: GGUFFile, config: ModelConfig, decoder: Decoder, shares: Sequence[range] = ()
) -> str:
    """Identify what computes the same bits on the CPU: version and instruction set count too.

    shares: of hosts in the experts, whose sums are added in this order.
    """
    devices = sorted({device.type for device in decoder.devices})
    kernels = f"{isa.active()}{' expanded' if expands_prompts() else ''}"
    about = f"{version('hybridmoe')} {kernels} {','.join(devices)}"
    if shares:
        about += f" shares {','.join(str(len(share)) for share in shares)}"
    return f"{about} {model_fingerprint(file, config)}"
