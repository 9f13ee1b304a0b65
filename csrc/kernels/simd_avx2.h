// The SIMD vocabulary of matmul-inl.h and groups-inl.h in AVX2 + FMA + F16C.
//
//   F16   16 floats: lane l of half h belongs to block 2p + h of pair p (a block: 32 weights)
//   F8    8 floats, one per block of a group (256 weights)
//   B64   64 bytes, the codes of a pair of blocks
//   I16   16 int16, one per 16 weights of a group
//
// A dot product adds four neighbouring products into each of 8 lanes per block (what the hardware's
// multiply-add of pairs gives), exactly, in integers.
#pragma once

#include "kernels/simd_ymm.h"

namespace hm {
namespace {

struct Simd : SimdYmm {
  static constexpr int kTileTokens = 4;  // their accumulators fill 8 of the 16 registers

  struct F16 {
    __m256 lo, hi;
  };
  struct B64 {
    __m256i lo, hi;
  };
  // Eight scales in memory: a broadcast load costs no shuffle.
  struct Scales {
    alignas(32) float f[8];
  };
  // 16 int16: numbers 0..7 in both halves of `first`, 8..15 in both of `second`.
  struct Multipliers {
    __m256i first, second;
  };

  // F16
  static HM_INLINE F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static HM_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static HM_INLINE F16 load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
  }
  static HM_INLINE F16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
  using SimdYmm::fma;
  static HM_INLINE F16 fma(F16 a, F16 b, F16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  // Sum of all lanes of a and of `extra`.
  static HM_INLINE float reduce(F16 a, F8 extra) { return SimdYmm::reduce(a.lo, a.hi, extra); }

  // `scale` spreads the two scales of pair P over its lanes.
  static HM_INLINE Scales scales(F8 v) {
    Scales s;
    _mm256_store_ps(s.f, v);
    return s;
  }
  template <int P>
  static HM_INLINE F16 scale(const Scales& s) {
    return {_mm256_broadcast_ss(&s.f[2 * P]), _mm256_broadcast_ss(&s.f[2 * P + 1])};
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
  static HM_INLINE B64 load32_twice(const void* p) { return load32(p, p); }
  // Eight codes a word.
  static HM_INLINE B64 from_words(const uint64_t (&w)[8]) {
    return {_mm256_set_epi64x(w[3], w[2], w[1], w[0]), _mm256_set_epi64x(w[7], w[6], w[5], w[4])};
  }
  // Low nibbles of 16 bytes at a, then their high nibbles, as block 0; of b as block 1.
  static HM_INLINE B64 nibbles16(const void* a, const void* b) {
    return {split_nibbles(a), split_nibbles(b)};
  }
  // Byte i of block 0 (1) is Bit where bit i of the 32 bits at a (b) is set, else 0.
  template <int Bit>
  static HM_INLINE B64 spread_bits(const void* a, const void* b) {
    return {spread<Bit>(a), spread<Bit>(b)};
  }
  // Bytewise (block 0 >> N0, block 1 >> N1) & Mask, where Mask << N0 and Mask << N1 are bytes.
  template <int N0, int N1, int Mask>
  static HM_INLINE B64 bits(B64 v) {
    const __m256i mask = _mm256_set1_epi8(Mask);
    return {_mm256_and_si256(shift_right<N0>(v.lo), mask),
            _mm256_and_si256(shift_right<N1>(v.hi), mask)};
  }
  // Bytewise v << N, where that is a byte.
  template <int N>
  static HM_INLINE B64 shift_left(B64 v) {
    return {_mm256_slli_epi16(v.lo, N), _mm256_slli_epi16(v.hi, N)};
  }
  static HM_INLINE B64 or_(B64 a, B64 b) {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
  }
  static HM_INLINE B64 sub(B64 a, B64 b) {
    return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)};
  }
  // -v where the mask is 255, v where it is 0.
  static HM_INLINE B64 negate_where(B64 mask, B64 v) {
    return sub({_mm256_xor_si256(v.lo, mask.lo), _mm256_xor_si256(v.hi, mask.hi)}, mask);
  }
  // table[v] for bytes v of 0..15.
  static HM_INLINE B64 lookup(const int8_t* table, B64 v) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(t, v.lo), _mm256_shuffle_epi8(t, v.hi)};
  }

  // Codes w times activations x in -127..127, four products a lane, as floats.
  // w in 0..127: two products fit int16.
  static HM_INLINE F16 dot_unsigned(B64 w, B64 x) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {dot32(w.lo, x.lo, ones), dot32(w.hi, x.hi, ones)};
  }
  // w in -128..127, as |w| times x with the sign of w: 2 * 128 * 127 still fits int16.
  static HM_INLINE F16 dot_signed(B64 w, B64 x) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {dot32(_mm256_abs_epi8(w.lo), _mm256_sign_epi8(x.lo, w.lo), ones),
            dot32(_mm256_abs_epi8(w.hi), _mm256_sign_epi8(x.hi, w.hi), ones)};
  }
  // w in 0..127, and each 16 products times their multiplier, for pair P.
  template <int P>
  static HM_INLINE F16 dot_multiplied(B64 w, B64 x, const Multipliers& m) {
    const __m256i four = P < 2 ? m.first : m.second;
    return {dot32(w.lo, x.lo, _mm256_shuffle_epi8(four, pick<4 * (P % 2)>())),
            dot32(w.hi, x.hi, _mm256_shuffle_epi8(four, pick<4 * (P % 2) + 2>()))};
  }
  // As dot_signed, and times the multipliers.
  template <int P>
  static HM_INLINE F16 dot_signed_multiplied(B64 w, B64 x, const Multipliers& m) {
    return dot_multiplied<P>({_mm256_abs_epi8(w.lo), _mm256_abs_epi8(w.hi)},
                             {_mm256_sign_epi8(x.lo, w.lo), _mm256_sign_epi8(x.hi, w.hi)}, m);
  }

 private:
  static HM_INLINE __m256 dot32(__m256i w, __m256i x, __m256i multiplier) {
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(_mm256_maddubs_epi16(w, x), multiplier));
  }
  // Shuffle control: int16 number N all over the lower half, N + 1 over the upper.
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
    const __m256i bits =
        _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of), bit_of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit_of), _mm256_set1_epi8(Bit));
  }
  static HM_INLINE __m256 widen_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
};

}  // namespace
}  // namespace hm
