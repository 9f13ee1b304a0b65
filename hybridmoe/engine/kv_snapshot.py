"""Saves and restores the KV cache of a sequence, so that its prompt is not computed again.

    8 bytes   magic, with the version
    4 bytes   length of the header, little-endian
    header    JSON: fingerprint, kv_type, num_layers, row_bytes, num_tokens, sha256 of what follows;
              with an indexer num_index_layers, index_row_bytes
    ids       int32 (T)
    latents   uint8 (layers, T, row bytes), as in the pages
    keys      uint8 (layers with an indexer, T, row bytes), as in the pages

Rows of another kv_type are converted. Files are untrusted: sizes and checksum are verified
before the cache changes.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hybridmoe.config import KV_TYPES
from hybridmoe.engine.kv_cache import BlockTable, KvCache
from hybridmoe.engine.kv_rows import RowLayout, Rows
from hybridmoe.errors import ConfigError
from hybridmoe.kernels.paged_mla import convert_rows
from hybridmoe.replace_file import replace_file

__all__ = ["restore_snapshot", "save_snapshot"]

_MAGIC = b"hmLATNT1"
_MAX_HEADER_BYTES = 4096


def save_snapshot(path: Path, ids: list[int], cache: KvCache, fingerprint: str) -> int:
    """Save the longest cached prefix of `ids`. Returns its number of tokens. Raises OSError."""
    pages, num_tokens = cache.cached_pages([*ids, -1])  # -1: the last of `ids` counts, too
    rows = cache.read_rows(pages, num_tokens)
    body: list[NDArray[Any]] = [np.array(ids[:num_tokens], np.int32), rows]
    header = json.dumps(
        {
            "fingerprint": fingerprint,
            "kv_type": cache.plan.kv_type,
            **_shape(cache.rows),
            "num_tokens": num_tokens,
            "sha256": _digest(*body),
        }
    ).encode()
    with replace_file(path) as file:
        file.write(_MAGIC + len(header).to_bytes(4, "little") + header)
        for array in body:
            file.write(array.data)
    return num_tokens


def restore_snapshot(path: Path, cache: KvCache, fingerprint: str, vocab_size: int) -> list[int]:
    """Restore a file into the prefix cache. Returns its token ids. Raises ConfigError, OSError."""
    with path.open("rb") as file:
        header = _read_header(path, file.read(12), file)
        _check_header(path, header, cache, fingerprint)
        num_tokens, layout = header["num_tokens"], cache.rows.with_type(header["kv_type"])
        num_bytes = num_tokens * (4 + layout.token_bytes)
        if os.fstat(file.fileno()).st_size - file.tell() != num_bytes:
            raise ConfigError(f"{path.name}: expected {num_bytes} bytes behind the header")
        ids = np.fromfile(file, np.int32, num_tokens)
        rows = np.fromfile(file, np.uint8, num_tokens * layout.token_bytes)
    if _digest(ids, rows) != header["sha256"]:
        raise ConfigError(f"{path.name}: damaged: the checksum does not match the header")
    if num_tokens and not 0 <= ids.min() <= ids.max() < vocab_size:
        raise ConfigError(f"{path.name}: token ids outside the vocabulary of {vocab_size}")
    if layout.kv_type != cache.rows.kv_type:
        rows = _convert(rows, layout, cache.rows)
    _insert(ids.tolist(), rows, cache, path)
    return ids.tolist()  # type: ignore[no-any-return]


def _shape(layout: RowLayout) -> dict[str, int]:
    """Fields of the header about the rows."""
    names = ("num_layers", "row_bytes"), ("num_index_layers", "index_row_bytes")
    shape = dict[str, int]()
    for (layers, width), kind, row_bytes in zip(
        names, layout.kinds, layout.row_bytes, strict=False
    ):
        shape |= {layers: kind.num_layers, width: row_bytes}
    return shape


def _convert(rows: Rows, layout: RowLayout, to: RowLayout) -> Rows:
    """Convert rows to another type, layer by layer to bound the float32 copy in between."""
    out = to.empty(layout.num_tokens(rows))
    kinds = zip(layout.kinds, layout.views(rows), to.views(out), strict=True)
    for kind, view, converted in kinds:
        for i, layer in enumerate(view):
            tensor = torch.from_numpy(layer)
            converted[i] = convert_rows(tensor, layout.kv_type, to.kv_type, kind.dim).numpy()
    return out


def _insert(ids: list[int], rows: Rows, cache: KvCache, path: Path) -> None:
    table = BlockTable()
    if not cache.grow(table, len(ids)):
        raise ConfigError(f"{path.name}: too few free KV cache pages for {len(ids)} tokens")
    cache.write_rows(table.pages, rows)
    cache.free(table, ids, len(ids))


def _read_header(path: Path, start: bytes, file: Any) -> dict[str, Any]:
    size = int.from_bytes(start[8:], "little")
    if len(start) < 12 or start[:8] != _MAGIC or not 2 <= size <= _MAX_HEADER_BYTES:
        raise ConfigError(f"{path.name}: not a KV cache snapshot of this version")
    try:
        header = json.loads(file.read(size))
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise ConfigError(f"{path.name}: damaged: the header is not JSON")
    return header


def _check_header(path: Path, header: dict[str, Any], cache: KvCache, fingerprint: str) -> None:
    kv_type = header.get("kv_type")
    if kv_type not in KV_TYPES:
        raise ConfigError(
            f"{path.name}: kv_type is {kv_type!r:.40}, expected one of {', '.join(KV_TYPES)}"
        )
    expected = {"fingerprint": fingerprint, **_shape(cache.rows.with_type(kv_type))}
    for name, value in expected.items():
        if header.get(name) != value:
            what = "of another model" if name == "fingerprint" else "of another shape"
            raise ConfigError(
                f"{path.name}: {what}: {name} is {header.get(name)!r:.40}, expected {value!r:.40}"
            )
    capacity = cache.plan.num_tokens
    count = header.get("num_tokens")
    if type(count) is not int or not 0 <= count <= capacity:
        raise ConfigError(
            f"{path.name}: {count!r:.40} tokens; the KV cache holds at most {capacity}"
        )


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()
