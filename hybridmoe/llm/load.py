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
from hybridmoe.hardware.gpu import Gpus, NoGpu, choose_gpus
from hybridmoe.hardware.topology import set_num_threads
from hybridmoe.llm.expert_pool import ExpertPool, plan_share
from hybridmoe.llm.fingerprints import bits_fingerprint
from hybridmoe.llm.llm import LLM
from hybridmoe.llm.model_config import naming, read_model_config
from hybridmoe.llm.model_file import open_model
from hybridmoe.llm.progress import ProgressCallback, Report, reporter
from hybridmoe.model.trace import open_trace
from hybridmoe.placement.options import LoadOptions
from hybridmoe.placement.placer import place
from hybridmoe.placement.read_ahead import read_ahead
from hybridmoe.placement.residency import Residency
from hybridmoe.planning.expert_shares import ExpertShare
from hybridmoe.planning.plan import Plan
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
    on_bytes = reporter(progress, "load", "bytes")
    with ExitStack() as resources:
        file = resources.enter_context(open_model(path))
        config = read_model_config(file, options)
        pool, share = None, None
        if options.expert_parallel:
            pool = resources.enter_context(ExpertPool(file, config, options, progress))
            share = pool.share(gpus)
        with naming(file):
            plan = plan_share(file, config, options, gpus, share)
        tokenizer = resources.enter_context(closing(Tokenizer(file.path, file.metadata)))
        _check_vocabulary(file, config, tokenizer)
        if plan.vram is not None:
            _compile(file, plan, gpus, reporter(progress, "compile", "kernels"))
        if pool is not None:
            pool.offer(plan)
        residency = _place(file, config, plan, gpus, options, on_bytes, share)
        resources.callback(residency.close)
        plan = residency.plan
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
            from hybridmoe.placement.gpu_compile import capture_first_graph

            capture_first_graph(decoder)
        if progress is not None and plan.disk_cache is None:
            read_ahead(file, on_bytes, has_experts=plan.fits_in_ram)
        residency.ready(_READY_S)
        return LLM(file, config, tokenizer, engine, residency, resources)


def _compile(file: GGUFFile, plan: Plan, gpus: Gpus, on_kernels: Report) -> None:
    """Compile the kernels of each GPU's layers."""
    from hybridmoe.placement.gpu_compile import compile_kernels

    assert not isinstance(gpus, NoGpu), gpus
    for stage, gpu in zip(plan.stages, gpus, strict=True):
        compile_kernels(file, stage, gpu, on_kernels)


def _place(
    file: GGUFFile,
    config: ModelConfig,
    plan: Plan,
    gpus: Gpus,
    options: LoadOptions,
    on_bytes: Report,
    share: ExpertShare | None,
) -> Residency:
    """Place the weights as planned; on the CPU alone where the GPU cannot run the model."""
    try:
        return place(file, plan, gpus, options, on_bytes, share)
    except KernelError as error:
        no_gpu = NoGpu(str(error))
        plan = plan_share(file, config, options, no_gpu, share)
        return place(file, plan, no_gpu, options, on_bytes, share)


def _check_vocabulary(file: GGUFFile, config: ModelConfig, tokenizer: Tokenizer) -> None:
    if tokenizer.num_tokens != config.vocab_size:
        raise GGUFError(
            f"{file.path.name}: tokenizer.ggml.tokens has {tokenizer.num_tokens} entries,"
            f" vocab_size is {config.vocab_size}"
        )
