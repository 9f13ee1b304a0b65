// Rounding of activations, 256 floats at once.
#pragma once

#include "kernels/simd_avx512.h"

namespace hm {
namespace {

// The greatest of each vector.
HM_INLINE __m256i greatest_of_each(const __m512i (&v)[8]) {
  const auto pairs = [](__m512i a, __m512i b) {
    return _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  };
  const auto fours = [&](__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = pairs(a, b), cd = pairs(c, d);
    return _mm512_max_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  };
  const __m512i low = fours(v[0], v[1], v[2], v[3]), high = fours(v[4], v[5], v[6], v[7]);
  const __m512i both = _mm512_max_epi32(_mm512_shuffle_i32x4(low, high, 0x88),
                                        _mm512_shuffle_i32x4(low, high, 0xdd));
  const __m512i all = _mm512_max_epi32(both, _mm512_shuffle_i32x4(both, both, 0xb1));
  return _mm512_castsi512_si256(_mm512_shuffle_i32x4(all, all, 0x88));
}

inline void Simd::round_group(const float* x, B64 (&codes)[4], float* d) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i most[8];
  for (int b = 0; b < 8; ++b) {
    const __m512i first = _mm512_castps_si512(_mm512_loadu_ps(x + 32 * b));
    const __m512i second = _mm512_castps_si512(_mm512_loadu_ps(x + 32 * b + 16));
    most[b] =
        _mm512_max_epi32(_mm512_and_si512(first, magnitude), _mm512_and_si512(second, magnitude));
  }
  const BlockScales scales(greatest_of_each(most));
  _mm256_storeu_ps(d, scales.d);
  const __m512 inverses = _mm512_castps256_ps512(scales.inverse);
  const __m512i kept = _mm512_castsi256_si512(scales.kept);
  const __m512 rounder = _mm512_set1_ps(kRounder);
  for (int v = 0; v < 4; ++v) {
    __m512i parts[4];
    for (int i = 0; i < 4; ++i) {
      const __m512i block = _mm512_set1_epi32(2 * v + i / 2);
      const __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(x + 64 * v + 16 * i),
                                          _mm512_permutexvar_ps(block, inverses));
      const __m512i bits = _mm512_castps_si512(_mm512_add_ps(scaled, rounder));
      parts[i] = _mm512_and_si512(_mm512_sub_epi32(bits, _mm512_castps_si512(rounder)),
                                  _mm512_permutexvar_epi32(block, kept));
    }
    const __m512i packed = _mm512_packs_epi16(_mm512_packs_epi32(parts[0], parts[1]),
                                              _mm512_packs_epi32(parts[2], parts[3]));
    const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    codes[v] = _mm512_permutexvar_epi32(order, packed);
  }
}

}  // namespace
}  // namespace hm
