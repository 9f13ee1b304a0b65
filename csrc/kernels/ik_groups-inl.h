// Groups of the types of ik_llama.cpp: see groups-inl.h for the form that they are brought to.
//
// Codes of two and three bits, and pairs, have values that are below 128 with a bias.
#pragma once

#include "formats/ik_dequantize-inl.h"
#include "kernels/groups-inl.h"

namespace hm {
namespace {

// A group with a scale and, unless Shift is 0, a shift for each lane.
template <class Base, int Shift>
struct ShiftedGroupOf : Base {
  using Lanes = typename Base::Lanes;
  static constexpr int kShift = Shift;
  uint32_t shifts;  // a bit for each lane

  template <class Scales>
  HM_INLINE void set_scales(float scale, const Scales& scales) {
    this->d = Lanes::mul(Lanes::set(scale), Lanes::from_s8(scales.scales));
    shifts = scales.shifts;
  }
};

template <class Block, class Lanes, int Bias>
struct BiasedGroupOf : GroupOf<Block, Lanes> {
  static constexpr int kBias = Bias;
};

constexpr int kBiasIQ2K = 32, kBiasIQ3K = 64, kBiasIQ2KL = 64;
constexpr CodeTable<16> kCodesIQ2K(kValuesIQ2K, kBiasIQ2K);
constexpr CodeTable<32> kCodesIQ3K(kValuesIQ3K, kBiasIQ3K, 4);
constexpr CodeTable<32> kCodesIQ5K(kValuesIQ5K, Simd::kSignedBias);
constexpr CodeTable<64> kCodesIQ6K(kValuesIQ6K, Simd::kSignedBias);
constexpr PairTable kPairCodesIQ2KL(kPairsIQ2KL, kBiasIQ2KL);

// Of types with a scale of each block and 16 weights.
template <class Base, int Shift>
struct ShiftedHalves : ShiftedGroupOf<Base, Shift> {
  HM_INLINE void load(const typename Base::Block* b) {
    this->set_scales(half_to_float(b->d), group_scales(*b));
  }
};

// Of types with a scale of each row and 32 weights.
template <class Base, int Shift>
struct ShiftedBlocks : ShiftedGroupOf<Base, Shift> {
  HM_INLINE void load(const typename Base::Block* b, float row_scale) {
    this->set_scales(row_scale, group_scales(*b));
  }
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

struct GroupIQ2_K : ShiftedHalves<BiasedGroupOf<BlockIQ2_K, Simd::PerHalf, kBiasIQ2K>, kShiftIQ2K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesIQ2K.codes, two_bit_codes<P>(b->qs));
  }
};

struct GroupIQ2_KS
    : ShiftedBlocks<BiasedGroupOf<BlockIQ2_KS, Simd::PerBlock, kBiasIQ2K>, kShiftIQ2K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesIQ2K.codes, two_bit_codes<P>(b->qs));
  }
};

struct GroupIQ2_KL : ShiftedBlocks<BiasedGroupOf<BlockIQ2_KL, Simd::PerBlock, kBiasIQ2KL>, 0> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup_pairs<2 * P>(kPairCodesIQ2KL, b->qs + 16 * P, b->qh);
  }
};

// Three-bit codes: pair P.
template <int P>
HM_INLINE Simd::B64 iq3_values(const uint8_t* qs, const uint8_t* qh) {
  return Simd::lookup_plane<2 * P>(kCodesIQ3K.codes, two_bit_codes<P>(qs), qh);
}

struct GroupIQ3_K : ShiftedHalves<BiasedGroupOf<BlockIQ3_K, Simd::PerHalf, kBiasIQ3K>, kShiftIQ3K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq3_values<P>(b->qs, b->qh);
  }
};

struct GroupIQ3_KS
    : ShiftedBlocks<BiasedGroupOf<BlockIQ3_KS, Simd::PerBlock, kBiasIQ3K>, kShiftIQ3K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq3_values<P>(b->qs, b->qh);
  }
};

struct GroupIQ4_K : ShiftedHalves<LookedUpGroupOf<BlockIQ4_K, Simd::PerHalf>, kShiftIQ4K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesIQ4.codes, Simd::nibbles16(b->qs + 32 * P, b->qs + 32 * P + 16));
  }
};

struct GroupIQ4_KS : ShiftedBlocks<LookedUpGroupOf<BlockIQ4_KS, Simd::PerBlock>, kShiftIQ4K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return Simd::lookup(kCodesIQ4.codes, Simd::nibbles16(b->qs + 32 * P, b->qs + 32 * P + 16));
  }
};

struct GroupIQ4_KSS : ShiftedGroupOf<LookedUpGroupOf<BlockIQ4_KSS>, kShiftIQ4K> {
  alignas(64) uint8_t qs[128];

  HM_INLINE void load(const Block* b, float row_scale) {
    uint32_t bits[2];
    for (int h = 0; h < 2; ++h) {
      const Simd::B64 words = Simd::load64(b->words + 64 * h);
      bits[h] = Simd::low_bits(words);
      Simd::store64(qs + 64 * h, Simd::xor_shifted(words));
    }
    set_scales(row_scale, byte_scales(join_words(bits[0], bits[1])));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return Simd::lookup(kCodesIQ4.codes, Simd::nibbles16(qs + 32 * P, qs + 32 * P + 16));
  }
};

// Five-bit codes: pair P.
template <int P>
HM_INLINE Simd::B64 iq5_values(const uint8_t* qs, const uint8_t* qh) {
  const Simd::B64 low = Simd::bits<0, 4, 15>(Simd::load32_twice(qs + 32 * P));
  return Simd::lookup_plane<2 * P>(kCodesIQ5K.codes, low, qh);
}

struct GroupIQ5_K : ShiftedHalves<LookedUpGroupOf<BlockIQ5_K, Simd::PerHalf>, kShiftIQ5K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq5_values<P>(b->qs, b->qh);
  }
};

struct GroupIQ5_KS : ShiftedBlocks<LookedUpGroupOf<BlockIQ5_KS, Simd::PerBlock>, kShiftIQ5K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return iq5_values<P>(b->qs, b->qh);
  }
};

struct GroupIQ6_K : ShiftedHalves<LookedUpGroupOf<BlockIQ6_K, Simd::PerHalf>, kShiftIQ6K> {
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const Simd::B64 low = Simd::bits<0, 4, 15>(Simd::load32_twice(b->qs + 32 * P));
    return Simd::lookup64(kCodesIQ6K.codes, low, two_bit_codes<P>(b->qh));
  }
};

}  // namespace
}  // namespace hm
