// The one thread pool of the process and the memory its jobs reuse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <vector>

#include "base/thread_pool.h"

namespace hm {

// Uninitialised memory that only grows, so that a steady state allocates nothing. Large pieces are
// huge pages where the system gives them: fewer look-ups of addresses, and neighbours in memory do
// not meet in the cache.
class Buffer {
 public:
  template <class T>
  T* get(int64_t count) {
    const std::size_t bytes = static_cast<std::size_t>(count) * sizeof(T);
    if (bytes > capacity_) grow(bytes + bytes / 4);
    return reinterpret_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  void grow(std::size_t bytes);

  std::unique_ptr<std::byte, Free> memory_;
  std::size_t capacity_ = 0;
};

// Pieces of a buffer, in turn; until others are made of it.
class Pieces {
 public:
  Pieces(Buffer& memory, int64_t floats) : at_(memory.get<float>(floats)) {}
  float* take(int64_t floats) {
    float* piece = at_;
    at_ += floats;
    return piece;
  }

 private:
  float* at_;
};

// Memory of one operation.
struct Buffers {
  Buffer activations, rows, token_rows, hidden, hidden_rows, outputs;
};

// The buffers are those of the operation under way.
struct Runtime : Buffers {
  explicit Runtime(const ThreadPlan& plan) : pool(plan), scratch(pool.num_workers()) {}
  ThreadPool pool;
  std::vector<Buffer> scratch;  // one a worker
  std::optional<JobTrace> trace;
};

// Exclusive use of the runtime for the length of one operation. Calls from several Python threads
// queue here. A forked child starts afresh: its parent's worker threads do not exist there.
class RuntimeLock {
 public:
  RuntimeLock();
  Runtime* operator->() const { return runtime_.get(); }
  Runtime& operator*() const { return *runtime_; }
  const std::shared_ptr<Runtime>& get() const { return runtime_; }

 private:
  std::unique_lock<std::mutex> lock_;
  std::shared_ptr<Runtime> runtime_;
};

// Keeps the workers awake, without the lock. Other threads set another number of them meanwhile:
// then the old ones go on until this ends, too.
class AwakeWorkers {
 public:
  AwakeWorkers() : runtime_(RuntimeLock().get()) { runtime_->pool.stay_awake(); }
  ~AwakeWorkers() { runtime_->pool.may_sleep(); }
  AwakeWorkers(const AwakeWorkers&) = delete;
  AwakeWorkers& operator=(const AwakeWorkers&) = delete;

 private:
  std::shared_ptr<Runtime> runtime_;
};

void set_threads(ThreadPlan plan);  // throws Error; check_plan says when
ThreadPlan threads();

}  // namespace hm
