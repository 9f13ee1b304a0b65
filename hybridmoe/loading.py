"""Opening a model: options checked, file read, weights placed, engine started."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.engine.kv_cache import plan_kv
from hybridmoe.env import MAX_THREADS
from hybridmoe.errors import ConfigError, GGUFError
from hybridmoe.experts.placement import Plan, Problem, plan_experts
from hybridmoe.experts.placing import DeviceOptions, Placing
from hybridmoe.experts.prefill_plan import step_tokens
from hybridmoe.experts.sizes import sizes_of
from hybridmoe.experts.tier_plan import parse_bytes
from hybridmoe.experts.trace import TraceWriter
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.kernels import ops
from hybridmoe.kernels.card import CudaCard, NoCard, check_card_latents, choose_card
from hybridmoe.kernels.latents import PAGE_TOKENS
from hybridmoe.kernels.topology import available_bytes
from hybridmoe.llm import LLM, Progress, ProgressCallback
from hybridmoe.model.residency import ExpertOptions, Latents, Residency, place_weights
from hybridmoe.model.weights import Weights, expert_weights, read_ahead, trace_header
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["load"]


def load(
    path: str | Path | None = None,
    *,
    num_threads: int | None = None,
    context_tokens: int | None = None,
    kv_tokens: int | None = None,
    kv_type: str = "bf16",
    max_running: int = 8,
    max_waiting: int = 64,
    speculate: int = 0,
    device: str = "auto",
    vram: int | str | None = None,
    place: Sequence[str] = (),
    defer: int = 0,
    expert_ram: int | str | None = None,
    expert_prefetch: int = 0,
    expert_profile: str | Path | None = None,
    trace: str | Path | None = None,
    yarn_beta_fast: float | None = None,
    yarn_beta_slow: float | None = None,
    progress: ProgressCallback | None = None,
) -> LLM:
    """Open a GGUF file of a deepseek2 model (of a split one, its first part).

    path: None = the embedded model. num_threads: None = HYBRIDMOE_THREADS, or every physical
    core. context_tokens: None = as many as the model was made for. kv_tokens to speculate: as in
    `EngineConfig`. device: "cuda", "cpu", or "auto", a card where there is one that can be used;
    vram: what of its memory may be taken, in bytes or as "20GiB"; None = what is free. place:
    patterns over tensor names, "REGEX=cpu" or "REGEX=cuda". defer: so many of a token's experts,
    the least weighted, are added one layer later. expert_ram: what routed experts may take, in
    bytes or as "12GiB"; None = what is free, less a margin. Where not all fit, the rest is read
    from the file as it is needed, up to expert_prefetch experts of the next layer on a guess;
    expert_profile remembers the hot ones for the next time. trace: a file that gets every token's
    experts (docs/traces.md). The YaRN betas override the file's. progress: called while the weights
    are read into memory.
    Errors: GGUFError, UnsupportedModelError, ConfigError, DeviceError, DiskError; one line.
    """
    if num_threads is not None:
        if not 1 <= num_threads <= MAX_THREADS:
            raise ConfigError(f"num_threads={num_threads}: expected 1 to {MAX_THREADS}")
        ops.set_num_threads(num_threads)
    options = ExpertOptions(
        ram_bytes=parse_bytes(expert_ram) if isinstance(expert_ram, str) else expert_ram,
        num_ahead=expert_prefetch,
        profile=None if expert_profile is None else Path(expert_profile),
    )
    devices = DeviceOptions(
        device=device,
        vram_bytes=parse_bytes(vram) if isinstance(vram, str) else vram,
        place=tuple(place),
        num_deferred=defer,
    )
    card = choose_card(device)
    file = GGUFFile.open(demo_path() if path is None else path)
    try:
        config = _config(file).with_yarn_betas(yarn_beta_fast, yarn_beta_slow)
        context = config.context_tokens if context_tokens is None else context_tokens
        if not 1 <= context <= config.context_tokens:
            raise ConfigError(
                f"context_tokens={context}: expected 1 to {config.context_tokens},"
                " the model's own context"
            )
        engine = EngineConfig(
            context_tokens=context,
            kv_tokens=kv_tokens,
            kv_type=kv_type,
            max_running=max_running,
            max_waiting=max_waiting,
            speculate=speculate,
        )
        tokenizer = Tokenizer(file.path, file.metadata)
        try:
            if tokenizer.num_tokens != config.vocab_size:
                raise GGUFError(
                    f"{file.path.name}: tokenizer.ggml.tokens has {tokenizer.num_tokens} entries,"
                    f" vocab_size is {config.vocab_size}"
                )
            residency, engine = _place(file, config, engine, options, devices, card, progress)
            try:
                writer = None if trace is None else _trace_writer(Path(trace), file, config)
                llm = LLM(file, config, tokenizer, engine, residency, writer)
            except BaseException:
                residency.close()
                raise
        except BaseException:
            tokenizer.close()
            raise
    except BaseException:
        file.close()
        raise
    if progress is not None and llm.expert_plan is None:
        read_ahead(file, lambda done, total: progress(Progress("load", done, total, "bytes")))
    return llm


def _place(
    file: GGUFFile,
    config: ModelConfig,
    engine: EngineConfig,
    options: ExpertOptions,
    devices: DeviceOptions,
    card: CudaCard | NoCard,
    progress: ProgressCallback | None,
) -> tuple[Residency, EngineConfig]:
    """Where weights lie, and the engine's configuration with the latents that were planned."""

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress("load", done, total, "bytes"))

    if devices.num_deferred > config.top_k:
        raise ConfigError(f"defer={devices.num_deferred}: a token has {config.top_k} experts")
    placing = Placing(devices.place)
    notes = tuple(f"place: {text!r} matches no tensor" for text in placing.unused(file.tensors))
    if isinstance(card, CudaCard):
        check_card_latents(engine.kv_type)  # before minutes of reading
        try:
            on_card, latents, plan = _plan_card(file, config, engine, devices, card)
        except ConfigError as error:
            if devices.is_card_wanted:
                raise
            card = NoCard(str(error))  # which says how it would fit
        else:
            residency, said = _on_card(file, on_card, options, devices, card, latents, plan, tell)
            residency.notes = (*notes, *said)
            return residency, on_card
    if devices.vram_bytes is not None or (devices.place and devices.device != "cpu"):
        notes += (f"no card, so that vram and place mean nothing: {card.reason}",)
    elif not card.is_silent:
        notes += (f"on the CPU alone: {card.reason}",)
    engine, latents = _with_latents(config, engine, psutil.virtual_memory().available)
    residency = place_weights(file, config, options, latents, tell)
    residency.num_deferred = devices.num_deferred
    residency.notes = notes
    return residency, engine


def _with_latents(
    config: ModelConfig, engine: EngineConfig, room_bytes: int
) -> tuple[EngineConfig, Latents]:
    """The configuration with the latents that are planned for such memory."""
    kv = plan_kv(config, engine, room_bytes)
    latents = Latents(kv.num_tokens, kv.page_bytes // PAGE_TOKENS)
    return replace(engine, kv_tokens=kv.num_tokens), latents


def _vram(devices: DeviceOptions, card: CudaCard) -> int:
    """Of the card, what may be taken. Errors: ConfigError."""
    if devices.vram_bytes is None:
        return card.free_bytes
    if devices.vram_bytes > card.free_bytes:
        asked, free = devices.vram_bytes / 2**30, card.free_bytes / 2**30
        raise ConfigError(f"vram={asked:.2f} GiB: {card.name} has {free:.2f} GiB free")
    return devices.vram_bytes


def _plan_card(
    file: GGUFFile,
    config: ModelConfig,
    engine: EngineConfig,
    devices: DeviceOptions,
    card: CudaCard,
) -> tuple[EngineConfig, Latents, Plan]:
    """The engine's configuration on the card, and who lives where. Errors: ConfigError."""
    placing = Placing(devices.place)
    vram_bytes = _vram(devices, card)
    engine = replace(engine, chunk_tokens=step_tokens(config, vram_bytes, engine.context_tokens))
    engine, latents = _with_latents(config, engine, vram_bytes)
    plan = plan_experts(
        Problem(
            sizes=sizes_of(file.tensors.values(), config, placing.is_on_cpu),
            ram_bytes=available_bytes() or psutil.virtual_memory().available,
            vram_bytes=vram_bytes,
            kv_tokens=latents.num_tokens,
            kv_token_bytes=latents.token_bytes,
            step_tokens=engine.chunk_tokens,
            num_pinned=config.num_experts * len(placing.pinned_layers(file.tensors)),
        )
    )
    return engine, latents, plan


def _on_card(
    file: GGUFFile,
    engine: EngineConfig,
    options: ExpertOptions,
    devices: DeviceOptions,
    card: CudaCard,
    latents: Latents,
    plan: Plan,
    tell: Callable[[int, int], None],
) -> tuple[Residency, tuple[str, ...]]:
    """Weights where the plan has them, and sentences about it."""
    config = plan.problem.sizes.config
    on_cpu = None
    if plan.needs_disk or options.ram_bytes is not None:
        on_cpu = place_weights(file, config, options, latents, tell)
        if on_cpu.tier is None and not plan.needs_disk:
            on_cpu = None
    # Triton is an extra, needed where there is a card only.
    on_card = importlib.import_module("hybridmoe.model.on_card")
    most_tokens = engine.chunk_tokens + engine.max_running * (1 + engine.speculate)
    residency = on_card.place_on_card(
        file, config, card, plan, Placing(devices.place),
        step_tokens=most_tokens, num_deferred=devices.num_deferred, on_cpu=on_cpu,
    )  # fmt: skip
    residency.vram_bytes = plan.problem.vram_bytes
    assert plan.vram is not None
    num_slots = 0 if on_cpu is not None else plan.num_vram_slots
    said = (
        f"{card.name}: {plan.vram.used_bytes / 2**30:.1f} of {card.total_bytes / 2**30:.1f} GiB;"
        f" {num_slots} experts' slots, {plan.slots_per_layer(num_slots):.1f} a layer,"
        f" {plan.cycle_ratio(num_slots):.2f} of what one token uses"
    )
    return residency, (said, *plan.warnings)


def _trace_writer(path: Path, file: GGUFFile, config: ModelConfig) -> TraceWriter:
    """Of the run's routing. Errors: ConfigError."""
    layers = expert_weights(Weights(file), config)
    if not layers:
        raise ConfigError(f"{file.path.name} has no routed experts: there is nothing to trace")
    header = trace_header(file, config, layers, f"requests to {file.path.name}")
    try:
        return TraceWriter(path, header)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def _config(file: GGUFFile) -> ModelConfig:
    try:
        return ModelConfig.from_metadata(file.metadata)
    except GGUFError as error:
        raise type(error)(f"{file.path.name}: {error}") from None
