// Latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) in its absorbed form: all heads
// attend over the same latents, which are keys and values at once.
#pragma once

#include <cstdint>

namespace hm {

struct LatentAttentionArgs {
  const float* latent_queries;  // (N, T, R)
  const float* rope_queries;    // (P) of token t and head n at t * token_stride + n * head_stride
  int64_t token_stride, head_stride;
  const float* latents;  // (start + T, R + P)
  int64_t num_tokens, num_heads, latent_dim, rope_dim;
  int64_t start;  // position of the first token; token t sees positions 0..start + t
  float scale;
  float* out;  // (N, T, R)
};

// Throws Error where a size cannot be.
void latent_attention(const LatentAttentionArgs& args);

}  // namespace hm
