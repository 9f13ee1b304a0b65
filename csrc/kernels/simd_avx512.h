// The SIMD vocabulary of simd_avx2.h in AVX-512 F, BW, VL, DQ, VNNI: a pair of blocks is one
// register. The same integers and the same order of float additions, and so the same bits.
#pragma once

#include "kernels/simd_ymm.h"

namespace hm {
namespace {

struct Simd : SimdYmm {
  static constexpr int kUnitRows = 2;
  static constexpr int kFloatRows = 4, kFloatTokens = 6, kFloatRowsOfOneToken = 4;
  static constexpr bool kFetchesRuns = true;
  static constexpr MatmulCosts kCosts = {22, 6.2, 60, 5.5};
  static constexpr int kSignedBias = 128;  // what dot_signed adds to its codes
  using F16 = __m512;
  using B64 = __m512i;
  using Dot = __m512i;

  // F16
  static HM_INLINE F16 zero() { return _mm512_setzero_ps(); }
  static HM_INLINE F16 load(const float* p) { return _mm512_loadu_ps(p); }
  static HM_INLINE void store(float* p, F16 v) { _mm512_storeu_ps(p, v); }
  static HM_INLINE F16 load_half(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
  }
  static HM_INLINE F16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static HM_INLINE F16 fma(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
  static HM_INLINE float reduce(F16 v) {
    return reduce8(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)));
  }

  // B64
  static HM_INLINE B64 load64(const void* p) { return _mm512_loadu_si512(p); }
  // 256 floats, rounded to codes and the scales of their blocks: rounding_avx512-inl.h.
  static void round_group(const float* x, B64 (&codes)[4], float* d);
  static HM_INLINE void store64(void* p, B64 v) { _mm512_storeu_si512(p, v); }
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
  static HM_INLINE B64 nibbles8(const void* p) {
    const __m512i v = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)p));
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), v);
    const __m512i counts = _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(twice, counts), _mm512_set1_epi8(15));
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
  static HM_INLINE B64 four_pairs(const void* a, const void* b) {
    int64_t low, high;
    __builtin_memcpy(&low, a, sizeof low);
    __builtin_memcpy(&high, b, sizeof high);
    const __m512i bytes = join(_mm256_set1_epi64x(low), _mm256_set1_epi64x(high));
    const __m512i counts = _mm512_set_epi64(6, 2, 4, 0, 6, 2, 4, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(bytes, counts), _mm512_set1_epi8(3));
  }
  static HM_INLINE B64 pairs_in_order(const void* p) {
    __m512i v = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
    v = _mm512_or_si512(v, _mm512_slli_epi32(v, 12));
    return _mm512_and_si512(_mm512_or_si512(v, _mm512_slli_epi32(v, 6)), _mm512_set1_epi8(3));
  }
  static HM_INLINE B64 xor_shifted(B64 v) {
    v = _mm512_and_si512(v, _mm512_set1_epi16(-2));
    return _mm512_xor_si512(v, _mm512_srli_epi16(v, 1));
  }
  static HM_INLINE uint32_t low_bits(B64 v) {
    return static_cast<uint32_t>(_mm512_test_epi16_mask(v, _mm512_set1_epi16(1)));
  }
  template <int Bit>
  static HM_INLINE B64 lookup_plane(const int8_t* table, B64 v, const void* plane) {
    const __m512i bit_of = join(_mm256_set1_epi8(static_cast<char>(1 << Bit)),
                                _mm256_set1_epi8(static_cast<char>(2 << Bit)));
    return lookup_either(table, v, _mm512_test_epi8_mask(load32_twice(plane), bit_of));
  }
  static HM_INLINE B64 lookup64(const int8_t* table, B64 low, B64 high) {
    const __mmask64 is_odd = _mm512_test_epi8_mask(high, _mm512_set1_epi8(1));
    const __mmask64 is_upper = _mm512_test_epi8_mask(high, _mm512_set1_epi8(2));
    return _mm512_mask_mov_epi8(lookup_either(table, low, is_odd), is_upper,
                                lookup_either(table + 32, low, is_odd));
  }
  template <int Lanes>
  static HM_INLINE B64 add_to_lanes(B64 v, uint64_t bytes) {
    const __m512i four = _mm512_set1_epi32(static_cast<int32_t>(bytes));
    constexpr int64_t ones = 0x0101010101010101;
    const __m512i order =
        Lanes == 2 ? _mm512_set_epi64(ones, ones, ones, ones, 0, 0, 0, 0)
                   : _mm512_set_epi64(3 * ones, 3 * ones, 2 * ones, 2 * ones, ones, ones, 0, 0);
    return _mm512_add_epi8(v, _mm512_shuffle_epi8(four, order));
  }
  template <int Bit>
  static HM_INLINE B64 lookup_pairs(const PairTable& table, const void* nibbles, const void* bits) {
    const __m512i low = words_twice(nibbles);  // of a word, bits 0 to 4 choose the pair
    const __m512i high = _mm512_slli_epi16(words_twice(bits), 4);
    const __m512i low_counts = counts<0, 4>(), high_counts = counts<Bit, Bit + 1>();
    const __m512i mask = _mm512_set1_epi16(15);
    const __m512i index =
        _mm512_or_si512(_mm512_and_si512(mask, _mm512_srlv_epi16(low, low_counts)),
                        _mm512_andnot_si512(mask, _mm512_srlv_epi16(high, high_counts)));
    return _mm512_permutexvar_epi16(index, _mm512_load_si512(table.words));
  }
  static HM_INLINE B64 lookup(const int8_t* table, B64 v) {
    const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
    return _mm512_shuffle_epi8(t, v);
  }

  static HM_INLINE B64 add(B64 a, B64 b) { return _mm512_add_epi8(a, b); }
  static HM_INLINE B64 set_bytes(int8_t v) { return _mm512_set1_epi8(v); }
  static HM_INLINE B64 of_blocks(uint32_t bits, int8_t v) {
    return _mm512_maskz_mov_epi64(static_cast<__mmask8>(bits), _mm512_set1_epi8(v));
  }
  static HM_INLINE void stride(B64 (&v)[4]) {
    const __m512i low = _mm512_set_epi64(13, 9, 5, 1, 12, 8, 4, 0);
    const __m512i high = _mm512_set_epi64(15, 11, 7, 3, 14, 10, 6, 2);
    const __m512i a = _mm512_permutex2var_epi64(v[0], low, v[1]);
    const __m512i b = _mm512_permutex2var_epi64(v[0], high, v[1]);
    const __m512i c = _mm512_permutex2var_epi64(v[2], low, v[3]);
    const __m512i d = _mm512_permutex2var_epi64(v[2], high, v[3]);
    v[0] = join(_mm512_castsi512_si256(a), _mm512_castsi512_si256(c));
    v[1] = _mm512_shuffle_i64x2(a, c, 0xee);
    v[2] = join(_mm512_castsi512_si256(b), _mm512_castsi512_si256(d));
    v[3] = _mm512_shuffle_i64x2(b, d, 0xee);
  }

  static HM_INLINE B64 plus_bias(B64 v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }

  static HM_INLINE Dot dot_unsigned(B64 w, B64 x) {
    return _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, x);
  }
  static HM_INLINE Dot dot_signed(B64 w, B64 x) { return dot_unsigned(plus_bias(w), x); }
  static HM_INLINE Dot dot_two(B64 w0, B64 x0, B64 w1, B64 x1) {
    return _mm512_dpbusd_epi32(dot_unsigned(w0, x0), w1, x1);
  }

  using Signs = __mmask64;
  static HM_INLINE B64 with_signs(B64 v, Signs signs) {
    return _mm512_mask_sub_epi8(v, signs, _mm512_setzero_si512(), v);
  }

  struct PerBlock : PerBlockYmm {
    static HM_INLINE void to_unit(const Float (&rows)[2], __m512 (&out)[1]) {
      const __m512i joined = join(_mm256_castps_si256(rows[0]), _mm256_castps_si256(rows[1]));
      const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
      out[0] = _mm512_castsi512_ps(_mm512_permutexvar_epi64(order, joined));
    }
    static HM_INLINE void reduce_unit(const __m512 (&v)[1], float* out) {
      const __m256 eight =
          _mm256_add_ps(_mm512_castps512_ps256(v[0]), _mm512_extractf32x8_ps(v[0], 1));
      const __m128 four =
          _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
      const __m128 sums = _mm_add_ps(four, _mm_movehdup_ps(four));
      out[0] = _mm_cvtss_f32(sums);
      out[1] = _mm_cvtss_f32(_mm_movehl_ps(sums, sums));
    }
    static HM_INLINE Int add_where(uint32_t bits, Int v, Int w) {
      return _mm256_mask_add_epi32(v, static_cast<__mmask8>(bits), v, w);
    }
    static HM_INLINE Int strided_sums(Dot a, Dot b) {
      const __m512i pairs = _mm512_add_epi32(a, b);
      return _mm512_cvtepi64_epi32(_mm512_add_epi32(pairs, _mm512_srli_epi64(pairs, 32)));
    }
    static HM_INLINE Int sums(Dot a, Dot b, Dot c, Dot d) {
      const __m512i quarters =
          sum_quarters(a, b, c, d);  // of blocks 0 2 4 6 | same | 1 3 5 7 | same
      const __m512i blocks =
          _mm512_add_epi32(quarters, _mm512_shuffle_i32x4(quarters, quarters, 0xb1));
      const __m512i order = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 11, 3, 10, 2, 9, 1, 8, 0);
      return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, blocks));
    }
  };

  struct PerHalf {
    static constexpr int kLanes = 16;
    using Float = __m512;
    using Int = __m512i;
    static HM_INLINE Float set(float v) { return _mm512_set1_ps(v); }
    static HM_INLINE void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
    static HM_INLINE Float load(const float* p) { return _mm512_loadu_ps(p); }
    static HM_INLINE Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static HM_INLINE Float keep(Float v, Float bits) { return _mm512_and_ps(v, bits); }
    static HM_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    static HM_INLINE Float from_s8(const int8_t* p) {
      return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
    }
    static HM_INLINE Float from_s8(uint64_t low, uint64_t high) {
      const __m128i v = _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
      return to_float(_mm512_cvtepi8_epi32(v));
    }
    static HM_INLINE Float from_s8(const uint64_t (&bytes)[2]) {
      return from_s8(bytes[0], bytes[1]);
    }
    static HM_INLINE Float low_nibbles(const uint8_t* p) {
      const __m128i v = _mm_and_si128(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8(15));
      return to_float(_mm512_cvtepi8_epi32(v));
    }
    static HM_INLINE Float high_nibbles(const uint8_t* p) {
      const __m128i v = _mm_srli_epi16(_mm_loadu_si128((const __m128i*)p), 4);
      return to_float(_mm512_cvtepi8_epi32(_mm_and_si128(v, _mm_set1_epi8(15))));
    }
    static HM_INLINE Float gather_e4m3_half(const uint8_t* p, int stride) {
      return mul(_mm512_cvtph_ps(gather_e4m3(p, stride)), set(128.0f));
    }
    static HM_INLINE Float activation_scales(const float* d) {
      const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
      return _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(d)));
    }
    static HM_INLINE Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
    static HM_INLINE Int load_int(const int32_t* p) { return _mm512_loadu_si512(p); }
    static HM_INLINE void store_int(int32_t* p, Int v) { _mm512_storeu_si512(p, v); }
    template <int Shift>
    static HM_INLINE Int sub_shifted(Int v, Int w) {
      return _mm512_sub_epi32(v, _mm512_slli_epi32(w, Shift));
    }
    template <int N>
    static HM_INLINE Int times(Int v) {
      if constexpr (N == 1) return v;
      const Int even = _mm512_slli_epi32(v, N / 2);
      if constexpr (N % 2 == 0) return even;
      return _mm512_add_epi32(even, v);
    }
    static HM_INLINE Int add_where(uint32_t bits, Int v, Int w) {
      return _mm512_mask_add_epi32(v, static_cast<__mmask16>(bits), v, w);
    }
    static HM_INLINE Int strided_sums(Dot a, Dot b) {
      return _mm512_mask_blend_epi32(0xaaaa, _mm512_add_epi32(a, _mm512_srli_epi64(a, 32)),
                                     _mm512_add_epi32(b, _mm512_slli_epi64(b, 32)));
    }
    static HM_INLINE void to_unit(const Float (&rows)[2], __m512 (&out)[2]) {
      for (int r = 0; r < 2; ++r) out[r] = _mm512_shuffle_ps(rows[r], rows[r], 0xd8);
    }
    static HM_INLINE void reduce_unit(const __m512 (&v)[2], float* out) {
      for (int r = 0; r < 2; ++r) out[r] = reduce(_mm512_shuffle_ps(v[r], v[r], 0xd8));
    }
    static HM_INLINE Int sums(Dot a, Dot b, Dot c, Dot d) {
      const __m512i order = _mm512_set_epi32(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
      return _mm512_permutexvar_epi32(order, sum_quarters(a, b, c, d));
    }
    static HM_INLINE float reduce(Float v) { return Simd::reduce(v); }
  };

  // Rows in lanes, for gemm.
  struct Panel {
    static constexpr int kLanes = 16;
    static constexpr int kTokens = 6;
    using Float = __m512;
    using Int = __m512i;
    static HM_INLINE Int set_int(int32_t v) { return _mm512_set1_epi32(v); }
    static HM_INLINE Float set(float v) { return _mm512_set1_ps(v); }
    static HM_INLINE Int load_codes(const uint8_t* p) { return _mm512_load_si512(p); }
    static HM_INLINE Float load(const float* p) { return _mm512_load_ps(p); }
    static HM_INLINE void store(float* p, Float v) { _mm512_storeu_ps(p, v); }
    // A run of dots needs no end: sums have 32 bits from the start.
    static constexpr int run_length(int) { return kSuperWeights; }
    static HM_INLINE Int begin_run(Int sum) { return sum; }
    template <bool IsSigned>
    static HM_INLINE Int dot(Int run, Int w, Int x) {
      return _mm512_dpbusd_epi32(run, w, x);
    }
    static HM_INLINE Int end_run(Int, Int run) { return run; }
    // Sums of neighbours, from two registers to the lanes of one.
    static HM_INLINE Int add_runs(Int a, Int b) {
      const __m512 x = _mm512_castsi512_ps(a), y = _mm512_castsi512_ps(b);
      return _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(x, y, 0x88)),
                              _mm512_castps_si512(_mm512_shuffle_ps(x, y, 0xdd)));
    }
    static HM_INLINE Int add_int(Int a, Int b) { return _mm512_add_epi32(a, b); }
    static HM_INLINE Int as_int(Float v) { return _mm512_castps_si512(v); }
    static HM_INLINE Int dot_pairs(Int sum, Int w, Int x) {
#ifdef SIMDE_ENABLE_NATIVE_ALIASES
      return _mm512_add_epi32(sum, _mm512_madd_epi16(w, x));
#else  // with the intrinsic, GCC 12 keeps half of 24 sums in memory
      asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
      return sum;
#endif
    }
    static HM_INLINE Float to_float(Int v) { return _mm512_cvtepi32_ps(v); }
    static HM_INLINE Float add(Float a, Float b) { return _mm512_add_ps(a, b); }
    static HM_INLINE Float mul(Float a, Float b) { return _mm512_mul_ps(a, b); }
    static HM_INLINE Float fma(Float a, Float b, Float c) { return _mm512_fmadd_ps(a, b, c); }
    // Words: their bits from `Shift` on, or below it to higher places, as far as the mask has them.
    template <int Shift, int Mask>
    static HM_INLINE Int bits_of(Int v) {
      if constexpr (Shift > 0) v = _mm512_srli_epi32(v, Shift);
      if constexpr (Shift < 0) v = _mm512_slli_epi32(v, -Shift);
      return Mask == -1 ? v : _mm512_and_si512(v, _mm512_set1_epi32(Mask));
    }
    static HM_INLINE Int or_(Int a, Int b) { return _mm512_or_si512(a, b); }
    static HM_INLINE Int xor_(Int a, Int b) { return _mm512_xor_si512(a, b); }
    template <int I>
    static HM_INLINE Int signed_byte(Int v) {
      return _mm512_srai_epi32(_mm512_slli_epi32(v, 24 - 8 * I), 24);
    }
    // Binary16 numbers at(0), at(1), ...
    template <class At>
    static HM_INLINE Float from_half(const At& at) {
      return _mm512_cvtph_ps(_mm256_set_epi16(at(15), at(14), at(13), at(12), at(11), at(10), at(9),
                                              at(8), at(7), at(6), at(5), at(4), at(3), at(2),
                                              at(1), at(0)));
    }
    // Binary16 numbers from bit `Shift` on.
    template <int Shift>
    static HM_INLINE Float from_half_words(Int v) {
      return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(v, Shift)));
    }
    static HM_INLINE Int load_units(const uint8_t* a, const uint8_t* b) {
      return join(_mm256_loadu_si256((const __m256i*)a), _mm256_loadu_si256((const __m256i*)b));
    }
    // 16 bytes each from at(0), at(1), ...
    template <class At>
    static HM_INLINE Int load_quarters(const At& at) {
      const __m512i v = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)at(0)));
      const __m512i w = _mm512_inserti32x4(v, _mm_loadu_si128((const __m128i*)at(1)), 1);
      const __m512i x = _mm512_inserti32x4(w, _mm_loadu_si128((const __m128i*)at(2)), 2);
      return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i*)at(3)), 3);
    }
    // out[c] = word c of the 16 bytes at at(0), at(1), ...
    template <class At>
    static HM_INLINE void transpose_four(const At& at, __m512i (&out)[4]) {
      __m512i a[4];
      for (int r = 0; r < 4; ++r) {
        a[r] = load_quarters([&](int quarter) { return at(4 * quarter + r); });
      }
      const __m512i low01 = _mm512_unpacklo_epi32(a[0], a[1]);
      const __m512i high01 = _mm512_unpackhi_epi32(a[0], a[1]);
      const __m512i low23 = _mm512_unpacklo_epi32(a[2], a[3]);
      const __m512i high23 = _mm512_unpackhi_epi32(a[2], a[3]);
      out[0] = _mm512_unpacklo_epi64(low01, low23);
      out[1] = _mm512_unpackhi_epi64(low01, low23);
      out[2] = _mm512_unpacklo_epi64(high01, high23);
      out[3] = _mm512_unpackhi_epi64(high01, high23);
    }
    // out[c] = word c of row(0), row(1), ...
    template <class Row>
    static HM_INLINE void transpose(const Row& row, __m512i (&out)[16]) {
      __m512i a[16], b[16];
      for (int i = 0; i < 16; ++i) a[i] = row(i);
      for (int i = 0; i < 16; i += 2) {  // words of row pairs
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
      }
      for (int i = 0; i < 16; i += 4) {  // a[i + c]: in quarter q, word 4 q + c of four rows
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
      }
      for (int c = 0; c < 4; ++c) {
        const __m512i even01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0x88);  // quarters 0 2 0 2
        const __m512i odd01 = _mm512_shuffle_i32x4(a[c], a[4 + c], 0xdd);   // 1 3 1 3
        const __m512i even23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0x88);
        const __m512i odd23 = _mm512_shuffle_i32x4(a[8 + c], a[12 + c], 0xdd);
        out[c] = _mm512_shuffle_i32x4(even01, even23, 0x88);
        out[8 + c] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
        out[4 + c] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
        out[12 + c] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
      }
    }
    static HM_INLINE void transpose(const uint8_t* rows, int64_t stride, __m512i (&out)[16]) {
      transpose([=](int i) { return load_codes(rows + i * stride); }, out);
    }
    static HM_INLINE void fetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }
    static HM_INLINE void fetch_near(const uint8_t* p) {
      _mm_prefetch((const char*)p, _MM_HINT_T0);
    }
    static HM_INLINE void store_codes(uint8_t* p, Int v) { _mm512_store_si512(p, v); }
  };

 private:
  // Quarter q of the result: the sums of quarter q of a, b, c and d.
  static HM_INLINE __m512i sum_quarters(__m512i a, __m512i b, __m512i c, __m512i d) {
    const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
  }
  // table[v], or table[16 + v] where the mask is set.
  static HM_INLINE __m512i lookup_either(const int8_t* table, __m512i v, __mmask64 is_upper) {
    const __m512i upper = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table + 1));
    return _mm512_mask_shuffle_epi8(lookup(table, v), is_upper, upper, v);
  }
  // 16 bytes as words, twice.
  static HM_INLINE __m512i words_twice(const void* p) {
    return _mm512_broadcast_i64x4(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)));
  }
  template <int First, int Second>
  static HM_INLINE __m512i counts() {
    return join(_mm256_set1_epi16(First), _mm256_set1_epi16(Second));
  }
  static HM_INLINE __m512i join(__m256i lo, __m256i hi) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1);
  }
};

}  // namespace
}  // namespace hm
