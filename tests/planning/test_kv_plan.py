"""The KV cache's layout as Python plans it is the extension's."""

import pytest

from hybridmoe import _C
from hybridmoe.config import KV_TYPES, PAGE_TOKENS, kv_row_bytes


def test_pages_are_as_long_as_the_extension_has_them() -> None:
    assert PAGE_TOKENS == _C.PAGE_TOKENS


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("dim", [1, 4, 63, 64, 65, 80, 576, 577, 1024])
def test_rows_are_as_wide_as_the_extension_has_them(kv_type: str, dim: int) -> None:
    assert kv_row_bytes(kv_type, dim) == _C.kv_row_bytes(kv_type, dim)
