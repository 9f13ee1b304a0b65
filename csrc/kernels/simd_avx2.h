// The SIMD vocabulary of gemv-inl.h and groups-inl.h in AVX2 + FMA + F16C. An ISA file names it
// Simd, or what is derived from it.
//
//   F16       16 floats
//   B64       64 bytes, the codes of a pair of blocks (a block: 32 weights)
//   Dot       16 int32, four neighbouring products each of such a pair: exact
//   PerBlock  what a format with a scale per 32 weights does with a group of 256: 8 lanes
//   PerHalf   the same for a scale per 16 weights: 16 lanes
//   Panel     rows in lanes, for gemm-inl.h
#pragma once

#include "kernels/codes_avx2.h"

namespace hm {
namespace {

struct SimdAvx2 : CodesAvx2 {
  static constexpr int kUnitRows = 1;  // that few_tokens-inl.h multiplies at once
  static constexpr int kFloatRows = 2, kFloatTokens = 3, kFloatRowsOfOneToken = 4;
  static constexpr bool kFetchesRuns = false;
  static constexpr MatmulCosts kCosts = {7, 12, 42, 10.4};
  static constexpr int kSignedBias = 0;

  struct F16 {
    __m256 lo, hi;
  };
  struct Dot {
    __m256i lo, hi;
  };

  // 256 floats, rounded to codes and the scales of their blocks: rounding_avx2-inl.h.
  static void round_group(const float* x, B64 (&codes)[4], float* d);

  // F16
  static HM_INLINE F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static HM_INLINE F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static HM_INLINE void store(float* p, F16 v) {
    _mm256_storeu_ps(p, v.lo);
    _mm256_storeu_ps(p + 8, v.hi);
  }
  static HM_INLINE F16 load_half(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)),
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
  }
  static HM_INLINE F16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
  static HM_INLINE F16 fma(F16 a, F16 b, F16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static HM_INLINE float reduce(F16 v) { return reduce8(_mm256_add_ps(v.lo, v.hi)); }

  // Codes as dot_signed of a panel wants them.
  static HM_INLINE B64 plus_bias(B64 v) { return v; }

  // Codes w times activations x in -127..127, four products a lane.
  // w in 0..127: two products fit int16.
  static HM_INLINE Dot dot_unsigned(B64 w, B64 x) { return {dot32(w.lo, x.lo), dot32(w.hi, x.hi)}; }
  // w in -128..127, as |w| times x with the sign of w: 2 * 128 * 127 still fits int16.
  static HM_INLINE Dot dot_signed(B64 w, B64 x) {
    return {dot32(_mm256_abs_epi8(w.lo), _mm256_sign_epi8(x.lo, w.lo)),
            dot32(_mm256_abs_epi8(w.hi), _mm256_sign_epi8(x.hi, w.hi))};
  }

  // w0 x0 + w1 x1 for w in 0..62: four products fit int16.
  static HM_INLINE Dot dot_two(B64 w0, B64 x0, B64 w1, B64 x1) {
    return {dot64(w0.lo, x0.lo, w1.lo, x1.lo), dot64(w0.hi, x0.hi, w1.hi, x1.hi)};
  }

  using Signs = B64;  // of bytes: -1 or 1
  static HM_INLINE B64 with_signs(B64 v, Signs signs) {
    return {_mm256_sign_epi8(v.lo, signs.lo), _mm256_sign_epi8(v.hi, signs.hi)};
  }

  // What _mm256_hadd_epi32 does, whose three steps take a Zen longer.
  static HM_INLINE __m256i add_pairs(__m256i a, __m256i b) {
    const __m256 x = _mm256_castsi256_ps(a), y = _mm256_castsi256_ps(b);
    return _mm256_add_epi32(_mm256_castps_si256(_mm256_shuffle_ps(x, y, 0x88)),
                            _mm256_castps_si256(_mm256_shuffle_ps(x, y, 0xdd)));
  }

  struct PerBlock : PerBlockYmm {
    using PerBlockYmm::add_where;
    // v + w in the lanes of a mask.
    static HM_INLINE Int add_where(__m256i lanes, Int v, Int w) {
      return _mm256_add_epi32(v, _mm256_and_si256(lanes, w));
    }
    // Numbers of a unit's lanes in the order of Panel::add_runs, and the sum of each row's lanes.
    static HM_INLINE void to_unit(const Float (&rows)[1], __m256 (&out)[1]) {
      out[0] = reorder(rows[0]);
    }
    static HM_INLINE void reduce_unit(const __m256 (&v)[1], float* out) {
      *out = reduce(reorder(v[0]));
    }
    // The sum of each block, from the dot products of strided vectors 0, 1 and 2, 3.
    static HM_INLINE Int strided_sums(Dot a, Dot b) {
      const __m256i blocks =  // 0 1 4 5 2 3 6 7
          add_pairs(_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi));
      return _mm256_permute4x64_epi64(blocks, 0xd8);
    }
    // The sum of each block, from the dot products of four pairs.
    static HM_INLINE Int sums(Dot a, Dot b, Dot c, Dot d) {
      const __m256i low = add_pairs(add_pairs(a.lo, a.hi), add_pairs(b.lo, b.hi));
      const __m256i high = add_pairs(add_pairs(c.lo, c.hi), add_pairs(d.lo, d.hi));
      return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                              _mm256_permute2x128_si256(low, high, 0x31));
    }

   private:
    static HM_INLINE Float reorder(Float v) {  // 0 1 4 5 2 3 6 7
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
    }
  };

  // A lane per half of a block, 16 weights.
  struct PerHalf {
    static constexpr int kLanes = 16;
    using Float = F16;
    struct Int {
      __m256i lo, hi;
    };
    static HM_INLINE Float set(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
    static HM_INLINE void store(float* p, Float v) {
      _mm256_storeu_ps(p, v.lo);
      _mm256_storeu_ps(p + 8, v.hi);
    }
    static HM_INLINE Float load(const float* p) { return SimdAvx2::load(p); }
    static HM_INLINE Float mul(Float a, Float b) {
      return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
    }
    static HM_INLINE Float keep(Float v, Float bits) {
      return {PerBlock::keep(v.lo, bits.lo), PerBlock::keep(v.hi, bits.hi)};
    }
    static HM_INLINE Float fma(Float a, Float b, Float c) { return SimdAvx2::fma(a, b, c); }
    static HM_INLINE Float from_s8(const int8_t* p) {
      return {PerBlock::from_s8(p), PerBlock::from_s8(p + 8)};
    }
    static HM_INLINE Float from_s8(uint64_t low, uint64_t high) {
      return {PerBlock::from_s8(low), PerBlock::from_s8(high)};
    }
    static HM_INLINE Float from_s8(const uint64_t (&bytes)[2]) {
      return from_s8(bytes[0], bytes[1]);
    }
    static HM_INLINE Float low_nibbles(const uint8_t* p) {
      return from_bytes(_mm_and_si128(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8(15)));
    }
    static HM_INLINE Float high_nibbles(const uint8_t* p) {
      const __m128i v = _mm_srli_epi16(_mm_loadu_si128((const __m128i*)p), 4);
      return from_bytes(_mm_and_si128(v, _mm_set1_epi8(15)));
    }
    // Halves of unsigned E4M3 numbers: ue4m3_half of four at p, p + stride, ...
    static HM_INLINE Float gather_e4m3_half(const uint8_t* p, int stride) {
      const __m256i v = gather_e4m3(p, stride);
      return mul({_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
                  _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))},
                 set(128.0f));
    }
    // Eight numbers, each twice.
    static HM_INLINE Float activation_scales(const float* d) {
      const __m256 v = _mm256_loadu_ps(d);
      return {_mm256_permutevar8x32_ps(v, _mm256_set_epi32(3, 3, 2, 2, 1, 1, 0, 0)),
              _mm256_permutevar8x32_ps(v, _mm256_set_epi32(7, 7, 6, 6, 5, 5, 4, 4))};
    }
    static HM_INLINE Float to_float(Int v) {
      return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)};
    }
    static HM_INLINE Int load_int(const int32_t* p) {
      return {PerBlock::load_int(p), PerBlock::load_int(p + 8)};
    }
    static HM_INLINE void store_int(int32_t* p, Int v) {
      PerBlock::store_int(p, v.lo);
      PerBlock::store_int(p + 8, v.hi);
    }
    template <int Shift>
    static HM_INLINE Int sub_shifted(Int v, Int w) {
      return {PerBlock::sub_shifted<Shift>(v.lo, w.lo), PerBlock::sub_shifted<Shift>(v.hi, w.hi)};
    }
    template <int N>
    static HM_INLINE Int times(Int v) {
      return {PerBlock::times<N>(v.lo), PerBlock::times<N>(v.hi)};
    }
    static HM_INLINE Int add_where(uint32_t bits, Int v, Int w) {
      return {PerBlock::add_where(bits, v.lo, w.lo), PerBlock::add_where(bits >> 8, v.hi, w.hi)};
    }
    static HM_INLINE Int strided_sums(Dot a, Dot b) {
      return {strided_halves(a.lo, b.lo), strided_halves(a.hi, b.hi)};
    }
    static HM_INLINE Int sums(Dot a, Dot b, Dot c, Dot d) { return {halves(a, b), halves(c, d)}; }
    static HM_INLINE float reduce(Float v) { return SimdAvx2::reduce(v); }
    static HM_INLINE void to_unit(const Float (&rows)[1], __m256 (&out)[2]) {
      const Float v = reorder(rows[0]);
      out[0] = v.lo;
      out[1] = v.hi;
    }
    static HM_INLINE void reduce_unit(const __m256 (&v)[2], float* out) {
      *out = reduce(reorder({v[0], v[1]}));
    }

   private:
    static HM_INLINE Float reorder(Float v) {
      return {_mm256_shuffle_ps(v.lo, v.lo, 0xd8), _mm256_shuffle_ps(v.hi, v.hi, 0xd8)};
    }
    static HM_INLINE Float from_bytes(__m128i v) {
      return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)),
              _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)))};
    }
    static HM_INLINE __m256i strided_halves(__m256i a, __m256i b) {
      return _mm256_blend_epi32(_mm256_add_epi32(a, _mm256_srli_epi64(a, 32)),
                                _mm256_add_epi32(b, _mm256_slli_epi64(b, 32)), 0xaa);
    }
    static HM_INLINE __m256i halves(Dot a, Dot b) {
      const __m256i even_odd = add_pairs(add_pairs(a.lo, a.hi), add_pairs(b.lo, b.hi));
      return _mm256_permutevar8x32_epi32(even_odd, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
    }
  };

  // Rows in lanes, for gemm.
  struct Panel {
    static constexpr int kLanes = 8;
    static constexpr int kTokens = 3;
    using Float = __m256;
    using Int = __m256i;
    static HM_INLINE Int set_int(int32_t v) { return _mm256_set1_epi32(v); }
    static HM_INLINE Float set(float v) { return _mm256_set1_ps(v); }
    static HM_INLINE Int load_codes(const uint8_t* p) {
      return _mm256_load_si256((const __m256i*)p);
    }
    static HM_INLINE Float load(const float* p) { return _mm256_load_ps(p); }
    static HM_INLINE void store(float* p, Float v) { _mm256_storeu_ps(p, v); }
    // A run of dots, four products a lane each, which are added to a sum at its end: as many as
    // have sums of pairs that fit int16 together.
    static constexpr int run_length(int most_code) { return 32767 / (2 * 127 * most_code); }
    static HM_INLINE Int begin_run(Int) { return _mm256_setzero_si256(); }
    template <bool IsSigned>
    static HM_INLINE Int dot(Int run, Int w, Int x) {
      if constexpr (IsSigned) {
        return _mm256_add_epi16(run,
                                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)));
      } else {
        return _mm256_add_epi16(run, _mm256_maddubs_epi16(w, x));
      }
    }
    static HM_INLINE Int end_run(Int sum, Int run) {
      return _mm256_add_epi32(sum, _mm256_madd_epi16(run, _mm256_set1_epi16(1)));
    }
    // Sums of neighbours, from two registers to the lanes of one.
    static HM_INLINE Int add_runs(Int a, Int b) { return add_pairs(a, b); }
    static HM_INLINE Int add_int(Int a, Int b) { return _mm256_add_epi32(a, b); }
    static HM_INLINE Int as_int(Float v) { return _mm256_castps_si256(v); }
    // Adds the products of two numbers of 16 bits in each lane.
    static HM_INLINE Int dot_pairs(Int sum, Int w, Int x) {
      return _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
    }
    static HM_INLINE Float to_float(Int v) { return _mm256_cvtepi32_ps(v); }
    static HM_INLINE Float add(Float a, Float b) { return _mm256_add_ps(a, b); }
    static HM_INLINE Float mul(Float a, Float b) { return _mm256_mul_ps(a, b); }
    static HM_INLINE Float fma(Float a, Float b, Float c) { return _mm256_fmadd_ps(a, b, c); }
    // Words: their bits from `Shift` on, or below it to higher places, as far as the mask has them.
    template <int Shift, int Mask>
    static HM_INLINE Int bits_of(Int v) {
      if constexpr (Shift > 0) v = _mm256_srli_epi32(v, Shift);
      if constexpr (Shift < 0) v = _mm256_slli_epi32(v, -Shift);
      return Mask == -1 ? v : _mm256_and_si256(v, _mm256_set1_epi32(Mask));
    }
    static HM_INLINE Int or_(Int a, Int b) { return _mm256_or_si256(a, b); }
    static HM_INLINE Int xor_(Int a, Int b) { return _mm256_xor_si256(a, b); }
    template <int I>
    static HM_INLINE Int signed_byte(Int v) {
      return _mm256_srai_epi32(_mm256_slli_epi32(v, 24 - 8 * I), 24);
    }
    // Binary16 numbers at(0), at(1), ...
    template <class At>
    static HM_INLINE Float from_half(const At& at) {
      return _mm256_cvtph_ps(_mm_set_epi16(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0)));
    }
    // Binary16 numbers from bit `Shift` on.
    template <int Shift>
    static HM_INLINE Float from_half_words(Int v) {
      const __m256i words = bits_of<Shift, 0xffff>(v);
      return _mm256_cvtph_ps(
          _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
    static HM_INLINE Int load_units(const uint8_t* a, const uint8_t*) {
      return _mm256_loadu_si256((const __m256i*)a);
    }
    // 16 bytes each from at(0), at(1), ...
    template <class At>
    static HM_INLINE Int load_quarters(const At& at) {
      const __m256i v = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)at(0)));
      return _mm256_inserti128_si256(v, _mm_loadu_si128((const __m128i*)at(1)), 1);
    }
    // out[c] = word c of the 16 bytes at at(0), at(1), ...
    template <class At>
    static HM_INLINE void transpose_four(const At& at, __m256i (&out)[4]) {
      __m256i a[4];
      for (int r = 0; r < 4; ++r) {
        a[r] = load_quarters([&](int half) { return at(4 * half + r); });
      }
      const __m256i low01 = _mm256_unpacklo_epi32(a[0], a[1]);
      const __m256i high01 = _mm256_unpackhi_epi32(a[0], a[1]);
      const __m256i low23 = _mm256_unpacklo_epi32(a[2], a[3]);
      const __m256i high23 = _mm256_unpackhi_epi32(a[2], a[3]);
      out[0] = _mm256_unpacklo_epi64(low01, low23);
      out[1] = _mm256_unpackhi_epi64(low01, low23);
      out[2] = _mm256_unpacklo_epi64(high01, high23);
      out[3] = _mm256_unpackhi_epi64(high01, high23);
    }
    // out[c] = word c of row(0), row(1), ...
    template <class Row>
    static HM_INLINE void transpose(const Row& row, __m256i (&out)[8]) {
      __m256i a[8], b[8];
      for (int i = 0; i < 8; ++i) a[i] = row(i);
      for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
      }
      for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
      }
      for (int c = 0; c < 4; ++c) {
        out[c] = _mm256_permute2x128_si256(a[c], a[4 + c], 0x20);
        out[4 + c] = _mm256_permute2x128_si256(a[c], a[4 + c], 0x31);
      }
    }
    static HM_INLINE void transpose(const uint8_t* rows, int64_t stride, __m256i (&out)[8]) {
      transpose([=](int i) { return load_codes(rows + i * stride); }, out);
    }
    static HM_INLINE void fetch(const uint8_t* p) { _mm_prefetch((const char*)p, _MM_HINT_T1); }
    static HM_INLINE void fetch_near(const uint8_t* p) {
      _mm_prefetch((const char*)p, _MM_HINT_T0);
    }
    static HM_INLINE void store_codes(uint8_t* p, Int v) { _mm256_store_si256((__m256i*)p, v); }
  };

 private:
  static HM_INLINE __m256i dot32(__m256i w, __m256i x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
  }
  static HM_INLINE __m256i dot64(__m256i w0, __m256i x0, __m256i w1, __m256i x1) {
    const __m256i sums =
        _mm256_add_epi16(_mm256_maddubs_epi16(w0, x0), _mm256_maddubs_epi16(w1, x1));
    return _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
  }
  static HM_INLINE __m256 widen_bf16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
  }
};

}  // namespace
}  // namespace hm
