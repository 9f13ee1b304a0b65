// What AVX2 and AVX-512 share: the 256-bit half of the SIMD vocabulary, for the scales of a group.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "base/inline.h"

namespace hm {
namespace {

inline float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }

struct SimdYmm {
  using F8 = __m256;
  using I16 = __m256i;

  // F8
  static HM_INLINE F8 set8(float v) { return _mm256_set1_ps(v); }
  static HM_INLINE F8 load8(const float* p) { return _mm256_loadu_ps(p); }
  static HM_INLINE F8 mul(F8 a, F8 b) { return _mm256_mul_ps(a, b); }
  static HM_INLINE F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
  static HM_INLINE F8 from_u8(const uint8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  }
  static HM_INLINE F8 from_s8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  }
  // Eight binary16 numbers, `stride` bytes apart.
  static HM_INLINE F8 gather_half(const void* p, int stride) {
    const auto at = [=](int i) { return *(const int16_t*)((const uint8_t*)p + i * stride); };
    return _mm256_cvtph_ps(_mm_set_epi16(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0)));
  }

  // I16
  static HM_INLINE I16 ones() { return _mm256_set1_epi16(1); }
  static HM_INLINE I16 from_s8x16(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
  }
  // The low, and the high, nibbles of 16 bytes.
  static HM_INLINE I16 low_nibbles(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128((const __m128i*)p);
    return _mm256_cvtepu8_epi16(_mm_and_si128(v, _mm_set1_epi8(15)));
  }
  static HM_INLINE I16 high_nibbles(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128((const __m128i*)p);
    return _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(v, 4), _mm_set1_epi8(15)));
  }
  // Eight bytes, each twice.
  static HM_INLINE I16 twice_u8(const uint8_t* p) {
    const __m128i v = _mm_loadl_epi64((const __m128i*)p);
    return _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(v, v));
  }
  // Exact sums of two neighbouring products, as floats.
  static HM_INLINE F8 pair_sums(I16 a, const int16_t* b) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(a, _mm256_loadu_si256((const __m256i*)b)));
  }

  // Sum of the lanes of lo, hi and extra, in the order that every instruction set uses.
  static HM_INLINE float reduce(__m256 lo, __m256 hi, F8 extra) {
    const __m256 eight = _mm256_add_ps(_mm256_add_ps(lo, hi), extra);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
};

}  // namespace
}  // namespace hm
