// Persistent worker threads, in one set per NUMA node, that share out the chunks of one job.
//
// run(n, f) calls f(chunk, worker) for every chunk in 0..n-1, each exactly once, on the calling
// thread and on whichever workers are awake; it returns when all chunks are done. Each node has a
// contiguous range of the chunks and one counter, from which its threads draw the next chunk: there
// is no queue per thread that would have to be balanced by stealing. A node that is done takes
// chunks of the others; run_on_nodes, for data that lies in the nodes' own memory, leaves them
// alone, and the caller takes those of a node whose threads are all asleep. A thread that the OS
// holds back delays at most the chunk it has: the caller waits only for workers that joined the
// job.
//
// The caller takes part and is never bound to a CPU: its affinity is its program's business. It
// stands in for the worker of the core that it happens to run on, which sleeps meanwhile.
//
// Between jobs a worker spins for kSpin, since the next layer's job follows within microseconds,
// then sleeps in the kernel; between stay_awake and may_sleep it spins for kAwakeSpin more.
//
// Where f throws, on whichever thread, chunks that have not begun are left out, run waits for those
// that have, and throws the first exception: the memory that f looks at outlives every call of it.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "base/job_trace.h"
#include "base/row_tasks.h"

namespace hm {

// The CPUs that each thread may run on, by node; an empty list is any CPU.
using ThreadPlan = std::vector<std::vector<std::vector<int>>>;

// Throws Error unless there are 1..kMaxNodes nodes, 1..1024 threads, and CPU numbers that exist.
void check_plan(const ThreadPlan& plan);
int count_threads(const ThreadPlan& plan);

class ThreadPool {
 public:
  // The plan's threads include the caller. Throws Error where the system starts no more threads.
  explicit ThreadPool(const ThreadPlan& plan);
  ~ThreadPool() { stop(); }
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }
  int num_nodes() const { return static_cast<int>(nodes_.size()); }
  // Threads of nodes 0..n.
  std::span<const int> thread_ends() const { return thread_ends_; }
  // `worker` is below this: one number for each thread of the plan, and one for the caller.
  int num_workers() const { return num_threads_ + 1; }

  // Only one thread at a time may call run or run_on_nodes: callers hold the lock of Runtime.
  template <class Function>
  void run(int64_t num_chunks, const Function& f) {
    int64_t ends[kMaxNodes];
    for (int n = 0; n < num_nodes(); ++n) ends[n] = num_chunks * nodes_[n].last / num_threads_;
    run_job({ends, nodes_.size()}, false, &f, &call<Function>);
  }

  // Chunks ends[n - 1]..ends[n]-1 belong to node n (ends[-1] = 0). Where the pool has another
  // number of nodes, everybody does everything.
  template <class Function>
  void run_on_nodes(std::span<const int64_t> ends, const Function& f) {
    if (ends.size() != nodes_.size()) return run(ends.back(), f);
    run_job(ends, true, &f, &call<Function>);
  }

  // Until this is null again, jobs run on the caller alone and are recorded there.
  void set_trace(JobTrace* trace) { trace_ = trace; }

  // Wakes all workers, and lets them spin for longer until as many calls of may_sleep. Any thread.
  void stay_awake();
  void may_sleep() {
    if (num_threads_ > 1) num_awake_.fetch_sub(1);
  }

 private:
  using Call = void (*)(const void* context, int64_t chunk, int worker);

  template <class Function>
  static void call(const void* f, int64_t chunk, int worker) {
    (*static_cast<const Function*>(f))(chunk, worker);
  }

  struct Node {
    // number of the job << 32 | open << 31 | joined workers
    alignas(64) std::atomic<uint64_t> state{0};
    alignas(64) std::atomic<int64_t> next{0};  // chunk
    int64_t end = 0;
    int first = 0, last = 0;  // its workers
  };
  struct Worker {
    alignas(64) std::atomic<uint32_t> is_asleep{0};
    std::thread thread;
  };

  void run_job(std::span<const int64_t> ends, bool is_local, const void* context, Call call);
  void take_chunks(int node, int worker);
  bool is_taken(const Node& node) const;
  void drain(Node& node, int worker);
  void fail() noexcept;
  void finish(Node& node);
  int callers_worker() const;
  void wake_all_but(int replaced);
  void work(int node, int worker, const std::vector<int>& cpus);
  bool join(Node& node, uint32_t& seen);
  void stop();

  // The job. Written by the caller while no worker is joined, read by joined workers only.
  const void* context_ = nullptr;
  Call call_ = nullptr;
  bool is_local_ = false;
  uint32_t number_ = 0;
  // Its first exception, written by the thread that sets the flag, read by the caller at the end.
  std::atomic<bool> has_failed_{false};
  std::exception_ptr error_;

  JobTrace* trace_ = nullptr;
  int num_threads_ = 0;
  std::vector<Node> nodes_;
  std::vector<Worker> workers_;
  std::vector<int> worker_of_cpu_, node_of_worker_, thread_ends_;
  // Worker whose core the caller uses. Only a hint: each thread in a job has its own number.
  std::atomic<int> replaced_{0};
  std::atomic<int> num_awake_{0};  // calls of stay_awake without their may_sleep
  std::atomic<bool> stop_{false};
};

}  // namespace hm
