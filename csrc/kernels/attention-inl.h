// Attention of up to 128 queries over one block of positions, and the merge of blocks.
//
// Queries lie in lanes: packed[d][lane]. All heads of a token attend to the same keys, so a key's
// number is broadcast and multiplied with a vector of queries; scores come out as [key][lane], the
// weighted values as [r][lane], and a softmax is a loop over keys without any sum across lanes.
// Both products are one function, c[m][lane] = sum over k of a(m, k) b[k][lane], which adds in the
// order of k.
//
// A lane's numbers depend on neither the other lanes nor how many there are. A block starts at a
// multiple of kAttentionBlock, of positions or of a list of them; its keys are widened to floats
// once; keys that a lane must not see get a weight of exactly zero. So a token's result has the
// same bits alone and in a prompt, and a block may be shared out: keys for the scores, numbers of
// the values for the rest.
#pragma once

#include "kernels/elementwise-inl.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

// e^z for z <= 0, zero below -87. NaN stays.
HM_INLINE float exp_or_zero(float z) { return z < -87.0f ? 0.0f : exp_bounded(z); }

template <int V, int M>
void broadcast_rows(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t depth,
                    int64_t lanes, float* c, int64_t c_row) {
  using Rows = Simd::Panel;
  typename Rows::Float sums[M][V];
  for (auto& row : sums) {
    for (auto& sum : row) sum = Rows::set(0.0f);
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename Rows::Float q[V];
    for (int v = 0; v < V; ++v) q[v] = Rows::load(b + k * lanes + v * Rows::kLanes);
    for (int m = 0; m < M; ++m) {
      const auto w = Rows::set(a[m * a_row + k * a_step]);
      for (int v = 0; v < V; ++v) sums[m][v] = Rows::fma(w, q[v], sums[m][v]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) Rows::store(c + m * c_row + v * Rows::kLanes, sums[m][v]);
  }
}

template <int V, int M>
HM_INLINE void broadcast_tiles(const float* a, int64_t a_row, int64_t a_step, const float* b,
                               int64_t rows, int64_t depth, int64_t lanes, float* c,
                               int64_t c_row) {
  int64_t m = 0;
  for (; m + M <= rows; m += M) {
    broadcast_rows<V, M>(a + m * a_row, a_row, a_step, b, depth, lanes, c + m * c_row, c_row);
  }
  for (; m < rows; ++m) {
    broadcast_rows<V, 1>(a + m * a_row, a_row, a_step, b, depth, lanes, c + m * c_row, c_row);
  }
}

// 32 registers of 16 floats hold 6 x 4 sums; 16 of 8 floats 6 x 2.
constexpr int kMaxVectors = Simd::Panel::kLanes == 16 ? 4 : 2;

void broadcast_product(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t rows,
                       int64_t depth, int64_t lanes, float* c, int64_t c_row) {
  constexpr int width = Simd::Panel::kLanes;
  const int64_t vectors = lanes / width;
  if (vectors % kMaxVectors != 0) {
    for (int64_t v = 0; v < vectors; ++v) {
      broadcast_tiles<1, 12>(a, a_row, a_step, b + v * width, rows, depth, lanes, c + v * width,
                             c_row);
    }
    return;
  }
  for (int64_t v = 0; v < vectors; v += kMaxVectors) {
    broadcast_tiles<kMaxVectors, 6>(a, a_row, a_step, b + v * width, rows, depth, lanes,
                                    c + v * width, c_row);
  }
}

HM_INLINE void widen_halves(const uint16_t* x, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Simd::store(out + i, Simd::load_half(x + i));
  for (; i < n; ++i) out[i] = half_to_float(x[i]);
}

void round_to_half(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) Simd::round_to_half(x + i, out + i);
  if (i == n) return;
  float rest[8] = {};
  uint16_t halves[8];
  memcpy(rest, x + i, (n - i) * sizeof *rest);
  Simd::round_to_half(rest, halves);
  memcpy(out + i, halves, (n - i) * sizeof *halves);
}

// `count` numbers from `first` on, a multiple of kKvGroup, of a row of the KV cache, as floats.
HM_INLINE void widen_kv(const uint8_t* row, KvType type, int64_t dim, int64_t first, int64_t count,
                        float* out) {
  if (type == kKvF32) {
    memcpy(out, row + first * sizeof(float), count * sizeof(float));
  } else if (type == kKvF16) {
    widen_halves((const uint16_t*)row + first, count, out);
  } else if (type == kKvBF16) {
    const uint16_t* bits = (const uint16_t*)row + first;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t wide = (uint32_t)bits[i] << 16;
      memcpy(out + i, &wide, sizeof wide);
    }
  } else {
    const int8_t* codes = (const int8_t*)row + 4 * kv_groups(dim) + first;
    for (int64_t begin = 0; begin < count; begin += kKvGroup) {
      float scale;
      memcpy(&scale, row + (first + begin) / kKvGroup * 4, sizeof scale);
      const int64_t end = count - begin < kKvGroup ? count : begin + kKvGroup;
      for (int64_t i = begin; i < end; ++i) out[i] = (float)codes[i] * scale;
    }
  }
}

HM_INLINE void widen_kv_row(const uint8_t* row, KvType type, int64_t dim, float* out) {
  widen_kv(row, type, dim, 0, dim, out);
}

// Scores [key][lane] become weights e^(scale score - max), those of keys that a lane must not see
// zero; `out` gets each lane's greatest score and the sum of its weights.
HM_INLINE void weigh_scores(const AttentionBlock& a, const AttentionSums& out) {
  const int64_t lanes = a.lanes;
  for (int64_t i = 0; i < lanes; ++i) {
    out.max[i] = kNoAttentionKey;
    out.sum[i] = 0.0f;
  }
  for (int64_t k = 0; k < a.num_keys; ++k) {
    float* row = a.scores + k * lanes;
    for (int64_t i = 0; i < lanes; ++i) {
      const float score = row[i] * a.scale;
      row[i] = k < a.visible[i] ? score : -__builtin_inff();
      out.max[i] = row[i] > out.max[i] ? row[i] : out.max[i];
    }
  }
  for (int64_t k = 0; k < a.num_keys; ++k) {
    float* row = a.scores + k * lanes;
    for (int64_t i = 0; i < lanes; ++i) {
      row[i] = exp_or_zero(row[i] - out.max[i]);
      out.sum[i] += row[i];
    }
  }
}

void score_keys(const AttentionBlock& a, int64_t first, int64_t count) {
  for (int64_t k = 0; k < count; ++k) {
    widen_kv_row(a.rows[first + k], a.type, a.dim, a.keys + k * a.dim);
  }
  broadcast_product(a.keys, a.dim, 1, a.queries, count, a.dim, a.lanes, a.scores + first * a.lanes,
                    a.lanes);
}

void weigh_values(const AttentionBlock& a, int64_t first, int64_t count, const AttentionSums& out) {
  weigh_scores(a, out);
  for (int64_t k = 0; k < a.num_keys; ++k) {
    widen_kv(a.rows[k], a.type, a.dim, first, count, a.keys + k * count);
  }
  broadcast_product(a.keys, 1, count, a.scores, count, a.num_keys, a.lanes, out.values, a.lanes);
}

void attend(const AttentionBlock& a, const AttentionSums& out) {
  score_keys(a, 0, a.num_keys);
  weigh_scores(a, out);
  broadcast_product(a.keys, 1, a.dim, a.scores, a.value_dim, a.num_keys, a.lanes, out.values,
                    a.lanes);
}

// What the values of a total and of a block count in their union.
struct Shares {
  float old, added;
};

// Puts a lane's greatest scores and sums together.
HM_INLINE Shares merge_lane(const AttentionSums& total, const AttentionSums& block, int64_t i) {
  const float max = block.max[i] > total.max[i] ? block.max[i] : total.max[i];
  const Shares shares = {exp_or_zero(total.max[i] - max), exp_or_zero(block.max[i] - max)};
  total.max[i] = max;
  total.sum[i] = total.sum[i] * shares.old + block.sum[i] * shares.added;
  return shares;
}

void merge_attention(const AttentionSums& total, const AttentionSums& block, int64_t value_dim,
                     int64_t lanes) {
  alignas(64) float old_share[kMaxAttentionLanes], new_share[kMaxAttentionLanes];
  for (int64_t i = 0; i < lanes; ++i) {
    const Shares shares = merge_lane(total, block, i);
    old_share[i] = shares.old;
    new_share[i] = shares.added;
  }
  for (int64_t r = 0; r < value_dim; ++r) {
    float* to = total.values + r * lanes;
    const float* from = block.values + r * lanes;
    for (int64_t i = 0; i < lanes; ++i) to[i] = to[i] * old_share[i] + from[i] * new_share[i];
  }
}

// Transpose of a square of floats: to[c * to_stride + r] = from[r][c] for r < rows, c < cols.
HM_INLINE void transpose_square(const float (&from)[Simd::Panel::kLanes][Simd::Panel::kLanes],
                                int64_t cols, float* to, int64_t to_stride, int64_t rows) {
  using Rows = Simd::Panel;
  constexpr int n = Rows::kLanes;
  alignas(64) float column[n];
  typename Rows::Int words[n];
  Rows::transpose((const uint8_t*)from, sizeof from[0], words);
  for (int64_t c = 0; c < cols; ++c) {
    Rows::store_codes((uint8_t*)column, words[c]);
    memcpy(to + c * to_stride, column, rows * sizeof(float));
  }
}

void pack_queries(const float* const* rows, int64_t num_rows, int64_t dim, int64_t lanes,
                  float* packed) {
  constexpr int64_t n = Simd::Panel::kLanes;
  for (int64_t first = 0; first < lanes; first += n) {
    for (int64_t d = 0; d < dim; d += n) {
      const int64_t cols = dim - d < n ? dim - d : n;
      alignas(64) float square[n][n] = {};
      for (int64_t r = 0; r < n && first + r < num_rows; ++r) {
        memcpy(square[r], rows[first + r] + d, cols * sizeof(float));
      }
      transpose_square(square, cols, packed + d * lanes + first, lanes, n);
    }
  }
}

void finish_attention(const AttentionSums& total, int64_t value_dim, int64_t lanes,
                      float* const* rows, int64_t num_rows) {
  constexpr int64_t n = Simd::Panel::kLanes;
  alignas(64) float inverse[kMaxAttentionLanes];
  for (int64_t i = 0; i < lanes; ++i) inverse[i] = 1.0f / total.sum[i];
  for (int64_t first = 0; first < num_rows; first += n) {
    const int64_t count = num_rows - first < n ? num_rows - first : n;
    for (int64_t r = 0; r < value_dim; r += n) {
      const int64_t cols = value_dim - r < n ? value_dim - r : n;
      alignas(64) float square[n][n] = {}, transposed[n][n];
      for (int64_t j = 0; j < cols; ++j) {
        const float* from = total.values + (r + j) * lanes + first;
        for (int64_t i = 0; i < n; ++i) square[j][i] = from[i] * inverse[first + i];
      }
      transpose_square(square, n, transposed[0], n, n);
      for (int64_t i = 0; i < count; ++i) {
        memcpy(rows[first + i] + r, transposed[i], cols * sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace hm
