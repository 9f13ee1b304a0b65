"""Direct reads (O_DIRECT): their block size, and the room that they take in memory.

Plain numbers: a plan of memory needs them, and no extension.
"""

__all__ = ["BLOCK_BYTES", "direct_buffer_bytes"]

# Direct reads need offsets, lengths and addresses that are multiples of it. csrc has the same.
BLOCK_BYTES = 4096


def direct_buffer_bytes(num_bytes: int) -> int:
    """Size of a buffer for a direct read of `num_bytes` from any offset: whole blocks and one."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES + BLOCK_BYTES
