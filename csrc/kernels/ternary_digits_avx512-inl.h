// What ternary_gemv-inl.h takes, in AVX-512.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "base/inline.h"

namespace hm {
namespace {

// Eight bytes at `a` five times, then those at `b`.
HM_INLINE __m512i eights(const void* a, const void* b) {
  int64_t first, rest;
  memcpy(&first, a, sizeof first);
  memcpy(&rest, b, sizeof rest);
  return _mm512_mask_set1_epi64(_mm512_set1_epi64(first), 0xe0, rest);
}

// The last eight bytes become the four at p, twice.
HM_INLINE __m512i with_last_word(__m512i v, const void* p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return _mm512_mask_set1_epi32(v, 0xc000, word);
}

HM_INLINE __m512i ternary_digits(__m512i v, const uint16_t* powers) {
  const __m512i p = _mm512_load_si512(powers), high = _mm512_set1_epi16(-256);
  const __m512i even = _mm512_mullo_epi16(v, _mm512_slli_epi16(p, 8));  // in the words' high bytes
  const __m512i odd = _mm512_mullo_epi16(_mm512_and_si512(v, high), p);
  const __m512i low = _mm512_mulhi_epu16(even, _mm512_set1_epi16(3));
  const __m512i upper = _mm512_mulhi_epu16(odd, _mm512_set1_epi16(0x300));
  return _mm512_or_si512(low, _mm512_and_si512(upper, _mm512_set1_epi16(0x300)));
}

}  // namespace
}  // namespace hm
