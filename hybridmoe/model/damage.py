"""Search for the damaged tensor behind NaN or infinity in a step's results.

Reads only what the tokens used: chosen experts, and their rows of the embedding. The token itself
cannot be told: attention masks with zeros, and 0 x NaN is NaN.
"""

from collections.abc import Collection, Iterator, Mapping

from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.names import is_expert_tensor
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
    """Describe in one line the first bad layer, and the tensor if one is damaged.

    layer: the first with bad states after attention; `num_layers`: only the final states are;
    None: only logits. chosen: the tokens' experts of each MoE layer.
    Errors: DiskError.
    """
    where = "in the logits" if layer is None else f"from layer {layer} on"
    if layer == num_layers:
        where = f"after layer {num_layers - 1}"
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
    suspects.sort(key=lambda tensor: is_expert_tensor(tensor.name))  # the largest last
    for tensor in suspects:
        block = tensor.name.split(".")[1]
        experts = chosen.get(int(block), ()) if is_expert_tensor(tensor.name) else None
        yield from find_damage(file, tensor, experts)


def _suspects(file: GGUFFile, layer: int | None, num_layers: int) -> Iterator[GGUFTensor]:
    """Yield the tensors that the first bad states, or the logits, were computed from."""
    if layer is None:
        starts = ["output_norm.", "output.", "token_embd."]
        ends = []
    else:
        starts = [f"blk.{layer}.attn_"] if layer < num_layers else []
        ends = [f"blk.{layer - 1}."] if layer else []  # states include the previous layer's FFN
    for name, tensor in file.tensors.items():
        is_ffn = any(name.startswith(p) and not name.startswith(f"{p}attn_") for p in ends)
        if is_ffn or name.startswith(tuple(starts)):
            yield tensor
