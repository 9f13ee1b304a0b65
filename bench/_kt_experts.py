"""kt-kernel (KTransformers) as a peer: its CPU experts on the same GGUF weights, or in its formats.

Its dispatcher thread spins while the compute threads work, and so takes a core from them on a
machine where they have one each. Here it is put to sleep for most of a call (_hold_thread.c,
compiled on first use), which is better for kt-kernel than one thread less, as its users would set.
"""

import ctypes
import os
import subprocess
import sysconfig
import tempfile
import time
from pathlib import Path

import torch
from kt_kernel import kt_kernel_ext as kt

from bench._experts import HIDDEN, INTER, TOP_K, Call, Stack, expert_bytes

__all__ = ["GGUF_TYPES", "OWN_FORMATS", "KtExperts"]

# Its x86 kernels for GGUF blocks; other types end the process.
GGUF_TYPES = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q8_0", "IQ4_XS"})
# Its AMX formats, one scale a row: what it offers in the place of a GGUF type of about that size.
OWN_FORMATS = {"Q4_K": "AMXInt4_MOE", "Q4_0": "AMXInt4_MOE", "Q8_0": "AMXInt8_MOE"}

_OWN_EXPERTS = 32  # packed from bfloat16 in memory
_HELD = 0.85  # of the fastest call so far


class _Dispatcher:
    """The thread pool of kt-kernel, and the hold on its dispatcher thread."""

    def __init__(self, num_threads: int) -> None:
        before = _thread_ids()
        config = kt.WorkerPoolConfig()
        config.subpool_count = 1
        config.subpool_numa_map = [0]
        config.subpool_thread_count = [num_threads]
        self.pool = kt.CPUInfer(config)
        time.sleep(0.1)  # until the threads have their names
        started = _thread_ids() - before
        dispatchers = [t for t in started if not _thread_name(t).startswith("numa_")]
        self._hold = _compile_hold()
        self.is_held = len(dispatchers) == 1 and self._hold.hold_prepare(dispatchers[0]) == 0

    def run(self, task: object, hold_s: float) -> None:
        if self.is_held and hold_s > 1e-3:
            self._hold.hold_arm(int(hold_s * 1e9))
        self.pool.submit(task)
        self.pool.sync()
        if self.is_held:
            self._hold.hold_cancel()


_dispatchers: dict[int, _Dispatcher] = {}  # by number of threads; kt-kernel never ends its own


class KtExperts:
    """Runs experts for calls of up to `max_tokens`."""

    def __init__(
        self, stack: Stack, max_tokens: int, num_threads: int, own_format: str | None = None
    ) -> None:
        if num_threads not in _dispatchers:
            _dispatchers[num_threads] = _Dispatcher(num_threads)
        self._dispatcher = _dispatchers[num_threads]
        self.num_experts = stack.num_experts if own_format is None else _OWN_EXPERTS
        config = kt.moe.MOEConfig(self.num_experts, TOP_K, HIDDEN, INTER, 0)
        config.pool = self._dispatcher.pool.backend_
        config.max_len = max(max_tokens, 64)
        if own_format is None:
            self._weights = stack.weights  # read in place
            pointers = [matrix.data.ctypes.data for matrix in stack.weights]
            type = getattr(kt.kvcache.ggml_type, stack.type.name)
            config.gate_type = config.up_type = config.down_type = type
            config.hidden_type = kt.kvcache.ggml_type.BF16
            config.m_block, config.group_min_len = 32, 10
            config.group_max_len = config.max_len
            self.expert_bytes = expert_bytes(stack.type)
        else:
            one = (torch.randn(INTER, HIDDEN) * HIDDEN**-0.5).bfloat16()
            source = torch.stack([one.roll(e, 0) for e in range(self.num_experts)])
            pointers = [source.data_ptr()] * 3
            weights = 3 * HIDDEN * INTER
            packed = weights // 2 if own_format == "AMXInt4_MOE" else weights
            self.expert_bytes = packed + 4 * (2 * INTER + HIDDEN)
        config.gate_proj, config.up_proj, config.down_proj = pointers
        self._experts = getattr(kt.moe, own_format or "MOE")(config)
        order = torch.arange(self.num_experts)
        self._dispatcher.run(self._experts.load_weights_task(order.data_ptr()), 0)
        self._fastest = float("inf")

    @property
    def how(self) -> str:
        return "dispatcher asleep" if self._dispatcher.is_held else "dispatcher spinning"

    def forward(self, call: Call) -> torch.Tensor:
        """(T, H) bf16."""
        num_tokens = torch.tensor([call.num_tokens], dtype=torch.int32)
        ids, x = call.ids.long(), call.x.bfloat16()
        out = torch.empty_like(x)
        task = self._experts.forward_task(
            num_tokens.data_ptr(),
            TOP_K,
            ids.data_ptr(),
            call.weights.data_ptr(),
            x.data_ptr(),
            out.data_ptr(),
            False,
        )
        start = time.perf_counter()
        known = self._fastest < float("inf")
        self._dispatcher.run(task, _HELD * self._fastest - 2e-4 if known else 0)
        self._fastest = min(self._fastest, time.perf_counter() - start)
        return out


def _compile_hold() -> ctypes.CDLL:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    source = Path(__file__).with_name("_hold_thread.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "hold_thread.so"
        flags = ["-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-lrt"]
        subprocess.run([compiler, *flags], check=True)
        loaded = ctypes.CDLL(str(library))
    loaded.hold_arm.argtypes = [ctypes.c_long]
    return loaded


def _thread_ids() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _thread_name(thread_id: int) -> str:
    return Path(f"/proc/self/task/{thread_id}/comm").read_text().strip()
