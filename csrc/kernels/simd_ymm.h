// What AVX2 and AVX-512 share: a lane per block of a group.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "base/inline.h"
#include "kernels/code_tables.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

inline float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }

struct SimdYmm {
  using F8 = __m256;

  // ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))
  static HM_INLINE float reduce8(F8 v) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // Eight floats to binary16: only infinities become infinite.
  static HM_INLINE void round_to_half(const float* x, uint16_t* out) {
    const __m256 v = _mm256_loadu_ps(x), sign = _mm256_set1_ps(-0.0f);
    const __m256 infinite =
        _mm256_cmp_ps(_mm256_andnot_ps(sign, v), _mm256_set1_ps(__builtin_inff()), _CMP_EQ_OQ);
    const __m256 low = _mm256_max_ps(_mm256_set1_ps(-65504.0f), v);  // the second one if it is NaN
    const __m256 bounded = _mm256_min_ps(_mm256_set1_ps(65504.0f), low);
    const __m256 w = _mm256_blendv_ps(bounded, v, infinite);
    _mm_storeu_si128((__m128i*)out, _mm256_cvtps_ph(w, _MM_FROUND_TO_NEAREST_INT));
  }

  // Unsigned E4M3 numbers, 2^-8 as large, as binary16: four at p, p + stride, ... The NaN is zero.
  static HM_INLINE __m256i gather_e4m3(const uint8_t* p, int stride) {
    const auto at = [=](int i) { return *(const int32_t*)(p + i * stride); };
    const __m128i bytes = _mm_set_epi32(at(3), at(2), at(1), at(0));
    const __m128i is_nan = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(0x7f));
    const __m256i words = _mm256_cvtepu8_epi16(_mm_andnot_si128(is_nan, bytes));
    return _mm256_slli_epi16(_mm256_and_si256(words, _mm256_set1_epi16(0x7f)), 7);
  }

  // A lane per block of 32.
  struct PerBlockYmm {
    static constexpr int kLanes = 8;
    using Float = __m256;
    using Int = __m256i;
    static HM_INLINE Float set(float v) { return _mm256_set1_ps(v); }
    static HM_INLINE Float load(const float* p) { return _mm256_loadu_ps(p); }
    static HM_INLINE void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
    static HM_INLINE Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static HM_INLINE Float keep(Float v, Float bits) { return _mm256_and_ps(v, bits); }
    static HM_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    // Eight bytes, the first lowest.
    static HM_INLINE Float from_u8(uint64_t bytes) {
      const __m128i v = _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
      return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v));
    }
    static HM_INLINE Float from_s8(uint64_t bytes) {
      const __m128i v = _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v));
    }
    static HM_INLINE Float from_s8(const int8_t* p) {
      return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
    }
    static HM_INLINE Float from_s8(const uint64_t (&bytes)[1]) { return from_s8(bytes[0]); }
    // Binary16 numbers, `stride` bytes apart, each for as many lanes.
    template <int Each = 1>
    static HM_INLINE Float gather_half(const void* p, int stride) {
      const auto at = [=](int i) {
        return *(const int16_t*)((const uint8_t*)p + i / Each * stride);
      };
      return _mm256_cvtph_ps(_mm_set_epi16(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0)));
    }
    // Halves of E8M0 powers of two, `stride` bytes apart: e8m0_half of each.
    static HM_INLINE Float gather_e8m0_half(const uint8_t* p, int stride) {
      const auto at = [=](int i) { return static_cast<int>(p[i * stride]); };
      const __m256i e = _mm256_set_epi32(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0));
      const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
      const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
      return _mm256_castsi256_ps(
          _mm256_blendv_epi8(normal, subnormal, _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e)));
    }
    static HM_INLINE Float activation_scales(const float* d) { return load(d); }
    static HM_INLINE Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
    static HM_INLINE Int load_int(const int32_t* p) {
      return _mm256_loadu_si256((const __m256i*)p);
    }
    static HM_INLINE void store_int(int32_t* p, Int v) { _mm256_storeu_si256((__m256i*)p, v); }
    // v - 2^Shift w
    template <int Shift>
    static HM_INLINE Int sub_shifted(Int v, Int w) {
      return _mm256_sub_epi32(v, _mm256_slli_epi32(w, Shift));
    }
    // N v for N = 1, 2, 4, 5.
    template <int N>
    static HM_INLINE Int times(Int v) {
      if constexpr (N == 1) return v;
      const Int even = _mm256_slli_epi32(v, N / 2);
      if constexpr (N % 2 == 0) return even;
      return _mm256_add_epi32(even, v);
    }
    // v + w in the lanes whose bit is set.
    static HM_INLINE Int add_where(uint32_t bits, Int v, Int w) {
      const __m256i bit_of = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
      const __m256i found = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit_of);
      return _mm256_add_epi32(v, _mm256_and_si256(_mm256_cmpeq_epi32(found, bit_of), w));
    }
    static HM_INLINE float reduce(Float v) { return reduce8(v); }
  };
};

// From the greatest magnitudes of 8 blocks, as integers: scales, and what to multiply with. All
// bits are set in `kept` where codes are not just zeros.
struct BlockScales {
  __m256 d, inverse;
  __m256i kept;

  HM_INLINE explicit BlockScales(__m256i most) {
    const __m256 max = _mm256_castsi256_ps(most), full = _mm256_set1_ps(127.0f);
    const __m256i is_bad = _mm256_cmpgt_epi32(most, _mm256_set1_epi32(kInfinityBits - 1));
    const __m256i is_small =
        _mm256_castps_si256(_mm256_cmp_ps(max, _mm256_set1_ps(kLeastAbsmax), _CMP_LT_OQ));
    kept = _mm256_andnot_si256(_mm256_or_si256(is_bad, is_small), _mm256_set1_epi32(-1));
    d = _mm256_and_ps(_mm256_div_ps(max, full), _mm256_castsi256_ps(kept));
    d = _mm256_blendv_ps(d, _mm256_set1_ps(__builtin_nanf("")), _mm256_castsi256_ps(is_bad));
    inverse = _mm256_div_ps(full, max);
  }
};

}  // namespace
}  // namespace hm
