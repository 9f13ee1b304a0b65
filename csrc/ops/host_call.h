// A layer's routed experts as a host function of a CUDA stream, between a copy of the inputs to the
// host and a copy of the result back. The CUDA driver's thread calls it, or `HandOver`.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

namespace hm {

// Addresses of memory that stays in place as long as the call may run; read and written by `run`.
struct HostCallMemory {
  const float* x;        // (max_tokens, H)
  const int32_t* ids;    // (max_tokens, k), -1 = none
  const float* weights;  // (max_tokens, k)
  float* out;            // (max_tokens, H)
  int64_t max_tokens, top_k;
  const int32_t* slot_of;  // (E) or null; experts with a slot (>= 0) are the GPU's
};

class HostCall {
 public:
  virtual ~HostCall() = default;
  HostCall(const HostCall&) = delete;
  HostCall& operator=(const HostCall&) = delete;

  int64_t num_tokens() const { return num_tokens_.load(std::memory_order_relaxed); }
  // Of the next run; not while one is under way or in a stream. Throws Error.
  void set_num_tokens(int64_t num_tokens);

  // out = the sum over the experts without a slot, as `expert_ffn` does it. On an error `out` is
  // zeros, and the first error since the last `take_error` is kept. Any thread, one at a time.
  void run() noexcept;

  // The kept error, once.
  std::optional<std::string> take_error();

  // When the last run began and ended, in seconds of the steady clock; zeros before the first.
  std::pair<double, double> times() const;

 protected:
  // For max_tokens at first. Throws Error where something is missing.
  HostCall(const HostCallMemory& memory, int64_t hidden);

  // Writes out (num_tokens, H), or throws.
  virtual void compute(int64_t num_tokens) = 0;

  const HostCallMemory memory_;
  const int64_t hidden_;

 private:
  void keep_error(const char* what) noexcept;

  // Relaxed: accesses while no run is under way are ordered with the runs by the
  // stream that they are in.
  std::atomic<int64_t> num_tokens_;
  std::atomic<double> begin_s_{0}, end_s_{0};
  std::mutex error_mutex_;
  bool failed_ = false;
  std::string error_;
};

}  // namespace hm
