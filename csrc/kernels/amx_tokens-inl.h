// Tokens beside AMX products: packed as tile B before, weighted and transposed back after.
#pragma once

#include "kernels/amx_unpack-inl.h"

namespace hm {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64, kPackedTile = kTokenTile * kColumnStep;

constexpr int64_t kFetchFloats = 128;  // of a row of tokens, ahead

// x - bfloat16(x), exactly.
HM_INLINE __m512 below_bf16(__m512 x) {
  const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
  return _mm512_sub_ps(x, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16)));
}

// One tile of tokens in steps of 32 columns, `stride` words apart: (16 pairs of columns, 16 tokens,
// 2) each. The second part of each number, if IsLow.
template <bool IsLow = false>
HM_INLINE void pack_steps(const float* const* rows, int64_t num_tokens, int64_t cols, int64_t steps,
                          int64_t stride, uint16_t* packed) {
  alignas(64) uint8_t pairs[kTokenTile][kTileBytes] = {};
  for (int64_t k = 0; k < steps * kColumnStep; k += kColumnStep, packed += stride) {
    const int64_t left = cols - k;
    const __mmask16 low = left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0;
    const __mmask16 high = left >= 32 ? 0xffff : left > 16 ? (1 << (left - 16)) - 1 : 0;
    for (int64_t t = 0; t < num_tokens; ++t) {
      // Rows of tokens lie pages apart, so that nothing else fetches ahead.
      _mm_prefetch((const char*)(rows[t] + k + kFetchFloats), _MM_HINT_T0);
      _mm_prefetch((const char*)(rows[t] + k + kFetchFloats + 16), _MM_HINT_T0);
      __m512 first = _mm512_maskz_loadu_ps(low, rows[t] + k);
      __m512 second = _mm512_maskz_loadu_ps(high, rows[t] + k + 16);
      if constexpr (IsLow) {
        first = below_bf16(first);
        second = below_bf16(second);
      }
      _mm512_store_si512(pairs[t], to_bf16(first, second));
    }
    __m512i words[kTokenTile];
    Simd::Panel::transpose(pairs[0], kTileBytes, words);
    for (int c = 0; c < 16; ++c) _mm512_store_si512(packed + c * 2 * kTokenTile, words[c]);
  }
}

void pack_tokens(const float* const* rows, int64_t num_tokens, int64_t cols, uint16_t* packed,
                 uint16_t* low) {
  const int64_t steps = padded_weights(cols) / kColumnStep;
  pack_steps(rows, num_tokens, cols, steps, kPackedTile, packed);
  if (low != nullptr) pack_steps<true>(rows, num_tokens, cols, steps, kPackedTile, low);
}

// silu(gate) * up of 32 rows by one tile of tokens, as step `rows / 32` of packed tokens. gate and
// up are (32, stride); rows beyond num_rows count as zeros.
void pack_swiglu(const float* gate, const float* up, int64_t stride, int64_t num_rows,
                 uint16_t* packed, uint16_t* low) {
  alignas(64) float product[kColumnStep][kTokenTile] = {};
  for (int64_t r = 0; r < num_rows; ++r) {
    silu_mul(gate + r * stride, up + r * stride, kTokenTile, product[r]);
  }
  const __m512i both =
      _mm512_setr_epi32(0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005,
                        0x00160006, 0x00170007, 0x00180008, 0x00190009, 0x001a000a, 0x001b000b,
                        0x001c000c, 0x001d000d, 0x001e000e, 0x001f000f);  // word t of each half
  for (int pair = 0; pair < kColumnStep / 2; ++pair) {
    const __m512 first = _mm512_load_ps(product[2 * pair]);
    const __m512 second = _mm512_load_ps(product[2 * pair + 1]);
    const __m512i halves = to_bf16(first, second);
    _mm512_store_si512(packed + pair * 2 * kTokenTile, _mm512_permutexvar_epi16(both, halves));
    if (low == nullptr) continue;
    const __m512i low_halves = to_bf16(below_bf16(first), below_bf16(second));
    _mm512_store_si512(low + pair * 2 * kTokenTile, _mm512_permutexvar_epi16(both, low_halves));
  }
}

// out[t][r] = in[r][t] weights[t], or that added to it: `in` is (num_rows rounded up
// to 16, stride), aligned to 64.
void finish_tiles(const float* in, int64_t stride, int64_t num_rows, int64_t num_tokens,
                  const float* weights, float* const* out) {
  for (int64_t t = 0; t < num_tokens; t += 16) {
    const int64_t count = num_tokens - t < 16 ? num_tokens - t : 16;
    for (int64_t r = 0; r < num_rows; r += 16) {
      const __mmask16 rows = num_rows - r >= 16 ? 0xffff : (1 << (num_rows - r)) - 1;
      for (int64_t i = 0; i < count; ++i) {
        __builtin_prefetch(out[t + i] + r + kFetchFloats / 2, 1);
      }
      __m512i transposed[16];
      const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(float));
      Simd::Panel::transpose((const uint8_t*)(in + r * stride + t), row_bytes, transposed);
      for (int64_t i = 0; i < count; ++i) {
        float* to = out[t + i] + r;
        __m512 sum = _mm512_castsi512_ps(transposed[i]);
        if (weights != nullptr) {
          sum =
              _mm512_fmadd_ps(sum, _mm512_set1_ps(weights[t + i]), _mm512_maskz_loadu_ps(rows, to));
        }
        _mm512_mask_storeu_ps(to, rows, sum);
      }
    }
  }
}

}  // namespace
}  // namespace hm
