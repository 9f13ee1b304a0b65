// Copies of memory by several threads, beside the kernels' pool: a job of that one may run
// meanwhile.
#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace hm {

class CopyThreads {
 public:
  // num_threads: the caller of `copy` included. Throws Error where there cannot be as many.
  explicit CopyThreads(int num_threads);

  int num_threads() const { return pool_.num_threads(); }

  // dst and src do not overlap. One call at a time. Written with ordinary stores: a piece that is
  // used again and again stays in the cache, from where a GPU's copy engine reads it.
  void copy(uint8_t* dst, const uint8_t* src, int64_t num_bytes);

 private:
  ThreadPool pool_;
};

}  // namespace hm
