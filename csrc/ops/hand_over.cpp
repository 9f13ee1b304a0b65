#include "ops/hand_over.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "base/check.h"
#include "base/pause.h"
#include "base/runtime.h"

namespace hm {
namespace {

using Clock = std::chrono::steady_clock;

// A GPU hands the next layer over within some hundred microseconds. If it takes longer, whether the
// step has ended is asked every kAsk; after kSleep the core is given away between two looks.
constexpr std::chrono::milliseconds kAsk{1}, kSleep{5};
constexpr std::chrono::microseconds kLook{50};
constexpr int kPausesPerClock = 64;

}  // namespace

HandOver::HandOver(uint32_t* sent, uint32_t* done) : sent_(sent), done_(done) {
  check(sent != nullptr && done != nullptr, "HandOver: a counter is missing");
}

// Acquire: the GPU wrote the inputs before the number, with a fence of the whole system between.
uint32_t HandOver::sent() const {
  return std::atomic_ref<uint32_t>(*sent_).load(std::memory_order_acquire);
}

// Release: the GPU that sees the number sees the outputs, too, behind its own fence.
void HandOver::finish(uint32_t number) {
  std::atomic_ref<uint32_t>(*done_).store(number, std::memory_order_release);
}

void HandOver::serve(std::span<HostCall* const> calls, const HasEnded& has_ended) {
  const AwakeWorkers awake;
  uint32_t number = std::atomic_ref<uint32_t>(*done_).load(std::memory_order_relaxed);
  std::size_t served = 0;
  const auto is_sent = [&] { return static_cast<int32_t>(sent() - number) >= 0; };
  for (HostCall* call : calls) {
    ++number;
    const auto begin = Clock::now();
    auto ask_at = begin + kAsk;
    while (!is_sent()) {
      for (int i = 0; i < kPausesPerClock && !is_sent(); ++i) pause();
      const auto now = Clock::now();
      if (now >= begin + kSleep) std::this_thread::sleep_for(kLook);
      if (now < ask_at) continue;
      // What it sent before it ended has arrived.
      check(!has_ended() || is_sent(), "the GPU has ended a step with ", served, " of ",
            calls.size(), " layers handed over");
      ask_at = now + kAsk;
    }
    call->run();
    finish(number);
    ++served;
  }
}

void HandOver::release(const HasEnded& has_ended) {
  while (!has_ended()) {
    finish(sent());
    std::this_thread::sleep_for(kLook);
  }
  finish(sent());
}

}  // namespace hm
