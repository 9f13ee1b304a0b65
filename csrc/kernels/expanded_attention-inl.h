// Attention of up to 128 queries of one head over a block of its expanded keys and values.
//
// Both products, and the expansion itself, are of integers of 16 bits, two a lane and instruction,
// with sums of 32: c[m][lane] = sum over k of a(m, k) b[k][lane], where the codes of b lie in pairs
// of rows. Codes are as large as sums allow, 11 to 12 bits and a sign. Sums are exact, so a lane's
// numbers depend on neither the other lanes nor the order.
//
// Scales are those of a row: of a key, a query, a latent, a column of weights. The scale of a value
// cannot leave the sum over keys, so it is a power of two that its weight has already: e^(score +
// ln(scale) - greatest), which is what is rounded; the sum of the weights is divided by it again.
#pragma once

#include "kernels/attention-inl.h"

namespace hm {
namespace {

constexpr int kWeightCodes = 4096;
constexpr int kValueCodes = 2047;  // 256 keys x 4096 x 2047 fit 32 bits
// Rows of sums that registers hold, kMaxVectors vectors each; GCC spills more in AVX2.
constexpr int kPairRows = Simd::Panel::kLanes == 16 ? 6 : 4;

HM_INLINE float fused(float a, float b, float c) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// The greatest code of both factors of a sum of `depth` products, of two at least.
HM_INLINE float most_code(int64_t depth) {
  return (float)(int64_t)__builtin_sqrt(2147483647.0 / (double)depth);
}

// The nearest integer, to even, of |x| < 2^15, as the low 16 bits.
HM_INLINE uint32_t round_code(float x) { return float_to_bits(x + 0x1.8p23f) & 0xffff; }

template <int V, int M>
void pair_rows(const int32_t* a, int64_t a_row, int64_t a_step, const int32_t* b, int64_t depth,
               int64_t lanes, float* c, int64_t c_row) {
  using Rows = Simd::Panel;
  typename Rows::Int sums[M][V];
  for (auto& row : sums) {
    for (auto& sum : row) sum = Rows::set_int(0);
  }
  for (int64_t k = 0; k < depth; ++k) {
    typename Rows::Int q[V];
    for (int v = 0; v < V; ++v) {
      q[v] = Rows::load_codes((const uint8_t*)(b + k * lanes + v * Rows::kLanes));
    }
    for (int m = 0; m < M; ++m) {
      const auto w = Rows::set_int(a[m * a_row + k * a_step]);
      for (int v = 0; v < V; ++v) sums[m][v] = Rows::dot_pairs(sums[m][v], w, q[v]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int v = 0; v < V; ++v) {
      Rows::store(c + m * c_row + v * Rows::kLanes, Rows::to_float(sums[m][v]));
    }
  }
}

template <int V, int M>
HM_INLINE void pair_tiles(const int32_t* a, int64_t a_row, int64_t a_step, const int32_t* b,
                          int64_t rows, int64_t depth, int64_t lanes, float* c, int64_t c_row) {
  int64_t m = 0;
  for (; m + M <= rows; m += M) {
    pair_rows<V, M>(a + m * a_row, a_row, a_step, b, depth, lanes, c + m * c_row, c_row);
  }
  for (; m < rows; ++m) {
    pair_rows<V, 1>(a + m * a_row, a_row, a_step, b, depth, lanes, c + m * c_row, c_row);
  }
}

// a, b: pairs of codes; `depth` of them.
void pair_product(const int32_t* a, int64_t a_row, int64_t a_step, const int32_t* b, int64_t rows,
                  int64_t depth, int64_t lanes, float* c, int64_t c_row) {
  constexpr int width = Simd::Panel::kLanes;
  const int64_t vectors = lanes / width;
  int64_t v = 0;
  for (; v + kMaxVectors <= vectors; v += kMaxVectors) {
    pair_tiles<kMaxVectors, kPairRows>(a, a_row, a_step, b + v * width, rows, depth, lanes,
                                       c + v * width, c_row);
  }
  for (; v < vectors; ++v) {
    pair_tiles<1, 12>(a, a_row, a_step, b + v * width, rows, depth, lanes, c + v * width, c_row);
  }
}

// Magnitudes compare as their bits do; infinities and NaN are the greatest.
HM_INLINE int32_t magnitude_bits(float x) { return (int32_t)(float_to_bits(x) & 0x7fffffff); }

// The greatest magnitude, NaN if a number is not finite.
HM_INLINE float finite_or_nan(int32_t bits) {
  return bits < 0x7f800000 ? bits_to_float((uint32_t)bits) : __builtin_nanf("");
}

HM_INLINE float most_magnitude(const float* x, int64_t n) {
  int32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t bits = magnitude_bits(x[i]);
    most = bits > most ? bits : most;
  }
  return finite_or_nan(most);
}

// What makes codes of numbers up to this magnitude; 0 where it is 0 or NaN.
HM_INLINE float code_factor(float most, float magnitude) {
  return magnitude > 0 ? most / magnitude : 0.0f;
}

// Rounds a row to codes; returns its scale, NaN if a number is not finite.
HM_INLINE float round_row(const float* x, int64_t n, float most, uint16_t* out) {
  const float magnitude = most_magnitude(x, n), factor = code_factor(most, magnitude);
  for (int64_t i = 0; i < n; ++i) out[i] = (uint16_t)round_code(x[i] * factor);
  return magnitude / most;
}

void round_columns(const float* x, int64_t depth, int64_t lanes, int32_t* out, float* scales) {
  const float most = most_code(depth);
  for (int64_t first = 0; first < lanes; first += 16) {
    int32_t greatest[16] = {};
    float factors[16];
    for (int64_t k = 0; k < depth; ++k) {
      for (int i = 0; i < 16; ++i) {
        const int32_t bits = magnitude_bits(x[k * lanes + first + i]);
        greatest[i] = bits > greatest[i] ? bits : greatest[i];
      }
    }
    for (int i = 0; i < 16; ++i) {
      const float magnitude = finite_or_nan(greatest[i]);
      factors[i] = code_factor(most, magnitude);
      scales[first + i] = magnitude / most;
    }
    for (int64_t k = 0; k < depth; k += 2) {
      const float *even = x + k * lanes + first, *odd = even + lanes;
      for (int i = 0; i < 16; ++i) {
        const uint32_t pair = round_code(even[i] * factors[i]) | round_code(odd[i] * factors[i])
                                                                     << 16;
        out[k / 2 * lanes + first + i] = (int32_t)pair;
      }
    }
  }
}

// Rounds values to codes, every second number of `out`. Returns the exponent of their scale.
HM_INLINE int round_values(const float* x, int64_t n, float magnitude, uint16_t* out) {
  constexpr int least = -64, most = 100;
  const int exponent = (int)(float_to_bits(magnitude) >> 23 & 0xff) - 127 - 10;
  const int bounded = exponent < least ? least : exponent > most ? most : exponent;
  const float inverse = bits_to_float((uint32_t)(127 - bounded) << 23);
  for (int64_t i = 0; i < n; ++i) {
    const float code = x[i] * inverse;
    const float below = code < kValueCodes ? code : kValueCodes;
    out[2 * i] = (uint16_t)round_code(below > -kValueCodes ? below : -kValueCodes);
  }
  return bounded;
}

void expand_head(const HeadExpansion& h, const uint8_t* const* rows, KvType type, int64_t num_keys,
                 float* scratch, const ExpandedKeys& out) {
  const int64_t dim = h.latent_dim + h.rope_dim, key_dim = h.nope_dim + h.rope_dim;
  const int64_t width = h.nope_dim + h.value_dim, latent_words = h.latent_dim / 2;
  float* ropes = scratch;                                // (kAttentionBlock, rope_dim)
  float* scales = ropes + kAttentionBlock * h.rope_dim;  // (kAttentionBlock), of latents
  float* products = scales + kAttentionBlock;            // (kAttentionBlock, width)
  float* wide = products + kAttentionBlock * width;      // a row of the KV cache, or a key
  int32_t* latents = (int32_t*)(wide + round_up_16(dim + key_dim));  // (kAttentionBlock, words)
  for (int64_t k = 0; k < num_keys; ++k) {
    widen_kv_row(rows[k], type, dim, wide);
    memcpy(ropes + k * h.rope_dim, wide + h.latent_dim, h.rope_dim * sizeof(float));
    scales[k] = round_row(wide, h.latent_dim, most_code(h.latent_dim),
                          (uint16_t*)(latents + k * latent_words));
  }
  pair_product(latents, latent_words, 1, h.key_weights, num_keys, h.latent_dim / 2, h.nope_dim,
               products, width);
  pair_product(latents, latent_words, 1, h.value_weights, num_keys, h.latent_dim / 2, h.value_dim,
               products + h.nope_dim, width);
  uint16_t* values = (uint16_t*)out.values;
  for (int64_t k = 0; k < num_keys; ++k) {
    const float *product = products + k * width, *value = product + h.nope_dim;
    for (int64_t i = 0; i < h.nope_dim; ++i) wide[i] = product[i] * (scales[k] * h.key_scales[i]);
    memcpy(wide + h.nope_dim, ropes + k * h.rope_dim, h.rope_dim * sizeof(float));
    out.key_scales[k] =
        round_row(wide, key_dim, most_code(key_dim), (uint16_t*)(out.keys + k * key_dim / 2));
    for (int64_t i = 0; i < h.value_dim; ++i) {
      wide[i] = value[i] * (scales[k] * h.value_scales[i]);
    }
    const float magnitude = most_magnitude(wide, h.value_dim);
    if (magnitude != magnitude) out.key_scales[k] = magnitude;
    uint16_t* to = values + 2 * (k / 2 * out.value_stride) + k % 2;
    const int exponent = round_values(wide, h.value_dim, magnitude, to);
    out.value_logs[k] = (float)exponent * 0x1.62e43p-1f;  // ln 2
    out.value_inverses[k] = kWeightCodes * bits_to_float((uint32_t)(127 - exponent) << 23);
  }
}

// e^z for z <= 0 to 2^-18, zero below -87. NaN stays. In this form compilers vectorize it.
HM_INLINE float weight_of(float z) {
  const float bounded = z < -88.0f ? -88.0f : z;
  const float shifted = fused(bounded, 0x1.715476p+0f, 0x1.8p23f);
  const float n = shifted - 0x1.8p23f;
  const float r = fused(n, -0x1.7f7d1cp-20f, fused(n, -0x1.62e4p-1f, bounded));
  float p = 1.0f / 120;
  p = fused(p, r, 1.0f / 24);
  p = fused(p, r, 1.0f / 6);
  p = fused(p, r, 0.5f);
  p = fused(p, r, 1.0f);
  p = fused(p, r, 1.0f);
  const uint32_t bits = float_to_bits(shifted);  // 0x4b400000 + n
  const uint32_t is_large = bits >= 0x4b400000 - 126;
  return p * bits_to_float(((bits << 23) + 0x3f800000) & -is_large);
}

template <bool IsWhole>
HM_INLINE void scale_scores(const ExpandedBlock& a, const AttentionSums& out) {
  for (int64_t k = 0; k < a.num_keys; ++k) {
    float* row = a.scores + k * a.lanes;
    const float key_scale = a.keys.key_scales[k], log = a.keys.value_logs[k];
    for (int64_t i = 0; i < a.lanes; ++i) {
      const float score = fused(row[i] * key_scale, a.query_scales[i], log);
      row[i] = IsWhole || k < a.visible[i] ? score : -__builtin_inff();
      out.max[i] = row[i] > out.max[i] ? row[i] : out.max[i];
    }
  }
}

void attend_expanded(const ExpandedBlock& a, const AttentionSums& out) {
  const int64_t lanes = a.lanes, num_pairs = (a.num_keys + 1) / 2;
  pair_product(a.keys.keys, a.dim / 2, 1, a.queries, a.num_keys, a.dim / 2, lanes, a.scores, lanes);
  for (int64_t i = 0; i < lanes; ++i) {
    out.max[i] = kNoAttentionKey;
    out.sum[i] = 0.0f;
  }
  bool is_whole = true;
  for (int64_t i = 0; i < lanes; ++i) is_whole &= a.visible[i] >= a.num_keys;
  is_whole ? scale_scores<true>(a, out) : scale_scores<false>(a, out);
  for (int64_t pair = 0; pair < num_pairs; ++pair) {
    const int64_t k = 2 * pair;
    const bool has_odd = k + 1 < a.num_keys;
    const float even_inverse = a.keys.value_inverses[k];
    const float odd_inverse = has_odd ? a.keys.value_inverses[k + 1] : 0.0f;
    const float odd_codes = has_odd ? kWeightCodes : 0.0f;
    const float *even = a.scores + k * lanes, *odd = even + (has_odd ? lanes : 0);
    int32_t* weights = a.weights + pair * lanes;
    for (int64_t i = 0; i < lanes; ++i) {
      const float x = weight_of(even[i] - out.max[i]), y = weight_of(odd[i] - out.max[i]);
      out.sum[i] = fused(y, odd_inverse, fused(x, even_inverse, out.sum[i]));
      weights[i] = (int32_t)(round_code(x * kWeightCodes) | round_code(y * odd_codes) << 16);
    }
  }
  pair_product(a.keys.values, 1, a.keys.value_stride, a.weights, a.value_dim, num_pairs, lanes,
               out.values, lanes);
}

}  // namespace
}  // namespace hm
