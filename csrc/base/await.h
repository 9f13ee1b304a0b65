// Waits for a condition that another thread signals.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>

namespace hm {

// condition_variable::wait itself is a symbol of GCC 12's library, which the oldest systems that
// the wheel is for (manylinux_2_34) lack; what a wait with a time needs is older.
template <class Predicate>
void await(std::condition_variable& changed, std::unique_lock<std::mutex>& lock,
           Predicate is_over) {
  while (!changed.wait_for(lock, std::chrono::hours(1), is_over)) {
  }
}

}  // namespace hm
