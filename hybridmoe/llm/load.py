"""Opening a model: options checked, file read, weights placed, engine started."""

from collections.abc import Sequence
from pathlib import Path

from hybridmoe.config import KV_TYPES, EngineConfig, ModelConfig
from hybridmoe.demo import demo_path
from hybridmoe.env import MAX_THREADS
from hybridmoe.errors import ConfigError, GGUFError
from hybridmoe.experts.hot_profile import HotProfile
from hybridmoe.experts.routing_trace import TraceWriter
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.gguf.tensor_table import check_tensor_names
from hybridmoe.hardware.gpu import choose_gpu
from hybridmoe.kernels import ops
from hybridmoe.llm.llm import LLM, Progress, ProgressCallback, sampling_defaults
from hybridmoe.model.weights import Weights, expert_weights, trace_header
from hybridmoe.placement.options import DeviceOptions, ExpertOptions
from hybridmoe.placement.placer import Placer
from hybridmoe.placement.read_ahead import read_ahead
from hybridmoe.text.tokenizer import Tokenizer
from hybridmoe.units import parse_bytes

__all__ = ["load"]


def load(
    path: str | Path | None = None,
    *,
    num_threads: int | None = None,
    context_tokens: int | None = None,
    kv_tokens: int | None = None,
    kv_type: str = KV_TYPES[0],
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
    if options.profile is not None:
        HotProfile.check_writable(options.profile)  # not after hours of work
    card = choose_gpu(device)

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress("load", done, total, "bytes"))

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
            placer = Placer(file, config, engine, options, devices, tell)
            residency, engine = placer.place(card)
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
    try:
        if progress is not None and llm.expert_plan is None:
            read_ahead(file, tell)
    except BaseException:
        llm.close()
        raise
    return llm


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
        sampling_defaults(file.metadata)  # before weights are read, which takes minutes
        config = ModelConfig.from_metadata(file.metadata)
        check_tensor_names(config, file.tensors)
        return config
    except GGUFError as error:
        raise type(error)(f"{file.path.name}: {error}") from None
