"""Inference engine: continuous batching, KV cache, sampling. Token ids only; no text."""
