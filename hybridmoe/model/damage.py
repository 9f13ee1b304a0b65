"""Tracing NaN or infinity in a step's results to the tensor, by a search through one layer's.

Only what the tokens used is read: of routed experts those that were chosen, of the embedding their
rows. Which of a step's tokens it was is not known: attention's masks are zeros, and 0 x NaN is NaN.
"""

from collections.abc import Collection, Iterator, Mapping

from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.reader import Tensor as GGUFTensor
from hybridmoe.kernels.finite import Damage, find_damage

__all__ = ["describe_damage"]


def describe_damage(
    file: GGUFFile,
    layer: int | None,
    num_layers: int,
    token_ids: Collection[int],
    chosen: Mapping[int, Collection[int]],
) -> str:
    """One line: from which layer on, and the tensor if it is one.

    layer: the first whose states behind attention are bad; `num_layers`: only those behind all
    layers are; None: only logits. chosen: the tokens' experts in each layer that has some.
    Errors: DiskError.
    """
    where = "in the logits" if layer is None else f"from layer {layer} on"
    if layer == num_layers:
        where = f"behind layer {num_layers - 1}"
    said = f"{printable(file.path.name)}: results are NaN or infinite {where}"
    for damage in _damages(file, layer, num_layers, token_ids, chosen):
        return (
            f"{said}, since the file is damaged: {damage}; get it again, or see"
            " `hybridmoe inspect --check`"
        )
    return f"{said}, but the weights there are finite: values overflow, or memory is faulty"


def _damages(
    file: GGUFFile,
    layer: int | None,
    num_layers: int,
    token_ids: Collection[int],
    chosen: Mapping[int, Collection[int]],
) -> Iterator[Damage]:
    if layer == 0:
        embedding = file.tensors["token_embd.weight"]
        for token_id in sorted(set(token_ids)):
            yield from find_damage(file, embedding, rows=range(token_id, token_id + 1))
    suspects = list(_suspects(file, layer, num_layers))
    suspects.sort(key=lambda tensor: "_exps." in tensor.name)  # what is quick first
    for tensor in suspects:
        block = tensor.name.split(".")[1]
        experts = chosen.get(int(block), ()) if "_exps." in tensor.name else None
        yield from find_damage(file, tensor, experts)


def _suspects(file: GGUFFile, layer: int | None, num_layers: int) -> Iterator[GGUFTensor]:
    """Tensors of which the first bad states, or logits, are made."""
    if layer is None:
        starts = ["output_norm.", "output.", "token_embd."]
        ends = []
    else:
        starts = [f"blk.{layer}.attn_"] if layer < num_layers else []
        # Behind attention are also the results of the layer before, and what that one had deferred.
        ends = [f"blk.{i}." for i in range(max(0, layer - 2), layer)]
    for name, tensor in file.tensors.items():
        is_ffn = any(name.startswith(p) and not name.startswith(f"{p}attn_") for p in ends)
        if is_ffn or name.startswith(tuple(starts)):
            yield tensor
