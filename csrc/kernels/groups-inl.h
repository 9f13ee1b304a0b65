// Formats that are multiplied in integers: how a group of 256 weights becomes codes and scales.
//
// Every format is brought to one form. A lane is 32 weights, or 16 in a format with a scale for
// each 16; for a lane with int8 activations x of scale s:
//
//   sum of w x  =  d * sum of ((code - kBias + shift) * x) * s  +  offset * s * sum of x
//
// kBias is 0 or a power of two; `offset` is there only where the format has it, and shift, which is
// 0 or kShift by a bit for each lane. Each sum is exact.
// A type whose blocks hold 32 or 64 weights takes as many as its group needs.
//
// Codes come in four vectors of 64, in order. Types with a codebook have groups of their own for
// gemv (codebook_gemv_*-inl.h).
#pragma once

#include "formats/blocks.h"
#include "formats/codebooks.h"
#include "formats/ik_dequantize-inl.h"
#include "kernels/code_tables.h"

namespace hm {
namespace {

template <class Block_, class Lanes_ = Simd::PerBlock>
struct GroupOf {
  using Block = Block_;
  using Lanes = Lanes_;
  static constexpr int kBlocks = kSuperWeights / Block::kWeights;
  static constexpr bool kSigned = false;  // codes are int8; otherwise 0..kMost
  static constexpr int kMost = 127;
  static constexpr int kBias = 0;
  static constexpr int kShift = 0;
  static constexpr bool kOffset = false;
  typename Lanes::Float d;
  typename Lanes::Float offset;
};

// Loads what a group has beside its codes: from its blocks, and its row's scale if there is one.
template <class Group>
HM_INLINE void load_group(Group& group, const typename Group::Block* blocks, float row_scale) {
  if constexpr (row_scale_bytes<typename Group::Block>() != 0) {
    group.load(blocks, row_scale);
  } else {
    group.load(blocks);
  }
}

template <class Block, class Lanes = Simd::PerBlock>
struct SignedGroupOf : GroupOf<Block, Lanes> {
  static constexpr bool kSigned = true;
};

// Codes are looked up: what dot_signed would add to each is in the table.
template <class Block, class Lanes = Simd::PerBlock>
struct LookedUpGroupOf : GroupOf<Block, Lanes> {
  static constexpr bool kSigned = Simd::kSignedBias == 0;
  static constexpr int kBias = Simd::kSignedBias;
};

constexpr CodeTable<16> kCodesIQ4(kValuesIQ4, Simd::kSignedBias);
constexpr CodeTable<16> kCodesE2M1(kValuesE2M1, Simd::kSignedBias);

struct GroupQ4_0 : GroupOf<BlockQ4_0> {
  static constexpr int kMost = 15;
  static constexpr int kBias = 8;
  HM_INLINE void load(const Block* b) { d = Lanes::gather_half(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs);
  }
};

struct GroupQ4_1 : GroupOf<BlockQ4_1> {
  static constexpr int kMost = 15;
  static constexpr bool kOffset = true;
  HM_INLINE void load(const Block* b) {
    d = Lanes::gather_half(&b->d, sizeof(Block));
    offset = Lanes::gather_half(&b->m, sizeof(Block));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs);
  }
};

struct GroupQ5_0 : GroupOf<BlockQ5_0> {
  static constexpr int kMost = 31;
  static constexpr int kBias = 16;
  HM_INLINE void load(const Block* b) { d = Lanes::gather_half(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::or_(Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs),
                     Simd::spread_bits<16>(b[2 * P].qh, b[2 * P + 1].qh));
  }
};

struct GroupQ5_1 : GroupOf<BlockQ5_1> {
  static constexpr int kMost = 31;
  static constexpr bool kOffset = true;
  HM_INLINE void load(const Block* b) {
    d = Lanes::gather_half(&b->d, sizeof(Block));
    offset = Lanes::gather_half(&b->m, sizeof(Block));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::or_(Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs),
                     Simd::spread_bits<16>(b[2 * P].qh, b[2 * P + 1].qh));
  }
};

struct GroupQ8_0 : SignedGroupOf<BlockQ8_0> {
  HM_INLINE void load(const Block* b) { d = Lanes::gather_half(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::load32(b[2 * P].qs, b[2 * P + 1].qs);
  }
};

struct GroupIQ4_NL : LookedUpGroupOf<BlockIQ4_NL> {
  HM_INLINE void load(const Block* b) { d = Lanes::gather_half(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesIQ4.codes, Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs));
  }
};

struct GroupMXFP4 : LookedUpGroupOf<BlockMXFP4> {
  HM_INLINE void load(const Block* b) { d = Lanes::gather_e8m0_half(&b->e, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesE2M1.codes, Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs));
  }
};

struct GroupNVFP4 : LookedUpGroupOf<BlockNVFP4, Simd::PerHalf> {
  HM_INLINE void load(const Block* b) { d = Lanes::gather_e4m3_half(b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesE2M1.codes, Simd::nibbles8(b[P].qs));
  }
};

// Two-bit codes of Q2_K, Q3_K and TQ2_0: pair P of the group.
template <int P>
HM_INLINE Simd::B64 two_bit_codes(const uint8_t* qs) {
  constexpr int shift = 4 * (P % 2);
  return Simd::bits<shift, shift + 2, 3>(Simd::load32_twice(qs + 32 * (P / 2)));
}

// A further bit of Q3_K and Q5_K, kept in 32 bytes of which bit j belongs to block j: pair P.
template <int P>
HM_INLINE Simd::B64 bit_plane(const uint8_t* bytes) {
  return Simd::bits<2 * P, 2 * P + 1, 1>(Simd::load32_twice(bytes));
}

struct GroupQ2_K : GroupOf<BlockQ2_K, Simd::PerHalf> {
  static constexpr int kMost = 3;
  static constexpr bool kOffset = true;
  HM_INLINE void load(const Block* b) {
    d = Lanes::mul(Lanes::set(half_to_float(b->d)), Lanes::low_nibbles(b->scales));
    offset = Lanes::mul(Lanes::set(-half_to_float(b->dmin)), Lanes::high_nibbles(b->scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return two_bit_codes<P>(b->qs);
  }
};

struct GroupQ3_K : GroupOf<BlockQ3_K, Simd::PerHalf> {
  static constexpr int kMost = 7;
  static constexpr int kBias = 4;
  HM_INLINE void load(const Block* b) {
    const auto [low, high] = unpack_q3_scales(b->scales);
    d = Lanes::mul(Lanes::set(half_to_float(b->d)), Lanes::from_s8(low, high));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::or_(two_bit_codes<P>(b->qs), Simd::shift_left<2>(bit_plane<P>(b->hmask)));
  }
};

struct GroupQ4_K : GroupOf<BlockQ4_K> {
  static constexpr int kMost = 15;
  static constexpr bool kOffset = true;
  HM_INLINE void load(const Block* b) {
    const auto [scales, mins] = unpack_k_scales(b->scales);
    d = Lanes::mul(Lanes::set(half_to_float(b->d)), Lanes::from_u8(scales));
    offset = Lanes::mul(Lanes::set(-half_to_float(b->dmin)), Lanes::from_u8(mins));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::bits<0, 4, 15>(Simd::load32_twice(b->qs + 32 * P));
  }
};

struct GroupQ5_K : GroupOf<BlockQ5_K> {
  static constexpr int kMost = 31;
  static constexpr bool kOffset = true;
  HM_INLINE void load(const Block* b) {
    const auto [scales, mins] = unpack_k_scales(b->scales);
    d = Lanes::mul(Lanes::set(half_to_float(b->d)), Lanes::from_u8(scales));
    offset = Lanes::mul(Lanes::set(-half_to_float(b->dmin)), Lanes::from_u8(mins));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const Simd::B64 low = Simd::bits<0, 4, 15>(Simd::load32_twice(b->qs + 32 * P));
    return Simd::or_(low, Simd::shift_left<4>(bit_plane<P>(b->qh)));
  }
};

struct GroupQ6_K : GroupOf<BlockQ6_K, Simd::PerHalf> {
  static constexpr int kMost = 63;
  static constexpr int kBias = 32;
  HM_INLINE void load(const Block* b) {
    d = Lanes::mul(Lanes::set(half_to_float(b->d)), Lanes::from_s8(b->scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    constexpr int shift = 4 * (P % 2);
    const uint8_t* high = b->qh + 32 * (P / 2);
    const Simd::B64 low = Simd::bits<shift, shift, 15>(Simd::load64(b->ql + 64 * (P / 2)));
    return Simd::or_(
        low, Simd::shift_left<4>(Simd::bits<shift, shift + 2, 3>(Simd::load32_twice(high))));
  }
};

struct GroupIQ4_XS : LookedUpGroupOf<BlockIQ4_XS> {
  HM_INLINE void load(const Block* b) {
    const uint64_t scales = unpack_iq4_scales(b->scales_l, b->scales_h);
    d = Lanes::mul(Lanes::set(half_to_float(b->d)), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesIQ4.codes, Simd::nibbles16(b->qs + 32 * P, b->qs + 32 * P + 16));
  }
};

struct GroupQ1_0 : GroupOf<BlockQ1_0> {
  static constexpr int kMost = 2;
  static constexpr int kBias = 1;
  HM_INLINE void load(const Block* b) { d = Lanes::template gather_half<4>(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const uint8_t* qs = b[P / 2].qs + 8 * (P % 2);
    return Simd::spread_bits<2>(qs, qs + 4);
  }
};

struct GroupQ2_0 : GroupOf<BlockQ2_0> {
  static constexpr int kMost = 3;
  static constexpr int kBias = 1;
  HM_INLINE void load(const Block* b) { d = Lanes::template gather_half<2>(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::pairs_in_order(b[P].qs);
  }
};

struct GroupTQ2_0 : GroupOf<BlockTQ2_0> {
  static constexpr int kMost = 3;
  static constexpr int kBias = 1;
  HM_INLINE void load(const Block* b) { d = Lanes::set(half_to_float(b->d)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return two_bit_codes<P>(b->qs);
  }
};

struct GroupTQ1_0 : GroupOf<BlockTQ1_0> {
  static constexpr int kMost = 3;
  static constexpr int kBias = 1;
  uint8_t digits[kSuperWeights];

  HM_INLINE void load(const Block* b) {
    d = Lanes::set(half_to_float(b->d));
    unpack_digits(*b, digits);
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return Simd::load64(digits + 64 * P);
  }
};

}  // namespace
}  // namespace hm
