"""The rule by which CPUs expand keys and values of long prompts by head."""

from hybridmoe.env import expands_prompts

__all__ = ["expansion_group"]

_BLOCK = 256  # positions of a block of attention, and the most value numbers of a head: csrc


def expansion_group(
    isa: str, kv_type: str, *, latent: int, nope: int, rope: int, value: int
) -> int:
    """Count the tokens, in blocks of 256, for which expanding pays; 0 = not to be expanded.

    A token's query multiplies 2 latent + rope numbers a position in latent space, and
    nope + rope + value expanded; expanding a position takes (nope + value) latent products.
    Only sizes decide, so that steps of whole groups have the same bits. AMX has tiles for latents
    of two bytes. Off by default, since a prompt's bits depend on where else it is cut.
    """
    saved = 2 * latent - nope - value
    is_tiled = isa == "amx" and kv_type in ("f16", "bf16")
    is_unfit = saved <= 0 or nope % 16 or rope % 16 or value % 16 or value > _BLOCK
    if is_tiled or is_unfit or not expands_prompts():
        return 0
    return -(-(nope + value) * latent // (saved * _BLOCK)) * _BLOCK
