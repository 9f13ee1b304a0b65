"""Fingerprint of a model, so that another never gets its saved KV cache or trace."""

import hashlib

from hybridmoe.gguf.reader import GGUFFile

__all__ = ["fingerprint"]

_SAMPLE_BYTES = 512


def fingerprint(file: GGUFFile) -> str:
    """Hash every tensor's name, type and shape, and samples of its bytes.

    Cost: two small reads per tensor; K2 has about 1100. Metadata do not count: another chat
    template or name computes the same. The caller adds options that matter (YaRN betas).
    """
    digest = hashlib.sha256()
    for name in sorted(file.tensors):
        tensor = file.tensors[name]
        digest.update(f"{name} {tensor.type.name} {tensor.shape}\n".encode())
        for start in (0, tensor.num_bytes // 2):
            digest.update(tensor.data[start : start + _SAMPLE_BYTES].tobytes())
    return digest.hexdigest()
