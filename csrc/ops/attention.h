// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1) in its absorbed form:
// all heads attend over the same rows of a paged KV cache. A row is key and value at once.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace hm {

// KV cache of one layer: num_pages pages of kPageTokens rows of dim numbers.
struct KvPages {
  uint8_t* data;
  KvType type;
  int64_t num_pages, dim;

  int64_t row_bytes() const { return kv_row_bytes(type, dim); }
  int64_t page_bytes() const { return kPageTokens * row_bytes(); }
};

// A sequence's chunk in a step: num_tokens tokens, the first at position `start`. Position p lies
// in page tables[table + p / kPageTokens]. Token t sees positions 0..start + t.
struct SequenceSpan {
  int64_t num_tokens, start, table;
};

// The sequences of a step, their tokens one after the other.
struct SequenceBatch {
  const SequenceSpan* spans;
  int64_t num_spans;
  const int32_t* tables;
  int64_t num_entries;  // in tables
};

struct LatentAttentionArgs {
  const float* q_latent;  // (N, T, R)
  const float* q_rope;    // (P) of token t and head n at t * token_stride + n * head_stride
  int64_t token_stride, head_stride;
  int64_t num_tokens, num_heads, latent_dim, rope_dim;  // T = the batch's tokens
  float scale;
  float* out;  // (N, T, R)
};

// Throws Error where a size cannot be, or a page does not exist.
void latent_attention(const LatentAttentionArgs& args, const KvPages& pages,
                      const SequenceBatch& batch);

// Writes rows (T, dim) f32 to their places, rounded to the pages' type. Throws Error likewise.
void store_kv(const float* rows, int64_t num_tokens, const KvPages& pages,
              const SequenceBatch& batch);

}  // namespace hm
