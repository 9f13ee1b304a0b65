// What a layer does to each token between its products: normalise, rotate, choose experts.
#pragma once

#include <cstdint>

namespace hm {

// Row t of x starts at x + t * x_stride; of residual, where it is not null, at t * n; out may be x.
struct RmsNormArgs {
  float* x;
  int64_t x_stride;
  const float* residual;  // (T, n), added to x first, or null
  const float* weight;    // (n)
  int64_t num_tokens, n;
  float eps;
  float* out;
  int64_t out_stride;
};
void rms_norm(const RmsNormArgs& args);
// On the calling thread, for what runs within a job.
void rms_norm_alone(const RmsNormArgs& args);
// The factor of a token's norm, 1 / sqrt(mean(x^2) + eps), and some of its numbers: together the
// bits of rms_norm.
float norm_scale(const float* x, int64_t n, float eps);
inline void norm_columns(const float* x, float scale, const float* weight, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

// Turns neighbouring pairs, in place: vector (t, h) starts at x + t * token_stride + h *
// head_stride and is multiplied, pair by pair as complex numbers, with cos_sin[t].
struct RotateArgs {
  float* x;
  int64_t num_tokens, num_heads, token_stride, head_stride, num_pairs;
  const float* cos_sin;  // (T, num_pairs, 2)
};
void rotate(const RotateArgs& args);
void rotate_alone(const RotateArgs& args);

// The switches of DeepSeek-V2 (softmax scores; a group counts as its best expert) and V3 (sigmoid;
// as its two best).
struct RouteArgs {
  const float* logits;  // (T, E)
  const float* bias;    // (E), added to the scores for the choice only, or null
  int64_t num_tokens, num_experts, top_k;
  int64_t num_groups, num_groups_used;
  bool is_sigmoid, is_normalized;
  float scale;
  int32_t* ids;    // (T, k), best first; of equals, the lower id
  float* weights;  // (T, k)
};
// Throws Error where the counts do not fit each other.
void route(const RouteArgs& args);

}  // namespace hm
