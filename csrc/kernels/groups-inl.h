// Formats that are multiplied in integers: how a group of 256 weights becomes codes and scales.
//
// Every format is brought to one form. For block b of 32 weights in a group, g = i / 16, int8 x:
//
//   sum of w x  =  d[b] * sum of (multiplier[g] * code * x)  +  offset_scale[b] * offset[g] * sum
//   of x
//
// multiplier and offset are small integers, present only where the format has them; each sum is
// exact. A type whose blocks hold 32 weights takes eight of them as its group.
#pragma once

#include "formats/blocks.h"
#include "formats/codebooks.h"

namespace hm {
namespace {

template <class Block_>
struct GroupOf {
  using Block = Block_;
  static constexpr int kBlocks = kSuperWeights / Block::kWeights;
  static constexpr bool kSigned = false;      // codes are int8; otherwise 0..127
  static constexpr bool kMultiplied = false;  // has `multipliers`
  static constexpr bool kOffset = true;       // has `offset` and `offset_scale`
  Simd::F8 d;
  Simd::I16 offset;
  Simd::F8 offset_scale;
  Simd::Multipliers multipliers;
};

template <class Block>
struct SignedGroupOf : GroupOf<Block> {
  static constexpr bool kSigned = true;
  static constexpr bool kOffset = false;
};

struct GroupQ4_0 : GroupOf<BlockQ4_0> {
  HM_INLINE void load(const Block* b) {
    d = Simd::gather_half(&b->d, sizeof(Block));
    offset = Simd::ones();
    offset_scale = Simd::mul(d, Simd::set8(-8.0f));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs);
  }
};

struct GroupQ4_1 : GroupOf<BlockQ4_1> {
  HM_INLINE void load(const Block* b) {
    d = Simd::gather_half(&b->d, sizeof(Block));
    offset = Simd::ones();
    offset_scale = Simd::gather_half(&b->m, sizeof(Block));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs);
  }
};

struct GroupQ5_0 : GroupOf<BlockQ5_0> {
  HM_INLINE void load(const Block* b) {
    d = Simd::gather_half(&b->d, sizeof(Block));
    offset = Simd::ones();
    offset_scale = Simd::mul(d, Simd::set8(-16.0f));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::or_(Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs),
                     Simd::spread_bits<16>(b[2 * P].qh, b[2 * P + 1].qh));
  }
};

struct GroupQ5_1 : GroupOf<BlockQ5_1> {
  HM_INLINE void load(const Block* b) {
    d = Simd::gather_half(&b->d, sizeof(Block));
    offset = Simd::ones();
    offset_scale = Simd::gather_half(&b->m, sizeof(Block));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::or_(Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs),
                     Simd::spread_bits<16>(b[2 * P].qh, b[2 * P + 1].qh));
  }
};

struct GroupQ8_0 : SignedGroupOf<BlockQ8_0> {
  HM_INLINE void load(const Block* b) { d = Simd::gather_half(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::load32(b[2 * P].qs, b[2 * P + 1].qs);
  }
};

struct GroupIQ4_NL : SignedGroupOf<BlockIQ4_NL> {
  HM_INLINE void load(const Block* b) { d = Simd::gather_half(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kValuesIQ4, Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs));
  }
};

struct GroupMXFP4 : SignedGroupOf<BlockMXFP4> {
  HM_INLINE void load(const Block* b) {
    float scales[8];
    for (int i = 0; i < 8; ++i) scales[i] = e8m0_half(b[i].e);
    d = Simd::load8(scales);
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kValuesE2M1, Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs));
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

struct GroupQ2_K : GroupOf<BlockQ2_K> {
  static constexpr bool kMultiplied = true;
  HM_INLINE void load(const Block* b) {
    d = Simd::set8(half_to_float(b->d));
    multipliers = Simd::multipliers(Simd::low_nibbles(b->scales));
    offset = Simd::high_nibbles(b->scales);
    offset_scale = Simd::set8(-half_to_float(b->dmin));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return two_bit_codes<P>(b->qs);
  }
};

struct GroupQ3_K : GroupOf<BlockQ3_K> {
  static constexpr bool kMultiplied = true;
  HM_INLINE void load(const Block* b) {
    int8_t scales[16];
    unpack_q3_scales(b->scales, scales);
    const float scale = half_to_float(b->d);
    d = Simd::set8(scale);
    offset = Simd::from_s8x16(scales);
    multipliers = Simd::multipliers(offset);
    offset_scale = Simd::set8(-4.0f * scale);
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::or_(two_bit_codes<P>(b->qs), Simd::shift_left<2>(bit_plane<P>(b->hmask)));
  }
};

struct GroupQ4_K : GroupOf<BlockQ4_K> {
  HM_INLINE void load(const Block* b) {
    uint8_t scales[16];
    unpack_k_scales(b->scales, scales);
    d = Simd::mul(Simd::set8(half_to_float(b->d)), Simd::from_u8(scales));
    offset = Simd::twice_u8(scales + 8);
    offset_scale = Simd::set8(-half_to_float(b->dmin));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::bits<0, 4, 15>(Simd::load32_twice(b->qs + 32 * P));
  }
};

struct GroupQ5_K : GroupOf<BlockQ5_K> {
  HM_INLINE void load(const Block* b) {
    uint8_t scales[16];
    unpack_k_scales(b->scales, scales);
    d = Simd::mul(Simd::set8(half_to_float(b->d)), Simd::from_u8(scales));
    offset = Simd::twice_u8(scales + 8);
    offset_scale = Simd::set8(-half_to_float(b->dmin));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const Simd::B64 low = Simd::bits<0, 4, 15>(Simd::load32_twice(b->qs + 32 * P));
    return Simd::or_(low, Simd::shift_left<4>(bit_plane<P>(b->qh)));
  }
};

struct GroupQ6_K : GroupOf<BlockQ6_K> {
  static constexpr bool kMultiplied = true;
  HM_INLINE void load(const Block* b) {
    const float scale = half_to_float(b->d);
    d = Simd::set8(scale);
    offset = Simd::from_s8x16(b->scales);
    multipliers = Simd::multipliers(offset);
    offset_scale = Simd::set8(-32.0f * scale);
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

struct GroupIQ4_XS : SignedGroupOf<BlockIQ4_XS> {
  HM_INLINE void load(const Block* b) {
    int8_t scales[8];
    for (int g = 0; g < 8; ++g) {
      const int low = (b->scales_l[g / 2] >> (4 * (g % 2))) & 15;
      const int high = (b->scales_h >> (2 * g)) & 3;
      scales[g] = static_cast<int8_t>((low | (high << 4)) - 32);
    }
    d = Simd::mul(Simd::set8(half_to_float(b->d)), Simd::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kValuesIQ4, Simd::nibbles16(b->qs + 32 * P, b->qs + 32 * P + 16));
  }
};

struct GroupTQ2_0 : GroupOf<BlockTQ2_0> {
  HM_INLINE void load(const Block* b) {
    const float scale = half_to_float(b->d);
    d = Simd::set8(scale);
    offset = Simd::ones();
    offset_scale = Simd::set8(-scale);
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return two_bit_codes<P>(b->qs);
  }
};

}  // namespace
}  // namespace hm
