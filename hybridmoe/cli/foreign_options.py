"""Options of other programs, and what to use here instead."""

from collections.abc import Collection, Sequence

__all__ = ["hint_on"]

_ALWAYS = "leave it out: always so here"
_PLANNED = "leave it out: steps are planned here"
_VRAM = "leave it out: GPUs hold the dense part and as many experts as fit; --vram SIZE for fewer"
_SPLIT = "--device cuda:0,cuda:1 splits the layers"
_TEMPLATE = "leave it out: the file's chat template is used"
_KEEP_ALIVE = "hybridmoe serve --idle-unload 15m"

# Flags of llama.cpp, ollama, vLLM and KTransformers; docs/coming-from.md has the tables for people.
_HINTS = {
    ("-ngl", "--n-gpu-layers", "--gpu-layers", "--num-gpu", "--kt-num-gpu-experts"): _VRAM,
    ("-ncmoe", "--n-cpu-moe", "-cmoe", "--cpu-moe", "--cpu-offload-gb"): _VRAM,
    ("-ot", "--override-tensor"): "--place REGEX=cpu, --place REGEX=cuda",
    ("-hf", "-hfr", "--hf-repo", "-mu", "--model-url"): "hybridmoe pull OWNER/REPO:QUANT, then its"
    " name",
    ("-ctv", "--cache-type-k", "--cache-type-v", "--kv-cache-dtype"): "-ctk TYPE is for the whole"
    " KV cache",
    ("-fa", "--flash-attn", "-cb", "--cont-batching", "--cache-prompt"): _ALWAYS,
    ("--cache-reuse", "--enable-prefix-caching", "--enable-chunked-prefill"): _ALWAYS,
    ("-b", "--batch-size", "-ub", "--ubatch-size", "--chunk-size", "--chunk_size"): _PLANNED,
    ("--max-num-batched-tokens", "--chunked-prefill-size"): _PLANNED,
    ("-sys", "--system-prompt"): "--system TEXT",
    ("-r", "--reverse-prompt"): "--stop TEXT",
    ("-s",): "--seed N",
    ("--repeat-penalty",): "--repetition-penalty X",
    ("--typical",): "--typical-p X",
    ("--top-nsigma",): "--top-n-sigma X",
    ("--samplers", "--sampling-seq"): "the temperature comes first; --temperature-last for last",
    ("--ctx-size", "--num-ctx", "--num_ctx", "--max-model-len"): "-c N, --ctx N",
    ("--n-predict", "--predict", "--max-new-tokens", "--max_new_tokens"): "-n N, --max-tokens N",
    ("-md", "--model-draft", "--draft", "--draft-max", "--speculative-config"): "--speculate N",
    ("--jinja", "--chat-template", "--chat-template-file"): _TEMPLATE,
    ("--reasoning-budget", "--reasoning-format"): "--think off, --think-budget N",
    ("--hidethinking",): "--thoughts fold",
    ("--nowordwrap",): "--plain",
    ("--verbose",): "chat and /stats show the figures",
    ("--mlock", "--no-mmap"): "leave it out: weights are mapped; --expert-ram SIZE bounds experts",
    ("--numa",): "leave it out: NUMA nodes are used as they are",
    ("-dev", "--main-gpu", "-mg"): "--device cuda:N",
    ("-sm", "--split-mode", "-ts", "--tensor-split", "--tensor-parallel-size"): _SPLIT,
    ("--gpu-memory-utilization",): "--vram SIZE",
    ("--slot-save-path", "--cache-ram", "--prompt-cache"): "--kv-disk DIR=20GiB",
    ("--parallel", "--max-num-seqs", "--max-running-requests"): "hybridmoe serve --slots N",
    ("-a", "--alias", "--served-model-name"): "hybridmoe serve --model-name NAME",
    ("--keepalive", "--keep-alive", "--sleep-idle-seconds"): _KEEP_ALIVE,
    ("--mmproj", "--image"): "no images",
    ("--lora", "--control-vector"): "no adapters",
    ("--gguf-path", "--gguf_path", "--kt-weight-path"): "-m FILE",
    ("--cpu-infer", "--cpu_infer", "--kt-cpuinfer"): "-t N, --threads N",
    ("--optimize-config-path", "--optimize_config_path"): "--place REGEX=cpu for exceptions",
}
_HINT_OF = {flag: hint for flags, hint in _HINTS.items() for flag in flags}


def hint_on(arguments: Sequence[str], own: Collection[str]) -> str | None:
    """Find the first option of another program, and say what to use; None without one.

    own: options of the command.
    """
    for argument in arguments:
        if argument == "--":
            break
        flag = argument.partition("=")[0]
        if flag in _HINT_OF and flag not in own:
            return f"no option {flag}; here: {_HINT_OF[flag]}"
    return None
