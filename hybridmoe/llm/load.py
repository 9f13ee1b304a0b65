"""Open a model: options, file, memory plan, placement, engine."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridmoe.config import ModelConfig
from hybridmoe.engine.engine import Engine
from hybridmoe.env import check_environment
from hybridmoe.errors import GGUFError, KernelError
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.hardware.gpu import NoGpu, choose_gpus
from hybridmoe.hardware.topology import set_num_threads
from hybridmoe.llm.expert_pool import ExpertPool, plan_share
from hybridmoe.llm.fingerprints import bits_fingerprint
from hybridmoe.llm.llm import LLM
from hybridmoe.llm.model_config import naming, read_model_config
from hybridmoe.llm.model_file import open_model
from hybridmoe.llm.progress import Progress, ProgressCallback
from hybridmoe.model.trace import open_trace
from hybridmoe.placement.options import LoadOptions
from hybridmoe.placement.placer import place
from hybridmoe.placement.read_ahead import read_ahead
from hybridmoe.text.tokenizer import Tokenizer

__all__ = ["load"]

_READY_S = 2.0  # that loading waits for what makes prompts faster, which otherwise goes on behind


def load(
    path: str | Path | None = None,
    options: LoadOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
    **keywords: Any,
) -> LLM:
    """Open a GGUF file of a model (of a split one, its first part).

    path: None = the embedded model. keywords: fields of `LoadOptions` by name, such as
    `vram="20GiB"`; they replace those of `options`. progress: called while GPU kernels are compiled
    and weights are read into memory; without it, mapped weights are read when first used.
    Errors: GGUFError, UnsupportedModelError, ConfigError, ClusterError, DeviceError, DiskError; one
    line.
    """
    options = LoadOptions.of(options, keywords)
    check_environment()  # before the minutes that some variables are first used after
    gpus = choose_gpus(options.device)
    if not isinstance(gpus, NoGpu):
        from hybridmoe.kernels.triton.compiling import begin_compiling  # needs Triton, an extra

        begin_compiling()
    if options.num_threads is not None:
        set_num_threads(options.num_threads)

    def on_bytes(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress("load", done, total, "bytes"))

    def on_kernels(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress("compile", done, total, "kernels"))

    with ExitStack() as resources:
        file = resources.enter_context(open_model(path))
        config = read_model_config(file, options)
        pool, share = None, None
        if options.expert_parallel:
            pool = resources.enter_context(ExpertPool(file, config, options, progress))
            share = pool.share(gpus)
        own = None if share is None else share.experts
        with naming(file):
            plan = plan_share(file, config, options, gpus, own)
        tokenizer = resources.enter_context(closing(Tokenizer(file.path, file.metadata)))
        _check_vocabulary(file, config, tokenizer)
        if plan.vram is not None:
            assert not isinstance(gpus, NoGpu), gpus
            from hybridmoe.placement.gpu_compile import capture_first_graph, compile_kernels

            for stage, gpu in zip(plan.stages, gpus, strict=True):
                compile_kernels(file, stage, gpu, on_kernels)
        if pool is not None:
            pool.offer(plan)
        try:
            residency = place(file, plan, gpus, options, on_bytes, share)
        except KernelError as error:
            gpus = NoGpu(str(error))
            plan = plan_share(file, config, options, gpus, own)
            residency = place(file, plan, gpus, options, on_bytes, share)
        resources.callback(residency.close)
        if pool is not None:
            experts = pool.join(residency.experts)
            residency = replace(residency, experts=experts, share_note=pool.note)
        trace = None
        if options.trace is not None:
            trace = resources.enter_context(closing(open_trace(options.trace, file, config)))
        decoder = residency.decoder(file)
        residency.calibrate()
        about = ""
        if plan.engine.kv_disk is not None:
            about = bits_fingerprint(file, config, decoder, pool.shares if pool else ())
        engine = Engine(decoder, tokenizer.eos_ids, plan.engine, trace, about)
        resources.callback(engine.close)
        if plan.vram is not None:
            capture_first_graph(decoder)
        if progress is not None and plan.disk_cache is None:
            read_ahead(file, on_bytes, has_experts=plan.fits_in_ram)
        residency.ready(_READY_S)
        return LLM(file, config, tokenizer, engine, residency, resources)


def _check_vocabulary(file: GGUFFile, config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.num_tokens != config.vocab_size:
        raise GGUFError(
            f"{file.path.name}: tokenizer.ggml.tokens has {tokenizer.num_tokens} entries,"
            f" vocab_size is {config.vocab_size}"
        )
