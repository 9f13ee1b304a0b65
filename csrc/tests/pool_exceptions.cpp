// A chunk that throws, on whichever thread, ends its job and no other: run throws the exception, no
// thread is left in the function, no chunk runs twice, and the next job is whole. Compiled and run
// by tests/csrc/test_native_memory.py, and under ThreadSanitizer by `make tsan`.
#include <atomic>
#include <cstdio>
#include <new>
#include <random>
#include <vector>

#include "base/thread_pool.h"

namespace {

// Threads per node, free to run anywhere.
hm::ThreadPlan plan_of(const std::vector<int>& nodes) {
  hm::ThreadPlan plan;
  for (const int threads : nodes) plan.emplace_back(threads);
  return plan;
}

// Runs a job of which one chunk throws, or every one, or none; whether run threw.
bool has_thrown(hm::ThreadPool& pool, bool is_local, std::vector<int>& count, int64_t bad) {
  const auto work = [&](int64_t chunk, int) {
    ++count[chunk];
    for (int i = 0; i < 300; ++i) {  // so that workers get some chunks
      std::atomic_signal_fence(std::memory_order_seq_cst);
    }
    if (chunk == bad || bad < 0) throw std::bad_alloc();
  };
  const int64_t chunks = static_cast<int64_t>(count.size());
  try {
    if (!is_local) {
      pool.run(chunks, work);
    } else {
      std::vector<int64_t> ends(pool.num_nodes());
      for (int n = 0; n < pool.num_nodes(); ++n) ends[n] = chunks * (n + 1) / pool.num_nodes();
      pool.run_on_nodes(ends, work);
    }
  } catch (const std::bad_alloc&) {
    return true;
  }
  return false;
}

const char* failure(const hm::ThreadPlan& plan, int jobs) {
  hm::ThreadPool pool(plan);
  std::mt19937 random(4);
  for (int job = 0; job < jobs; ++job) {
    std::vector<int> count(1 + random() % 200);
    const int64_t chunks = static_cast<int64_t>(count.size());
    const int64_t bad = static_cast<int64_t>(random() % (2 * chunks)) - 1;
    const bool thrown = has_thrown(pool, job % 2 == 1, count, bad);
    if (thrown != (bad < chunks)) return "an exception does not reach the caller, or comes of none";
    for (const int n : count) {
      if (n != 1 && !(thrown && n == 0)) return "a chunk runs twice, or not at all";
    }
  }
  return nullptr;
}

}  // namespace

int main() {
  for (const auto& nodes : {std::vector{1}, {2}, {4}, {1, 1}, {1, 0, 2}, {3, 3}}) {
    if (const char* what = failure(plan_of(nodes), 500)) {
      std::fprintf(stderr, "FAILED: %s\n", what);
      return 1;
    }
  }
  std::puts("pool_exceptions: every exception at the caller, every chunk once");
  return 0;
}
