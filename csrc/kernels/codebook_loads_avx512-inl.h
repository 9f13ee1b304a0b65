// Codebook entries and signs for codebook_groups_avx512-inl.h, by loads and AVX-512 BW: on Zen 4 a
// gather is slower than the loads that it stands for.
#pragma once

#include "kernels/groups-inl.h"

namespace hm {
namespace {

// `fields` has four indices, each in the lower bits, `mask`, of Bits bits.
template <int Bits>
HM_INLINE __m256i four_entries(const uint64_t* table, uint64_t fields, uint64_t mask) {
  const auto two = [&](int i) {
    const uint64_t *first = table + (fields >> (Bits * i) & mask),
                   *second = table + (fields >> (Bits * i + Bits) & mask);
    const __m128d low = _mm_load_sd((const double*)first);
    return _mm_castpd_si128(_mm_loadh_pd(low, (const double*)second));
  };
  return _mm256_set_m128i(two(2), two(0));
}

template <int Bits>
HM_INLINE __m512i entries_of(const uint64_t* table, uint64_t low, uint64_t high, uint64_t mask) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(four_entries<Bits>(table, low, mask)),
                            four_entries<Bits>(table, high, mask), 1);
}

// The entries of indices 8 P and on, in the lower bits, `mask`, of words.
template <int P>
HM_INLINE __m512i eight_entries(const uint64_t* table, const uint16_t* index, uint64_t mask) {
  return entries_of<16>(table, load_u64(index + 8 * P), load_u64(index + 8 * P + 4), mask);
}

// The entries of eight bytes, of each second four.
HM_INLINE __m512i entries_of_halves(const uint64_t* table, const uint16_t* qs) {
  return entries_of<8>(table, load_u32(qs), load_u32(qs + 4), 255);
}

// Sign bits of 32 indices of 7 bits: the indices, and their parity as bit 7.
HM_INLINE __m256i signs_with_parity(__m512i indices) {
  __m512i parity = _mm512_xor_si512(indices, _mm512_srli_epi16(indices, 4));
  parity = _mm512_xor_si512(parity, _mm512_srli_epi16(parity, 2));
  parity = _mm512_xor_si512(parity, _mm512_srli_epi16(parity, 1));
  return _mm512_cvtepi16_epi8(_mm512_or_si512(indices, _mm512_slli_epi16(parity, 7)));
}

// The same for eight words of s (4) | sign index (7) x 4, as 64 bits each.
HM_INLINE __m256i four_signs(__m512i words) {
  const __m512i seven = _mm512_set1_epi64(0x7f);
  const auto field = [&](int k) {  // bits 7 k -> 16 k
    return _mm512_and_si512(_mm512_slli_epi64(words, 9 * k), _mm512_slli_epi64(seven, 16 * k));
  };
  return signs_with_parity(
      _mm512_or_si512(_mm512_or_si512(field(0), field(1)), _mm512_or_si512(field(2), field(3))));
}

}  // namespace
}  // namespace hm
