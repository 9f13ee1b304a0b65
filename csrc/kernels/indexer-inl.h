// Scores of index keys: attention-inl.h's product of keys and queries in lanes, then a weighted sum
// over the lanes of each token.
//
// The sum has 16 partial sums, of lanes 16 apart in order, and then one tree: the same bits in
// every instruction set with FMA, whatever other tokens and keys are in the block.
#pragma once

#include "kernels/attention-inl.h"

namespace hm {
namespace {

constexpr int64_t kPartialSums = 16;

// sum of weights[i] max(products[i], 0); NaN stays.
HM_INLINE float weighted_relu(const float* products, const float* weights, int64_t lanes) {
  alignas(64) float sums[kPartialSums] = {};
  for (int64_t first = 0; first < lanes; first += kPartialSums) {
    for (int64_t i = 0; i < kPartialSums; ++i) {
      const float x = products[first + i];
      sums[i] += weights[first + i] * (x < 0.0f ? 0.0f : x);
    }
  }
  for (int64_t half = kPartialSums / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

void score_index(const IndexBlock& a) {
  for (int64_t k = 0; k < a.num_keys; ++k) {
    widen_kv_row(a.rows[k], a.type, a.dim, a.keys + k * a.dim);
  }
  broadcast_product(a.keys, a.dim, 1, a.queries, a.num_keys, a.dim, a.lanes, a.products, a.lanes);
  for (int64_t k = 0; k < a.num_keys; ++k) {
    const float* products = a.products + k * a.lanes;
    for (int64_t first = 0; first < a.lanes; first += a.token_lanes) {
      a.scores[first / a.token_lanes][k] =
          weighted_relu(products + first, a.weights + first, a.token_lanes);
    }
  }
}

}  // namespace
}  // namespace hm
