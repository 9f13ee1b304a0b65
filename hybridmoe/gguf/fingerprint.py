"""Which model a file holds, in one string, so that another does not get what this one computed."""

import hashlib

from hybridmoe.gguf.reader import GGUFFile

__all__ = ["fingerprint"]

_SAMPLE_BYTES = 512


def fingerprint(file: GGUFFile) -> str:
    """A sum over every tensor's name, type and shape, and samples of its bytes.

    Cost: two small reads a tensor; K2 has about 1100. The file's metadata do not count: a chat
    template or a name may be changed without changing what is computed. Options that do change
    that (YaRN betas) are the caller's to add.
    """
    sum = hashlib.sha256()
    for name in sorted(file.tensors):
        tensor = file.tensors[name]
        sum.update(f"{name} {tensor.type.name} {tensor.shape}\n".encode())
        for start in (0, tensor.num_bytes // 2):
            sum.update(tensor.data[start : start + _SAMPLE_BYTES].tobytes())
    return sum.hexdigest()
