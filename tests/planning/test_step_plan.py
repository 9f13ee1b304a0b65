"""Steps of a prompt on a GPU: as long as their activations allow."""

from pathlib import Path

import pytest
from k2_header import write_k2

from hybridmoe.gguf.outline import read_outline
from hybridmoe.planning.step_plan import gpu_step_tokens


@pytest.mark.parametrize(("gib", "want"), [(8, 1024), (16, 2048), (24, 4096), (80, 4096)])
def test_steps_are_as_long_as_a_tenth_of_vram_allows(tmp_path: Path, gib: int, want: int) -> None:
    c = read_outline(write_k2(tmp_path / "k2.gguf")).config
    assert gpu_step_tokens(c, gib << 30, 1 << 17) == want
    assert gpu_step_tokens(c, gib << 30, 1000) == 1024
    assert gpu_step_tokens(c, gib << 30, 8) == gpu_step_tokens(c, 1 << 20, 1 << 17) == 512
