// Block layouts of the GGUF tensor types: plain structs over the bytes of the file (little-endian).
//
// A row of a matrix is a sequence of blocks, behind a scale in some types. In the drawings `w` is a
// weight, `q` its integer code, [i] an array index, and "b7..b4 | b3..b0" the bits of one byte.
// `d`, `m`, `dmin` are binary16 bits. Where a byte holds codes of several sub-blocks, all low bits
// come before all high bits: that is what lets a vector load, one shift and one mask unpack 32
// weights.
#pragma once

#include <stdint.h>

namespace hm {

constexpr int kSuperWeights = 256;  // weights in a block of the K and IQ types

struct BlockF32 {
  static constexpr int kWeights = 1;
  float w;
};

struct BlockF16 {
  static constexpr int kWeights = 1;
  uint16_t w;
};

struct BlockBF16 {
  static constexpr int kWeights = 1;
  uint16_t w;  // the upper half of a binary32
};

// w = d * (q - 8)             qs[i]:  q[i+16] | q[i]           i = 0..15
struct BlockQ4_0 {
  static constexpr int kWeights = 32;
  uint16_t d;
  uint8_t qs[16];
};

// w = d * q + m               qs as Q4_0
struct BlockQ4_1 {
  static constexpr int kWeights = 32;
  uint16_t d;
  uint16_t m;
  uint8_t qs[16];
};

// w = d * (q - 16)            low four bits as Q4_0; bit 4 of q[i] is bit i of the 32-bit qh
struct BlockQ5_0 {
  static constexpr int kWeights = 32;
  uint16_t d;
  uint8_t qh[4];
  uint8_t qs[16];
};

// w = d * q + m               codes as Q5_0
struct BlockQ5_1 {
  static constexpr int kWeights = 32;
  uint16_t d;
  uint16_t m;
  uint8_t qh[4];
  uint8_t qs[16];
};

// w = d * q                   q signed
struct BlockQ8_0 {
  static constexpr int kWeights = 32;
  uint16_t d;
  int8_t qs[32];
};

// w = d * s * q - dmin * m    16 groups of 16 weights; scales[g]: m | s
// qs[32h + i], half h = 0, 1: q of weight 128h + i in b1..b0, +32 in b3..b2, +64, +96 in b7..b6
struct BlockQ2_K {
  static constexpr int kWeights = kSuperWeights;
  uint8_t scales[16];
  uint8_t qs[64];
  uint16_t d;
  uint16_t dmin;
};

// w = d * (s - 32) * (q - 4)  16 groups of 16 weights
// low two bits of q as Q2_K; bit 2 of weight 32j + i is bit j of hmask[i]
// scales: low four bits of s[g]: scales[g % 8], nibble g / 8; high two: scales[8 + g % 4], bits
// 2(g/4)
struct BlockQ3_K {
  static constexpr int kWeights = kSuperWeights;
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint16_t d;
};

// w = d * s * q - dmin * m    8 groups of 32 weights, s and m of 6 bits; g = 0..3:
//   scales[g]     s[g+4] b5..b4 | s[g]
//   scales[g+4]   m[g+4] b5..b4 | m[g]
//   scales[g+8]   m[g+4] b3..b0 | s[g+4] b3..b0
// qs[32p + i], p = 0..3:  q of weight 64p + 32 + i | q of weight 64p + i
struct BlockQ4_K {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qs[128];
};

// As Q4_K, and bit 4 of the code of weight 32j + i is bit j of qh[i]
struct BlockQ5_K {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};

// w = d * s * (q - 32)        16 groups of 16 weights, s signed; half h = 0, 1, i = 0..63:
//   ql[64h + i]   low bits of weight 128h + 64 + i | of weight 128h + i
//   qh[32h + i]   high two bits of weights 128h + i + {0 in b1..b0, 32, 64, 96 in b7..b6}, i < 32
struct BlockQ6_K {
  static constexpr int kWeights = kSuperWeights;
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};

// The IQ types take 8 (or 4) weights at once from a codebook; see codebooks.h. Group = 32 weights.
// A 7-bit sign index stands for 8 signs: its bits, and their parity as the eighth.

// per group two 32-bit words: four 8-bit codebook indices; s (4) | sign index (7) x 4
struct BlockIQ2_XXS {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t qs[32];
};

// qs[i], 8 weights: sign index (7) | codebook index (9);  scales: a nibble per 16 weights
struct BlockIQ2_XS {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t qs[32];
  uint8_t scales[8];
};

// codebook index of the 8 weights i: qs[i], and two bits of qh[i / 4]; signs: a bit per weight
struct BlockIQ2_S {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint8_t qs[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};

// qs[i]: codebook index of 4 weights;  per group one word in `words`: s (4) | sign index (7) x 4
struct BlockIQ3_XXS {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint8_t qs[64];
  uint8_t words[32];
};

// codebook index of the 4 weights i: qs[i], and bit i % 8 of qh[i / 8]; scales: a nibble per group
struct BlockIQ3_S {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};

// w = d * (2s + 1) * (c +- 1/8)
// qh[g]: sign of the 1/8 (1) | s (3) | high three index bits x 4, first lowest
struct BlockIQ1_S {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint8_t qs[32];
  uint16_t qh[8];
};

// As IQ1_S with a scale per 16 weights and a sign per 8. qh: nibble per 8 weights: sign | index
// bits. scales: four 16-bit words; their top nibbles are d (first lowest), below them 4 x 3 bits of
// s
struct BlockIQ1_M {
  static constexpr int kWeights = kSuperWeights;
  uint8_t qs[32];
  uint8_t qh[16];
  uint8_t scales[8];
};

// w = d * values[q]           codes as Q4_0, 16 fixed values
struct BlockIQ4_NL {
  static constexpr int kWeights = 32;
  uint16_t d;
  uint8_t qs[16];
};

// w = d * (s - 32) * values[q]   per group of 32: qs as IQ4_NL; s: nibble of scales_l, 2 bits of
// scales_h
struct BlockIQ4_XS {
  static constexpr int kWeights = kSuperWeights;
  uint16_t d;
  uint16_t scales_h;
  uint8_t scales_l[4];
  uint8_t qs[128];
};

// Ternary, five weights a byte as a base-3 fraction: multiply by 3 and take the carry
struct BlockTQ1_0 {
  static constexpr int kWeights = kSuperWeights;
  uint8_t qs[48];
  uint8_t qh[4];
  uint16_t d;
};

// w = d * (q - 1)             qs as Q2_K
struct BlockTQ2_0 {
  static constexpr int kWeights = kSuperWeights;
  uint8_t qs[64];
  uint16_t d;
};

// w = 2^(e - 128) * values[q] e: OCP E8M0; values: twice the E2M1 numbers; codes as Q4_0
struct BlockMXFP4 {
  static constexpr int kWeights = 32;
  uint8_t e;
  uint8_t qs[16];
};

// w = d[g] * values[q]        four groups of 16, d unsigned E4M3 (halved); qs[8g + i]: q[i+8] |
// q[i]
struct BlockNVFP4 {
  static constexpr int kWeights = 64;
  uint8_t d[4];
  uint8_t qs[32];
};

// w = d * (2q - 1)            q[8i + j]: bit j of qs[i]
struct BlockQ1_0 {
  static constexpr int kWeights = 128;
  uint16_t d;
  uint8_t qs[16];
};

// w = d * (q - 1)             q[4i + j]: bits 2j of qs[i]
struct BlockQ2_0 {
  static constexpr int kWeights = 64;
  uint16_t d;
  uint8_t qs[16];
};

// Bytes that a row begins with, before its blocks: a scale of all its weights, in the types whose
// blocks name its type (ik_blocks.h).
template <class Block>
consteval int row_scale_bytes() {
  if constexpr (requires { typename Block::RowScale; }) {
    return sizeof(typename Block::RowScale);
  } else {
    return 0;
  }
}

static_assert(sizeof(BlockQ1_0) == 18 && sizeof(BlockQ2_0) == 18);
static_assert(sizeof(BlockF32) == 4 && sizeof(BlockF16) == 2 && sizeof(BlockBF16) == 2);
static_assert(sizeof(BlockQ4_0) == 18 && sizeof(BlockQ4_1) == 20);
static_assert(sizeof(BlockQ5_0) == 22 && sizeof(BlockQ5_1) == 24 && sizeof(BlockQ8_0) == 34);
static_assert(sizeof(BlockQ2_K) == 84 && sizeof(BlockQ3_K) == 110 && sizeof(BlockQ4_K) == 144);
static_assert(sizeof(BlockQ5_K) == 176 && sizeof(BlockQ6_K) == 210);
static_assert(sizeof(BlockIQ1_S) == 50 && sizeof(BlockIQ1_M) == 56);
static_assert(sizeof(BlockIQ2_XXS) == 66 && sizeof(BlockIQ2_XS) == 74 && sizeof(BlockIQ2_S) == 82);
static_assert(sizeof(BlockIQ3_XXS) == 98 && sizeof(BlockIQ3_S) == 110);
static_assert(sizeof(BlockIQ4_NL) == 18 && sizeof(BlockIQ4_XS) == 136);
static_assert(sizeof(BlockTQ1_0) == 54 && sizeof(BlockTQ2_0) == 66);
static_assert(sizeof(BlockMXFP4) == 17 && sizeof(BlockNVFP4) == 36);

}  // namespace hm
