// Tasks of several jobs as those of one, so that threads wait once for all of them. Each node has
// its tasks of the first job, then of the second.
#pragma once

#include <cstdint>
#include <span>

#include "base/check.h"
#include "base/row_tasks.h"

namespace hm {

class JoinedTasks {
 public:
  // Tasks of nodes 0..n of each job; what it points to stays in place.
  template <class... Ends>
  explicit JoinedTasks(const Ends&... of_jobs) {
    (add(of_jobs), ...);
  }

  // Tasks of nodes 0..n, for ThreadPool::run_on_nodes.
  std::span<const int64_t> ends() const { return {ends_, of_jobs_[0].size()}; }

  struct Task {
    int job;
    int64_t number;  // of the job's tasks
  };
  Task operator[](int64_t task) const {
    std::size_t n = 0;
    while (task >= ends_[n]) ++n;
    int64_t at = task - (n == 0 ? 0 : ends_[n - 1]);
    for (int job = 0;; ++job) {
      const int64_t first = n == 0 ? 0 : of_jobs_[job][n - 1], count = of_jobs_[job][n] - first;
      if (at < count) return {job, first + at};
      at -= count;
    }
  }

 private:
  static constexpr int kMostJobs = 2;

  void add(std::span<const int64_t> ends) {
    check(num_jobs_ < kMostJobs && (num_jobs_ == 0 || ends.size() == of_jobs_[0].size()),
          "tasks of other nodes, or of too many jobs");
    for (std::size_t n = 0; n < ends.size(); ++n) ends_[n] += ends[n];
    of_jobs_[num_jobs_++] = ends;
  }

  int num_jobs_ = 0;
  std::span<const int64_t> of_jobs_[kMostJobs];
  int64_t ends_[kMaxNodes] = {};
};

}  // namespace hm
