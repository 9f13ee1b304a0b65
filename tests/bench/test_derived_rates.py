"""The planner's table of kernels is the one that the newest results give."""

from bench.derive_rates import TARGET, derived
from hybridmoe.env import ISA_NAMES
from hybridmoe.planning.kernel_rates import PRODUCT_BYTES, PROMPT_PRODUCTS


def test_the_table_is_derived_from_the_newest_results() -> None:
    assert TARGET.read_text(encoding="utf-8") == derived(), "run bench/derive_rates.py"


def test_every_instruction_set_has_all_types() -> None:
    without_tiles = set(ISA_NAMES) - {"amx"}  # decodes with AVX-512's kernels
    assert without_tiles <= PRODUCT_BYTES.keys()
    assert without_tiles - {"scalar"} == PROMPT_PRODUCTS.keys()
    for isa in without_tiles:
        assert PRODUCT_BYTES[isa].keys() == PRODUCT_BYTES["scalar"].keys()
