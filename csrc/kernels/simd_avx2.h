// The SIMD vocabulary of dot-inl.h and formats-inl.h in AVX2 + FMA + F16C.
//
//   F16   16 floats: lane l of its half h belongs to 32-weight block 2p + h of a pair p
//   F8    8 floats: one per 32-weight block of a 256-weight group
//   B64   64 bytes: the codes of a pair of blocks
//   I16   16 int16: one per 16 weights of a group
//
// A dot product adds four neighbouring products into each of 8 lanes per block (what the hardware's
// multiply-add pairs give), exactly, in integers.
#pragma once

#include <immintrin.h>
#include <stdint.h>

#include "base/inline.h"

namespace hm {
namespace {

inline float half_to_float(uint16_t bits) { return _cvtsh_ss(bits); }

struct Simd {
  using F8 = __m256;
  using I16 = __m256i;
  struct F16 {
    __m256 lo, hi;
  };
  struct B64 {
    __m256i lo, hi;
  };
  // Eight scales in memory: a broadcast load costs no shuffle port.
  struct Scales {
    alignas(32) float f[8];
  };
  // 16 int16 multipliers with each 128-bit half repeated, ready for `multiplier`.
  struct Multipliers {
    __m256i first, second;
  };

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
    return _mm256_cvtph_ps(
        _mm_set_epi16(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0)));
  }

  // F16
  static HM_INLINE F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static HM_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static HM_INLINE F16 load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
  }
  static HM_INLINE F16 load_bf16(const uint16_t* p) {
    return {widen_bf16((const __m128i*)p), widen_bf16((const __m128i*)(p + 8))};
  }
  static HM_INLINE F16 fma(F16 a, F16 b, F16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  // Sum of all lanes and of `extra`, in the order that every instruction set uses.
  static HM_INLINE float reduce(F16 a, F8 extra) {
    const __m256 eight = _mm256_add_ps(_mm256_add_ps(a.lo, a.hi), extra);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }

  // Scales: `scale` repeats those of pair P over its lanes.
  static HM_INLINE Scales scales(F8 v) {
    Scales s;
    _mm256_store_ps(s.f, v);
    return s;
  }
  template <int P>
  static HM_INLINE F16 scale(const Scales& s) {
    return {_mm256_broadcast_ss(&s.f[2 * P]), _mm256_broadcast_ss(&s.f[2 * P + 1])};
  }

  // I16
  static HM_INLINE I16 ones() { return _mm256_set1_epi16(1); }
  static HM_INLINE I16 from_s8x16(const int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p));
  }
  static HM_INLINE I16 from_u8x16(__m128i v) { return _mm256_cvtepu8_epi16(v); }
  // The low and the high nibbles of 16 bytes.
  static HM_INLINE I16 low_nibbles(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(
        _mm_and_si128(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8(15)));
  }
  static HM_INLINE I16 high_nibbles(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(
        _mm_and_si128(_mm_srli_epi16(_mm_loadu_si128((const __m128i*)p), 4), _mm_set1_epi8(15)));
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
  static HM_INLINE Multipliers multipliers(I16 v) {
    return {_mm256_permute2x128_si256(v, v, 0x00), _mm256_permute2x128_si256(v, v, 0x11)};
  }

  // B64
  static HM_INLINE B64 load64(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
  }
  static HM_INLINE B64 load32(const void* a, const void* b) {
    return {_mm256_loadu_si256((const __m256i*)a), _mm256_loadu_si256((const __m256i*)b)};
  }
  // 16 bytes of a: low nibbles, then high nibbles, as block 0; of b as block 1.
  static HM_INLINE B64 nibbles16(const void* a, const void* b) {
    return {split_nibbles(a), split_nibbles(b)};
  }
  // Bit i of the 32-bit word at a (b): `Bit` in byte i of block 0 (1), else 0.
  template <int Bit>
  static HM_INLINE B64 spread_bits(const void* a, const void* b) {
    return {spread<Bit>(a), spread<Bit>(b)};
  }
  // (block 0 >> N0, block 1 >> N1) & Mask, bytewise.
  template <int N0, int N1, int Mask>
  static HM_INLINE B64 bits(B64 v) {
    const __m256i mask = _mm256_set1_epi8(Mask);
    return {_mm256_and_si256(shift_right<N0>(v.lo), mask),
            _mm256_and_si256(shift_right<N1>(v.hi), mask)};
  }
  // v << N, for bytes that stay below 256.
  template <int N>
  static HM_INLINE B64 shift_left(B64 v) {
    return {_mm256_slli_epi16(v.lo, N), _mm256_slli_epi16(v.hi, N)};
  }
  static HM_INLINE B64 or_(B64 a, B64 b) {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
  }
  // table[v] for bytes v in 0..15.
  static HM_INLINE B64 lookup(const int8_t* table, B64 v) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(t, v.lo), _mm256_shuffle_epi8(t, v.hi)};
  }

  // Dot products of codes w with activations x (-127..127), as floats.
  // Unsigned: w <= 127, so that pairs of products fit int16.
  static HM_INLINE F16 dot_unsigned(B64 w, B64 x) {
    return {dot32(w.lo, x.lo, _mm256_set1_epi16(1)), dot32(w.hi, x.hi, _mm256_set1_epi16(1))};
  }
  // Signed: |w| <= 128 times (x with the sign of w); 2 * 128 * 127 still fits int16.
  static HM_INLINE F16 dot_signed(B64 w, B64 x) {
    return {dot32(_mm256_abs_epi8(w.lo), _mm256_sign_epi8(x.lo, w.lo), _mm256_set1_epi16(1)),
            dot32(_mm256_abs_epi8(w.hi), _mm256_sign_epi8(x.hi, w.hi), _mm256_set1_epi16(1))};
  }
  // Unsigned, each 16 products times their multiplier of pair P.
  template <int P>
  static HM_INLINE F16 dot_multiplied(B64 w, B64 x, const Multipliers& m) {
    const __m256i source = P < 2 ? m.first : m.second;
    return {dot32(w.lo, x.lo, _mm256_shuffle_epi8(source, pick<4 * P % 8>())),
            dot32(w.hi, x.hi, _mm256_shuffle_epi8(source, pick<4 * P % 8 + 2>()))};
  }

 private:
  static HM_INLINE __m256 dot32(__m256i w, __m256i x, __m256i multiplier) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_maddubs_epi16(w, x), multiplier));
  }
  // Shuffle control: int16 number N over the lower 128 bits, N + 1 over the upper.
  template <int N>
  static HM_INLINE __m256i pick() {
    constexpr int low = (2 * N + 1) << 8 | 2 * N;
    constexpr int high = (2 * N + 3) << 8 | (2 * N + 2);
    return _mm256_set_m128i(_mm_set1_epi16(high), _mm_set1_epi16(low));
  }
  template <int N>
  static HM_INLINE __m256i shift_right(__m256i v) {
    if constexpr (N == 0) return v;
    return _mm256_srli_epi16(v, N);
  }
  static HM_INLINE __m256i split_nibbles(const void* p) {
    const __m128i v = _mm_loadu_si128((const __m128i*)p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
  }
  template <int Bit>
  static HM_INLINE __m256i spread(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    const __m256i byte_of = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                              0x0101010101010101, 0x0000000000000000);
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i bytes = _mm256_and_si256(
        _mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of), bit_of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(bytes, bit_of), _mm256_set1_epi8(Bit));
  }
  static HM_INLINE __m256 widen_bf16(const __m128i* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
  }
};

}  // namespace
}  // namespace hm
