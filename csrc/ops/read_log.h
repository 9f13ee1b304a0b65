// The bytes of weights that each NUMA node's threads touch first and then read, for tests of their
// placement: nodes are simulated, by the chunks that belong to them (base/job_trace.h).
#pragma once

#include <cstdint>
#include <vector>

namespace hm {

struct WeightAccess {
  enum Kind : int32_t { kTouch, kRead, kFetch };  // fetch: into the cache, for a read that follows

  uintptr_t address;
  int64_t num_bytes;
  int node;  // -1: of any
  Kind kind;
};

// From here on, jobs run on their caller alone, and each access is kept. with_tiles: where kernels
// have no matrix tiles, products that would go through them are noted and not computed.
void begin_read_log(bool with_tiles);
std::vector<WeightAccess> end_read_log();

// Notes the first touch of rows, if there is a log.
void note_touch(const void* data, int64_t num_bytes);

}  // namespace hm
