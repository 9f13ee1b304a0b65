#include "ops/host_experts.h"

#include <algorithm>
#include <chrono>
#include <exception>

#include "base/check.h"
#include "ops/expert_ffn.h"

namespace hm {
namespace {

double now_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

HostExpertCall::HostExpertCall(const HostExpertArgs& args)
    : args_(args), num_tokens_(args.max_tokens) {
  constexpr int64_t most = int64_t{1} << 24;
  check(args.max_tokens >= 1 && args.max_tokens <= most && args.top_k >= 1,
        "HostExpertCall: ", args.max_tokens, " tokens, ", args.top_k, " experts each");
  check(args.x != nullptr && args.ids != nullptr && args.weights != nullptr && args.out != nullptr,
        "HostExpertCall: x, ids, weights or out is missing");
  // Of no tokens: only the shapes are looked at.
  expert_ffn({
      .x = args.x,
      .ids = args.ids,
      .weights = args.weights,
      .num_tokens = 0,
      .top_k = args.top_k,
      .gate = {args.gate},
      .up = {args.up},
      .down = {args.down},
      .base = nullptr,
      .out = args.out,
  });
  ids_.resize(args.max_tokens * args.top_k);
}

void HostExpertCall::set_num_tokens(int64_t num_tokens) {
  check(num_tokens >= 0 && num_tokens <= args_.max_tokens, "HostExpertCall: ", num_tokens,
        " tokens, expected at most ", args_.max_tokens);
  num_tokens_.store(num_tokens, std::memory_order_relaxed);
}

void HostExpertCall::run() noexcept {
  begin_s_.store(now_s(), std::memory_order_relaxed);
  const int64_t num_tokens = this->num_tokens();
  const auto fail = [&](const char* what) {
    std::fill_n(args_.out, num_tokens * args_.gate.cols, 0.0f);
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

void HostExpertCall::compute(int64_t num_tokens) {
  const int64_t num_experts = args_.gate.batch;
  bool is_needed = false;
  for (int64_t i = 0; i < num_tokens * args_.top_k; ++i) {
    const int32_t id = args_.ids[i];
    check(id >= -1 && id < num_experts, "expert_ffn: expert id ", id, " of token ", i / args_.top_k,
          ", expected -1 to ", num_experts - 1);
    const bool is_on_gpu = id >= 0 && args_.slot_of != nullptr && args_.slot_of[id] >= 0;
    ids_[i] = is_on_gpu ? -1 : id;
    is_needed |= ids_[i] >= 0;
  }
  if (!is_needed) {  // not worth waking the pool
    std::fill_n(args_.out, num_tokens * args_.gate.cols, 0.0f);
    return;
  }
  expert_ffn({
      .x = args_.x,
      .ids = ids_.data(),
      .weights = args_.weights,
      .num_tokens = num_tokens,
      .top_k = args_.top_k,
      .gate = {args_.gate},
      .up = {args_.up},
      .down = {args_.down},
      .base = nullptr,
      .out = args_.out,
  });
}

void HostExpertCall::keep_error(const char* what) noexcept {
  try {
    const std::lock_guard lock(error_mutex_);
    if (failed_) return;
    failed_ = true;  // before the copy, which may find no memory
    error_ = what;
  } catch (...) {
  }
}

std::optional<std::string> HostExpertCall::take_error() {
  const std::lock_guard lock(error_mutex_);
  if (!failed_) return std::nullopt;
  failed_ = false;
  return std::exchange(error_, {});
}

std::pair<double, double> HostExpertCall::times() const {
  return {begin_s_.load(std::memory_order_relaxed), end_s_.load(std::memory_order_relaxed)};
}

}  // namespace hm
