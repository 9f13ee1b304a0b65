"""Length of a prompt's steps, and the memory of a step's activations."""

from hybridmoe.config import ModelConfig

__all__ = ["activation_bytes", "gpu_step_tokens"]

_LOGIT_ROWS = 8  # running requests of a step
_STEPS = (512, 1024, 2048, 4096)  # tokens; during longer ones others would wait tens of seconds
_ACTIVATION_SHARE = 0.1  # of VRAM


def activation_bytes(c: ModelConfig, step_tokens: int) -> int:
    """Upper bound on the activations of a step, all float32.

    Per token: the state, its residual and its norm; queries, q_nope and absorbed, and the output
    of attention; the widest feed-forward. And the logits of the running requests.
    """
    attention = c.q_lora_rank + c.num_heads * (c.qk_dim + 2 * c.kv_lora_rank + c.v_dim)
    ffn = max(2 * c.dense_inter, 2 * c.top_k * c.expert_inter + 2 * c.shared_inter + c.hidden)
    return 4 * (step_tokens * (3 * c.hidden + attention + ffn) + _LOGIT_ROWS * c.vocab_size)


def gpu_step_tokens(c: ModelConfig, vram_bytes: int, context_tokens: int) -> int:
    """Prompt tokens of a step on a GPU: the most whose activations take a tenth of its memory.

    A step streams the same bytes however long it is, so long steps are worth more than the expert
    slots that they cost: docs/cuda.md has figures. No longer than the context needs.
    """
    budget = _ACTIVATION_SHARE * vram_bytes
    allowed = max((n for n in _STEPS if activation_bytes(c, n) <= budget), default=_STEPS[0])
    return min(allowed, next((n for n in _STEPS if n >= context_tokens), allowed))
