"""Memory of a process that may keep an eighth of a model's experts in RAM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Type
from page_cache import resident_pages

from bench.synthetic import Shape, write_synthetic

MIB = 1 << 20
BUDGET = 56 * MIB
SHAPE = Shape(
    num_layers=3, num_dense_layers=1, hidden=1024, dense_inter=1024, num_heads=4, q_lora_rank=0,
    num_experts=128, top_k=4, expert_inter=1024, num_shared_experts=1, routed_scale=2.0,
    vocab_size=512,
)  # fmt: skip

PROGRAM = """
import json, sys
from queue import SimpleQueue
from hybridmoe.config import EngineConfig, ModelConfig
from hybridmoe.engine.engine import Engine
from hybridmoe.engine.request import Finished, Request
from hybridmoe.engine.sampling_params import SamplingParams
from hybridmoe.experts.policy import CacheShape, make_policy
from hybridmoe.gguf.reader import GGUFFile
from hybridmoe.model.decoder import Decoder
from hybridmoe.hardware.gpu import NoGpu
from hybridmoe.placement.placer import place
from hybridmoe.planning.memory_plan import plan_memory
from hybridmoe.planning.problem import Budgets

def memory():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))

make_policy("lru", CacheShape(1, 1, 1, 1))  # numba
before = memory()
file = GGUFFile.open(sys.argv[1])
config = ModelConfig.from_metadata(file.metadata)
budgets = Budgets(ram_bytes=1 << 40, expert_ram_bytes=int(sys.argv[2]), num_ahead=1)
engine_config = EngineConfig(context_tokens=512)
plan = plan_memory(config, file.tensors.values(), engine_config, budgets)
placed = place(file, plan, NoGpu("none"))
decoder = Decoder(placed.weights(file), config, placed.experts)
engine = Engine(decoder, frozenset(), engine_config)
most = 0
for prompt in ([1, 2, 3], list(range(5, 400))):
    events = SimpleQueue()
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    engine.submit(Request(prompt_ids=prompt, params=params), events.put)
    while not isinstance(event := events.get(), Finished):
        most = max(most, memory())
    assert event.reason == "length", event
dense = sum(a.nbytes for a in placed.private.values())
counters = placed.experts.stats().counters
print(json.dumps({"grown": most - before, "dense": dense, "read": counters.bytes_read}))
engine.close()
placed.close()
"""


def test_memory_stays_within_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    write_synthetic(path, SHAPE, expert_type=Type.Q8_0)
    assert path.stat().st_size > 8 * BUDGET
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    if resident_pages(path) is None or resident_pages(path):
        pytest.skip("the page cache cannot be seen, or not be emptied, here")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(BUDGET)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    found = json.loads(done.stdout)
    assert found["read"] > 3 * BUDGET  # experts were read many times
    # The KV cache, activations and Python's own growth come on top of the budget.
    assert found["grown"] < BUDGET + found["dense"] + 64 * MIB
    cached = 4096 * resident_pages(path)
    assert cached < path.stat().st_size // 20, "the page cache was used"
