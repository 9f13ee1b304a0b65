"""Table of docs/formats.md against the types of the kernels: complete, with true numbers."""

from pathlib import Path

from hybridmoe import _C
from hybridmoe.gguf.file_types import file_type_name
from hybridmoe.gguf.quant_types import QuantType

PAGE = Path(__file__).parent.parent.parent / "docs" / "formats.md"


def test_the_table_of_block_formats_is_true_and_complete() -> None:
    documented = {}
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in QuantType.__members__:
            documented[QuantType[cells[0]]] = cells[1:4]
    assert documented.keys() == {QuantType(kind) for kind in _C.TYPES}
    for kind, (bits, values, num_bytes) in documented.items():
        block_bytes, _, row_scale_bytes = num_bytes.partition(" + ")
        assert kind.layout == (int(values), int(block_bytes), int(row_scale_bytes or 0)), kind
        assert float(bits) == 8 * int(block_bytes) / int(values), kind


def test_quantizations_are_named() -> None:
    numbers = (15, 0, 145, 9999, "15", None, [15])
    assert [file_type_name(n) for n in numbers] == ["Q4_K_M", "F32", "IQ4_KS", "", "", "", ""]
