// The CPU's side of a step whose layers a GPU hands over and takes back: two counters in memory
// that both reach. The GPU writes a layer's inputs, then one more into `sent`; the CPU computes,
// then writes the same number into `done`; the GPU reads the outputs once `done` is that far.
// Neither resets a counter, so a graph can repeat the step. They may wrap.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "ops/host_call.h"

namespace hm {

class HandOver {
 public:
  // Both stay in place as long as this or the GPU uses them, and are equal at first.
  HandOver(uint32_t* sent, uint32_t* done);

  // True once the GPU has ended the step; asked every now and then, on the calling thread.
  using HasEnded = std::function<bool()>;

  // Runs the calls in order, each once the GPU has sent it. Spins, and keeps the pool's workers
  // awake: layers follow each other within microseconds. Throws Error where the step ends before
  // all are sent, and what has_ended throws: a GPU that failed sends nothing any more.
  void serve(std::span<HostCall* const> calls, const HasEnded& has_ended);

  // Says that all is done that the GPU has sent, computed or not, until the step has ended.
  void release(const HasEnded& has_ended);

 private:
  uint32_t sent() const;
  void finish(uint32_t number);

  uint32_t* const sent_;
  uint32_t* const done_;
};

}  // namespace hm
