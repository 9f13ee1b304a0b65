// The SIMD vocabulary of simd_avx2.h in AVX-512 F, BW, VL, DQ, VNNI: a pair of blocks is one
// register. Lane for lane the same numbers as AVX2, and so the same bits in the end.
#pragma once

#include "kernels/simd_ymm.h"

namespace hm {
namespace {

struct Simd : SimdYmm {
  static constexpr int kTileTokens = 4;
  using F16 = __m512;
  using B64 = __m512i;
  using Scales = __m512;        // eight, in the lower half
  using Multipliers = __m512i;  // 16 int16, in the lower half

  // F16
  static HM_INLINE F16 zero() { return _mm512_setzero_ps(); }
  static HM_INLINE F16 load(const float* p) { return _mm512_loadu_ps(p); }
  static HM_INLINE F16 load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  static HM_INLINE F16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  using SimdYmm::fma;
  static HM_INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
  static HM_INLINE float reduce(F16 a, F8 extra) {
    return SimdYmm::reduce(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1), extra);
  }

  static HM_INLINE Scales scales(F8 v) { return _mm512_castps256_ps512(v); }
  template <int P>
  static HM_INLINE F16 scale(const Scales& s) {
    const __m512i lanes = join(_mm256_set1_epi32(2 * P), _mm256_set1_epi32(2 * P + 1));
    return _mm512_permutexvar_ps(lanes, s);
  }
  static HM_INLINE Multipliers multipliers(I16 v) { return _mm512_castsi256_si512(v); }

  // B64
  static HM_INLINE B64 load64(const void* p) { return _mm512_loadu_si512(p); }
  static HM_INLINE B64 load32(const void* a, const void* b) {
    return join(_mm256_loadu_si256((const __m256i*)a), _mm256_loadu_si256((const __m256i*)b));
  }
  static HM_INLINE B64 load32_twice(const void* p) {
    return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));
  }
  static HM_INLINE B64 from_words(const uint64_t (&w)[8]) {
    return _mm512_set_epi64(w[7], w[6], w[5], w[4], w[3], w[2], w[1], w[0]);
  }
  static HM_INLINE B64 nibbles16(const void* a, const void* b) {
    const __m512i bytes = join(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)a)),
                               _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)b)));
    const __m512i counts = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(bytes, counts), _mm512_set1_epi8(15));
  }
  template <int Bit>
  static HM_INLINE B64 spread_bits(const void* a, const void* b) {
    uint32_t low, high;
    __builtin_memcpy(&low, a, sizeof low);
    __builtin_memcpy(&high, b, sizeof high);
    return _mm512_maskz_set1_epi8(static_cast<uint64_t>(high) << 32 | low, Bit);
  }
  template <int N0, int N1, int Mask>
  static HM_INLINE B64 bits(B64 v) {
    const __m512i mask = _mm512_set1_epi8(Mask);
    if constexpr (N0 == N1) return _mm512_and_si512(_mm512_srli_epi16(v, N0), mask);
    const __m512i counts = _mm512_set_epi64(N1, N1, N1, N1, N0, N0, N0, N0);
    return _mm512_and_si512(_mm512_srlv_epi64(v, counts), mask);
  }
  template <int N>
  static HM_INLINE B64 shift_left(B64 v) {
    return _mm512_slli_epi16(v, N);
  }
  static HM_INLINE B64 or_(B64 a, B64 b) { return _mm512_or_si512(a, b); }
  static HM_INLINE B64 sub(B64 a, B64 b) { return _mm512_sub_epi8(a, b); }
  static HM_INLINE B64 negate_where(B64 mask, B64 v) {
    return sub(_mm512_xor_si512(v, mask), mask);
  }
  static HM_INLINE B64 lookup(const int8_t* table, B64 v) {
    const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
    return _mm512_shuffle_epi8(t, v);
  }

  static HM_INLINE F16 dot_unsigned(B64 w, B64 x) {
    return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x));
  }
  static HM_INLINE F16 dot_signed(B64 w, B64 x) {
    return dot_unsigned(_mm512_abs_epi8(w), with_sign(x, w));
  }
  // Not VNNI: its sums of four would need a 32-bit multiply, which is slower than these two.
  template <int P>
  static HM_INLINE F16 dot_multiplied(B64 w, B64 x, const Multipliers& m) {
    const __m512i lanes =
        join(_mm256_set_m128i(_mm_set1_epi16(4 * P + 1), _mm_set1_epi16(4 * P)),
             _mm256_set_m128i(_mm_set1_epi16(4 * P + 3), _mm_set1_epi16(4 * P + 2)));
    const __m512i multiplier = _mm512_permutexvar_epi16(lanes, m);
    return _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_maddubs_epi16(w, x), multiplier));
  }
  template <int P>
  static HM_INLINE F16 dot_signed_multiplied(B64 w, B64 x, const Multipliers& m) {
    return dot_multiplied<P>(_mm512_abs_epi8(w), with_sign(x, w), m);
  }

 private:
  // -x where w is negative.
  static HM_INLINE __m512i with_sign(__m512i x, __m512i w) {
    return _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
  }
  static HM_INLINE __m512i join(__m256i lo, __m256i hi) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
  }
};

}  // namespace
}  // namespace hm
