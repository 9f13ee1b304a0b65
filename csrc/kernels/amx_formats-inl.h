// How each type's weights are unpacked for AMX tiles.
#pragma once

#include "kernels/amx_lookups-inl.h"

namespace hm {
namespace {

// Weights that are bfloat16 already.
struct GroupBF16 {
  using Block = BlockBF16;
  static constexpr int kBlocks = kSuperWeights;
};

struct CopyBF16 {
  static HM_INLINE void row(const BlockBF16* blocks, float, uint16_t* row) {
    memcpy(row, blocks, kSuperWeights * sizeof *row);
  }
};

// A binary16 scale at the begin of each block of 32, by one gather: inserting words into a vector
// takes the shuffles' port twice as long.
template <class Group>
struct GatheredScales : Group {
  using Block = typename Group::Block;
  HM_INLINE void load(const Block* b) {
    static_assert(Group::kBlocks == 8 && offsetof(Block, d) == 0);
    const __m256i at = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                                          _mm256_set1_epi32(sizeof(Block)));
    const __m256i words = _mm256_i32gather_epi32((const int*)b, at, 1);
    this->d = _mm256_cvtph_ps(_mm256_cvtepi32_epi16(words));
  }
};

// Q6_K's codes with bit 7 set, 32 + 128 from their zero: by two selections of bits.
struct CodesQ6_K : ShortCodes {
  static constexpr int kZero = 160;
  static constexpr float kFloatZero = kZero;
};
struct SelectedQ6_K : GroupQ6_K {
  static constexpr int kBias = CodesQ6_K::kZero;
  template <int P>
  HM_INLINE __m512i codes(const Block* b) const {
    const __m512i both = _mm512_loadu_si512(b->ql + 64 * (P / 2));
    const __m512i low = P % 2 == 0 ? both : _mm512_srli_epi16(both, 4);
    const __m512i pairs = Simd::load32_twice(b->qh + 32 * (P / 2));
    const auto counts = [](int first, int second) {
      return _mm512_inserti64x4(_mm512_set1_epi16(static_cast<int16_t>(first)),
                                _mm256_set1_epi16(static_cast<int16_t>(second)), 1);
    };
    const __m512i high = P % 2 == 0 ? _mm512_sllv_epi16(pairs, counts(4, 2))
                                    : _mm512_srlv_epi16(pairs, counts(0, 2));
    const __m512i codes = _mm512_ternarylogic_epi64(_mm512_set1_epi8(15), low, high, 0xca);
    return _mm512_ternarylogic_epi64(codes, _mm512_set1_epi8(63), _mm512_set1_epi8(-128), 0xea);
  }
};

// 16 entries of four codes each, by indices as 32 bits.
HM_INLINE __m512i sixteen_entries(const uint32_t* table, __m512i index) {
  return _mm512_i32gather_epi32(index, table, sizeof *table);
}

HM_INLINE __m512i sixteen_indices(const uint8_t* qs) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)qs));
}

// IQ3 with entries from memory: loads that leave the ports of the vector units free.
struct GatheredIQ3_XXS : GroupIQ3_XXS {
  static constexpr bool kSigned = true;
  template <int P>
  HM_INLINE __m512i codes(const Block* b) const {
    const __m512i index = sixteen_indices(b->qs + 16 * P);
    return negate_bits(signs[P], sixteen_entries(kCodebookIQ3_XXS.entry, index));
  }
};

struct GatheredIQ3_S : GroupIQ3_S {
  static constexpr bool kSigned = true;
  template <int P>
  HM_INLINE __m512i codes(const Block* b) const {
    uint16_t high;
    memcpy(&high, b->qh + 2 * P, sizeof high);
    const __m512i low = sixteen_indices(b->qs + 16 * P);
    const __m512i index = _mm512_mask_add_epi32(low, high, low, _mm512_set1_epi32(256));
    return negate_bits(load_u64(b->signs + 8 * P), sixteen_entries(kCodebookIQ3_S.entry, index));
  }
};

template <class Group, class... Groups>
constexpr bool kIsOneOf = (__is_same(Group, Groups) || ...);

// Types whose codes and scales ShortCodes takes.
template <class Group>
constexpr bool kIsShort =
    kIsOneOf<Group, GroupQ6_0, GroupNVFP4, GroupQ1_0, GroupQ2_0, GroupTQ1_0, GroupIQ1_S, GroupIQ1_M,
             GroupIQ2_XXS, GroupIQ2_XS, GroupIQ2_S, GroupIQ2_KL, GroupIQ3_K, GroupIQ3_KS>;

template <class Group>
struct Unpack : Widen<Group> {};
template <class Group>
  requires kIsShort<Group>
struct Unpack<Group> : BytesOfFloats<Group, ShortCodes> {};
template <>
struct Unpack<GroupQ8_0> : BytesOfFloats<GatheredScales<GroupQ8_0>, LongCodes> {};
template <>
struct Unpack<GroupQ6_K> : BytesOfFloats<SelectedQ6_K, CodesQ6_K> {};
template <>
struct Unpack<GroupIQ3_XXS> : BytesOfFloats<GatheredIQ3_XXS, ShortCodes> {};
template <>
struct Unpack<GroupIQ3_S> : BytesOfFloats<GatheredIQ3_S, ShortCodes> {};

template <>
struct Unpack<GroupQ2_K> : LookUpTwoBits<GroupQ2_K> {};
template <>
struct Unpack<GroupTQ2_0> : LookUpTwoBits<GroupTQ2_0> {};
template <>
struct Unpack<GroupIQ2_K> : LookUpTwoBits<GroupIQ2_K> {};
template <>
struct Unpack<GroupIQ2_KS> : LookUpTwoBits<GroupIQ2_KS> {};
template <>
struct Unpack<GroupQ3_K> : LookUpQ3_K {};
template <>
struct Unpack<GroupQ5_K> : LookUpFiveBits<GroupQ5_K, FifthsQ5_K> {};
template <>
struct Unpack<GroupQ5_0> : LookUpFiveBits<GatheredScales<GroupQ5_0>, Fifths<BlockQ5_0>> {};
template <>
struct Unpack<GroupQ5_1> : LookUpFiveBits<GroupQ5_1, Fifths<BlockQ5_1>> {};
template <>
struct Unpack<GroupQ4_0> : LookUp<GatheredScales<GroupQ4_0>, LinearNibbles<BlockQ4_0>> {};
template <>
struct Unpack<GroupQ4_1> : LookUp<GroupQ4_1, LinearNibbles<BlockQ4_1>> {};
template <>
struct Unpack<GroupQ4_K> : LookUp<GroupQ4_K, NibblesQ4_K> {};
template <>
struct Unpack<GroupIQ4_NL> : LookUp<GatheredScales<GroupIQ4_NL>, NibblesIQ4_NL> {};
template <>
struct Unpack<GroupIQ4_XS> : LookUp<GroupIQ4_XS, NibblesIQ4<BlockIQ4_XS>> {};
template <>
struct Unpack<GroupIQ4_KS> : LookUp<GroupIQ4_KS, NibblesIQ4<BlockIQ4_KS>> {};
template <>
struct Unpack<GroupMXFP4> : LookUp<GroupMXFP4, NibblesMXFP4> {};
template <>
struct Unpack<GroupBF16> : CopyBF16 {};

}  // namespace
}  // namespace hm
