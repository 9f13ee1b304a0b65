"""Routed experts on a GPU beside the CPU: VRAM expert slots, and prefill by streamed experts."""
