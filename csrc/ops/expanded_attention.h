// Attention of long prompts, over the keys and values of each head (DeepSeek-V2, arXiv 2405.04434,
// section 2.1): fewer products a pair of positions than in latent space, once the expansion of a
// block of positions serves enough queries.
#pragma once

#include <cstdint>

#include "ops/kv_pages.h"
#include "ops/linear.h"

namespace hm {

struct ExpandedAttentionArgs {
  Rows<const float> q_nope, q_rope;  // (N, T, nope), (N, T, P)
  const Matrix& k_b;                 // N matrices (R, nope)
  const Matrix& v_b;                 // N matrices (V, R)
  int64_t num_tokens, rope_dim;
  float scale;
  Rows<float> out;  // (N, T, V)
};

// Throws Error where a size cannot be, or a page does not exist.
void expanded_attention(const ExpandedAttentionArgs& args, const KvPages& pages,
                        const SequenceBatch& batch);

}  // namespace hm
