#include "base/job_trace.h"

#include <ctime>

namespace hm {

double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double clock_seconds() {
  double least = 1.0, last = thread_seconds();
  for (int i = 0; i < 50; ++i) {
    const double now = thread_seconds();
    least = std::min(least, now - last);
    last = now;
  }
  return least;
}

}  // namespace hm
