#include "base/thread_pool.h"

#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/pause.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace hm {
namespace {

constexpr int kMaxThreads = 1024, kMaxCpus = 8192;  // the most that Linux can be built for
// Longer than the gap between two kernels of a layer.
constexpr std::chrono::microseconds kSpin{80};
// Of a pool that stays awake: longer than a GPU takes for its part of a layer.
constexpr std::chrono::milliseconds kAwakeSpin{5};
constexpr int kPausesPerClock = 64;  // spins between looks at the clock
constexpr uint64_t kOpen = 1u << 31;
constexpr uint64_t kJoined = kOpen - 1;

constexpr uint32_t job_number(uint64_t state) { return static_cast<uint32_t>(state >> 32); }

// Spins until `done` or some time has passed; returns whether it was done.
template <class Condition>
bool spin_until(const Condition& done, std::chrono::microseconds most = kSpin) {
  const auto end = std::chrono::steady_clock::now() + most;
  do {
    for (int i = 0; i < kPausesPerClock; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

int current_cpu() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Names the calling thread and binds it. Where that is refused, it runs anywhere: only slower.
void settle(int worker, const std::vector<int>& cpus) {
#if defined(__linux__)
  pthread_setname_np(pthread_self(), ("hybridmoe-" + std::to_string(worker)).c_str());
  if (cpus.empty()) return;
  cpu_set_t set[kMaxCpus / CPU_SETSIZE];
  CPU_ZERO_S(sizeof set, set);
  for (const int cpu : cpus) CPU_SET_S(cpu, sizeof set, set);
  pthread_setaffinity_np(pthread_self(), sizeof set, set);
#else
  static_cast<void>(worker), static_cast<void>(cpus);
#endif
}

}  // namespace

int count_threads(const ThreadPlan& plan) {
  std::size_t count = 0;
  for (const auto& node : plan) count += node.size();
  return static_cast<int>(count);
}

void check_plan(const ThreadPlan& plan) {
  const int threads = count_threads(plan);
  check(!plan.empty() && plan.size() <= kMaxNodes, plan.size(), " nodes, expected 1 to ",
        kMaxNodes);
  check(threads >= 1 && threads <= kMaxThreads, threads, " threads, expected 1 to ", kMaxThreads);
  for (const auto& node : plan) {
    for (const auto& cpus : node) {
      for (const int cpu : cpus) {
        check(cpu >= 0 && cpu < kMaxCpus, "CPU ", cpu, ", expected 0 to ", kMaxCpus - 1);
      }
    }
  }
}

ThreadPool::ThreadPool(const ThreadPlan& plan)
    : num_threads_(count_threads(plan)),
      nodes_(plan.size()),
      workers_(num_threads_),
      worker_of_cpu_(kMaxCpus, -1) {
  int worker = 0;
  for (int n = 0; n < num_nodes(); ++n) {
    nodes_[n].first = worker;
    for (const std::vector<int>& cpus : plan[n]) {
      for (const int cpu : cpus) {
        if (worker_of_cpu_[cpu] < 0) worker_of_cpu_[cpu] = worker;
      }
      node_of_worker_.push_back(n);
      ++worker;
    }
    nodes_[n].last = worker;
    thread_ends_.push_back(worker);
  }
  if (num_threads_ == 1) return;
  try {
    for (worker = 0; worker < num_threads_; ++worker) {
      const int node = node_of_worker_[worker];
      const std::vector<int>& cpus = plan[node][worker - nodes_[node].first];
      workers_[worker].thread =
          std::thread([this, node, worker, cpus] { work(node, worker, cpus); });
    }
  } catch (const std::system_error& error) {
    stop();
    check(false, "only ", worker, " of ", num_threads_,
          " threads could be started: ", error.what());
  } catch (...) {  // no memory: what has begun must end before it is destroyed
    stop();
    throw;
  }
}

void ThreadPool::stop() {
  stop_.store(true);
  for (Worker& worker : workers_) {
    if (!worker.thread.joinable()) continue;
    worker.is_asleep.store(0);
    worker.is_asleep.notify_one();
    worker.thread.join();
  }
}

void ThreadPool::run_job(std::span<const int64_t> ends, bool is_local, const void* context,
                         Call call) {
  const int64_t num_chunks = ends.back();
  const int caller = num_threads_;
  if (trace_ != nullptr) [[unlikely]] {
    return trace_->run(ends, is_local, [&](int64_t chunk) { call(context, chunk, caller); });
  }
  if (num_threads_ == 1 || num_chunks <= 1) {
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) call(context, chunk, caller);
    return;
  }
  context_ = context;
  call_ = call;
  is_local_ = is_local;
  int64_t begin = 0;
  for (int n = 0; n < num_nodes(); ++n) {
    nodes_[n].next.store(begin, std::memory_order_relaxed);
    nodes_[n].end = begin = ends[n];
  }
  const int replaced = callers_worker();
  // These stores, and the loads of `is_asleep` below, are sequentially consistent with the worker's
  // store of `is_asleep` and its last look at them: either it sees them and does not sleep, or we
  // see it asleep. They also release: a worker that joins (acquire) sees the job written above.
  replaced_.store(replaced);
  ++number_;
  for (Node& node : nodes_) node.state.store(uint64_t{number_} << 32 | kOpen);
  wake_all_but(replaced);
  const int home = node_of_worker_[replaced];
  take_chunks(home, caller);
  for (int n = 0; is_local && n < num_nodes(); ++n) {
    if (n != home && !is_taken(nodes_[n])) drain(nodes_[n], caller);
  }
  for (Node& node : nodes_) finish(node);
  if (has_failed_.load(std::memory_order_relaxed)) [[unlikely]] {
    has_failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

// True if a node's own threads work on its chunks, or have done so. They are given the time to wake
// up; else its memory must be read from another node.
bool ThreadPool::is_taken(const Node& node) const {
  return node.first < node.last && spin_until([&] {
           return (node.state.load(std::memory_order_relaxed) & kJoined) != 0 ||
                  node.next.load(std::memory_order_relaxed) >= node.end;
         });
}

void ThreadPool::stay_awake() {
  if (num_threads_ == 1) return;
  const int replaced = callers_worker();
  replaced_.store(replaced);
  num_awake_.fetch_add(1);
  wake_all_but(replaced);
}

// Returns the worker of the core that the caller runs on, or the first.
int ThreadPool::callers_worker() const {
  const int cpu = current_cpu();
  const int known = cpu >= 0 && cpu < kMaxCpus ? worker_of_cpu_[cpu] : -1;
  return known >= 0 ? known : 0;
}

void ThreadPool::wake_all_but(int replaced) {
  for (int w = 0; w < num_threads_; ++w) {
    Worker& worker = workers_[w];
    if (w == replaced || worker.is_asleep.load() == 0) continue;
    worker.is_asleep.store(0);
    worker.is_asleep.notify_one();
  }
}

// Closes the job on a node and waits for its workers there.
void ThreadPool::finish(Node& node) {
  // Acquire: what joined workers wrote before leaving (release) is visible once none is left.
  uint64_t state = node.state.fetch_and(~kOpen, std::memory_order_acquire);
  while ((state & kJoined) != 0) {
    if (!spin_until([&] { return (node.state.load(std::memory_order_acquire) & kJoined) == 0; })) {
      std::this_thread::yield();
    }
    state = node.state.load(std::memory_order_acquire);
  }
}

void ThreadPool::take_chunks(int node, int worker) {
  const int count = is_local_ ? 1 : num_nodes();
  for (int i = 0; i < count; ++i) drain(nodes_[(node + i) % num_nodes()], worker);
}

void ThreadPool::drain(Node& node, int worker) {
  try {
    for (;;) {
      const int64_t chunk = node.next.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= node.end) return;
      call_(context_, chunk, worker);
    }
  } catch (...) {
    fail();
  }
}

// Keeps the exception under way if it is the job's first, and takes the chunks left out of the job.
void ThreadPool::fail() noexcept {
  if (!has_failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
  for (Node& node : nodes_) node.next.store(node.end, std::memory_order_relaxed);
}

// Counts this worker into the current job of its node, unless that is over or was `seen` before.
bool ThreadPool::join(Node& node, uint32_t& seen) {
  uint64_t state = node.state.load(std::memory_order_acquire);
  while ((state & kOpen) != 0 && job_number(state) != seen) {
    if (node.state.compare_exchange_weak(state, state + 1, std::memory_order_acquire)) {
      seen = job_number(state);
      return true;
    }
  }
  seen = job_number(state);
  return false;
}

void ThreadPool::work(int home, int worker, const std::vector<int>& cpus) {
  settle(worker, cpus);
  Node& node = nodes_[home];
  std::atomic<uint32_t>& is_asleep = workers_[worker].is_asleep;
  uint32_t seen = 0;
  const auto has_news = [&] {
    return job_number(node.state.load()) != seen || stop_.load(std::memory_order_relaxed);
  };
  const auto is_replaced = [&] { return replaced_.load() == worker; };
  while (!stop_.load()) {
    if (!is_replaced()) {  // else it would take the core from the caller
      if (join(node, seen)) {
        take_chunks(home, worker);
        node.state.fetch_sub(1, std::memory_order_release);
        continue;
      }
      if (spin_until(has_news) || (num_awake_.load() > 0 && spin_until(has_news, kAwakeSpin)))
        continue;
    }
    is_asleep.store(1);
    if (!stop_.load() && (is_replaced() || !has_news())) is_asleep.wait(1);
    is_asleep.store(0);
  }
}

}  // namespace hm
