"""Write codebooks_data.inc: the packed IQ codebooks, read from the gguf package (MIT licence).

Run by hand when a format is added: python csrc/formats/gen_codebooks.py
"""

from pathlib import Path

import numpy as np
from gguf import quants

GRIDS = {
    "IQ1": (quants.IQ1_S, 2),
    "IQ2_XXS": (quants.IQ2_XXS, 2),
    "IQ2_XS": (quants.IQ2_XS, 2),
    "IQ2_S": (quants.IQ2_S, 2),
    "IQ3_XXS": (quants.IQ3_XXS, 4),
    "IQ3_S": (quants.IQ3_S, 4),
}


def packed(cls: type, bits: int) -> np.ndarray:
    """One 16-bit word per entry: at bit bits * i, the index of weight i in the value map."""
    assert cls.grid_hex is not None
    words = np.frombuffer(bytes.fromhex(cls.grid_hex.decode()), dtype="<u2")
    assert len(words) == cls.grid_shape[0] and bits * cls.grid_shape[1] == 16
    return words


def main() -> None:
    lines = ["// Written by gen_codebooks.py from gguf.quants (MIT licence, ggml authors)."]
    for name, (cls, bits) in GRIDS.items():
        words = packed(cls, bits)
        lines.append(f"alignas(64) constexpr uint16_t kPacked{name}[{len(words)}] = {{")
        for row in words.reshape(-1, 16):
            lines.append("".join(f"{word:#x}," for word in row))
        lines.append("};")
    Path(__file__).with_name("codebooks_data.inc").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
