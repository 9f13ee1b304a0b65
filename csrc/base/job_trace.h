// The jobs of a thread pool and how long each chunk took on one thread: what a simulation of more
// threads or nodes needs (bench/bench_scaling.py, ops/read_log.h). While a pool has one, its caller
// runs all chunks alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

namespace hm {

// CPU time of the calling thread, in seconds: what else runs on the machine does not count.
double thread_seconds();
// What a look at that clock takes: a system call, as long as some chunks.
double clock_seconds();

// The node that the chunk under way belongs to; -1 where any node's threads may take it.
inline thread_local int traced_node = -1;

class JobTrace {
 public:
  struct Job {
    double before_s;              // of the caller, since the job before
    bool is_local;                // chunks stay with their nodes
    std::vector<int64_t> ends;    // chunks of nodes 0..n
    std::vector<double> seconds;  // of chunks
  };

  JobTrace() : clock_s_(clock_seconds()), last_s_(thread_seconds()) {}

  template <class Run>
  void run(std::span<const int64_t> ends, bool is_local, const Run& run) {
    double start = thread_seconds();
    Job job{without_clock(start - last_s_), is_local, {ends.begin(), ends.end()}, {}};
    int node = 0;
    for (int64_t chunk = 0; chunk < ends.back(); ++chunk) {
      while (chunk >= ends[node]) ++node;
      traced_node = is_local ? node : -1;
      run(chunk);
      last_s_ = thread_seconds();
      job.seconds.push_back(without_clock(last_s_ - start));
      start = last_s_;
    }
    traced_node = -1;
    jobs_.push_back(std::move(job));
  }

  const std::vector<Job>& jobs() const { return jobs_; }
  // Of the caller, since the last job.
  double after_s() const { return without_clock(thread_seconds() - last_s_); }

 private:
  double without_clock(double seconds) const { return std::max(0.0, seconds - clock_s_); }

  const double clock_s_;
  double last_s_;
  std::vector<Job> jobs_;
};

}  // namespace hm
