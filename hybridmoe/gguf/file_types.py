"""Names of quantizations as files state them: `general.file_type` is a number.

Sources: the `gguf` package; ik_llama.cpp, include/llama.h (2026-08).
"""

from gguf import LlamaFileType

__all__ = ["file_type_name"]

_IK = {
    135: "Q6_0", 138: "IQ2_K", 139: "IQ3_K", 140: "IQ4_K", 141: "IQ5_K", 142: "IQ6_K",
    145: "IQ4_KS", 146: "IQ3_KL", 147: "IQ2_KS", 148: "IQ4_KSS", 149: "Q8_KV", 150: "IQ5_KS",
    151: "IQ2_KT", 152: "IQ3_KT", 153: "IQ4_KT", 154: "IQ3_KS", 155: "IQ2_KL", 156: "IQ1_KT",
}  # fmt: skip


def file_type_name(number: object) -> str:
    """Return the quantization's name, as `Q4_K_M`; "" for what is no known number."""
    try:
        name = str(LlamaFileType(number).name)
    except ValueError:
        return _IK.get(number, "") if isinstance(number, int) else ""
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")
