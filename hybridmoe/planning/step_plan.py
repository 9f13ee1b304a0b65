"""Length of a prompt's steps, and the memory of a step's activations."""

from collections.abc import Callable, Sequence

from hybridmoe.config import ModelConfig

__all__ = ["activation_bytes", "disk_step_tokens", "gpu_step_tokens", "quick_step_tokens"]

_LOGIT_ROWS = 8  # running requests of a step
_SCORES = 16 << 20  # of an indexer, of some tokens at a time: twice MOST_SCORES, for torch's top-k
_STEPS = (512, 1024, 2048, 4096)  # tokens; during longer ones others would wait tens of seconds
_ACTIVATION_SHARE = 0.1  # of VRAM
# On the CPU longer steps than the first are for models that are quick enough: small ones.
_QUICK_STEPS, _QUICK_ACTIVATIONS = _STEPS[:3], 512 << 20
# Over the disk a step reads nearly all experts, however long it is. Small differences, so that a
# little more RAM never takes much from the slots.
_MOST_TOKENS = 8192
_DISK_STEPS = range(512, _MOST_TOKENS + 1, 256)
_DISK_ACTIVATION_SHARE = 1 / 16  # of RAM


def activation_bytes(c: ModelConfig, step_tokens: int, *, on_cpu: bool = False) -> int:
    """Upper bound on the activations of a step, all float32.

    Per token: the state, its residual and its norm; queries, q_nope and absorbed, and the output
    of attention; the widest feed-forward; the indexer's queries and its selection. And the logits
    of the running requests, and scores of positions. on_cpu: a token's outputs of all its experts,
    too, which are added at the end.
    """
    fixed = _LOGIT_ROWS * c.vocab_size
    attention = c.q_lora_rank + c.num_heads * (c.qk_dim + 2 * c.kv_lora_rank + c.v_dim)
    if (indexer := c.indexer) is not None:
        attention += indexer.num_heads * (indexer.key_dim + 1) + indexer.top_k
        fixed += _SCORES
    experts = 2 * c.top_k * c.expert_inter + 2 * c.shared_inter + c.hidden
    if on_cpu:
        experts += c.top_k * c.hidden
    ffn = max(2 * c.dense_inter, experts)
    return 4 * (step_tokens * (3 * c.hidden + attention + ffn) + fixed)


def gpu_step_tokens(
    c: ModelConfig, vram_bytes: int, context_tokens: int, *, over_disk: bool = False
) -> int:
    """Prompt tokens of a step on a GPU: the most whose activations take a tenth of its memory.

    A step streams the same bytes however long it is, so long steps are worth more than the expert
    slots that they cost: docs/cuda.md has figures. No longer than the context needs. over_disk:
    what is streamed is read from the disk, too.
    """
    steps = (*_STEPS, _MOST_TOKENS) if over_disk else _STEPS
    return _longest(
        steps, lambda n: activation_bytes(c, n) <= _ACTIVATION_SHARE * vram_bytes, context_tokens
    )


def disk_step_tokens(c: ModelConfig, ram_bytes: int, context_tokens: int) -> int:
    """Prompt tokens of a step on the CPU, with experts on disk: as many as activations allow."""
    budget = _DISK_ACTIVATION_SHARE * ram_bytes
    return _longest(
        _DISK_STEPS, lambda n: activation_bytes(c, n, on_cpu=True) <= budget, context_tokens
    )


def quick_step_tokens(c: ModelConfig, context_tokens: int) -> int:
    """Most prompt tokens of a step on the CPU that takes little time, with experts in RAM.

    A step expands keys and values of all positions before it anew: long prompts gain.
    """
    return _longest(
        _QUICK_STEPS,
        lambda n: activation_bytes(c, n, on_cpu=True) <= _QUICK_ACTIVATIONS,
        context_tokens,
    )


def _longest(steps: Sequence[int], fits: Callable[[int], bool], context_tokens: int) -> int:
    """Return the longest step that fits, or the first; no longer than the context needs."""
    allowed = max(filter(fits, steps), default=steps[0])
    return min(allowed, next((n for n in steps if n >= context_tokens), allowed))
