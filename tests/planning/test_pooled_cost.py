"""Cost model of pooled experts: sums worked out by hand, and what must hold for any hosts."""

from dataclasses import replace
from math import comb
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Q
from k2_header import write_k2
from memory_plans import plan_of

from hybridmoe.errors import ConfigError
from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.cost_model import Hits, decode
from hybridmoe.planning.model_sizes import ModelSizes, Part
from hybridmoe.planning.pooled_cost import Host, Link, PooledCost
from hybridmoe.planning.prompt_cost import prompt
from hybridmoe.planning.rates import PRODUCTS, PROMPT_OVERHEAD, WHOLE_MODEL_SHARE, Rates

ONE_MB = 1e6 / WHOLE_MODEL_SHARE  # of DRAM, so that decoding float32 gets 1 MB/s
SLOW = Rates("avx512", dram=ONE_MB, ops=1e6, attention_ops=1e12)
FAST = replace(SLOW, dram=4 * ONE_MB)
EXPERT_S = 1000 / 1e6  # at SLOW
LINK = Link(delay_s=30e-6, bytes_per_s=1e9)
HANDLING_S = 50e-6


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ModelSizes:
    """One dense layer and two with four experts, of which a token chooses two; all float32."""
    config = read_outline(write_k2(tmp_path_factory.mktemp("k2") / Path("k2.gguf"))).config
    return ModelSizes(
        config=replace(
            config, num_layers=3, num_dense_layers=1, num_experts=4, top_k=2, vocab_size=100
        ),
        embedding_bytes=4000,
        head=(Part(Q.F32, 1000, 4000),),
        is_tied=False,
        dense=(Part(Q.F32, 3000, 12000),),
        shared=(Part(Q.F32, 200, 800),),  # of both layers, and of `dense`
        experts=2 * ((Part(Q.F32, 250, 1000),),),
        piece_bytes=(400, 300, 300),
        gpu_bytes=16000,
    )


def cost(toy: ModelSizes, *hosts: Host, link: Link = LINK) -> PooledCost:
    return PooledCost(plan_of(toy, 2000, step_tokens=10), toy, hosts, link, HANDLING_S)


def message_s(toy: ModelSizes, num_tokens: float, link: Link = LINK) -> float:
    """States there and sums back, and ids and weights of two experts; copied at 2 GB/s."""
    byte_s = 1 / link.bytes_per_s + 1 / 2e9
    return num_tokens * (2 * 4 * toy.config.hidden + 2 * 8) * byte_s


def test_a_token_by_hand(toy: ModelSizes) -> None:
    """Each of two hosts has two experts: 0, 1, 2 chosen with 1/6, 4/6, 1/6."""
    step = cost(toy, Host("a", SLOW, range(2)), Host("b", FAST, range(2, 4))).decode(100)
    trip = HANDLING_S + 2 * LINK.delay_s + message_s(toy, 1)
    shared = 400 / 1e6
    a, b = EXPERT_S, EXPERT_S / 4
    both_b = (shared, 2 * b + trip)  # ends of a and of b
    one_each = (a + shared, b + trip)
    assert both_b[1] > both_b[0] and one_each[0] > one_each[1]
    expected = (4 / 6 * one_each[0] + 1 / 6 * (2 * a + shared), 1 / 6 * both_b[1])
    assert step.waited_for == pytest.approx([2 * seconds for seconds in expected])
    own = 2 * (4 / 6 * a + 1 / 6 * 2 * a)
    assert step.seconds["experts of rank 0"] == pytest.approx(own)
    alone = decode(plan_of(toy, 2000), SLOW, Hits(0, 1), 100, is_pooled=True)
    others = ("dense weights", "attention", "between kernels")
    assert all(step.seconds[name] == pytest.approx(alone.seconds[name]) for name in others)
    whole = sum(alone.seconds[name] for name in others) - 2 * shared + 2 * sum(expected)
    assert step.total_s == pytest.approx(whole)
    assert step.tokens_per_s == pytest.approx(1 / whole)


def test_messages_of_all_hosts_share_rank_0s_link(toy: ModelSizes) -> None:
    """Two workers with a token's two experts: both trips take as long as both messages."""
    workers = (Host("b", FAST, range(1, 2)), Host("c", FAST, range(2, 4)))
    slow = LINK._replace(bytes_per_s=LINK.bytes_per_s / 1000)
    step = cost(toy, Host("a", FAST, range(1)), *workers, link=slow).decode(0)
    trip = HANDLING_S + 2 * LINK.delay_s
    one, two = (trip + message_s(toy, n, slow) for n in (1, 2))
    # Of six pairs, one is a + b, two a + c, two b + c (one expert each), one c alone.
    each = EXPERT_S / 4
    expected = (3 * (one + each) + 2 * (two + each) + one + 2 * each) / 6
    assert sum(step.waited_for) == pytest.approx(2 * expected)


def test_a_prompt_by_hand(toy: ModelSizes) -> None:
    """Steps of 10 and 5 tokens; five sixths of them choose an expert of b's."""
    hosts = Host("a", SLOW, range(2)), Host("b", SLOW, range(2, 4))
    far = LINK._replace(delay_s=1.0)
    step = cost(toy, *hosts, link=far).prompt(15)
    sent = 1 - comb(2, 2) / comb(4, 2)
    products = expected = 0.0
    for tokens in (10, 5):
        touched = 4 * (1 - 0.5**tokens)
        unpacking = touched / 2 * PRODUCTS["avx512"].unpack_tokens
        busy = PROMPT_OVERHEAD * 2 * 250 * (tokens + unpacking) / 1e6
        trip = HANDLING_S + 2.0 + message_s(toy, tokens * sent)
        products += 2 * busy
        expected += 2 * (busy + trip)
    assert step.waited_for == pytest.approx([0, expected])
    assert step.seconds["experts of rank 0"] == pytest.approx(products)
    alone = prompt(plan_of(toy, 2000, step_tokens=10), SLOW, Hits(0, 1), 15)
    assert step.seconds["dense weights"] == pytest.approx(alone.seconds["dense weights"])
    assert step.seconds["waiting for other hosts"] < expected - products  # the shared expert


def test_a_host_with_half_of_its_experts_on_disk(toy: ModelSizes) -> None:
    disk = replace(FAST, disk=1e5)
    all_there = cost(toy, Host("a", FAST, range(3)), Host("b", disk, range(3, 4))).decode(0)
    half = cost(toy, Host("a", FAST, range(3)), Host("b", disk, range(3, 4), 0.5)).decode(0)
    read = 0.5 * 1000 / 1e5  # far longer than all else
    assert half.waited_for[1] == pytest.approx(all_there.waited_for[1] + 2 * 0.5 * read, rel=1e-2)
    unknown = cost(toy, Host("a", FAST, range(3)), Host("b", FAST, range(3, 4), 0.5))
    with pytest.raises(ConfigError, match="--disk-gbs"):
        unknown.decode(0)


def test_a_faster_link_or_host_is_never_slower(toy: ModelSizes) -> None:
    a, b = Host("a", SLOW, range(2)), Host("b", SLOW, range(2, 4))
    faster_a, faster_b = a._replace(rates=FAST), b._replace(rates=FAST)
    near = LINK._replace(delay_s=1e-6)
    for of in (lambda c: c.decode(50).total_s, lambda c: c.prompt(30).total_s):
        assert of(cost(toy, a, faster_b)) <= of(cost(toy, a, b))
        assert of(cost(toy, faster_a, b, link=near)) <= of(cost(toy, faster_a, b))
    nearer = cost(toy, faster_a, b, link=near).decode(50).total_s
    assert nearer < cost(toy, faster_a, b).decode(50).total_s


def test_many_chosen_experts_end(toy: ModelSizes) -> None:
    many = replace(toy, config=replace(toy.config, num_experts=4096, top_k=2048))
    hosts = [Host(str(i), SLOW, range(512 * i, 512 * (i + 1))) for i in range(8)]
    assert cost(many, *hosts).decode(0).total_s > 0
