// The AVX-512 kernels, and for one token those of VBMI, on a CPU without AVX-512: every 512-bit
// intrinsic becomes SIMDe's portable C. Built and loaded by test_vectors_emulated.py with AVX2
// flags.
#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_INLINE  // as not_inlined.h
#include <simde/x86/avx512.h>

#include <cstring>

// SIMDe 0.7.4 gives one alias the wrong number of parameters, and lacks some
// intrinsics; those here are defined from their halves.
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#undef _mm512_extractf32x8_ps
#define _mm512_extractf32x8_ps(v, n) \
  _mm256_castsi256_ps(_mm512_extracti64x4_epi64(_mm512_castps_si512(v), n))
#define _mm512_shuffle_i64x2(a, b, n) _mm512_shuffle_i32x4(a, b, n)
#define _mm512_testn_epi32_mask(a, b) static_cast<__mmask16>(~_mm512_test_epi32_mask(a, b))
#define _cvtu32_mask32(v) (v)
#define _cvtu64_mask64(v) (v)

template <class Narrow, class Vector>
static inline Vector emulated_narrow(__m512i v) {
  int32_t numbers[16];
  Narrow low[16];
  Vector out;
  static_assert(sizeof out == sizeof low);
  memcpy(numbers, &v, sizeof numbers);
  for (int i = 0; i < 16; ++i) low[i] = static_cast<Narrow>(numbers[i]);
  memcpy(&out, low, sizeof out);
  return out;
}
#define _mm512_cvtepi32_epi8 emulated_narrow<int8_t, __m128i>
#define _mm512_cvtepi32_epi16 emulated_narrow<int16_t, __m256i>

static inline __m512i emulated_join(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

#define HM_FROM_HALVES(name, Argument, Upper)                               \
  static inline __m512i emulated_##name(Argument v) {                       \
    return emulated_join(_mm256_##name(low_half(v)), _mm256_##name(Upper)); \
  }

static inline __m128i low_half(__m256i v) { return _mm256_castsi256_si128(v); }
static inline __m128i low_half(__m128i v) { return v; }

HM_FROM_HALVES(cvtepu8_epi16, __m256i, _mm256_extracti128_si256(v, 1))
HM_FROM_HALVES(cvtepu16_epi32, __m256i, _mm256_extracti128_si256(v, 1))
HM_FROM_HALVES(cvtepu32_epi64, __m256i, _mm256_extracti128_si256(v, 1))
HM_FROM_HALVES(cvtepu8_epi32, __m128i, _mm_srli_si128(v, 8))
HM_FROM_HALVES(cvtepi8_epi32, __m128i, _mm_srli_si128(v, 8))
HM_FROM_HALVES(cvtepi16_epi32, __m256i, _mm256_extracti128_si256(v, 1))
HM_FROM_HALVES(cvtepu16_epi64, __m128i, _mm_srli_si128(v, 8))
HM_FROM_HALVES(cvtepu8_epi64, __m128i, _mm_srli_si128(v, 4))
#define _mm512_cvtepu8_epi16 emulated_cvtepu8_epi16
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32
#define _mm512_cvtepu32_epi64 emulated_cvtepu32_epi64
#define _mm512_cvtepu8_epi32 emulated_cvtepu8_epi32
#define _mm512_cvtepi8_epi32 emulated_cvtepi8_epi32
#define _mm512_cvtepi16_epi32 emulated_cvtepi16_epi32
#define _mm512_cvtepu16_epi64 emulated_cvtepu16_epi64
#define _mm512_cvtepu8_epi64 emulated_cvtepu8_epi64

#undef _mm512_srai_epi32
#define _mm512_srai_epi32(v, n)                                    \
  emulated_join(_mm256_srai_epi32(_mm512_castsi512_si256(v), (n)), \
                _mm256_srai_epi32(_mm512_extracti64x4_epi64(v, 1), (n)))

static inline __m512i emulated_mulhi_epu16(__m512i a, __m512i b) {
  return emulated_join(
      _mm256_mulhi_epu16(_mm512_castsi512_si256(a), _mm512_castsi512_si256(b)),
      _mm256_mulhi_epu16(_mm512_extracti64x4_epi64(a, 1), _mm512_extracti64x4_epi64(b, 1)));
}
#define _mm512_mulhi_epu16 emulated_mulhi_epu16

static inline __m512 emulated_cvtph_ps(__m256i v) {
  const __m512 low = _mm512_castps256_ps512(_mm256_cvtph_ps(low_half(v)));
  return _mm512_insertf32x8(low, _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1)), 1);
}
#define _mm512_cvtph_ps emulated_cvtph_ps

static inline __m512 emulated_cvtepi32_ps(__m512i v) {
  const __m512 low = _mm512_castps256_ps512(_mm256_cvtepi32_ps(_mm512_castsi512_si256(v)));
  return _mm512_insertf32x8(low, _mm256_cvtepi32_ps(_mm512_extracti64x4_epi64(v, 1)), 1);
}
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps

#include "kernels/simd_avx512.h"

#include "kernels/codebook_loads_avx512-inl.h"

#include "kernels/codebook_groups_avx512-inl.h"

#include "kernels/codebook_gemv_avx512-inl.h"

#include "kernels/codebook_gemv-inl.h"

#include "kernels/ternary_digits_avx512-inl.h"

#include "kernels/ternary_gemv-inl.h"

#include "kernels/rounding_avx512-inl.h"

#include "kernels/few_tokens-inl.h"
#include "kernels/table-inl.h"

#include "kernels/two_rows_gemv-inl.h"

namespace hm {

constinit const KernelTable kAvx512 = make_table("emulated");

static consteval KernelTable with_two_rows() {
  KernelTable table = make_table("emulated");
  const ExtraKernels extra = two_rows_kernels();
  for (int type = 0; type < kNumTypeIds; ++type) {
    if (extra.matmul[type]) table.formats[type].matmul = extra.matmul[type];
  }
  return table;
}

}  // namespace hm

#define HM_EMULATED_TABLE hm::with_two_rows()
#include "tests/emulated_linear-inl.h"
