#include "base/runtime.h"

#include <new>
#include <utility>

#if defined(__unix__)
#include <pthread.h>
#include <sys/mman.h>
#endif

namespace hm {
namespace {

struct Shared {
  std::mutex mutex;
  ThreadPlan plan{{{}}};             // one thread, anywhere
  std::shared_ptr<Runtime> runtime;  // made on first use
};

// Never destroyed: a worker may still run while static destructors do.
Shared* shared = nullptr;

Shared& get_shared() {
  static const bool initialised = [] {
    shared = new Shared;
#if defined(__unix__)
    // In a forked child the mutex may be held by, and the workers be, threads that are gone: leave
    // the parent's object untouched and take a new one of the same plan.
    pthread_atfork(nullptr, nullptr, [] {
      const Shared& parent = *shared;
      shared = new Shared;
      shared->plan = parent.plan;
    });
#endif
    return true;
  }();
  static_cast<void>(initialised);
  return *shared;
}

}  // namespace

void Buffer::grow(std::size_t bytes) {
  constexpr std::size_t huge_page = std::size_t{2} << 20, line = 64;
  const std::size_t alignment = bytes >= huge_page / 2 ? huge_page : line;
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, rounded)));
  capacity_ = memory_ == nullptr ? 0 : rounded;
  if (memory_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  if (alignment == huge_page) madvise(memory_.get(), rounded, MADV_HUGEPAGE);
#endif
}

RuntimeLock::RuntimeLock() {
  Shared& s = get_shared();
  lock_ = std::unique_lock(s.mutex);
  if (!s.runtime) s.runtime = std::make_shared<Runtime>(s.plan);
  runtime_ = s.runtime;
}

void set_threads(ThreadPlan plan) {
  check_plan(plan);
  Shared& s = get_shared();
  const std::lock_guard lock(s.mutex);
  if (plan == s.plan) return;
  s.runtime.reset();
  s.plan = std::move(plan);
}

ThreadPlan threads() {
  Shared& s = get_shared();
  const std::lock_guard lock(s.mutex);
  return s.plan;
}

}  // namespace hm
