"""The network: deepseek2 layers over native kernels."""

from hybridmoe.model.decoder import Decoder, LatentCache

__all__ = ["Decoder", "LatentCache"]
