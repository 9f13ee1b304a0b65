"""Table of docs/formats.md against the gguf package: complete, with true numbers."""

from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Q

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats.md"


def test_the_table_of_block_formats_is_true_and_complete() -> None:
    documented = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in Q.__members__:
            documented[Q[cells[0]]] = (float(cells[1]), int(cells[2]), int(cells[3]))
    assert documented.keys() == {kind for kind in Q if _can_decode(kind)}
    for kind, (bits, values, num_bytes) in documented.items():
        assert (values, num_bytes) == GGML_QUANT_SIZES[kind], kind
        assert bits == 8 * num_bytes / values, kind


def _can_decode(kind: Q) -> bool:
    block = np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8)
    try:
        gguf.dequantize(block, kind)
    except NotImplementedError:
        return False
    return True
