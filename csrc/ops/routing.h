// Tokens of each expert.
#pragma once

#include <cstdint>
#include <vector>

namespace hm {

// Tokens of one expert: slots first..first+count of the sorted order.
struct Batch {
  int64_t expert, first, count;
};

// (token, choice) pairs sorted by expert, so that each expert's tokens are neighbours: first the
// experts by gemv or gemm, then those by matrix tiles.
struct Routing {
  std::vector<Batch> untiled, tiled;  // by expert
  int64_t num_untiled_slots;
  std::vector<int64_t> slot_of;  // (T * k): place in the sorted order, -1 = none
  std::vector<int64_t> pair_of;  // (slots): token * k + choice
  std::vector<int64_t> next;     // (E)
};

}  // namespace hm
