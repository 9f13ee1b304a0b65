// The paged KV cache of one layer, and the sequences of a step whose tokens lie in it.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"

namespace hm {

// num_pages pages of kPageTokens rows of dim numbers.
struct KvPages {
  uint8_t* data;
  KvType type;
  int64_t num_pages, dim;

  int64_t row_bytes() const { return kv_row_bytes(type, dim); }
  int64_t page_bytes() const { return kPageTokens * row_bytes(); }
  uint8_t* row(const int32_t* table, int64_t position) const {
    return data + table[position / kPageTokens] * page_bytes() +
           position % kPageTokens * row_bytes();
  }
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

// Throws Error, of the function `op`, unless the sequences have num_tokens tokens, all of whose
// positions lie in pages that exist.
void check_batch(const char* op, const KvPages& pages, const SequenceBatch& batch,
                 int64_t num_tokens);

// Writes rows (T, dim) f32 to their places, rounded to the pages' type. Throws Error likewise.
void store_kv(const float* rows, int64_t num_tokens, const KvPages& pages,
              const SequenceBatch& batch);

}  // namespace hm
