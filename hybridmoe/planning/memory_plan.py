"""Who lives where: a model's parts and its experts over VRAM, RAM and disk.

Pure: sizes and budgets in (`Problem`), a decision out (`Plan`) or one line that says what to lower
and by how much. One planner for both: with a GPU, all that every token uses and the latents go to
VRAM, and what is left of it is expert slots; without one, the same goes to RAM. A slot takes any
layer's expert, so its parts are as large as the largest. An expert in VRAM is not kept in RAM too.

What is read twice or seldom stays where it is cheap: the embedding is in RAM always, since a token
reads one row of it. What fits nowhere is read from the file. How fast that is: cost.py.
"""

from dataclasses import dataclass

from hybridmoe.config import ModelConfig
from hybridmoe.errors import ConfigError
from hybridmoe.planning.model_sizes import ModelSizes

__all__ = ["Plan", "Problem", "Tier", "activation_bytes", "plan_experts"]

GIB = 1 << 30
RAM_RESERVE_BYTES = 1 * GIB  # Python, torch, vocabulary, allocators
VRAM_RESERVE_BYTES = 1 * GIB  # CUDA context, libraries' workspaces, fragmentation
GRAPH_BYTES = 256 << 20  # of VRAM: intermediate numbers of captured steps
# Of VRAM, for a prompt: slabs of decoded weights, expanded keys and values of some heads, and one
# layer's latents of a long sequence in a row (kernels.triton.matmul, prompt_attention).
SCRATCH_BYTES = 512 << 20
_PASSING_SLOTS = 2  # of VRAM: experts of a prompt that only pass by (experts.gpu.weight_stream)
_PAGE_TOKENS = 64  # latents come in pages
_LOGIT_ROWS = 8  # running answers of a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is to be placed, and into how much."""

    sizes: ModelSizes
    ram_bytes: int  # what this program may fill
    vram_bytes: int = 0  # of the GPU; 0 = none
    kv_tokens: int  # latents held, of all conversations
    kv_token_bytes: int  # of one token, all layers
    step_tokens: int = 512  # tokens of one step, at most
    num_pinned: int = 0  # experts that are to be in VRAM for good
    num_left: int = 0  # experts that are not to be in VRAM

    def __post_init__(self) -> None:
        names = ("ram_bytes", "vram_bytes", "kv_tokens", "kv_token_bytes", "num_pinned", "num_left")
        for name in names:
            value = getattr(self, name)
            if value < 0:
                raise ConfigError(f"{name}={value}: expected a number from 0 on")
        if self.step_tokens < 1:
            raise ConfigError(f"step_tokens={self.step_tokens}: expected a number from 1 on")

    @property
    def kv_bytes(self) -> int:
        return self.kv_tokens * self.kv_token_bytes


@dataclass(frozen=True, slots=True)
class Tier:
    """One kind of memory: what of it is taken by what, and the experts that it holds."""

    name: str
    budget_bytes: int
    parts: tuple[tuple[str, int], ...]  # what, bytes; without experts
    num_experts: int
    expert_bytes: int  # of all of them together

    @property
    def used_bytes(self) -> int:
        return sum(size for _, size in self.parts) + self.expert_bytes

    @property
    def free_bytes(self) -> int:
        return self.budget_bytes - self.used_bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision; made by `plan_experts`."""

    problem: Problem
    slot_bytes: int
    vram: Tier | None
    ram: Tier
    num_disk_experts: int  # in neither: read from the file whenever they are chosen

    @property
    def num_slots(self) -> int:
        """Slots of the cache in RAM: what the tier over the disk is made with."""
        return self.ram.num_experts

    @property
    def expert_ram_bytes(self) -> int:
        """RAM for experts, those on their way included: the budget of the tier over the disk."""
        passing = self.problem.sizes.config.top_k * self.slot_bytes if self.needs_disk else 0
        return self.ram.expert_bytes + passing

    @property
    def num_vram_slots(self) -> int:
        return self.vram.num_experts if self.vram else 0

    @property
    def num_experts(self) -> int:
        """Experts of all layers."""
        return self.problem.sizes.config.num_experts * self.problem.sizes.config.num_moe_layers

    @property
    def needs_disk(self) -> bool:
        return self.num_disk_experts > 0

    def slots_per_layer(self, num_slots: int) -> float:
        layers = self.problem.sizes.config.num_moe_layers
        return num_slots / layers if layers else 0.0

    def cycle_ratio(self, num_slots: int) -> float:
        """Slots over the experts that one token uses; below 1 a plain LRU never hits."""
        cycle = self.problem.sizes.token_cycle
        return num_slots / cycle if cycle else float("inf")

    @property
    def _num_welcome(self) -> int:
        """Experts that may be in VRAM."""
        return self.num_experts - self.problem.num_left

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what will not work well."""
        cycle = self.problem.sizes.token_cycle
        said = []
        if self.vram and (types := self.problem.sizes.types_without_slots):
            said.append(
                f"VRAM: no experts are kept there, since {', '.join(types)} has no kernel for a"
                " card: the CPU computes all of them."
            )
        elif self.vram and self.num_vram_slots < min(cycle, self._num_welcome):
            said.append(
                f"VRAM: {self.num_vram_slots} slots are less than the {cycle} experts that one"
                " token uses: only a policy that knows the layers hits there, and seldom."
            )
        if self.needs_disk and self.cycle_ratio(self.num_slots + self.num_vram_slots) < 1:
            said.append(
                f"RAM: {self.num_slots} slots are less than the {cycle} experts that one token"
                " uses: nearly all of a token's experts are read from disk."
            )
        return tuple(said)


def plan_experts(problem: Problem) -> Plan:
    """Place everything. Raises ConfigError, one line, where what must fit does not."""
    sizes, config = problem.sizes, problem.sizes.config
    total = config.num_experts * config.num_moe_layers
    sized = sizes.expert_bytes
    slot_bytes = sizes.slot_bytes
    latents = (f"latents of {problem.kv_tokens} tokens", problem.kv_bytes)
    activations = ("activations", activation_bytes(config, problem.step_tokens))
    vram = None
    if problem.vram_bytes:
        has_slots = total > problem.num_left and not sizes.types_without_slots
        parts: tuple[tuple[str, int], ...] = (
            ("weights that every token uses", sizes.card_bytes),
            latents,
            activations,
            ("graphs", GRAPH_BYTES),
            ("decoded weights, expanded keys", SCRATCH_BYTES),
            ("experts that pass by", _PASSING_SLOTS * slot_bytes if has_slots else 0),
            ("reserve", VRAM_RESERVE_BYTES),
        )
        room = total - problem.num_left if has_slots else 0
        vram = _fill("VRAM", problem, problem.vram_bytes, parts, room, slot_bytes)
    in_vram = vram.num_experts if vram else 0
    if in_vram < problem.num_pinned:
        raise ConfigError(_too_few_slots(problem, in_vram))
    embedding = 0 if sizes.is_tied and not vram else sizes.embedding_bytes
    core = (("weights that every token uses", sizes.dense_bytes), latents, activations)
    parts = (
        *((("weights left to the CPU", sizes.left_bytes),) if vram else core),
        ("embedding", embedding),
        ("reserve", RAM_RESERVE_BYTES),
    )
    left = total - in_vram
    # Which experts are in VRAM changes; the mean size counts for those that are not.
    left_bytes = sum(sized) * config.num_experts * left // total if total else 0
    if left_bytes <= problem.ram_bytes - sum(size for _, size in parts):
        ram = Tier("RAM", problem.ram_bytes, parts, left, left_bytes)
    else:
        staging = config.top_k * slot_bytes  # one layer's, read at once
        parts = (*parts, ("experts on their way", staging))
        ram = _fill("RAM", problem, problem.ram_bytes, parts, left, slot_bytes)
    return Plan(problem, slot_bytes, vram, ram, left - ram.num_experts)


def activation_bytes(c: ModelConfig, step_tokens: int) -> int:
    """An upper bound on what a step's intermediate numbers take, all float32.

    Per token: the state, its change and its norm; queries, plain and latent, and what attention
    returns; the widest feed-forward; and the logits of the running answers.
    """
    attention = c.q_lora_rank + c.num_heads * (c.qk_dim + 2 * c.kv_lora_rank + c.v_dim)
    ffn = max(2 * c.dense_inter, 2 * c.top_k * c.expert_inter + 2 * c.shared_inter + c.hidden)
    return 4 * (step_tokens * (3 * c.hidden + attention + ffn) + _LOGIT_ROWS * c.vocab_size)


def _fill(
    name: str,
    problem: Problem,
    budget: int,
    parts: tuple[tuple[str, int], ...],
    num_experts: int,
    slot_bytes: int,
) -> Tier:
    """The parts, which must fit, and as many slots as fit beside them."""
    need = sum(size for _, size in parts)
    if need > budget:
        raise ConfigError(_refusal(name, problem, budget, parts))
    slots = min(num_experts, (budget - need) // slot_bytes) if slot_bytes else 0
    return Tier(name, budget, parts, slots, slots * slot_bytes)


def _too_few_slots(problem: Problem, num_slots: int) -> str:
    if types := problem.sizes.types_without_slots:
        return (
            f"VRAM: {problem.num_pinned} experts are to be placed there for good, but"
            f" {', '.join(types)} has no kernel for a card: place no experts on cuda"
        )
    missing = (problem.num_pinned - num_slots) * problem.sizes.slot_bytes
    return (
        f"VRAM: {problem.num_pinned} experts are to be placed there for good, {num_slots} fit:"
        f" place fewer layers' experts on cuda, or raise --vram by {missing / GIB + 0.005:.2f} GiB"
    )


def _refusal(name: str, problem: Problem, budget: int, parts: tuple[tuple[str, int], ...]) -> str:
    need = sum(size for _, size in parts)
    option = f"--{name.lower()}"
    listed = ", ".join(f"{what} {size / GIB:.2f}" for what, size in parts)
    text = (
        f"{name}: {need / GIB:.2f} GiB are needed before the first expert ({listed}),"
        f" {budget / GIB:.2f} are there, {(need - budget) / GIB:.2f} too few: "
    )
    ways = []
    if problem.kv_bytes and any(what.startswith("latents") for what, _ in parts):
        left = budget - (need - problem.kv_bytes)
        tokens = left // problem.kv_token_bytes // _PAGE_TOKENS * _PAGE_TOKENS
        if tokens > 0:
            freed = problem.kv_bytes - tokens * problem.kv_token_bytes
            ways.append(f"lower --ctx to {tokens}, which frees {freed / GIB:.2f} GiB")
    ways.append(f"raise {option} to {need / GIB + 0.005:.2f}GiB")
    if name == "VRAM":
        if need - budget < problem.sizes.card_bytes:
            ways.append(
                f"leave {(need - budget) / GIB + 0.005:.2f} GiB of weights to the CPU with"
                " --place REGEX=cpu"
            )
        ways.append("use --device cpu, and the CPU computes all")
    return text + ", or ".join(ways)
