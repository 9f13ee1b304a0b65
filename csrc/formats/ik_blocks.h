// Block layouts of the tensor types that ik_llama.cpp added; drawn as in blocks.h.
//
// Codes choose one of 4 to 64 unevenly spaced values (`kValuesIQ2K` and others). A bit of each
// scale, `shift`, adds a constant to these; in the drawings that is values(q). A row of some types
// begins with a scale of all its weights, `row`, before the blocks: a `RowScale`.
//
// Source of layouts and values: ik_llama.cpp (MIT licence), ggml-common.h and iqk_quantize.cpp.
#pragma once

#include "formats/blocks.h"

namespace hm {

// w = d * (q - 32)            low four bits as Q4_0; the high two of q[i]: qh[i % 8] >> p, where p
// is 0, 4, 2, 6 for i of 0..7, 8..15, 16..23, 24..31
struct BlockQ6_0 {
  static constexpr int kWeights = 32;
  uint16_t d;
  uint8_t qh[8];
  uint8_t qs[16];
};

// w = d * (s - 8) * values(q)      16 groups of 16 weights; scales: a nibble each, low first
// shift of group g: bit g of `shifts`; qs as Q2_K
struct BlockIQ2_K {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t shifts;
  uint8_t scales[8];
  uint8_t qs[64];
};

// w = row * (s - 16) * values(q)   8 groups of 32 weights
// s: a nibble of `scales`, low first, and bit 8 + g of `bits`; shift: bit g of `bits`; qs as Q2_K
struct BlockIQ2_KS {
  static constexpr int kWeights = kSuperWeights;
  using RowScale = uint16_t;  // binary16
  uint8_t bits[2];
  uint8_t scales[4];
  uint8_t qs[64];
};

// w = row * (s - 32) * pairs[q]    8 groups of 32 weights; q: an index of two weights, 5 bits
// s of group g: nibble g / 4 of scales_l[g % 4], bits 2g of scales_h
// qs[16p + i], p = 0..3: low bits of pair i of group 2p + 1 | of group 2p; bit 4: bit g of qh[i]
struct BlockIQ2_KL {
  static constexpr int kWeights = kSuperWeights;
  using RowScale = uint16_t;  // binary16
  uint8_t scales_h[2];
  uint8_t scales_l[4];
  uint8_t qs[64];
  uint8_t qh[16];
};

// w = d * +-(2s + 1) * values(q)   16 groups of 16 weights; bit g of `signs`: negative
// s: nibbles as IQ2_K; low two bits of q as Q2_K, bit 2 as hmask of Q3_K
struct BlockIQ3_K {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t shifts;
  uint16_t signs;
  uint8_t scales[8];
  uint8_t qs[64];
  uint8_t qh[32];
};

// w = row * (s - 16) * values(q)   8 groups of 32 weights; codes as IQ3_K
// s of group g: nibble g / 4 of scales[g % 4], bit g of `bits`; shift: bit 8 + g
struct BlockIQ3_KS {
  static constexpr int kWeights = kSuperWeights;
  using RowScale = uint16_t;  // binary16
  uint8_t bits[2];
  uint8_t scales[4];
  uint8_t qs[64];
  uint8_t qh[32];
};

// w = d * (s - 32) * values(q)     16 groups of 16 weights; per 32 weights qs as Q4_0
// s of group g: a nibble of scales_l, low first, bits 2g of scales_h
struct BlockIQ4_K {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t shifts;
  uint8_t scales_h[4];
  uint8_t scales_l[8];
  uint8_t qs[128];
};

// w = row * (s - 127) * values(q)  8 groups of 32 weights; s: scales[g] without bit 0, the shift
struct BlockIQ4_KS {
  static constexpr int kWeights = kSuperWeights;
  using RowScale = float;
  uint8_t scales[8];
  uint8_t qs[128];
};

// As IQ4_KS; a group is eight words, whose bits 0 are scales[g], the first lowest. A word of codes
// is v ^ v >> 1, v being the word without bit 0; nibbles as Q4_0
struct BlockIQ4_KSS {
  static constexpr int kWeights = kSuperWeights;
  using RowScale = float;
  uint8_t words[128];
};

// w = d * (s - 32) * values(q)     scales as IQ4_K, codes as Q5_K
struct BlockIQ5_K {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t shifts;
  uint8_t scales_h[4];
  uint8_t scales_l[8];
  uint8_t qs[128];
  uint8_t qh[32];
};

// w = row * (s - 127) * values(q)  scales as IQ4_KS, codes as Q5_K
struct BlockIQ5_KS {
  static constexpr int kWeights = kSuperWeights;
  using RowScale = float;
  uint8_t scales[8];
  uint8_t qs[128];
  uint8_t qh[32];
};

// w = d * s * values(q)            16 groups of 16 weights, s signed
// low four bits of q as Q5_K; the high two as Q2_K
struct BlockIQ6_K {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t shifts;
  uint8_t scales[16];
  uint8_t qs[128];
  uint8_t qh[64];
};

// Values of codes, and what a shift adds. Those of IQ4_K and its like are kValuesIQ4.
constexpr int8_t kValuesIQ2K[4] = {-31, -13, 1, 17};
constexpr int8_t kValuesIQ3K[8] = {-63, -40, -23, -10, 1, 13, 28, 47};
constexpr int8_t kValuesIQ5K[32] = {-126, -114, -103, -92, -83, -74, -65, -57, -50, -43, -36,
                                    -30,  -24,  -18,  -12, -6,  -1,  5,   11,  17,  23,  29,
                                    36,   43,   51,   59,  68,  77,  87,  97,  109, 121};
// ik_llama.cpp's products use these; its dequantization the cubic that they round.
constexpr int8_t kValuesIQ6K[64] = {
    -127, -121, -115, -109, -104, -98, -93, -88, -84, -79, -74, -70, -66, -62, -58, -54,
    -51,  -47,  -44,  -40,  -37,  -34, -31, -28, -25, -22, -19, -16, -13, -11, -8,  -5,
    -2,   0,    3,    6,    9,    12,  14,  17,  20,  23,  27,  30,  33,  36,  40,  44,
    47,   51,   55,   59,   63,   68,  72,  77,  82,  87,  92,  98,  103, 109, 115, 121};
constexpr int kShiftIQ2K = 5, kShiftIQ3K = 4, kShiftIQ4K = 4, kShiftIQ5K = 2, kShiftIQ6K = 1;

// Pairs of IQ2_KL: the first weights of the 32, then the second.
constexpr int8_t kPairsIQ2KL[2][32] = {
    {-63, -63, -40, -40, -40, -40, -23, -23, -23, -23, -23, -10, -10, -10, -10, 1,
     1,   1,   1,   1,   13,  13,  13,  13,  13,  28,  28,  28,  28,  28,  47,  47},
    {-23, 13, -63, -10, 13,  47,  -40, -23, 1,  13,  28,  -63, 1,  13, 47,  -23,
     -10, 1,  13,  28,  -40, -23, -10, 1,   13, -63, -23, 1,   28, 47, -23, 13}};

static_assert(sizeof(BlockQ6_0) == 26 && sizeof(BlockIQ2_K) == 76 && sizeof(BlockIQ2_KS) == 70);
static_assert(sizeof(BlockIQ2_KL) == 86 && sizeof(BlockIQ3_K) == 110 && sizeof(BlockIQ3_KS) == 102);
static_assert(sizeof(BlockIQ4_K) == 144 && sizeof(BlockIQ4_KS) == 136);
static_assert(sizeof(BlockIQ4_KSS) == 128 && sizeof(BlockIQ5_K) == 176);
static_assert(sizeof(BlockIQ5_KS) == 168 && sizeof(BlockIQ6_K) == 212);

}  // namespace hm
