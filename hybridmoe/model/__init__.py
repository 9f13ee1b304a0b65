"""The network: deepseek2 layers over native kernels."""

from hybridmoe.model.decoder import Decoder

__all__ = ["Decoder"]
