// The AVX-VNNI kernels on a CPU with AVX2 alone: their one instruction becomes C. Built and loaded
// by test_vectors_emulated.py with AVX2 flags.
#include <immintrin.h>
#include <stdint.h>

static inline __m256i emulated_dpbusd(__m256i sum, __m256i w, __m256i x) {
  int32_t sums[8];
  uint8_t codes[32];
  int8_t numbers[32];
  _mm256_storeu_si256((__m256i*)sums, sum);
  _mm256_storeu_si256((__m256i*)codes, w);
  _mm256_storeu_si256((__m256i*)numbers, x);
  for (int i = 0; i < 32; ++i) sums[i / 4] += codes[i] * numbers[i];
  return _mm256_loadu_si256((const __m256i*)sums);
}
#define _mm256_dpbusd_avx_epi32 emulated_dpbusd

#include "kernels/simd_avx_vnni.h"

#include "kernels/codebook_groups-inl.h"

#include "kernels/codebook_gemv_avx2-inl.h"

#include "kernels/codebook_gemv-inl.h"

#include "kernels/ternary_digits_avx2-inl.h"

#include "kernels/ternary_gemv-inl.h"

#include "kernels/rounding_avx2-inl.h"

#include "kernels/few_tokens-inl.h"

#include "tests/emulated_linear-inl.h"
