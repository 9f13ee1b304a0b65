// Groups of the IQ1, IQ2 and IQ3 types in AVX-512: indices, signs and scales of a group by vectors.
//
// Entries of 8 codes come from memory, 8 bytes each; how, and how signs are expanded, is the matter
// of codebook_loads_{avx512,amx}-inl.h, one of which is included before this file. Entries of 4
// codes (IQ3) are kept as they are packed, 16 bits, and come from registers, 32 at a time: the
// codes are then biased by 128, as vpdpbusd wants them, for with u = v + 128, -u modulo 256 is 128
// - v, so that signs are applied as to v.
#pragma once

#include "kernels/groups-inl.h"

namespace hm {
namespace {

// table[index] for 32 indices below N, from registers: a permute reaches 64 entries, the higher
// bits of the index choose among the permutes.
template <int N>
HM_INLINE __m512i look_up(const uint16_t* table, __m512i index) {
  if constexpr (N == 64) {
    return _mm512_permutex2var_epi16(_mm512_load_si512(table), index,
                                     _mm512_load_si512(table + 32));
  } else {
    const __mmask32 upper = _mm512_test_epi16_mask(index, _mm512_set1_epi16(N / 2));
    return _mm512_mask_blend_epi16(upper, look_up<N / 2>(table, index),
                                   look_up<N / 2>(table + N / 2, index));
  }
}

// Words 8 p .. 8 p + 7 in every quarter; from memory this is no shuffle.
HM_INLINE __m512i eight_words(const uint16_t* words, int p) {
  return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)words + p));
}

// 16 words of four 4-bit codes -> 64 bytes of `values`.
HM_INLINE __m512i spread_nibbles(__m256i words, __m512i values) {
  const __m512i bytes = _mm512_cvtepu8_epi16(words);
  const __m512i nibbles =
      _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi16(bytes, 4)), _mm512_set1_epi8(15));
  return _mm512_shuffle_epi8(values, nibbles);
}

HM_INLINE __m512i negate_bits(uint64_t signs, __m512i v) {
  return _mm512_mask_sub_epi8(v, _cvtu64_mask64(signs), _mm512_setzero_si512(), v);
}

// scale (2 s + 1)
HM_INLINE __m256 odd_scales8(float scale, __m256i s) {
  const __m256i odd = _mm256_add_epi32(_mm256_add_epi32(s, s), _mm256_set1_epi32(1));
  return _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(odd));
}

HM_INLINE __m512 odd_scales16(float scale, __m512i s) {
  const __m512i odd = _mm512_add_epi32(_mm512_add_epi32(s, s), _mm512_set1_epi32(1));
  return _mm512_mul_ps(_mm512_set1_ps(scale), _mm512_cvtepi32_ps(odd));
}

// 16 nibbles, low first.
HM_INLINE __m512i sixteen_nibbles(const uint8_t* p) {
  const __m512i bytes = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)p));
  return _mm512_and_si512(_mm512_or_si512(bytes, _mm512_slli_epi64(bytes, 28)),
                          _mm512_set1_epi32(15));
}

struct GroupIQ2_XXS : SignedGroupOf<BlockIQ2_XXS> {
  alignas(32) uint64_t signs[4];

  HM_INLINE void load(const Block* b) {
    const __m512i qs = _mm512_loadu_si512(b->qs);  // four indices, a word of signs, ...
    const __m512i rest = _mm512_srli_epi64(qs, 32);
    _mm256_store_si256((__m256i*)signs, four_signs(rest));
    const __m256i s = _mm512_cvtepi64_epi32(_mm512_srli_epi64(rest, 28));
    d = odd_scales8(half_to_float(b->d) * 0.125f, s);
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return negate_bits(signs[P], entries_of_halves(kCodebookIQ2_XXS.entry, b->qs + 8 * P));
  }
};

struct GroupIQ2_XS : SignedGroupOf<BlockIQ2_XS, Simd::PerHalf> {
  alignas(32) uint64_t signs[4];

  HM_INLINE void load(const Block* b) {
    const __m512i qs = _mm512_loadu_si512(b->qs);
    _mm256_store_si256((__m256i*)signs, signs_with_parity(_mm512_srli_epi16(qs, 9)));
    d = odd_scales16(half_to_float(b->d) * 0.125f, sixteen_nibbles(b->scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return negate_bits(signs[P], eight_entries<P>(kCodebookIQ2_XS.entry, b->qs, 511));
  }
};

struct GroupIQ2_S : SignedGroupOf<BlockIQ2_S, Simd::PerHalf> {
  alignas(64) uint16_t index[32];

  HM_INLINE void load(const Block* b) {
    const __m512i low = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)b->qs));
    // Bits 2 k of a byte of qh -> bits 8, 9 of word k of its four.
    const __m512i qh = _mm512_cvtepu8_epi64(_mm_loadl_epi64((const __m128i*)b->qh));
    const __m512i four = _mm512_shuffle_epi8(
        qh, _mm512_broadcast_i32x4(_mm_set_epi64x(static_cast<int64_t>(0x8008800880088008),
                                                  static_cast<int64_t>(0x8000800080008000))));
    const __m512i high = _mm512_sllv_epi16(four, _mm512_set1_epi64(0x0002000400060008));
    _mm512_store_si512(index,
                       _mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi16(0x300))));
    d = odd_scales16(half_to_float(b->d) * 0.125f, sixteen_nibbles(b->scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    return negate_bits(load_u64(b->signs + 8 * P),
                       eight_entries<P>(kCodebookIQ2_S.entry, index, 1023));
  }
};

struct GroupIQ3_XXS : GroupOf<BlockIQ3_XXS> {
  static constexpr int kBias = 128;
  alignas(64) uint16_t words[64];
  alignas(32) uint64_t signs[4];

  HM_INLINE void load(const Block* b) {
    for (int h = 0; h < 2; ++h) {
      const __m256i qs = _mm256_loadu_si256((const __m256i*)b->qs + h);
      _mm512_store_si512(words + 32 * h, look_up<256>(kPackedIQ3_XXS, _mm512_cvtepu8_epi16(qs)));
    }
    const __m256i rest = _mm256_loadu_si256((const __m256i*)b->words);
    _mm256_store_si256((__m256i*)signs, four_signs(_mm512_cvtepu32_epi64(rest)));
    d = odd_scales8(half_to_float(b->d) * 0.25f, _mm256_srli_epi32(rest, 28));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block*) const {
    const __m512i values =
        _mm512_broadcast_i32x4(_mm_setr_epi8(128 + 4, 128 + 12, 128 + 20, 128 + 28, 128 + 36,
                                             128 + 44, 128 + 52, 128 + 62, 0, 0, 0, 0, 0, 0, 0, 0));
    return negate_bits(signs[P],
                       spread_nibbles(_mm256_load_si256((const __m256i*)words + P), values));
  }
};

struct GroupIQ3_S : GroupOf<BlockIQ3_S> {
  static constexpr int kBias = 128;
  alignas(64) uint16_t words[64];

  HM_INLINE void load(const Block* b) {
    for (int h = 0; h < 2; ++h) {
      const __m512i low = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)b->qs + h));
      const __mmask32 high = _cvtu32_mask32(load_u32(b->qh + 4 * h));
      const __m512i index = _mm512_mask_add_epi16(low, high, low, _mm512_set1_epi16(256));
      _mm512_store_si512(words + 32 * h, look_up<512>(kPackedIQ3_S, index));
    }
    const __m256i nibbles = _mm256_srlv_epi32(_mm256_set1_epi32(load_u32(b->scales)),
                                              _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    d = odd_scales8(half_to_float(b->d), _mm256_and_si256(nibbles, _mm256_set1_epi32(15)));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const __m512i values =
        _mm512_broadcast_i32x4(_mm_setr_epi8(128 + 1, 128 + 3, 128 + 5, 128 + 7, 128 + 9, 128 + 11,
                                             128 + 13, 128 + 15, 0, 0, 0, 0, 0, 0, 0, 0));
    return negate_bits(load_u64(b->signs + 8 * P),
                       spread_nibbles(_mm256_load_si256((const __m256i*)words + P), values));
  }
};

// 8 c + 15, and 2 where the shift of the entry is positive.
template <int P>
HM_INLINE __m512i iq1_codes(const uint16_t* index, const uint16_t* shifts) {
  const __m512i word_of = _mm512_set_epi64(
      0x0e0e0e0e0e0e0e0e, 0x0c0c0c0c0c0c0c0c, 0x0a0a0a0a0a0a0a0a, 0x0808080808080808,
      0x0606060606060606, 0x0404040404040404, 0x0202020202020202, 0x0000000000000000);
  return _mm512_add_epi8(eight_entries<P>(kCodebookBiasedIQ1.entry, index, 2047),
                         _mm512_shuffle_epi8(eight_words(shifts, P), word_of));
}

// 2, or 0 for negative words, in both bytes.
HM_INLINE __m512i iq1_shifts(__m512i words) {
  return _mm512_andnot_si512(_mm512_srai_epi16(words, 15), _mm512_set1_epi8(2));
}

// Of each 16 weights.
HM_INLINE __m512 iq1_m_scales(const BlockIQ1_M* b) {
  uint16_t packed[4];
  memcpy(packed, b->scales, sizeof packed);
  const __m512i four =
      _mm512_castsi128_si512(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)b->scales)));
  const __m512i word_of = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const __m512i s = _mm512_srlv_epi32(_mm512_permutexvar_epi32(word_of, four),
                                      _mm512_broadcast_i32x4(_mm_setr_epi32(0, 3, 6, 9)));
  return odd_scales16(half_to_float(iq1_m_scale(packed)) * 0.125f,
                      _mm512_and_si512(s, _mm512_set1_epi32(7)));
}

// Nibbles of qh, each at the top of a word.
HM_INLINE __m512i iq1_m_nibbles(const BlockIQ1_M* b) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)b->qh));
  return _mm512_or_si512(_mm512_slli_epi16(bytes, 12), _mm512_slli_epi32(bytes, 24));
}

struct GroupIQ1_S : GroupOf<BlockIQ1_S> {
  static constexpr int kBias = 16;
  alignas(64) uint16_t index[32], shifts[32];

  HM_INLINE void load(const Block* b) {
    const __m128i eight = _mm_loadu_si128((const __m128i*)b->qh);
    const __m512i qh = _mm512_shuffle_epi8(  // each word four times
        _mm512_cvtepu16_epi64(eight),
        _mm512_broadcast_i32x4(_mm_set_epi64x(0x0908090809080908, 0x0100010001000100)));
    const __m512i high = _mm512_srlv_epi16(qh, _mm512_set1_epi64(0x0009000600030000));
    const __m512i low = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)b->qs));
    _mm512_store_si512(
        index,
        _mm512_or_si512(low, _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi16(7)), 8)));
    _mm512_store_si512(shifts, iq1_shifts(qh));
    const __m256i s = _mm256_srli_epi32(_mm256_cvtepu16_epi32(eight), 12);
    d = odd_scales8(half_to_float(b->d) * 0.125f, _mm256_and_si256(s, _mm256_set1_epi32(7)));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return iq1_codes<P>(index, shifts);
  }
};

struct GroupIQ1_M : GroupOf<BlockIQ1_M, Simd::PerHalf> {
  static constexpr int kBias = 16;
  alignas(64) uint16_t index[32], shifts[32];

  HM_INLINE void load(const Block* b) {
    const __m512i nibbles = iq1_m_nibbles(b);
    const __m512i low = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)b->qs));
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(nibbles, 4), _mm512_set1_epi16(0x700));
    _mm512_store_si512(index, _mm512_or_si512(low, high));
    _mm512_store_si512(shifts, iq1_shifts(nibbles));
    d = iq1_m_scales(b);
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return iq1_codes<P>(index, shifts);
  }
};

}  // namespace
}  // namespace hm
