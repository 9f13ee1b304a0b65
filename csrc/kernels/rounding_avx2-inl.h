// Rounding of activations, 256 floats at once.
#pragma once

#include "kernels/simd_avx2.h"

namespace hm {
namespace {

// The greatest of each vector.
HM_INLINE __m256i greatest_of_each(const __m256i (&v)[8]) {
  const auto pairs = [](__m256i a, __m256i b) {
    return _mm256_max_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  };
  const auto fours = [&](__m256i a, __m256i b, __m256i c, __m256i d) {
    const __m256i ab = pairs(a, b), cd = pairs(c, d);
    return _mm256_max_epi32(_mm256_unpacklo_epi64(ab, cd), _mm256_unpackhi_epi64(ab, cd));
  };
  const __m256i low = fours(v[0], v[1], v[2], v[3]), high = fours(v[4], v[5], v[6], v[7]);
  return _mm256_max_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

inline void SimdAvx2::round_group(const float* x, B64 (&codes)[4], float* d) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  const auto load = [&](int64_t i) {
    return _mm256_and_si256(_mm256_loadu_si256((const __m256i*)(x + i)), magnitude);
  };
  __m256i most[8];
  for (int b = 0; b < 8; ++b) {
    most[b] = _mm256_max_epi32(_mm256_max_epi32(load(32 * b), load(32 * b + 8)),
                               _mm256_max_epi32(load(32 * b + 16), load(32 * b + 24)));
  }
  const BlockScales scales(greatest_of_each(most));
  _mm256_storeu_ps(d, scales.d);
  const __m256 rounder = _mm256_set1_ps(kRounder);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // after two steps of packing
  const auto block = [&](int b) {
    const __m256i at = _mm256_set1_epi32(b);
    const __m256 inverse = _mm256_permutevar8x32_ps(scales.inverse, at);
    const __m256i kept = _mm256_permutevar8x32_epi32(scales.kept, at);
    const auto eight = [&](int i) {
      const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(x + 32 * b + 8 * i), inverse);
      const __m256i bits = _mm256_castps_si256(_mm256_add_ps(scaled, rounder));
      return _mm256_and_si256(_mm256_sub_epi32(bits, _mm256_castps_si256(rounder)), kept);
    };
    const __m256i low = _mm256_packs_epi32(eight(0), eight(1));
    const __m256i high = _mm256_packs_epi32(eight(2), eight(3));
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
  };
  for (int v = 0; v < 4; ++v) codes[v] = {block(2 * v), block(2 * v + 1)};
}

}  // namespace
}  // namespace hm
