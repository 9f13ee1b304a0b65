#include "ops/kv_pages.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/select.h"

namespace hm {
namespace {

// Round to nearest even; NaN stays NaN.
uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void pack_kv_row(const float* x, KvType type, int64_t dim, uint8_t* row) {
  if (type == kKvF32) {
    std::memcpy(row, x, dim * sizeof(float));
    return;
  }
  if (type == kKvF16) {
    active_table().round_to_half(x, dim, reinterpret_cast<uint16_t*>(row));
    return;
  }
  if (type == kKvBF16) {
    auto* out = reinterpret_cast<uint16_t*>(row);
    for (int64_t i = 0; i < dim; ++i) out[i] = to_bf16(x[i]);
    return;
  }
  auto* codes = reinterpret_cast<int8_t*>(row) + 4 * kv_groups(dim);
  for (int64_t first = 0; first < dim; first += kKvGroup) {
    const int64_t end = std::min(dim, first + kKvGroup);
    float most = 0.0f, nan = 0.0f;  // x - x: not zero where x is no finite number
    for (int64_t i = first; i < end; ++i) {
      most = std::max(most, std::fabs(x[i]));
      nan += x[i] - x[i];
    }
    const float scale = most / 127.0f + nan;
    const float inverse = scale >= 0x1p-120f ? 1.0f / scale : 0.0f;
    for (int64_t i = first; i < end; ++i) {
      const float code = nan == 0.0f ? std::nearbyint(x[i] * inverse) : 1.0f;
      codes[i] = static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f));
    }
    std::memcpy(row + first / kKvGroup * sizeof scale, &scale, sizeof scale);
  }
}

}  // namespace

void check_batch(const char* op, const KvPages& pages, const SequenceBatch& batch,
                 int64_t num_tokens) {
  int64_t tokens = 0;
  for (int64_t s = 0; s < batch.num_spans; ++s) {
    const auto [count, start, table] = batch.spans[s];
    check(count >= 0 && count <= num_tokens && start >= 0 && start < int64_t{1} << 40 &&
              table >= 0 && table <= batch.num_entries,
          op, ": sequence ", s, " has ", count, " tokens from ", start, ", its table at ", table);
    const int64_t used = (start + count + kPageTokens - 1) / kPageTokens;
    check(used <= batch.num_entries - table, op, ": sequence ", s, " needs ", used,
          " pages, its table has ", batch.num_entries - table);
    for (int64_t i = 0; i < used; ++i) {
      const int64_t page = batch.tables[table + i];
      check(page >= 0 && page < pages.num_pages, op, ": page ", page, " of ", pages.num_pages);
    }
    tokens += count;
  }
  check(tokens == num_tokens, op, ": the sequences have ", tokens, " tokens, expected ",
        num_tokens);
}

void store_kv(const float* rows, int64_t num_tokens, const KvPages& pages,
              const SequenceBatch& batch) {
  check_batch("store_kv", pages, batch, num_tokens);
  for (int64_t s = 0; s < batch.num_spans; ++s) {
    const auto [count, start, table] = batch.spans[s];
    for (int64_t t = 0; t < count; ++t, rows += pages.dim) {
      pack_kv_row(rows, pages.type, pages.dim, pages.row(batch.tables + table, start + t));
    }
  }
}

}  // namespace hm
