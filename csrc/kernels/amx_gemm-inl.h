// Gemm by AMX tiles: out[r][t] = weights[r] . x[t], in bfloat16, added up in float32.
//
// Weights are tile A, as they lie (16 rows of 32 columns), so that unpacking them needs no
// transposition; tokens are tile B, whose transposition is done once and serves every row. A step
// of 32 columns multiplies 32 rows by 32 tokens:
//
//   tmm0 tmm1   += tmm4 (rows 0..15)    x  tmm6 (tokens 0..15)  tmm7 (tokens 16..31)
//   tmm2 tmm3      tmm5 (rows 16..31)
//
// that is 4 products of 16 cycles for 4 loads of 8. 32 rows are unpacked 256 columns at a time into
// 16 KB that stay in the L1 cache, then multiplied with these columns of all tokens; sums wait in
// `out` meanwhile. Unpacking between the products instead does not pay, since tile loads and vector
// instructions hardly overlap (docs/log.md).
//
// Rounding: weights and activations to bfloat16 (8 bits) each, products exact, sums in float32 in
// the order of the hardware, two columns at a time. Where the weights are bfloat16 themselves, all
// error would be the activations': these are the sum of two bfloat16 then (16 bits), and each block
// is multiplied twice. A token's numbers depend on neither the other tokens nor threads, but they
// are not those of the other kernels.
#pragma once

#include "kernels/amx_unpack-inl.h"

namespace hm {
namespace {

constexpr int kColumnStep = 32, kStepsOfGroup = kSuperWeights / kColumnStep;
constexpr int kTileRows = 16, kTileBytes = 64, kPackedTile = kTokenTile * kColumnStep;

// Tile shapes: all of them 16 rows of 64 bytes.
HM_INLINE void configure_tiles() {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.column_bytes[i] = kTileBytes;
    config.rows[i] = kTileRows;
  }
  asm volatile("" : : "r"(&config) : "memory");  // GCC 12 drops stores that it believes unread
  _tile_loadconfig(&config);
}

template <class Group>
constexpr int kTileParts = 1;
template <>
constexpr int kTileParts<GroupBF16> = 2;

// 32 rows by 256 columns times one or two tiles of tokens, added to `out` (rows, stride). The parts
// of the activations lie `part` apart.
template <bool IsPair, int Parts>
HM_INLINE void multiply_block(const uint16_t* rows, const uint16_t* x, int64_t part,
                              int64_t x_stride, bool is_first, float* out, int64_t stride) {
  constexpr int row_bytes = kRowWords * 2;
  const int64_t out_bytes = stride * static_cast<int64_t>(sizeof(float));
  float* lower = out + kTileRows * stride;
  if (is_first) {
    _tile_zero(0);
    _tile_zero(2);
    if (IsPair) _tile_zero(1);
    if (IsPair) _tile_zero(3);
  } else {
    _tile_loadd(0, out, out_bytes);
    _tile_loadd(2, lower, out_bytes);
    if (IsPair) _tile_loadd(1, out + kTokenTile, out_bytes);
    if (IsPair) _tile_loadd(3, lower + kTokenTile, out_bytes);
  }
  for (int step = 0; step < Parts * kStepsOfGroup; ++step) {
    const int in_group = step % kStepsOfGroup;
    const uint16_t* a = rows + in_group * kColumnStep;
    const uint16_t* b = x + step / kStepsOfGroup * part + in_group * kPackedTile;
    _tile_loadd(4, a, row_bytes);
    _tile_loadd(5, a + kTileRows * kRowWords, row_bytes);
    _tile_loadd(6, b, kTileBytes);
    if (IsPair) _tile_loadd(7, b + x_stride, kTileBytes);
    _tile_dpbf16ps(0, 4, 6);
    if (IsPair) _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    if (IsPair) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, out_bytes);
  _tile_stored(2, lower, out_bytes);
  if (IsPair) _tile_stored(1, out + kTokenTile, out_bytes);
  if (IsPair) _tile_stored(3, lower + kTokenTile, out_bytes);
}

template <class Group>
void matmul_tiles(const TileArgs& args) {
  configure_tiles();
  auto* rows = static_cast<uint16_t*>(args.scratch);
  const int64_t groups = padded_weights(args.cols) / kSuperWeights;
  const int64_t part = groups * kStepsOfGroup * kPackedTile;
  const int64_t x_stride = args.parts * part;  // from tile to tile
  constexpr int parts = kTileParts<Group>;
  const int64_t stride = args.num_tiles * kTokenTile;
  const int64_t end = padded_weights(args.end_col) / kSuperWeights;
  for (int64_t r = 0; r < args.num_rows; r += kPanelRows) {
    for (int64_t g = args.first_col / kSuperWeights; g < end; ++g) {
      unpack_block<Group>(args, r, g, rows);
      const uint16_t* x = args.x + g * kStepsOfGroup * kPackedTile;
      float* out = args.out + r * stride;
      int64_t t = 0;
      for (; t + 2 <= args.num_tiles; t += 2) {
        multiply_block<true, parts>(rows, x + t * x_stride, part, x_stride, g == 0,
                                    out + t * kTokenTile, stride);
      }
      if (t < args.num_tiles) {
        multiply_block<false, parts>(rows, x + t * x_stride, part, x_stride, g == 0,
                                     out + t * kTokenTile, stride);
      }
    }
  }
  _tile_release();
}

// ---- tokens -------------------------------------------------------------------------------------

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

// out[t][r] = in[r][t] weights[t], or that added to it: `in` is (num_rows, stride).
void finish_tiles(const float* in, int64_t stride, int64_t num_rows, int64_t num_tokens,
                  const float* weights, float* const* out) {
  for (int64_t r = 0; r < num_rows; r += 16) {
    const __mmask16 rows = num_rows - r >= 16 ? 0xffff : (1 << (num_rows - r)) - 1;
    for (int64_t t = 0; t < num_tokens; t += 16) {
      alignas(64) float square[16][16] = {};
      for (int64_t i = 0; i < 16 && r + i < num_rows; ++i) {
        _mm512_store_ps(square[i], _mm512_loadu_ps(in + (r + i) * stride + t));
      }
      __m512i transposed[16];
      Simd::Panel::transpose((const uint8_t*)square, sizeof square[0], transposed);
      for (int64_t i = 0; i < 16 && t + i < num_tokens; ++i) {
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

// ---- limits -------------------------------------------------------------------------------------

// Four products of full tiles a round; nothing is loaded between them.
template <bool IsInt8>
void tile_limit(int64_t rounds) {
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < rounds; ++i) {
    if constexpr (IsInt8) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace hm
