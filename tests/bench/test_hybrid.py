"""Timelines of the hybrid benchmark, by hand and of real runs."""

import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st
from small_model import SMALL
from tiny_gguf import write_tiny
from torch.profiler import DeviceType, ProfilerActivity, profile

from bench import _hybrid_parts, _hybrid_run
from bench._hybrid_parts import measure_prompts
from bench._hybrid_run import (
    decode,
    intervals_of,
    opened,
    prefill,
    profiled_decode,
)
from bench._timeline import Interval, Token, busy_s, merged, shares_of
from hybridmoe.demo import demo_path


def spans(*pairs: tuple[float, float]) -> list[Interval]:
    return [Interval(*pair) for pair in pairs]


TIMES = st.floats(0, 100)
SPANS = st.lists(st.tuples(TIMES, TIMES).map(lambda pair: Interval(*sorted(pair))), max_size=8)


def test_shares_of_a_timeline_by_hand() -> None:
    """Two layers of 10 s: in the first the CPU works 8 s, in the second the GPU 6 and the CPU 5."""
    token = Token(0, 22, spans((1, 9), (11, 16), (21, 22)))
    kernels = spans((9, 10), (12, 15), (13, 16), (17, 19))
    shares = shares_of([token], kernels, spans((10, 11), (5, 6)))
    assert shares.overlap == pytest.approx((8 + 6) / 20)
    assert shares.gpu_idle == pytest.approx(1 - 7 / 22)
    assert shares.cpu_idle == pytest.approx(1 - 14 / 22)
    assert shares.outside == pytest.approx(1 - (10 + 5 + 2 + 1) / 22)
    assert shares.inside == pytest.approx(1 - shares.outside)


def test_a_layer_that_nobody_waits_in_overlaps_wholly() -> None:
    token = Token(0, 9, spans((0, 4), (4, 8), (8, 9)))
    shares = shares_of([token], spans((1, 2), (5, 7)), [])
    assert (shares.overlap, shares.cpu_idle, shares.outside) == (1.0, 0.0, 0.0)


def test_tokens_add_up() -> None:
    one = Token(0, 4, spans((0, 2), (4, 4)))
    two = Token(10, 16, spans((16, 16), (10, 15)))
    shares = shares_of([one, two], spans((0, 1), (4, 10), (15, 16)), [])
    assert shares.overlap == pytest.approx((2 + 5) / 10)
    assert shares.gpu_idle == pytest.approx(1 - 2 / 10)  # what is between tokens is nobody's
    assert shares.outside == pytest.approx(1 - (2 + 6) / 10)


def test_nothing_measured_is_an_error() -> None:
    for tokens in ([], [Token(0, 1, spans((0, 1)))]):
        with pytest.raises(ValueError, match="tokens of"):
            shares_of(tokens, [], [])


@given(SPANS, TIMES, TIMES)
def test_merged_time_is_the_same_time(intervals: list[Interval], a: float, b: float) -> None:
    joined, window = merged(intervals), Interval(*sorted((a, b)))
    assert all(one.end < two.begin for one, two in pairwise(joined))
    covered = busy_s(joined, window)
    assert 0 <= covered <= window.end - window.begin + 1e-9
    assert covered <= busy_s(intervals, window) + 1e-9
    assert covered >= max((busy_s([one], window) for one in intervals), default=0) - 1e-9


def test_profiled_times_are_those_of_the_monotonic_clock() -> None:
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        before = time.monotonic()
        torch.ones(1000).sum()
        after = time.monotonic()
    found = intervals_of(profiled, DeviceType.CPU)
    assert found
    for _, interval in found:
        assert before - 1e-3 < interval.begin < interval.end < after + 1e-3


def test_tokens_and_prompts_are_timed_through_the_engine() -> None:
    with opened(demo_path(), 128, device="cpu") as llm:
        found = decode(llm, num_warm_up=2, num_timed=5)
        assert len(found.seconds) == 5 and found.tokens_per_s > 0
        assert (found.hit_rate, found.num_slots) == (None, 0)
        assert prefill(llm, 40) > 0


def test_a_timeline_of_a_real_run_has_every_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's interpreter is the GPU: no kernels, but the CPU's calls are real."""
    pytest.importorskip("triton", reason="needs triton")
    from interpreted_gpu import use_gpu  # needs Triton

    use_gpu(monkeypatch)
    of_cpu = partial(profile, activities=[ProfilerActivity.CPU], acc_events=True)
    monkeypatch.setattr(_hybrid_run, "profile", lambda **options: of_cpu())
    path = tmp_path / "m.gguf"
    types = {"default": Type.F32, "ffn_up_exps": Type.Q8_0}
    write_tiny(path, type=types, **{**SMALL, "layers": 3, "q_lora": 64, "context": 256})
    with opened(path, 128, device="cuda", vram=2 << 30) as llm:
        shares = profiled_decode(llm, 2)
    assert 0 < shares.overlap < 1 and 0 < shares.cpu_idle < 1
    assert shares.gpu_idle == 1 and 0 < shares.outside < 1


def test_prompts_are_timed_on_both_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs triton")
    from interpreted_gpu import use_gpu  # needs Triton

    use_gpu(monkeypatch)
    monkeypatch.setattr(_hybrid_parts, "_PROMPT_S", 0.01)
    monkeypatch.setattr(_hybrid_parts, "_gpu_bytes", lambda: 8 << 30)
    path = tmp_path / "m.gguf"
    write_tiny(path, **{**SMALL, "q_lora": 64, "context": 256})
    found = measure_prompts(path, (20, 17))
    assert [prompt["num_tokens"] for prompt in found] == [20, 17]
    assert all(prompt["tokens_per_s"] > 0 < prompt["cpu_tokens_per_s"] for prompt in found)
    assert found[0]["first"] > 0 and found[1]["first"] is None
