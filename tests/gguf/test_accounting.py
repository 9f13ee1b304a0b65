"""Sizes and bytes per token against numbers calculated by hand."""

from dataclasses import dataclass

import pytest
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q

from hybridmoe.gguf.accounting import Account, Sizes, TypeSizes, take_account

# hidden 64, 2 layers (1 dense), 8 experts of width 32, 3 active, 10 tokens.
METADATA = {
    "general.architecture": "deepseek2",
    "deepseek2.block_count": 2,
    "deepseek2.expert_used_count": 3,
    "deepseek2.attention.kv_lora_rank": 32,
    "deepseek2.rope.dimension_count": 16,
}


@dataclass(frozen=True)
class Entry:
    """A tensor without data."""

    name: str
    shape: tuple[int, ...]
    type: Q = Q.F32

    @property
    def num_bytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.type]
        elements = 1
        for dim in self.shape:
            elements *= dim
        return elements // block * block_bytes


MODEL = [
    Entry("token_embd.weight", (10, 64), Q.Q8_0),
    Entry("output.weight", (10, 64), Q.Q4_0),
    Entry("output_norm.weight", (64,)),
    Entry("blk.0.attn_q.weight", (48, 64), Q.Q8_0),
    Entry("blk.0.attn_norm.weight", (64,)),
    Entry("blk.0.ffn_up.weight", (128, 64), Q.F16),
    Entry("blk.1.attn_q.weight", (48, 64), Q.Q8_0),
    Entry("blk.1.ffn_gate_inp.weight", (8, 64)),
    Entry("blk.1.exp_probs_b.bias", (8,)),
    Entry("blk.1.ffn_up_shexp.weight", (32, 64), Q.Q8_0),
    Entry("blk.1.ffn_up_exps.weight", (8, 32, 64), Q.Q4_0),
    Entry("blk.1.ffn_down_exps.weight", (8, 64, 32), Q.Q8_0),
]


def test_sums_equal_those_worked_out_by_hand() -> None:
    account = take_account(MODEL, METADATA)
    # Q8_0: 34 bytes per 32 weights; Q4_0: 18 per 32.
    assert account.parts == {
        "embedding": Sizes(640, 680, 64, 68),
        "attention": Sizes(6144, 6528, 6144, 6528),
        "router": Sizes(520, 2080, 520, 2080),
        "shared expert": Sizes(2048, 2176, 2048, 2176),
        "dense ffn": Sizes(8192, 16384, 8192, 16384),
        "routed experts": Sizes(32768, 9216 + 17408, 12288, (9216 + 17408) * 3 // 8),
        "norm": Sizes(128, 512, 128, 512),
        "output": Sizes(640, 360, 640, 360),
    }
    assert account.total == Sizes(51080, 55344, 30024, 38092)
    assert account.types == {
        Q.Q8_0: TypeSizes(5, 640 + 6144 + 2048 + 16384, 680 + 6528 + 2176 + 17408),
        Q.F16: TypeSizes(1, 8192, 16384),
        Q.Q4_0: TypeSizes(2, 17024, 9576),
        Q.F32: TypeSizes(4, 648, 2592),
    }
    assert list(account.types) == [Q.Q8_0, Q.F16, Q.Q4_0, Q.F32]
    assert account.bits_per_weight == 8 * 55344 / 51080
    assert (account.kv_layers, account.latent_dim) == (2, 32 + 16)
    assert account.kv_bytes_per_token() == 192
    assert account.kv_bytes_per_token("f32") == 384


def test_a_tied_output_reads_the_whole_embedding() -> None:
    account = take_account([e for e in MODEL if e.name != "output.weight"], METADATA)
    assert account.parts["embedding"] == Sizes(640, 680, 64, 68)
    assert account.parts["output"] == Sizes(0, 0, 640, 680)


def test_layers_for_multi_token_prediction_are_stored_but_not_read() -> None:
    metadata = {**METADATA, "deepseek2.nextn_predict_layers": 1}
    account = take_account(MODEL, metadata)
    assert account.parts["routed experts"] == Sizes(32768, 26624, 0, 0)
    assert account.parts["attention"] == Sizes(6144, 6528, 3072, 3264)
    assert (account.kv_layers, account.latent_dim) == (1, 48)


@pytest.mark.parametrize("odd", [None, "8", True, -1, [3], 2.0])
def test_odd_metadata_counts_as_absent(odd: object) -> None:
    metadata = {key: odd for key in METADATA if key != "general.architecture"}
    metadata["general.architecture"] = "deepseek2"
    account = take_account(MODEL, metadata)  # type: ignore[arg-type]
    assert account.parts["routed experts"] == Sizes(32768, 26624, 32768, 26624)
    assert account.latent_dim is None and account.kv_bytes_per_token() is None


def test_nothing_weighs_nothing() -> None:
    assert take_account([], {}) == Account({}, {}, Sizes(), 0, None)
    assert take_account([], {}).bits_per_weight == 0


def test_more_active_experts_than_there_are_count_once() -> None:
    account = take_account(MODEL, {**METADATA, "deepseek2.expert_used_count": 99})
    assert account.parts["routed experts"].token_bytes == 26624
