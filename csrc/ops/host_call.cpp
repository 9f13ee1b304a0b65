#include "ops/host_call.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "base/check.h"

namespace hm {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

HostCall::HostCall(const HostCallMemory& memory, int64_t hidden)
    : memory_(memory), hidden_(hidden), num_tokens_(memory.max_tokens) {
  constexpr int64_t most = int64_t{1} << 24;
  check(memory.max_tokens >= 1 && memory.max_tokens <= most && memory.top_k >= 1,
        "HostCall: ", memory.max_tokens, " tokens, ", memory.top_k, " experts each");
  check(memory.x != nullptr && memory.ids != nullptr && memory.weights != nullptr &&
            memory.out != nullptr,
        "HostCall: x, ids, weights or out is missing");
}

void HostCall::set_num_tokens(int64_t num_tokens) {
  check(num_tokens >= 0 && num_tokens <= memory_.max_tokens, "HostCall: ", num_tokens,
        " tokens, expected at most ", memory_.max_tokens);
  num_tokens_.store(num_tokens, std::memory_order_relaxed);
}

void HostCall::run() noexcept {
  begin_s_.store(now_s(), std::memory_order_relaxed);
  const int64_t num_tokens = this->num_tokens();
  const auto fail = [&](const char* what) {
    std::fill_n(memory_.out, num_tokens * hidden_, 0.0f);
    keep_error(what);
  };
  try {
    compute(num_tokens);
  } catch (const std::exception& error) {
    fail(error.what());
  } catch (...) {
    fail("an unknown exception");
  }
  end_s_.store(now_s(), std::memory_order_relaxed);
}

void HostCall::keep_error(const char* what) noexcept {
  try {
    const std::lock_guard lock(error_mutex_);
    if (failed_) return;
    failed_ = true;  // before the copy, which may find no memory
    error_ = what;
  } catch (...) {
  }
}

std::optional<std::string> HostCall::take_error() {
  const std::lock_guard lock(error_mutex_);
  if (!failed_) return std::nullopt;
  failed_ = false;
  return std::exchange(error_, {});
}

std::pair<double, double> HostCall::times() const {
  return {begin_s_.load(std::memory_order_relaxed), end_s_.load(std::memory_order_relaxed)};
}

}  // namespace hm
