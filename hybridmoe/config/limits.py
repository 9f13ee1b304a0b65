"""Bounds on a file's claims: generous for a real model, and no product overflows 63 bits."""

__all__ = ["MAX_CONTEXT_TOKENS", "MAX_LAYERS", "MAX_ROPE_DIM"]

MAX_LAYERS = 4096
MAX_ROPE_DIM = 1024  # columns of the cos_sin table
MAX_CONTEXT_TOKENS = 1 << 26
