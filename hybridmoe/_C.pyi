"""CPU kernels. Addresses are of C-contiguous memory on the host; ops.py checks what it passes."""

from collections.abc import Sequence

TYPES: dict[int, tuple[str, int, int, bool]]
"""GGUF type id -> (name, weights of a block, bytes of a block, activations rounded to int8)."""

ACTIVATION_BLOCK: int
"""Activations that share one rounding scale."""

class Matrix:
    """A checked (batch, rows, cols) stack of matrices at an address; keeps nothing alive."""

    def __init__(
        self, data: int, num_bytes: int, type: int, batch: int, rows: int, cols: int
    ) -> None: ...

def isa_compiled() -> tuple[str, ...]: ...
def isa_supported() -> tuple[str, ...]: ...
def isa_active() -> str: ...
def set_isa(name: str) -> None: ...
def threads() -> list[list[list[int]]]:
    """The CPUs that each thread may run on, by NUMA node; an empty list is any CPU."""

def set_threads(plan: Sequence[Sequence[Sequence[int]]]) -> None:
    """1 to 1024 threads on 1 to 64 nodes. Raises ShapeError."""

def run_limit(kind: str, rounds: int, chunks: int) -> int:
    """`chunks` loops of "int8" or "float"; one alone stays in the caller. Operations done."""

def read_memory(data: int, num_bytes: int, chunks: int) -> None:
    """Read memory once, in `chunks` parts; one alone stays in the caller."""

def takes_tiles(type: int, rows: int, tokens: int) -> bool:
    """Whether so many tokens go through matrix tiles: bfloat16 instead of int8."""

def matmul_costs() -> dict[str, float]:
    """The active cost model, in cycles of 256 weights, and the tokens at which `panels` win."""

class IoRing:
    """Reads of files by io_uring, for one thread but for `wake`; ShapeError says why there is none.

    Memory has to stay until its read has ended.
    """

    def __init__(self, depth: int, chunk_bytes: int, block_bytes: int) -> None:
        """depth: chunks under way, of which reads are made."""

    @property
    def has_room(self) -> bool:
        """Whether one more read would start at once."""

    def begin(self, tag: int, fd: int, memory: memoryview, num_bytes: int, offset: int) -> None:
        """Queue a read; `wait` starts it. memory: whole blocks."""

    def wait(self) -> list[tuple[int, int, int]]:
        """Until a read has ended, or `wake`. (tag, errno or 0, where the file ended or -1)."""

    def wake(self) -> None: ...
    def close(self) -> None:
        """Waits for what is under way. Any number of times."""

def linear(
    x: int,
    x_batch_stride: int,
    x_token_stride: int,
    num_tokens: int,
    w: Matrix,
    out: int,
    out_batch_stride: int,
    out_token_stride: int,
) -> None: ...
def expert_ffn(
    x: int,
    ids: int,
    weights: int,
    num_tokens: int,
    top_k: int,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    base: int,
    out: int,
) -> None: ...

class HostExpertCall:
    """`expert_ffn` without a base as a call that another's thread makes; keeps nothing alive.

    Addresses are of memory for `max_tokens` tokens; slot_of: int32 (E), or 0; experts with a slot
    (>= 0) are left out. num_tokens: of the next run, `max_tokens` at first.
    """

    num_tokens: int

    def __init__(
        self,
        x: int,
        ids: int,
        weights: int,
        out: int,
        max_tokens: int,
        top_k: int,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        slot_of: int,
    ) -> None: ...
    def run(self) -> None:
        """Never raises: on an error `out` is zeros, and the first error is kept."""

    def take_error(self) -> str | None:
        """The kept error, once."""

    def times(self) -> tuple[float, float]:
        """When the last run began and ended, by the clock of `time.monotonic`."""

class CudaDriver:
    """The driver's library, never unloaded. Raises ShapeError where it is missing or too old."""

    def __init__(self, library: str) -> None: ...
    def launch(self, stream: int, call: HostExpertCall) -> None:
        """Put a call, which must outlive its run, into a stream. Raises ShapeError."""

class ExpertPass:
    """`expert_ffn` in pieces, for experts at addresses of their own."""

    def begin(
        self,
        x: int,
        ids: int,
        weights: int,
        num_tokens: int,
        top_k: int,
        gate: Matrix,
        up: Matrix,
        down: Matrix,
        addresses: int,
        out: int,
    ) -> tuple[list[int], int]:
        """addresses: int64 (3, E). The experts needed, and how many of them come in any order."""

    def compute(self, experts: Sequence[int]) -> None: ...
    def finish(self) -> None: ...

PAGE_TOKENS: int
"""Rows of a page of latents."""

class LatentPages:
    """Checked pages of latents (f32, f16, bf16, int8) at an address; keeps nothing alive."""

    def __init__(self, data: int, num_bytes: int, type: str, num_pages: int, dim: int) -> None: ...

def latent_row_bytes(type: str, dim: int) -> int: ...
def latent_attention(
    latent_queries: int,
    rope_queries: int,
    token_stride: int,
    head_stride: int,
    num_tokens: int,
    num_heads: int,
    latent_dim: int,
    rope_dim: int,
    scale: float,
    pages: LatentPages,
    spans: int,
    num_spans: int,
    tables: int,
    num_entries: int,
    out: int,
) -> None:
    """spans: rows of 3 int64 (tokens, start, place in tables); tables: int32 page numbers."""

def store_latents(
    rows: int,
    num_tokens: int,
    pages: LatentPages,
    spans: int,
    num_spans: int,
    tables: int,
    num_entries: int,
) -> None: ...
def rms_norm(
    x: int,
    x_stride: int,
    delta: int,
    weight: int,
    num_tokens: int,
    n: int,
    eps: float,
    out: int,
    out_stride: int,
) -> None: ...
def rotate(
    x: int,
    num_tokens: int,
    num_heads: int,
    token_stride: int,
    head_stride: int,
    num_pairs: int,
    turns: int,
) -> None: ...
def route(
    logits: int,
    bias: int,
    num_tokens: int,
    num_experts: int,
    top_k: int,
    num_groups: int,
    num_groups_used: int,
    is_sigmoid: bool,
    is_normalized: bool,
    scale: float,
    ids: int,
    weights: int,
) -> None: ...
def touch_rows(data: int, num_matrices: int, rows: int, row_bytes: int) -> None:
    """Touch every page, each by a thread of the node that works on its row."""

def dequantize(w: Matrix, out: int) -> None: ...
def gather_rows(w: Matrix, ids: int, num_ids: int, out: int) -> None: ...
