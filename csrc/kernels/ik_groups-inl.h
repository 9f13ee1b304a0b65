// Groups of the types of ik_llama.cpp: see groups-inl.h for the form that they are brought to.
//
// Codes choose values from a table; a shift, a bit of each scale, adds a constant to them: that is
// an offset.
#pragma once

#include "formats/ik_dequantize-inl.h"
#include "kernels/groups-inl.h"

namespace hm {
namespace {

// A group with a scale and a shift for each lane.
template <class Block, class Lanes, int Shift>
struct ShiftedGroupOf : SignedGroupOf<Block, Lanes> {
  static constexpr bool kOffset = Shift != 0;

  HM_INLINE void set_scales(float scale, const Block& b) {
    auto scales = group_scales(b);
    this->d = Lanes::mul(Lanes::set(scale), lanes(scales.scales));
    if constexpr (kOffset) {
      for (uint64_t& bytes : scales.shifts) bytes *= Shift;
      this->offset = Lanes::mul(this->d, lanes(scales.shifts));
    }
  }

 private:
  static HM_INLINE typename Lanes::Float lanes(const uint64_t (&bytes)[1]) {
    return Lanes::from_s8(bytes[0]);
  }
  static HM_INLINE typename Lanes::Float lanes(const uint64_t (&bytes)[2]) {
    return Lanes::from_s8(bytes[0], bytes[1]);
  }
};

template <class Block, int Shift>
struct ShiftedHalves : ShiftedGroupOf<Block, Simd::PerHalf, Shift> {
  HM_INLINE void load(const Block* b) { this->set_scales(half_to_float(b->d), *b); }
};

template <class Block, int Shift>
struct ShiftedBlocks : ShiftedGroupOf<Block, Simd::PerBlock, Shift> {
  HM_INLINE void load(const Block* b, float row_scale) { this->set_scales(row_scale, *b); }
};

struct GroupQ6_0 : GroupOf<BlockQ6_0> {
  static constexpr int kBias = 32;
  HM_INLINE void load(const Block* b) { d = Lanes::gather_half(&b->d, sizeof(Block)); }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::or_(Simd::nibbles16(b[2 * P].qs, b[2 * P + 1].qs),
                     Simd::shift_left<4>(Simd::four_pairs(b[2 * P].qh, b[2 * P + 1].qh)));
  }
};

struct GroupIQ2_K : ShiftedHalves<BlockIQ2_K, kShiftIQ2K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kValuesIQ2K, two_bit_codes<P>(b->qs));
  }
};

struct GroupIQ2_KS : ShiftedBlocks<BlockIQ2_KS, kShiftIQ2K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kValuesIQ2K, two_bit_codes<P>(b->qs));
  }
};

struct GroupIQ2_KL : ShiftedBlocks<BlockIQ2_KL, 0> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup_pairs<2 * P>(kPairsIQ2KL, b->qs + 16 * P, b->qh);
  }
};

// The values of three-bit codes: pair P.
template <int P>
HM_INLINE Simd::B64 iq3_values(const uint8_t* qs, const uint8_t* qh) {
  const Simd::B64 third = Simd::shift_left<2>(bit_plane<P>(qh));
  return Simd::lookup(kValuesIQ3K, Simd::or_(two_bit_codes<P>(qs), third));
}

struct GroupIQ3_K : ShiftedHalves<BlockIQ3_K, kShiftIQ3K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq3_values<P>(b->qs, b->qh);
  }
};

struct GroupIQ3_KS : ShiftedBlocks<BlockIQ3_KS, kShiftIQ3K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq3_values<P>(b->qs, b->qh);
  }
};

struct GroupIQ4_K : ShiftedHalves<BlockIQ4_K, kShiftIQ4K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kValuesIQ4, Simd::nibbles16(b->qs + 32 * P, b->qs + 32 * P + 16));
  }
};

struct GroupIQ4_KS : ShiftedBlocks<BlockIQ4_KS, kShiftIQ4K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kValuesIQ4, Simd::nibbles16(b->qs + 32 * P, b->qs + 32 * P + 16));
  }
};

struct GroupIQ4_KSS : SignedGroupOf<BlockIQ4_KSS> {
  static constexpr bool kOffset = true;
  alignas(64) uint8_t qs[128];

  HM_INLINE void load(const Block* b, float row_scale) {
    uint32_t bits[2];
    for (int h = 0; h < 2; ++h) {
      const Simd::B64 words = Simd::load64(b->words + 64 * h);
      bits[h] = Simd::low_bits(words);
      Simd::store64(qs + 64 * h, Simd::xor_shifted(words));
    }
    const GroupScales<8> scales = byte_scales(join_words(bits[0], bits[1]));
    d = Lanes::mul(Lanes::set(row_scale), Lanes::from_s8(scales.scales[0]));
    offset = Lanes::mul(d, Lanes::from_s8(kShiftIQ4K * scales.shifts[0]));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return Simd::lookup(kValuesIQ4, Simd::nibbles16(qs + 32 * P, qs + 32 * P + 16));
  }
};

// The values of five-bit codes: pair P.
template <int P>
HM_INLINE Simd::B64 iq5_values(const uint8_t* qs, const uint8_t* qh) {
  const Simd::B64 low = Simd::bits<0, 4, 15>(Simd::load32_twice(qs + 32 * P));
  return Simd::lookup32(kValuesIQ5K, Simd::or_(low, Simd::shift_left<4>(bit_plane<P>(qh))));
}

struct GroupIQ5_K : ShiftedHalves<BlockIQ5_K, kShiftIQ5K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq5_values<P>(b->qs, b->qh);
  }
};

struct GroupIQ5_KS : ShiftedBlocks<BlockIQ5_KS, kShiftIQ5K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq5_values<P>(b->qs, b->qh);
  }
};

}  // namespace
}  // namespace hm
