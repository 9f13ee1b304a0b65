#include "base/thread_pool.h"

#include <chrono>
#include <fstream>
#include <set>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace hm {
namespace {

constexpr std::chrono::microseconds kSpin{
    80};                             // longer than the gap between two kernels of a layer
constexpr int kPausesPerClock = 64;  // spins between looks at the clock
constexpr uint64_t kOpen = 1u << 31;
constexpr uint64_t kJoined = kOpen - 1;

constexpr uint64_t job_number(uint64_t state) { return state >> 32; }

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

// Spins until `done` or kSpin has passed; returns whether it was done.
template <class Condition>
bool spin_until(const Condition& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerClock; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int worker = 1; worker < num_threads; ++worker) {
    workers_.emplace_back([this, worker] { work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  wake_.fetch_add(1);
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_job(int64_t num_chunks, const void* context, Call call) {
  if (workers_.empty() || num_chunks <= 1) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) call(context, chunk, 0);
    return;
  }
  context_ = context;
  call_ = call;
  num_chunks_ = num_chunks;
  next_chunk_.store(0, std::memory_order_relaxed);
  const uint64_t number = job_number(state_.load(std::memory_order_relaxed)) + 1;
  // Release: a worker that joins (acquire) sees the job written above.
  state_.store(number << 32 | kOpen, std::memory_order_release);
  // Sequentially consistent with the worker's `sleepers_` increment and its last look at `wake_`:
  // either it sees the new value and does not sleep, or we see it among the sleepers.
  wake_.fetch_add(1);
  if (sleepers_.load() > 0) wake_.notify_all();
  take_chunks(0);
  // Acquire: what joined workers wrote before leaving (release) is visible once none is left.
  uint64_t state = state_.fetch_and(~kOpen, std::memory_order_acquire);
  while ((state & kJoined) != 0) {
    if (!spin_until([&] { return (state_.load(std::memory_order_acquire) & kJoined) == 0; })) {
      std::this_thread::yield();
    }
    state = state_.load(std::memory_order_acquire);
  }
}

void ThreadPool::take_chunks(int worker) {
  for (;;) {
    const int64_t chunk = next_chunk_.fetch_add(1, std::memory_order_relaxed);
    if (chunk >= num_chunks_) return;
    call_(context_, chunk, worker);
  }
}

// Counts this worker into the current job, unless that is over or was `seen` before.
bool ThreadPool::join(uint64_t& seen) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while ((state & kOpen) != 0 && job_number(state) != seen) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) {
      seen = job_number(state);
      return true;
    }
  }
  return false;
}

void ThreadPool::work(int worker) {
  uint64_t seen = 0;
  while (!stop_.load(std::memory_order_relaxed)) {
    const uint32_t wake = wake_.load();
    if (join(seen)) {
      take_chunks(worker);
      state_.fetch_sub(1, std::memory_order_release);
      continue;
    }
    if (spin_until([&] { return wake_.load(std::memory_order_relaxed) != wake; })) continue;
    sleepers_.fetch_add(1);
    wake_.wait(wake);
    sleepers_.fetch_sub(1);
  }
}

int default_num_threads() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    std::set<std::pair<int, int>> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &allowed)) continue;
      const std::string topology =
          "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      int package = 0, core = cpu;  // without sysfs every CPU counts
      std::ifstream(topology + "physical_package_id") >> package;
      if (!(std::ifstream(topology + "core_id") >> core)) core = cpu;
      cores.emplace(package, core);
    }
    if (!cores.empty()) return static_cast<int>(cores.size());
  }
#endif
  const unsigned count = std::thread::hardware_concurrency();
  return count > 0 ? static_cast<int>(count) : 1;
}

}  // namespace hm
