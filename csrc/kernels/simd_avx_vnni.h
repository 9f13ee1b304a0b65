// AVX2 with VEX-coded VNNI: four products a lane and their sum in one instruction, which does not
// saturate. Codes are 0..255 there, so signed ones get a bias of 128, which the sums give back.
#pragma once

#include "kernels/simd_avx2.h"

namespace hm {
namespace {

struct Simd : SimdAvx2 {
  static constexpr MatmulCosts kCosts = {9.5, 7.5, 31, 6.75};
  static constexpr int kSignedBias = 128;

  static HM_INLINE B64 plus_bias(B64 v) {
    const __m256i bias = _mm256_set1_epi8(-128);
    return {_mm256_xor_si256(v.lo, bias), _mm256_xor_si256(v.hi, bias)};
  }

  // w in 0..255.
  static HM_INLINE Dot dot_unsigned(B64 w, B64 x) {
    const __m256i zero = _mm256_setzero_si256();
    return {_mm256_dpbusd_avx_epi32(zero, w.lo, x.lo), _mm256_dpbusd_avx_epi32(zero, w.hi, x.hi)};
  }
  static HM_INLINE Dot dot_signed(B64 w, B64 x) { return dot_unsigned(plus_bias(w), x); }
  static HM_INLINE Dot dot_two(B64 w0, B64 x0, B64 w1, B64 x1) {
    const Dot first = dot_unsigned(w0, x0);
    return {_mm256_dpbusd_avx_epi32(first.lo, w1.lo, x1.lo),
            _mm256_dpbusd_avx_epi32(first.hi, w1.hi, x1.hi)};
  }

  struct Panel : SimdAvx2::Panel {
    static constexpr int kTokens = 3;
    // A run of dots needs no end: sums have 32 bits from the start.
    static constexpr int run_length(int) { return kSuperWeights; }
    static HM_INLINE Int begin_run(Int sum) { return sum; }
    template <bool IsSigned>
    static HM_INLINE Int dot(Int run, Int w, Int x) {
      return _mm256_dpbusd_avx_epi32(run, w, x);
    }
    static HM_INLINE Int end_run(Int, Int run) { return run; }
  };
};

}  // namespace
}  // namespace hm
