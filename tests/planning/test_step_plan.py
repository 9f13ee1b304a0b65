"""Steps of a prompt: as long as their activations allow."""

from pathlib import Path

import pytest
from k2_header import write_k2

from hybridmoe.demo import demo_path
from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.step_plan import (
    activation_bytes,
    disk_step_tokens,
    gpu_step_tokens,
    quick_step_tokens,
)


@pytest.mark.parametrize(("gib", "want"), [(8, 1024), (16, 2048), (24, 4096), (80, 4096)])
def test_steps_are_as_long_as_a_tenth_of_vram_allows(tmp_path: Path, gib: int, want: int) -> None:
    c = read_outline(write_k2(tmp_path / "k2.gguf")).config
    assert gpu_step_tokens(c, gib << 30, 1 << 17) == want
    assert gpu_step_tokens(c, gib << 30, 1 << 17, over_disk=True) == (8192 if gib == 80 else want)
    assert gpu_step_tokens(c, gib << 30, 1000) == 1024
    assert gpu_step_tokens(c, gib << 30, 8) == gpu_step_tokens(c, 1 << 20, 1 << 17) == 512


@pytest.mark.parametrize(
    ("gib", "want"), [(8, 512), (16, 1024), (32, 2304), (64, 4864), (128, 8192)]
)
def test_steps_over_the_disk_take_a_sixteenth_of_ram(tmp_path: Path, gib: int, want: int) -> None:
    c = read_outline(write_k2(tmp_path / "k2.gguf")).config
    assert disk_step_tokens(c, gib << 30, 1 << 17) == want
    assert disk_step_tokens(c, gib << 30, 8) == 512
    if want > 512:
        assert 16 * activation_bytes(c, want, on_cpu=True) <= gib << 30


def test_the_cpu_keeps_the_outputs_of_all_experts_of_a_token(tmp_path: Path) -> None:
    c = read_outline(write_k2(tmp_path / "k2.gguf")).config
    more = activation_bytes(c, 2048, on_cpu=True) - activation_bytes(c, 2048)
    assert more == pytest.approx(4 * 2048 * 8 * 7168, rel=0.2)


def test_quick_steps_are_for_models_with_small_activations(tmp_path: Path) -> None:
    small, large = (read_outline(p).config for p in (demo_path(), write_k2(tmp_path / "k2.gguf")))
    assert quick_step_tokens(small, 1 << 17) == 2048
    assert quick_step_tokens(small, 600) == 1024 and quick_step_tokens(small, 8) == 512
    assert quick_step_tokens(large, 1 << 17) == 512
