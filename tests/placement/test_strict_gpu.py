"""A model on a GPU whose tensors cannot be mixed with the CPU's: nothing forgets to copy."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from logit_distance import relative_error
from small_model import SMALL
from tiny_gguf import write_tiny

import hybridmoe

pytest.importorskip("triton", reason="needs triton")

from strict_gpu import META, StrictDevice, StrictTensor, use_strict_gpu

from hybridmoe.device.cuda import CudaDevice
from hybridmoe.kernels.triton.codebooks import codebooks

pytestmark = pytest.mark.interpreter  # a real GPU is as strict

IDS = np.random.default_rng(5).integers(0, 256, 70).tolist()
TYPES = {
    "default": Type.F32, "attn_output": Type.Q8_0, "ffn_gate_exps": Type.Q8_0,
    "ffn_up_exps": Type.Q8_0, "ffn_down_exps": Type.Q4_0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def fresh_codebooks() -> Iterator[None]:
    """Keep the codebooks of this GPU apart from those of launches recorded on torch's meta."""
    codebooks.cache_clear()
    yield
    codebooks.cache_clear()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("strict") / "m.gguf"
    write_tiny(path, type=TYPES, **{**SMALL, "layers": 3, "q_lora": 64, "context": 256})
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:overflow encountered")  # a capture runs on what memory held
@pytest.mark.parametrize("host_calls", ["0", "1"])
def test_a_model_is_checked_read_and_continued_without_mixing(
    path: Path, host_calls: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Self-check, short and long prompts, slots, streamed experts, graphs; both hand-overs."""
    monkeypatch.setenv("HYBRIDMOE_HOST_CALLS", host_calls)
    with hybridmoe.load(path, device="cpu") as llm:
        want = llm.logits(IDS[:20])
    use_strict_gpu(monkeypatch)
    with hybridmoe.load(path, vram="2GiB") as llm:
        assert llm.kernel_checks and not [c for c in llm.kernel_checks if not c.is_right]
        got = llm.logits(IDS[:20])
        llm.logits(IDS)
        llm.generate("ab", temperature=0.0, max_tokens=3, ignore_eos=True)
        stats = llm.expert_stats()
    assert relative_error(want, got) < 0.1
    assert stats is not None and stats.counters.hits > 0


def test_a_forgotten_upload_is_seen(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_strict_gpu(monkeypatch)
    real = CudaDevice.upload
    monkeypatch.setattr(CudaDevice, "upload", lambda self, t: t if t.ndim == 3 else real(self, t))
    with hybridmoe.load(path, vram="2GiB") as llm:
        (note,) = llm.notes
    assert note.startswith("on the CPU alone") and "to have the same device" in note


def test_strict_tensors_mix_with_their_own_alone() -> None:
    device = StrictDevice()
    with device.active():
        x = torch.arange(4.0, device=META)
        assert isinstance(x, StrictTensor) and isinstance(x[1:] * 2, StrictTensor)
        with pytest.raises(AssertionError, match="of the GPU and of the CPU"):
            x + torch.zeros(4)
        x[1:].copy_(torch.ones(3))
        assert device.to_host(x + 1.0).tolist() == [1, 2, 2, 2]
        assert type(x.cpu()) is torch.Tensor
        with pytest.raises(RuntimeError):
            x.numpy()
