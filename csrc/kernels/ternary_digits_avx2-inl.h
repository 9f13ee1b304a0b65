// What ternary_gemv-inl.h takes, in AVX2.
#pragma once

#include <immintrin.h>

#include "base/inline.h"

namespace hm {
namespace {

// Eight bytes at `a` five times, then those at `b`.
HM_INLINE Simd::B64 eights(const void* a, const void* b) {
  const __m256i first = _mm256_castpd_si256(_mm256_broadcast_sd((const double*)a));
  const __m256i rest = _mm256_castpd_si256(_mm256_broadcast_sd((const double*)b));
  return {first, _mm256_blend_epi32(first, rest, 0xfc)};
}

// The last eight bytes become the four at p, twice.
HM_INLINE Simd::B64 with_last_word(Simd::B64 v, const void* p) {
  const __m256i word = _mm256_castps_si256(_mm256_broadcast_ss((const float*)p));
  return {v.lo, _mm256_blend_epi32(v.hi, word, 0xc0)};
}

HM_INLINE __m256i ternary_digits(__m256i v, __m256i powers) {
  const __m256i high = _mm256_set1_epi16(-256), three = _mm256_set1_epi16(0x300);
  const __m256i even =  // in the words' high bytes
      _mm256_mullo_epi16(v, _mm256_slli_epi16(powers, 8));
  const __m256i odd = _mm256_mullo_epi16(_mm256_and_si256(v, high), powers);
  const __m256i low = _mm256_mulhi_epu16(even, _mm256_set1_epi16(3));
  return _mm256_or_si256(low, _mm256_and_si256(_mm256_mulhi_epu16(odd, three), three));
}

HM_INLINE Simd::B64 ternary_digits(Simd::B64 v, const uint16_t* powers) {
  const __m256i* p = (const __m256i*)powers;
  return {ternary_digits(v.lo, _mm256_load_si256(p)),
          ternary_digits(v.hi, _mm256_load_si256(p + 1))};
}

}  // namespace
}  // namespace hm
