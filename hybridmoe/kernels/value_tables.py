"""Values of ik_llama.cpp's codes: unevenly spaced, by the number of bits of a code.

Source: ik_llama.cpp (MIT licence), ggml-common.h. IQ4_NL and IQ4_XS of llama.cpp have the sixteen
too.
"""

__all__ = ["EIGHT_VALUES", "FOUR_VALUES", "PAIRS", "SIXTEEN_VALUES", "THIRTY_TWO_VALUES"]

FOUR_VALUES = (-31, -13, 1, 17)
EIGHT_VALUES = (-63, -40, -23, -10, 1, 13, 28, 47)
SIXTEEN_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
THIRTY_TWO_VALUES = (
    -126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36, -30, -24, -18, -12, -6,
    -1, 5, 11, 17, 23, 29, 36, 43, 51, 59, 68, 77, 87, 97, 109, 121,
)  # fmt: skip
PAIRS = (  # IQ2_KL: a code of five bits stands for two weights
    (-63, -23), (-63, 13), (-40, -63), (-40, -10), (-40, 13), (-40, 47), (-23, -40), (-23, -23),
    (-23, 1), (-23, 13), (-23, 28), (-10, -63), (-10, 1), (-10, 13), (-10, 47), (1, -23),
    (1, -10), (1, 1), (1, 13), (1, 28), (13, -40), (13, -23), (13, -10), (13, 1),
    (13, 13), (28, -63), (28, -23), (28, 1), (28, 28), (28, 47), (47, -23), (47, 13),
)  # fmt: skip
