// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) in its absorbed form:
// all heads attend over the same rows of a paged KV cache. A row is key and value at once.
#pragma once

#include <cstdint>
#include <memory>

#include "ops/kv_pages.h"

namespace hm {

struct LatentAttentionArgs {
  const float* q_latent;  // (N, T, R)
  const float* q_rope;    // (P) of token t and head n at t * token_stride + n * head_stride
  int64_t token_stride, head_stride;
  int64_t num_tokens, num_heads, latent_dim, rope_dim;  // T = the batch's tokens
  float scale;
  // (T, top_k), for each token that sees more than top_k positions those that it attends to, each
  // once; or null: all tokens attend to all that they see.
  const int32_t* selected;
  int64_t top_k;
  float* out;  // (N, T, R)
};

// Throws Error where a size cannot be, or a page does not exist.
void latent_attention(const LatentAttentionArgs& args, const KvPages& pages,
                      const SequenceBatch& batch);

// The same in two parts, of which the first needs no queries yet, nor the runtime's lock. What it
// refers to stays in place.
class PlannedAttention {
 public:
  PlannedAttention(const LatentAttentionArgs& args, const KvPages& pages,
                   const SequenceBatch& batch, int num_threads);
  ~PlannedAttention();
  void run();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hm
