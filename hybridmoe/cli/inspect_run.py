"""Run of `hybridmoe inspect`: contents of a GGUF file, and its costs per token.

Reads headers only, so a terabyte is inspected at once. Facts are gathered first, then printed as
JSON, as tables on a terminal, or as plain aligned text in a pipe. Text from the file is escaped.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from hybridmoe.cli.tables import Section, print_sections
from hybridmoe.config import GATE_SIGMOID, KV_TYPES, ModelConfig
from hybridmoe.errors import GGUFError
from hybridmoe.gguf import GGUFFile, MetadataValue
from hybridmoe.gguf.accounting import Account, take_account
from hybridmoe.gguf.cursor import printable
from hybridmoe.gguf.file_types import file_type_name
from hybridmoe.gguf.tensor_table import read_config
from hybridmoe.units import format_bytes

__all__ = ["inspect_file"]


def inspect_file(path: Path, *, as_json: bool, with_tensors: bool, is_check: bool) -> None:
    """Print the contents and sizes of a file, or check its weights. Errors: GGUFError."""
    with GGUFFile.open(path) as file:
        if is_check:
            from hybridmoe.cli.check import check_weights  # imports torch

            check_weights(file, as_json=as_json)
            return
        account = take_account(file.tensors.values(), file.metadata)
        config, unsupported = _read_config(file)
        if as_json:
            click.echo(json.dumps(_as_json(file, account, config, unsupported, with_tensors)))
            return
        sections = _sections(file, account, config, unsupported)
        if with_tensors:
            sections.append(_tensor_section(file))
    print_sections(sections)


def _read_config(file: GGUFFile) -> tuple[ModelConfig | None, str | None]:
    """Read the configuration; else None, and the reason why the model cannot be run."""
    try:
        return read_config(file.metadata, file.tensors), None
    except GGUFError as error:
        return None, printable(str(error), 400)


def _as_json(
    file: GGUFFile,
    account: Account,
    config: ModelConfig | None,
    unsupported: str | None,
    with_tensors: bool,
) -> dict[str, Any]:
    metadata = file.metadata
    tokens = metadata.get("tokenizer.ggml.tokens")
    summary: dict[str, Any] = {
        "path": str(file.path),
        "files": [part.name for part in file.parts],
        "num_bytes": file.num_bytes,
        "gguf_version": file.version,
        "architecture": metadata.get("general.architecture"),
        "name": metadata.get("general.name"),
        "is_supported": config is not None,
        "unsupported_reason": unsupported,
        "config": asdict(config) if config else None,
        "total": asdict(account.total),
        "bits_per_weight": account.bits_per_weight,
        "kv_type": KV_TYPES[0],
        "kv_bytes_per_token": _kv_bytes(account, config),
        "parts": {part: asdict(sizes) for part, sizes in account.parts.items()},
        "types": {kind.name: asdict(sizes) for kind, sizes in account.types.items()},
        "tokenizer": {
            "model": metadata.get("tokenizer.ggml.model"),
            "pre": metadata.get("tokenizer.ggml.pre"),
            "num_tokens": len(tokens) if isinstance(tokens, list) else None,
        },
        "has_chat_template": "tokenizer.chat_template" in metadata,
    }
    if with_tensors:
        summary["tensors"] = [
            {
                "name": tensor.name,
                "type": tensor.type.name,
                "shape": tensor.shape,
                "num_bytes": tensor.num_bytes,
                "file": tensor.part,
                "offset": tensor.offset,
            }
            for tensor in file.tensors.values()
        ]
    return summary


def _sections(
    file: GGUFFile, account: Account, config: ModelConfig | None, unsupported: str | None
) -> list[Section]:
    total = account.total
    files = f"{len(file.parts)} parts, " if len(file.parts) > 1 else ""
    facts = [
        ("file", f"{printable(file.path.name)} ({files}{format_bytes(file.num_bytes)})"),
        ("model", _model_line(file.metadata)),
        *(_config_facts(config) if config else [("not supported", unsupported or "")]),
        ("parameters", f"{_count(total.num_params)}, {_count(total.active_params)} per token"),
        ("bits per weight", f"{account.bits_per_weight:.3f}"),
        ("read per token", format_bytes(total.token_bytes)),
    ]
    kv_bytes = _kv_bytes(account, config)
    if kv_bytes is not None:
        facts.append(("KV cache per token", f"{format_bytes(kv_bytes)} ({KV_TYPES[0]})"))
    facts += _tokenizer_facts(file.metadata)
    by_part = [
        (
            part,
            _count(sizes.num_params),
            format_bytes(sizes.num_bytes),
            f"{_percent(sizes.num_bytes, total.num_bytes)}",
            format_bytes(sizes.token_bytes),
            f"{_percent(sizes.token_bytes, total.token_bytes)}",
        )
        for part, sizes in account.parts.items()
    ]
    by_type = [
        (
            kind.name,
            str(sizes.num_tensors),
            _count(sizes.num_params),
            format_bytes(sizes.num_bytes),
            f"{8 * sizes.num_bytes / sizes.num_params:.3f}",
        )
        for kind, sizes in account.types.items()
    ]
    return [
        Section("", (), facts),
        Section(
            "By part", ("part", "weights", "size", "share", "read per token", "share"), by_part
        ),
        Section("By type", ("type", "tensors", "weights", "size", "bits per weight"), by_type),
    ]


def _kv_bytes(account: Account, config: ModelConfig | None) -> int | None:
    """KV cache of one token; of a model that is not supported, its latents alone."""
    return account.kv_bytes_per_token() if config is None else config.kv_token_bytes(KV_TYPES[0])


def _model_line(metadata: Mapping[str, MetadataValue]) -> str:
    architecture = _text(metadata.get("general.architecture")) or "unknown architecture"
    name = _text(metadata.get("general.name"))
    number = metadata.get("general.file_type")
    return ", ".join(filter(None, (architecture, name, file_type_name(number))))


def _config_facts(c: ModelConfig) -> list[tuple[str, str]]:
    query = f"query rank {c.q_lora_rank}" if c.q_lora_rank else "full query"
    gate = "sigmoid" if c.gate == GATE_SIGMOID else "softmax"
    groups = f", {c.num_groups_used} of {c.num_groups} groups" if c.num_groups > 1 else ""
    yarn = "none"
    if c.yarn:
        yarn = (
            f"YaRN x {c.yarn.factor:g} over {c.yarn.original_context_tokens} tokens, "
            f"beta {c.yarn.beta_fast:g} / {c.yarn.beta_slow:g}, "
            f"mscale_all_dim {c.yarn.mscale_all_dim:g}"
        )
    mtp = f"; {c.num_mtp_layers} more to draft by (--speculate mtp)" if c.num_mtp_layers else ""
    sparse: list[tuple[str, str]] = []
    if (indexer := c.indexer) is not None:
        about = (
            f"{indexer.top_k} positions, {indexer.num_heads} index heads of {indexer.key_dim} in"
            f" {indexer.num_full} layers"
        )
        sparse.append(("sparse attention", about))
    return [
        ("layers", f"{c.num_layers} ({c.num_dense_layers} dense), hidden {c.hidden}{mtp}"),
        (
            "attention",
            f"{c.num_heads} heads, {query}, latent {c.kv_lora_rank} + {c.rope_dim} rotary, "
            f"per head {c.nope_dim} + {c.rope_dim} keys, {c.v_dim} values",
        ),
        *sparse,
        (
            "experts",
            f"{c.top_k} of {c.num_experts} per token, {c.num_shared_experts} shared, "
            f"width {c.expert_inter}",
        ),
        (
            "router",
            f"{gate}{groups}, weights {'normalised' if c.normalize_weights else 'as they are'}"
            f" x {c.routed_scale:g}",
        ),
        ("context", f"{c.context_tokens} tokens"),
        ("rope scaling", yarn),
    ]


def _tokenizer_facts(metadata: Mapping[str, MetadataValue]) -> list[tuple[str, str]]:
    kind = [_text(metadata.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre")]
    tokens = metadata.get("tokenizer.ggml.tokens")
    size = f"{len(tokens)} tokens" if isinstance(tokens, list) else ""
    template = metadata.get("tokenizer.chat_template")
    return [
        ("tokenizer", ", ".join(filter(None, (*kind, size))) or "none"),
        ("chat template", f"{len(template)} characters" if isinstance(template, str) else "none"),
    ]


def _tensor_section(file: GGUFFile) -> Section:
    rows = [
        (
            printable(tensor.name),
            " x ".join(map(str, tensor.shape)),
            tensor.type.name,
            format_bytes(tensor.num_bytes),
            str(tensor.part + 1),
        )
        for tensor in file.tensors.values()
    ]
    return Section("Tensors", ("name", "shape", "type", "size", "file"), rows)


def _text(value: MetadataValue | None) -> str:
    return printable(value) if isinstance(value, str) else ""


def _count(number: int) -> str:
    for factor, letter in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if number >= factor:
            return f"{number / factor:.2f} {letter}"
    return str(number)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""
