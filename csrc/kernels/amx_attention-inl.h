// Attention by AMX tiles, for prompts: attention-inl.h's parts in bfloat16, summed up in float32.
//
// Keys are tile A as they lie in their pages: 16 rows of 32 numbers. Queries are tile B, packed
// once per tile of queries. So scores come out as [key][lane], and the softmax is the same loop as
// in attention-inl.h. The second product is transposed, [lane][r], since weights are cheaper to
// transpose than values: weights are tile A, and values, two keys interleaved, tile B.
//
// A product multiplies one tile of the one side with all lanes (at most four tiles) of the other.
// Per block of 256 keys and 64 lanes of K2 (576 numbers, 512 of them values) that is 2176 products
// of 16 cycles; interleaving takes about 8000 cycles, transposing weights 4000, the softmax 20000.
//
// Keys in binary16 are the sum of two bfloat16 numbers, 8 bits and the other 3, and so take twice
// as many products (and, not measured, about 20000 cycles more to take them apart).
//
// Rounding: queries and weights to bfloat16; keys are exact. A lane's numbers depend on neither the
// other lanes nor how many there are.
#pragma once

#include "kernels/amx_gemm-inl.h"

namespace hm {
namespace {

constexpr int64_t kLanesTogether = 64;

// 16 numbers of a KV cache row, as the words of bfloat16 numbers that add up to them.
struct KeyParts {
  __m256i high, low;  // low: of binary16 only
};

template <KvType Type>
constexpr int kKeyParts = Type == kKvF16 ? 2 : 1;

template <KvType Type>
HM_INLINE KeyParts load_key_parts(const uint16_t* from) {
  const __m256i words = _mm256_loadu_si256((const __m256i*)from);
  if constexpr (Type == kKvBF16) {
    return {words, _mm256_setzero_si256()};
  } else {
    const __m512 x = _mm512_cvtph_ps(words);
    const auto high = (__m256i)_mm512_cvtneps_pbh(x);
    const __m512i wide = _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16);
    return {high, (__m256i)_mm512_cvtneps_pbh(_mm512_sub_ps(x, _mm512_castsi512_ps(wide)))};
  }
}

// Queries become (steps of 32 numbers, lanes / 16, one packed tile), in half of their memory.
void pack_query_tiles(const float* const* rows, int64_t num_rows, int64_t dim, int64_t lanes,
                      float* packed) {
  auto* words = (uint16_t*)packed;
  for (int64_t first = 0; first < lanes; first += kTokenTile, words += kPackedTile) {
    const int64_t left = num_rows - first;
    const int64_t count = left < 0 ? 0 : left < kTokenTile ? left : kTokenTile;
    pack_steps(rows + first, count, dim, dim / kColumnStep, lanes / kTokenTile * kPackedTile,
               words);
  }
}

// Product `Lane` of a tile with the tiles of the lanes; the sums are tmm0 to tmm3.
template <bool LanesAreA>
HM_INLINE void multiply_lanes(const uint16_t* lane_tiles, int64_t lanes) {
  // Registers 5 to 7 in turn, so that a load need not wait for the product before it.
  const auto tile = [&](int i) { return lane_tiles + i * kPackedTile; };
  _tile_loadd(5, tile(0), kTileBytes);
  if constexpr (LanesAreA)
    _tile_dpbf16ps(0, 5, 4);
  else
    _tile_dpbf16ps(0, 4, 5);
  if (lanes <= 16) return;
  _tile_loadd(6, tile(1), kTileBytes);
  if constexpr (LanesAreA)
    _tile_dpbf16ps(1, 6, 4);
  else
    _tile_dpbf16ps(1, 4, 6);
  if (lanes <= 32) return;
  _tile_loadd(7, tile(2), kTileBytes);
  if constexpr (LanesAreA)
    _tile_dpbf16ps(2, 7, 4);
  else
    _tile_dpbf16ps(2, 4, 7);
  _tile_loadd(5, tile(3), kTileBytes);
  if constexpr (LanesAreA)
    _tile_dpbf16ps(3, 5, 4);
  else
    _tile_dpbf16ps(3, 4, 5);
}

HM_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// The sums of each tile of lanes, to `out` and on by `lane_stride` floats.
HM_INLINE void store_sums(float* out, int64_t lane_stride, int64_t row_floats, int64_t lanes) {
  const int64_t bytes = row_floats * static_cast<int64_t>(sizeof(float));
  _tile_stored(0, out, bytes);
  if (lanes > 16) _tile_stored(1, out + lane_stride, bytes);
  if (lanes > 32) _tile_stored(2, out + 2 * lane_stride, bytes);
  if (lanes > 32) _tile_stored(3, out + 3 * lane_stride, bytes);
}

// 16 rows of `dim` halves -> as many of each part's words, the low ones behind the high ones.
HM_INLINE void split_keys(const uint8_t* rows, int64_t dim, uint16_t* parts) {
  const int64_t row_bytes = kv_row_bytes(kKvF16, dim);
  for (int k = 0; k < kTileRows; ++k, rows += row_bytes, parts += dim) {
    for (int64_t d = 0; d < dim; d += 16) {
      const KeyParts key = load_key_parts<kKvF16>((const uint16_t*)rows + d);
      _mm256_storeu_si256((__m256i*)(parts + d), key.high);
      _mm256_storeu_si256((__m256i*)(parts + kTileRows * dim + d), key.low);
    }
  }
}

// scores[key][lane], for the keys rounded up to 16: what lies beyond them in a page counts, too.
template <KvType Type>
HM_INLINE void score_tiles(const AttentionBlock& a) {
  const int64_t row_bytes = kv_row_bytes(Type, a.dim);
  const int64_t step_words = a.lanes / kTokenTile * kPackedTile;
  const auto* values = (const uint16_t*)a.queries;
  const auto* rest = (const uint16_t*)(a.queries + a.value_dim * a.lanes);
  for (int64_t k = 0; k < a.num_keys; k += kTileRows) {
    const uint8_t* rows = a.rows[k];
    if constexpr (Type == kKvF16) {
      split_keys(rows, a.dim, (uint16_t*)a.keys);
      rows = (const uint8_t*)a.keys;
    }
    for (int64_t lane = 0; lane < a.lanes; lane += kLanesTogether) {
      const int64_t offset = lane / kTokenTile * kPackedTile;
      zero_sums();
      for (int64_t d = 0; d < a.dim; d += kColumnStep) {
        const bool is_value = d < a.value_dim;
        const int64_t step = (is_value ? d : d - a.value_dim) / kColumnStep;
        const uint16_t* queries = (is_value ? values : rest) + step * step_words + offset;
        for (int part = 0; part < kKeyParts<Type>; ++part) {
          _tile_loadd(4, rows + part * kTileRows * row_bytes + d * 2, row_bytes);
          multiply_lanes<false>(queries, a.lanes);
        }
      }
      store_sums(a.scores + k * a.lanes + lane, kTokenTile, a.lanes, a.lanes);
    }
  }
}

// Values of 32 keys, two of them interleaved, as (value_dim / 16, parts) packed tiles; zeros for
// keys from num_keys on.
template <KvType Type>
HM_INLINE void interleave_values(const AttentionBlock& a, int64_t first_key, uint16_t* packed) {
  const auto row = [&](int64_t k) { return k < a.num_keys ? (const uint16_t*)a.rows[k] : nullptr; };
  const auto load = [](const uint16_t* from, int64_t r) -> KeyParts {
    if (from == nullptr) return {_mm256_setzero_si256(), _mm256_setzero_si256()};
    return load_key_parts<Type>(from + r);
  };
  const auto pair = [](__m256i even, __m256i odd) {
    return _mm512_or_si512(_mm512_cvtepu16_epi32(even),
                           _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
  };
  for (int i = 0; i < kTokenTile; ++i, packed += 2 * kTokenTile) {
    const uint16_t *even = row(first_key + 2 * i), *odd = row(first_key + 2 * i + 1);
    uint16_t* to = packed;
    for (int64_t r = 0; r < a.value_dim; r += kTokenTile, to += kKeyParts<Type> * kPackedTile) {
      const KeyParts x = load(even, r), y = load(odd, r);
      _mm512_store_si512(to, pair(x.high, y.high));
      if constexpr (kKeyParts<Type> == 2) {
        _mm512_store_si512(to + kPackedTile, pair(x.low, y.low));
      }
    }
  }
}

// weights[key][lane] -> packed[step of 32 keys][lanes / 16][16 lanes][32 keys]
HM_INLINE void transpose_weights(const float* weights, int64_t num_keys, int64_t lanes,
                                 uint16_t* packed) {
  for (int64_t k = 0; k < num_keys; k += kColumnStep) {
    for (int64_t first = 0; first < lanes; first += kTokenTile, packed += kPackedTile) {
      __m512i low[16], high[16];
      const int64_t row_bytes = lanes * static_cast<int64_t>(sizeof(float));
      const auto* from = (const uint8_t*)(weights + k * lanes + first);
      Simd::Panel::transpose(from, row_bytes, low);
      Simd::Panel::transpose(from + 16 * row_bytes, row_bytes, high);
      for (int i = 0; i < 16; ++i) {
        _mm512_store_si512(packed + i * kColumnStep,
                           to_bf16(_mm512_castsi512_ps(low[i]), _mm512_castsi512_ps(high[i])));
      }
    }
  }
}

// values[lane][r] += weights[lane] . values
template <KvType Type>
HM_INLINE void attend_tiles_of(const AttentionBlock& a, const AttentionSums& out) {
  constexpr int num_parts = kKeyParts<Type>;
  configure_tiles();
  score_tiles<Type>(a);
  weigh_scores(a, out);
  const int64_t steps = (a.num_keys + kColumnStep - 1) / kColumnStep;
  const int64_t end = steps * kColumnStep;
  memset(a.scores + a.num_keys * a.lanes, 0, (end - a.num_keys) * a.lanes * sizeof(float));
  auto* weights = (uint16_t*)a.keys;                       // (steps, lanes / 16, packed tile)
  uint16_t* values = weights + kAttentionBlock * a.lanes;  // (steps, value_dim / 16, parts, ..)
  const int64_t weight_words = a.lanes / kTokenTile * kPackedTile;
  const int64_t value_words = a.value_dim / kTokenTile * num_parts * kPackedTile;
  transpose_weights(a.scores, end, a.lanes, weights);
  for (int64_t s = 0; s < steps; ++s)
    interleave_values<Type>(a, s * kColumnStep, values + s * value_words);
  for (int64_t r = 0; r < a.value_dim; r += kTokenTile) {
    for (int64_t lane = 0; lane < a.lanes; lane += kLanesTogether) {
      const uint16_t* lane_weights = weights + lane / kTokenTile * kPackedTile;
      zero_sums();
      const uint16_t* tiles = values + r / kTokenTile * num_parts * kPackedTile;
      for (int64_t s = 0; s < steps; ++s) {
        for (int part = 0; part < num_parts; ++part) {
          _tile_loadd(4, tiles + s * value_words + part * kPackedTile, kTileBytes);
          multiply_lanes<true>(lane_weights + s * weight_words, a.lanes);
        }
      }
      store_sums(out.values + lane * a.value_dim + r, kTokenTile * a.value_dim, a.value_dim,
                 a.lanes);
    }
  }
  _tile_release();
}

void attend_tiles(const AttentionBlock& a, const AttentionSums& out) {
  if (a.type == kKvF16) return attend_tiles_of<kKvF16>(a, out);
  attend_tiles_of<kKvBF16>(a, out);
}

void merge_tiles(const AttentionSums& total, const AttentionSums& block, int64_t value_dim,
                 int64_t lanes) {
  for (int64_t i = 0; i < lanes; ++i) {
    const Shares shares = merge_lane(total, block, i);
    float* to = total.values + i * value_dim;
    const float* from = block.values + i * value_dim;
    for (int64_t r = 0; r < value_dim; ++r) to[r] = to[r] * shares.old + from[r] * shares.added;
  }
}

void finish_query_tiles(const AttentionSums& total, int64_t value_dim, int64_t, float* const* rows,
                        int64_t num_rows) {
  for (int64_t i = 0; i < num_rows; ++i) {
    const float inverse = 1.0f / total.sum[i];
    const float* from = total.values + i * value_dim;
    for (int64_t r = 0; r < value_dim; ++r) rows[i][r] = from[r] * inverse;
  }
}

}  // namespace
}  // namespace hm
