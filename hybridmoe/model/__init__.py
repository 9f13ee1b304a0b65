"""Network of the deepseek2 family: layers over a device and an expert backend."""

from hybridmoe.model.decoder import Decoder

__all__ = ["Decoder"]
