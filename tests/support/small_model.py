"""Sizes of the smallest model that exercises every kernel in the Triton interpreter."""

# The interpreter takes a millisecond for each program, and a program has 16 rows of a matrix.
SMALL = {
    "layers": 2, "hidden": 64, "heads": 2, "kv_lora": 64, "rope": 16, "nope": 32, "v": 32,
    "dense_width": 64, "experts": 4, "top_k": 2, "expert_width": 32, "gain": 0.7,
}  # fmt: skip
