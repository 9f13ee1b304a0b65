#include "base/runtime.h"

#include "base/check.h"

#if defined(__unix__)
#include <pthread.h>
#endif

namespace hm {
namespace {

constexpr int kMaxThreads = 1024;

struct Shared {
  std::mutex mutex;
  int num_threads = default_num_threads();
  std::unique_ptr<Runtime> runtime;  // made on first use
};

// Never destroyed: a worker may still run while static destructors do.
Shared* shared = nullptr;

Shared& get_shared() {
  static const bool initialised = [] {
    shared = new Shared;
#if defined(__unix__)
    // In a forked child the mutex may be held by, and the workers be, threads that are gone: leave
    // the parent's object untouched and take a new one of the same size.
    pthread_atfork(nullptr, nullptr, [] {
      const int threads = shared->num_threads;
      shared = new Shared;
      shared->num_threads = threads;
    });
#endif
    return true;
  }();
  static_cast<void>(initialised);
  return *shared;
}

}  // namespace

RuntimeLock::RuntimeLock() {
  Shared& s = get_shared();
  lock_ = std::unique_lock(s.mutex);
  if (!s.runtime) s.runtime = std::make_unique<Runtime>(s.num_threads);
  runtime_ = s.runtime.get();
}

void set_num_threads(int n) {
  check(n >= 1 && n <= kMaxThreads, "num_threads is ", n, ", expected 1 to ", kMaxThreads);
  Shared& s = get_shared();
  const std::lock_guard lock(s.mutex);
  if (n == s.num_threads) return;
  s.runtime.reset();
  s.num_threads = n;
}

int num_threads() {
  Shared& s = get_shared();
  const std::lock_guard lock(s.mutex);
  return s.num_threads;
}

}  // namespace hm
