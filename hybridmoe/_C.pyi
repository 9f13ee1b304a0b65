"""CPU kernels. Addresses are of C-contiguous memory on the host; ops.py checks what it passes."""

from collections.abc import Callable, Sequence

TYPES: dict[int, tuple[str, tuple[int, int, int], bool]]
"""GGUF type id -> (name, weights of a block, bytes of a block, activations rounded to int8)."""

ACTIVATION_BLOCK: int
"""Activations that share one rounding scale."""

class Matrix:
    """Checked (batch, rows, cols) stack of matrices at an address; keeps nothing alive."""

    def __init__(
        self,
        data: int,
        num_bytes: int,
        type: int,
        batch: int,
        rows: int,
        cols: int,
        stride: int = 0,
        scales: int = 0,
    ) -> None:
        """stride: bytes from a matrix to the next; 0 = none between them. scales: (batch) f32."""

def isa_compiled() -> tuple[str, ...]: ...
def isa_supported() -> tuple[str, ...]: ...
def isa_active() -> str: ...
def set_isa(name: str) -> None: ...
def threads() -> list[list[list[int]]]:
    """Return the CPUs that each thread may run on, by NUMA node; an empty list is any CPU."""

def set_threads(plan: Sequence[Sequence[Sequence[int]]]) -> None:
    """Set the CPUs of 1 to 1024 threads on 1 to 64 nodes. Raises ShapeError."""

def begin_read_log(with_tiles: bool) -> None:
    """Run jobs on their caller alone from now on, and keep each access to weights.

    with_tiles: where the kernels have no matrix tiles, note the products that would go through
    them, and compute none of these. Raises ShapeError if there is a log.
    """

def end_read_log() -> list[tuple[int, int, int, int]]:
    """Return address, bytes, node (-1: any) and kind of each access since. Raises ShapeError.

    Kinds: 0 the first touch, 1 a read, 2 a fetch into the cache.
    """

def begin_job_trace() -> None:
    """Run the chunks of jobs on their caller alone from now on, and keep their CPU times."""

def end_job_trace() -> tuple[list[tuple[float, bool, list[int], list[float]]], float]:
    """Return the jobs since, and the caller's seconds after the last. Raises ShapeError.

    Of each job: the caller's seconds before it, whether its chunks stay with their nodes, chunks of
    nodes 0..n, and seconds of each chunk.
    """

def run_limit(kind: str, rounds: int, chunks: int) -> int:
    """Run `chunks` loops of "int8" or "float", one in the caller; returns the operations done."""

def copy_memory(dst: int, src: int, num_bytes: int) -> None:
    """Copy bytes by all kernel threads, such that the copy stays in the CPU's cache."""

def read_memory(data: int, num_bytes: int, chunks: int) -> None:
    """Read memory once, in `chunks` parts; a single part in the caller."""

def takes_tiles(type: int, rows: int, tokens: int) -> bool:
    """Return True if `tokens` tokens go through matrix tiles: bfloat16 instead of int8."""

def matmul_costs() -> dict[str, float]:
    """Return the active cost model, in cycles of 256 weights, and where gemm beats gemv."""

BLOCK_BYTES: int
"""Direct reads need offsets, lengths and addresses that are multiples of it."""

class ReadFaults:
    """Faults of a disk, for tests and soaks: none at first. Thread-safe."""

    def __init__(self, seed: int = 0) -> None: ...
    @property
    def num_hung(self) -> int:
        """Return the number of reads that hang, or did."""

    def fail(self, error: int, rate: float = 1.0, direct_only: bool = False) -> None:
        """Let a share of reads end with an errno. direct_only: of those with O_DIRECT."""

    def shorten(self, max_blocks: int) -> None:
        """Let reads of threads bring up to some blocks only, or parts of one; 0: no more."""

    def hang(self, most: int = ...) -> None:
        """Let the next reads begin and not end; io_uring's, up to 512 KiB, hang in the kernel."""

    def resume(self) -> None:
        """End the reads that hang, with the bytes of their files."""

    def release(self) -> None:
        """End the reads that hang; those of io_uring fail."""

    def fail_rings(self, num_good: int, error: int) -> None:
        """Let io_uring fail after good reads: with an errno for each read, or as a whole if 0."""

class FileReader:
    """Background reads of files, past the page cache. Thread-safe. Must be closed."""

    def __init__(
        self,
        files: Sequence[tuple[int, int, tuple[int, int, int, int]]],
        why_threads: str = "",
        num_threads: int = 4,
        ring_depth: int = 32,
        chunk_bytes: int = 512 << 10,
        faults: ReadFaults | None = None,
    ) -> None:
        """Take over open files, unless this raises ShapeError.

        files: descriptor, one with O_DIRECT or -1, and (device, inode, bytes, mtime_ns) when it was
        opened. why_threads: instead of io_uring, "" = io_uring where it works. num_threads,
        ring_depth (chunks that io_uring has in flight): of each device.
        """

    @property
    def is_direct(self) -> bool: ...
    @property
    def num_devices(self) -> int: ...
    @property
    def why_threads(self) -> str:
        """Return why threads read instead of io_uring; "" if they do not."""

    def submit(
        self, key: int, ranges: Sequence[tuple[int, int, int, memoryview]], is_urgent: bool
    ) -> None:
        """Queue a request. ranges: file, offset, bytes, and memory at a whole block.

        The first byte arrives at `offset % BLOCK_BYTES`. Memory must stay until the request has
        ended, or `cancel` or `close` have returned True. Raises ShapeError.
        """

    def make_urgent(self, key: int) -> None: ...
    def cancel(self, key: int) -> bool:
        """Withdraw a request. Returns False if a read of it has begun."""

    def take(self, timeout_s: float) -> tuple[int, int, str] | None:
        """Wait for a request that has ended: key, range that failed or -1, why or "".

        timeout_s: < 0 = without end. Raises ShapeError for waiting on a closed reader.
        """

    def num_queued(self, is_urgent: bool) -> int:
        """Count the ranges of one priority that are not being read yet."""

    def close(self, seconds: float) -> bool:
        """Begin no more, wait for what is under way, and close the files.

        Returns False if some has not returned then: memory must stay until this returns True.
        """

class IoRing:
    """File reads by io_uring. Not thread-safe, except `wake`. Raises ShapeError if unavailable.

    Memory must stay until its read has ended.
    """

    def __init__(self, depth: int, chunk_bytes: int, block_bytes: int) -> None:
        """depth: chunks in flight, into which reads are cut."""

    @property
    def has_room(self) -> bool:
        """Return True if one more read would start at once."""

    def begin(self, tag: int, fd: int, memory: memoryview, num_bytes: int, offset: int) -> None:
        """Queue a read; `wait` starts it. memory: whole blocks."""

    def wait(self) -> list[tuple[int, int, int]]:
        """Wait for a read or `wake`; returns (tag, errno or 0, end of the file or -1)."""

    def wake(self) -> None: ...
    def drain(self, seconds: float) -> bool:
        """Begin no more and wait for the reads in flight; False if one has not ended by then."""

    def close(self) -> None:
        """Wait for the reads in flight, 5 s at most, and free the ring. Any number of times."""

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

class HostCall:
    """A layer's experts as a host function of a CUDA stream; keeps nothing alive.

    num_tokens: of the next run, the most at first.
    """

    num_tokens: int

    def run(self) -> None:
        """Run the call. Never raises: on an error `out` is zeros, and the first error is kept."""

    def take_error(self) -> str | None:
        """Return the kept error, once."""

    def times(self) -> tuple[float, float]:
        """Return start and end of the last run, by the clock of `time.monotonic`."""

class HostExpertCall(HostCall):
    """`expert_ffn` without a base, of experts that are all in memory.

    Addresses are of memory for `max_tokens` tokens; slot_of: int32 (E), or 0; experts with a slot
    (>= 0) are the GPU's.
    """

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

class CopyThreads:
    """Threads that copy memory together, the caller included. Not thread-safe."""

    num_threads: int

    def __init__(self, num_threads: int) -> None: ...
    def copy(self, dst: int, src: int, num_bytes: int) -> None: ...

class CudaDriver:
    """CUDA driver library, never unloaded. Raises ShapeError if it is missing or too old."""

    def __init__(self, library: str) -> None: ...
    def launch(self, stream: int, call: HostCall) -> None:
        """Queue a call, which must outlive its run, in a stream. Raises ShapeError."""

    def copy(self, stream: int, dst: int, src: int, num_bytes: int) -> None:
        """Queue a copy between addresses of the host and the GPU. Raises ShapeError."""

class HandOver:
    """CPU's side of steps whose layers a GPU hands over by two counters; keeps nothing alive.

    sent, done: addresses of uint32, of what the GPU has sent and what is computed.
    """

    def __init__(self, sent: int, done: int) -> None: ...
    def serve(self, calls: Sequence[HostCall], has_ended: Callable[[], bool]) -> None:
        """Run each call once the GPU has sent it.

        has_ended: asked every millisecond, True once the GPU has ended the step; may raise.
        Raises ShapeError if the step ends before.
        """

    def release(self, has_ended: Callable[[], bool]) -> None:
        """Let the GPU go on without results until it has ended the step."""

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
        """addresses: int64 (3, E). Returns the experts needed, and the number of unordered ones."""

    def compute(self, experts: Sequence[int]) -> None: ...
    def finish(self) -> None: ...

class LayerLru:
    """Policy of the experts in RAM: `policy.lru`, decision for decision. Raises ShapeError.

    A key is layer * num_experts + expert.
    """

    def __init__(self, group_of: Sequence[int], num_experts: int, slots: Sequence[int]) -> None:
        """group_of: by layer, layers whose experts share slots. slots: by group."""

    def on_access(
        self, layer: int, experts: Sequence[int], above: Sequence[int], is_prefill: bool
    ) -> tuple[list[bool], list[int], list[int]]:
        """Decide an access: hits, admitted experts, evicted keys. above: used in VRAM."""

    def discard(self, key: int) -> bool:
        """Forget a key; False if it was not resident."""

    def offer(self, key: int) -> tuple[bool, int]:
        """Take a key back, or not; the key that leaves for it, or -1."""

    def warm(self, keys: Sequence[int]) -> None: ...
    def resident(self) -> list[int]: ...

class RamExperts:
    """Experts in RAM over their file, below those in VRAM. Not thread-safe, except `counters`.

    One call at a time. Raises ShapeError, also for keys and layers that do not exist.
    """

    num_resident: int
    num_free_buffers: int

    def __init__(
        self,
        reader: FileReader,
        pools: Sequence[tuple[int, int, int, Sequence[int]]],
        layers: Sequence[tuple[Sequence[Matrix], int, Sequence[tuple[int, int, int, int, str]]],],
        num_ahead: int,
        num_leaving: int,
        decode_tokens: int,
        uses: int,
        was_away: int,
    ) -> None:
        """pools: address, slots, staging buffers, and bytes of a buffer for a gate, an up, a down.

        layers: gate, up, down; their pool; of each matrix, file, offset of expert 0, bytes of one,
        name for messages. num_ahead and num_leaving: of each pool. decode_tokens: most tokens of a
        step that is no prefill. uses: address of int64 (keys), where accesses are counted.
        was_away: address of uint8 (keys): 1 if the last access found an expert on disk only, else
        0. The memory must stay until the reader is idle.
        """

    def compute(
        self, layer: int, x: int, ids: int, weights: int, num_tokens: int, top_k: int, out: int
    ) -> None:
        """Do a layer of a step: `expert_ffn`. Raises DiskError, StalledReadError too."""

    def begin_step(self) -> None:
        """Begin a step of calls in a stream: after one has failed, the others write zeros."""

    def take_failure(self) -> str | None:
        """Return what the first failed call in a stream met, once: "stall", "read" or "other"."""

    def access(self, layer: int, ids: int, num_ids: int, is_prefill: bool) -> None:
        """Let the policy decide about a layer's experts; `request` reads them."""

    def hint(self, layer: int, keys: Sequence[int]) -> None:
        """Take the likeliest keys of a layer to come; the next `compute` reads ahead."""

    def forget_hints(self) -> None: ...
    def request(self, key: int, is_urgent: bool) -> bool:
        """Start a read and keep the expert until `release`; False if no buffer is free."""

    def release(self, key: int) -> bool:
        """Give up an expert that nobody else keeps. Returns True if it was never read."""

    def poll(self) -> list[tuple[int, str | None]]:
        """Take in reads that have ended: keys, and errors of one line."""

    def wait(self) -> list[tuple[int, str | None]]:
        """Wait for one; as `poll`. Raises StalledReadError."""

    def drain(self) -> None:
        """Wait until no read is in flight. Raises StalledReadError."""

    def is_loaded(self, key: int) -> bool: ...
    def is_in_flight(self, key: int) -> bool: ...
    def num_free(self, layer: int) -> int:
        """Count the free buffers that a layer's experts fit into."""

    def addresses_of_layer(self, layer: int) -> int:
        """Return the address of int64 (3, E): each expert's gate, up and down; 0 = not loaded."""

    def abandon_when(self, is_unwanted: Callable[[], bool], stall_s: float) -> None:
        """Ask this when no read has ended for `stall_s`; if True, raise StalledReadError."""

    def warm(self, keys: Sequence[int], progress: Callable[[int], None]) -> int:
        """Make keys resident, hottest first, and read them; returns how many are resident.

        Calls progress(bytes), also where none come. Raises DiskError.
        """

    def discard(self, key: int) -> bool:
        """Hand a key to VRAM; its bytes stay as leaving if they may. True if it was resident."""

    def offer(self, key: int) -> tuple[bool, int]:
        """Take a key back from VRAM, or not; the key that leaves RAM for it, or -1."""

    def fetch(self, key: int) -> bool:
        """Read a key that VRAM or RAM keeps, at low priority. False if no buffer is free now."""

    def uploaded(self, key: int) -> None:
        """Learn that an expert of VRAM has arrived: its bytes are not kept here any more."""

    def addresses(self, key: int) -> tuple[int, int, int] | None:
        """Return where an expert's gate, up and down are, if they are loaded."""

    def receive(self, key: int) -> tuple[int, tuple[int, int, int]] | None:
        """Return a buffer, and its addresses, to copy a resident without bytes to; or None."""

    def received(self, buffer: int, is_good: bool) -> None:
        """End the copy to a buffer of `receive`."""

    def num_leaving_free(self, layer: int) -> int: ...
    def resident(self) -> list[int]:
        """Return the resident keys, ascending."""

    def pools(self) -> list[tuple[int, int]]:
        """Return address and bytes of each pool's memory."""

    def check(self) -> None:
        """Raise ShapeError if the table contradicts itself or has lost a buffer. Between layers."""

    def counters(self) -> dict[str, float]:
        """Return counts by field of `ExpertCounters`. Thread-safe."""

class RamExpertCall(HostCall):
    """A layer of `RamExperts` as a host function; keeps `experts` alive, and nothing else.

    slot_of: int32 (E), or 0; experts with a slot (>= 0) are the GPU's.
    """

    def __init__(
        self,
        experts: RamExperts,
        layer: int,
        x: int,
        ids: int,
        weights: int,
        out: int,
        max_tokens: int,
        top_k: int,
        slot_of: int,
    ) -> None: ...

PAGE_TOKENS: int
"""Rows of a KV cache page."""

class FusedAttention:
    """Norm and latent attention of a layer; keeps no weights alive."""

    def __init__(
        self,
        norm: int,
        eps: float,
        q_a: Matrix | None,
        q_a_norm: int,
        q_b: Matrix,
        kv_a: Matrix,
        kv_a_norm: int,
        k_b: Matrix,
        v_b: Matrix,
        out: Matrix,
        scale: float,
    ) -> None: ...
    def forward(
        self,
        x: int,
        residual: int,
        num_tokens: int,
        pages: KvPages,
        spans: int,
        num_spans: int,
        tables: int,
        num_entries: int,
        cos_sin: int,
        out: int,
    ) -> None: ...

class Swiglu:
    def __init__(self, gate: Matrix, up: Matrix, down: Matrix) -> None: ...

class RoutedSwiglu:
    def __init__(
        self,
        router: Matrix,
        bias: int,
        top_k: int,
        num_groups: int,
        num_groups_used: int,
        is_sigmoid: bool,
        is_normalized: bool,
        scale: float,
        experts: Swiglu,
    ) -> None: ...

class FusedFfn:
    """Norm and feed-forward network of a layer; keeps no weights alive."""

    def __init__(
        self, norm: int, eps: float, routed: RoutedSwiglu | None, dense: Swiglu | None
    ) -> None: ...
    def forward(
        self, x: int, residual: int, num_tokens: int, ids: int, weights: int, out: int
    ) -> None: ...

class LayerPages:
    """KV cache pages of each layer; keeps nothing alive."""

    def __init__(self, pages: Sequence[KvPages]) -> None: ...

class FusedLayers:
    """Consecutive layers; keeps nothing alive."""

    def __init__(self, attention: Sequence[FusedAttention], ffn: Sequence[FusedFfn]) -> None: ...
    def forward(
        self,
        pages: LayerPages,
        x: int,
        num_tokens: int,
        spans: int,
        num_spans: int,
        tables: int,
        num_entries: int,
        cos_sin: int,
        ids: int,
        weights: int,
    ) -> None:
        """Run all layers on x, in place. ids, weights: of layers with routed experts, or 0."""

class FusedStep:
    """Embedding, layers and head; keeps no weights alive."""

    def __init__(
        self, embedding: Matrix, layers: FusedLayers, norm: int, eps: float, head: Matrix
    ) -> None: ...
    def forward(
        self,
        ids: int,
        num_tokens: int,
        spans: int,
        num_spans: int,
        tables: int,
        num_entries: int,
        pages: LayerPages,
        rotations: int,
        num_rotations: int,
        states: int,
        logits: int,
        best: int,
    ) -> None:
        """Write states (T, H), logits (T, V) and the greedy tokens (T,) int32, or -1."""

class KvPages:
    """Checked KV cache pages (f32, f16, bf16, int8) at an address; keeps nothing alive."""

    def __init__(self, data: int, num_bytes: int, type: str, num_pages: int, dim: int) -> None: ...

def kv_row_bytes(type: str, dim: int) -> int: ...
def latent_attention(
    q_latent: int,
    q_rope: int,
    token_stride: int,
    head_stride: int,
    num_tokens: int,
    num_heads: int,
    latent_dim: int,
    rope_dim: int,
    scale: float,
    selected: int,
    top_k: int,
    pages: KvPages,
    spans: int,
    num_spans: int,
    tables: int,
    num_entries: int,
    out: int,
) -> None:
    """spans: rows of 3 int64 (tokens, start, place in tables); tables: int32 page numbers."""

def expanded_attention(
    q_nope: int,
    nope_head_stride: int,
    nope_token_stride: int,
    q_rope: int,
    rope_head_stride: int,
    rope_token_stride: int,
    num_tokens: int,
    rope_dim: int,
    k_b: Matrix,
    v_b: Matrix,
    scale: float,
    pages: KvPages,
    spans: int,
    num_spans: int,
    tables: int,
    num_entries: int,
    out: int,
    out_head_stride: int,
    out_token_stride: int,
) -> None:
    """Strides in floats; spans and tables as in `latent_attention`."""

def select_positions(
    queries: int,
    weights: int,
    num_tokens: int,
    num_heads: int,
    dim: int,
    top_k: int,
    pages: KvPages,
    spans: int,
    num_spans: int,
    tables: int,
    num_entries: int,
    selected: int,
) -> None: ...
def store_kv(
    rows: int,
    num_tokens: int,
    pages: KvPages,
    spans: int,
    num_spans: int,
    tables: int,
    num_entries: int,
) -> None: ...
def rms_norm(
    x: int,
    x_stride: int,
    residual: int,
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
    cos_sin: int,
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
    """Read a byte of every page in a thread of the node that works on its row."""

def claim_rows(data: int, num_matrices: int, rows: int, row_bytes: int) -> None:
    """Write a zero to every page, as `touch_rows` reads; nothing with one node."""

def dequantize(w: Matrix, out: int) -> None: ...
def gather_rows(w: Matrix, ids: int, num_ids: int, out: int) -> None: ...
