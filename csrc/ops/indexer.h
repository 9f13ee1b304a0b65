// The indexer of DeepSeek Sparse Attention (DeepSeek-V3.2-Exp, arXiv 2512.02556, section 2): scores
// the positions that a token sees by its index keys, and selects the best.
#pragma once

#include <cstdint>

#include "ops/kv_pages.h"

namespace hm {

struct IndexArgs {
  const float* queries;                       // (T, J, D)
  const float* weights;                       // (T, J), of the index heads
  int64_t num_tokens, num_heads, dim, top_k;  // T = the batch's tokens
  int32_t* selected;                          // (T, top_k)
};

// Writes the positions with the greatest scores, sum over heads of weight max(q . k, 0), ascending;
// of equal scores the earlier positions. Rows of tokens that see at most top_k are left as they
// are. `pages` holds index keys. Throws Error where a size cannot be, or a page does not exist.
void select_positions(const IndexArgs& args, const KvPages& pages, const SequenceBatch& batch);

}  // namespace hm
