// Persistent worker threads that share out the chunks of one job at a time.
//
// run(n, f) calls f(chunk, worker) for every chunk in 0..n-1, each exactly once, on the calling
// thread (worker 0) and on whichever workers are awake; it returns when all chunks are done. Chunks
// are taken in order from a shared counter, so a slow or descheduled worker delays at most the
// chunk it holds: the caller waits only for workers that joined the job, never for those still
// asleep.
//
// Between jobs a worker spins for kSpin, since the next layer's job follows within microseconds,
// then sleeps in the kernel. An exception must not leave f.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace hm {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the caller.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Only one thread at a time may call run: callers hold the lock of Runtime.
  template <class Function>
  void run(int64_t num_chunks, const Function& f) {
    run_job(num_chunks, &f, [](const void* context, int64_t chunk, int worker) {
      (*static_cast<const Function*>(context))(chunk, worker);
    });
  }

 private:
  using Call = void (*)(const void* context, int64_t chunk, int worker);

  void run_job(int64_t num_chunks, const void* context, Call call);
  void work(int worker);
  void take_chunks(int worker);
  bool join(uint64_t& seen);

  // The job. Written by the caller while no worker is joined, read by joined workers only.
  const void* context_ = nullptr;
  Call call_ = nullptr;
  int64_t num_chunks_ = 0;
  alignas(64) std::atomic<int64_t> next_chunk_{0};

  // number of the job << 32 | open << 31 | joined workers
  alignas(64) std::atomic<uint64_t> state_{0};
  // Changes with each job and at the end: what a sleeping worker waits on.
  alignas(64) std::atomic<uint32_t> wake_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

// Physical cores among those that this process may run on.
int default_num_threads();

}  // namespace hm
