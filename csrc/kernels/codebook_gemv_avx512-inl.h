// Groups of the IQ1, IQ2 and IQ3 types for gemv in AVX-512, strided: see gemv-inl.h.
//
// Entries of books of up to 512 come from registers, 32 words at a time; those of larger ones from
// memory, 8 bytes each, by indices that scalar code makes. Nothing goes through memory in between:
// what was just stored takes a load longer than the rest of a group.
#pragma once

#include "kernels/codebook_groups_avx512-inl.h"
#include "kernels/gemv-inl.h"

namespace hm {
namespace {

template <class Block, class Lanes>
struct StridedGroupOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = false;
};

// 16 bytes that repeat `a` eight times, then `b`, in every quarter.
HM_INLINE __m512i two_bytes(int64_t a, int64_t b) {
  return _mm512_broadcast_i32x4(
      _mm_set_epi64x(b * static_cast<int64_t>(kEachByte), a * static_cast<int64_t>(kEachByte)));
}

// A group whose signs are apart: byte SignBytes * V of the 64 bits of a block are those of its
// entry V.
template <class Block, class Lanes, int SignBytes, bool LoadsAhead = true>
struct SignsApartOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = true, kLoadsAhead = LoadsAhead;
  __m512i sign_bytes;

  template <int V>
  HM_INLINE Simd::Signs signs() const {
    const __m512i bit_of = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201));
    return _mm512_test_epi8_mask(
        _mm512_shuffle_epi8(sign_bytes, two_bytes(SignBytes * V, 8 + SignBytes * V)), bit_of);
  }
};

// 64 bits a block of 16-bit entries of eight codes -> vector V of `values`.
template <int V>
HM_INLINE __m512i spread_pairs(__m512i words, __m512i values) {
  constexpr int64_t order = 0x0100010001000100 + 0x0202020202020202 * V;
  const __m512i entry = _mm512_shuffle_epi8(
      words, _mm512_broadcast_i32x4(_mm_set_epi64x(order + 0x0808080808080808, order)));
  const __m512i codes = _mm512_srlv_epi16(entry, _mm512_set1_epi64(0x0006000400020000));
  return _mm512_shuffle_epi8(values, _mm512_and_si512(codes, _mm512_set1_epi8(3)));
}

// 64 bits a block of 16-bit entries of four codes -> `values` of the first two (H = 0) or last.
template <int H>
HM_INLINE __m512i spread_fours(__m512i words, __m512i values) {
  constexpr int64_t order = 0x0302030201000100 + 0x0404040404040404 * H;
  const __m512i entries = _mm512_shuffle_epi8(
      words, _mm512_broadcast_i32x4(_mm_set_epi64x(order + 0x0808080808080808, order)));
  const __m512i codes = _mm512_srlv_epi16(entries, _mm512_set1_epi64(0x0004000000040000));
  return _mm512_shuffle_epi8(values, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
}

// Four bytes in every quarter.
HM_INLINE __m512i in_quarters(int a, int b, int c, int d) {
  return _mm512_set1_epi32(a | b << 8 | c << 16 | d << 24);
}

// Words of 0..127, and their parity as bit 7.
HM_INLINE __m512i with_parity(__m512i indices) {
  const __m512i parities = _mm512_broadcast_i32x4(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m512i folded = _mm512_and_si512(_mm512_xor_si512(indices, _mm512_srli_epi16(indices, 4)),
                                          _mm512_set1_epi16(15));
  return _mm512_or_si512(indices, _mm512_shuffle_epi8(parities, folded));
}

// Words of s (4) | sign index (7) x 4, as 64 bits each -> four words with parity.
HM_INLINE __m512i sign_words(__m512i words) {
  const __m512i seven = _mm512_set1_epi64(0x7f);
  const auto field = [&](int k) {  // bits 7 k -> 16 k
    return _mm512_and_si512(_mm512_slli_epi64(words, 9 * k), _mm512_slli_epi64(seven, 16 * k));
  };
  return with_parity(
      _mm512_or_si512(_mm512_or_si512(field(0), field(1)), _mm512_or_si512(field(2), field(3))));
}

struct StridedIQ2_XXS : SignsApartOf<BlockIQ2_XXS, Simd::PerBlock, 2> {
  __m512i words;

  HM_INLINE void load(const Block* b) {
    const __m512i qs = _mm512_loadu_si512(b->qs);
    const __m512i rest = _mm512_srli_epi64(qs, 32);
    words = look_up<256>(kWordsIQ2_XXS.word, _mm512_cvtepu8_epi16(_mm512_cvtepi64_epi32(qs)));
    sign_bytes = sign_words(rest);
    const __m256i s = _mm512_cvtepi64_epi32(_mm512_srli_epi64(rest, 28));
    d = odd_scales8(half_to_float(b->d) * 0.125f, s);
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return spread_pairs<V>(words, in_quarters(8, 25, 43, 0));
  }
};

struct StridedIQ2_XS : SignsApartOf<BlockIQ2_XS, Simd::PerHalf, 2> {
  __m512i words;

  HM_INLINE void load(const Block* b) {
    const __m512i qs = _mm512_loadu_si512(b->qs);
    words = look_up<512>(kWordsIQ2_XS.word, qs);
    sign_bytes = with_parity(_mm512_srli_epi16(qs, 9));
    d = odd_scales16(half_to_float(b->d) * 0.125f, sixteen_nibbles(b->scales));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return spread_pairs<V>(words, in_quarters(8, 25, 43, 0));
  }
};

// Entries V of the blocks; a block's four indices are words of one of `index`.
template <int V>
HM_INLINE __m512i entries_at(const uint64_t* table, const uint64_t (&index)[8]) {
  const auto two = [&](int k) {
    const uint64_t *first = table + static_cast<uint16_t>(index[k] >> 16 * V),
                   *second = table + static_cast<uint16_t>(index[k + 1] >> 16 * V);
    const __m128d low = _mm_load_sd((const double*)first);
    return _mm_castpd_si128(_mm_loadh_pd(low, (const double*)second));
  };
  const __m256i low = _mm256_set_m128i(two(2), two(0)), high = _mm256_set_m128i(two(6), two(4));
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

struct StridedIQ2_S : SignsApartOf<BlockIQ2_S, Simd::PerHalf, 1, false> {
  uint64_t index[8];

  HM_INLINE void load(const Block* b) {
    for (int g = 0; g < 8; ++g) {
      index[g] = _pdep_u64(load_u32(b->qs + 4 * g), 0x00ff00ff00ff00ff) |
                 _pdep_u64(b->qh[g], 0x0300030003000300);
    }
    sign_bytes = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)b->signs));
    d = odd_scales16(half_to_float(b->d) * 0.125f, sixteen_nibbles(b->scales));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return entries_at<V>(kCodebookIQ2_S.entry, index);
  }
};

// Entries of four codes: words[h] has entries 4 h .. 4 h + 3 of each block.
template <class Block, int SignBytes>
struct StridedIQ3Of : SignsApartOf<Block, Simd::PerBlock, SignBytes> {
  __m512i words[2];

  static HM_INLINE __m512i indices(const uint8_t* qs, int half) {
    const __m512i blocks = _mm512_loadu_si512(qs);
    return _mm512_cvtepu8_epi16(_mm512_cvtepi64_epi32(_mm512_srli_epi64(blocks, 32 * half)));
  }
};

struct StridedIQ3_XXS : StridedIQ3Of<BlockIQ3_XXS, 2> {
  HM_INLINE void load(const Block* b) {
    for (int h = 0; h < 2; ++h) words[h] = look_up<256>(kWordsIQ3_XXS.word, indices(b->qs, h));
    const __m256i rest = _mm256_loadu_si256((const __m256i*)b->words);
    sign_bytes = sign_words(_mm512_cvtepu32_epi64(rest));
    d = odd_scales8(half_to_float(b->d) * 0.25f, _mm256_srli_epi32(rest, 28));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    const __m512i values = _mm512_broadcast_i32x4(
        _mm_setr_epi8(4, 12, 20, 28, 36, 44, 52, 62, 0, 0, 0, 0, 0, 0, 0, 0));
    return spread_fours<V % 2>(words[V / 2], values);
  }
};

struct StridedIQ3_S : StridedIQ3Of<BlockIQ3_S, 1> {
  HM_INLINE void load(const Block* b) {
    const uint64_t qh = load_u64(b->qh);
    for (int h = 0; h < 2; ++h) {
      const __m512i index = indices(b->qs, h);
      const __mmask32 upper =
          _cvtu32_mask32(static_cast<uint32_t>(_pext_u64(qh, 0x0f0f0f0f0f0f0f0f << 4 * h)));
      words[h] = _mm512_mask_blend_epi16(upper, look_up<256>(kWordsIQ3_S.word, index),
                                         look_up<256>(kWordsIQ3_S.word + 256, index));
    }
    sign_bytes = _mm512_cvtepu32_epi64(_mm256_loadu_si256((const __m256i*)b->signs));
    const __m256i nibbles = _mm256_srlv_epi32(_mm256_set1_epi32(load_u32(b->scales)),
                                              _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    d = odd_scales8(half_to_float(b->d), _mm256_and_si256(nibbles, _mm256_set1_epi32(15)));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    const __m512i values =
        _mm512_broadcast_i32x4(_mm_setr_epi8(1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0));
    return spread_fours<V % 2>(words[V / 2], values);
  }
};

// Codes are 8 c + 15; the shift of a block, -1 or 1, is that of its bit.
struct StridedIQ1_S : StridedGroupOf<BlockIQ1_S, Simd::PerBlock> {
  static constexpr int kBias = 16, kShift = 2;
  uint64_t index[8];
  uint32_t shifts;

  HM_INLINE void load(const Block* b) {
    for (int g = 0; g < 8; ++g) {
      index[g] = _pdep_u64(load_u32(b->qs + 4 * g), 0x00ff00ff00ff00ff) |
                 _pdep_u64(b->qh[g], 0x0700070007000700);
    }
    const __m128i eight = _mm_loadu_si128((const __m128i*)b->qh);
    shifts = static_cast<uint8_t>(~_mm_movepi16_mask(eight));
    const __m256i s = _mm256_srli_epi32(_mm256_cvtepu16_epi32(eight), 12);
    d = odd_scales8(half_to_float(b->d) * 0.125f, _mm256_and_si256(s, _mm256_set1_epi32(7)));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return entries_at<V>(kCodebookBiasedIQ1.entry, index);
  }
};

struct StridedIQ1_M : StridedGroupOf<BlockIQ1_M, Simd::PerHalf> {
  static constexpr int kBias = 16;
  uint64_t index[8];
  __m512i shifts;

  HM_INLINE void load(const Block* b) {
    for (int g = 0; g < 8; ++g) {
      const uint64_t high = _pdep_u64(load_u16(b->qh + 2 * g), 0x0f000f000f000f00);
      index[g] =
          _pdep_u64(load_u32(b->qs + 4 * g), 0x00ff00ff00ff00ff) | (high & 0x0700070007000700);
    }
    shifts = iq1_shifts(iq1_m_nibbles(b));
    d = iq1_m_scales(b);
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return _mm512_add_epi8(entries_at<V>(kCodebookBiasedIQ1.entry, index),
                           _mm512_shuffle_epi8(shifts, two_bytes(2 * V, 8 + 2 * V)));
  }
};

}  // namespace
}  // namespace hm
