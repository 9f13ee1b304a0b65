// What a core can reach at most: loops in registers, and a read of memory. Products are held
// against these, with the fewest instructions that any product of that set needs.
#pragma once

#include "base/forget.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

constexpr int kChains = 10;  // independent additions: latency times throughput of an FMA, or more

void int8_limit(int64_t rounds) {
  using P = Simd::Panel;
  auto w = P::set_int(0x01010101), x = P::set_int(0x02020202);
  typename P::Int sums[kChains];
  for (auto& sum : sums) sum = P::set_int(0);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
    for (int c = 0; c < kChains; ++c) {
      forget(w);
      sums[c] = P::template dot<false>(sums[c], w, x);
    }
  }
  for (auto& sum : sums) forget(sum);
}

void float_limit(int64_t rounds) {
  using P = Simd::Panel;
  auto a = P::set(1.0f), b = P::set(1.0f);
  typename P::Float sums[kChains];
  for (auto& sum : sums) sum = P::set(0.0f);
  for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
    for (int c = 0; c < kChains; ++c) {
      forget(a);
      sums[c] = P::fma(a, b, sums[c]);
    }
  }
  for (auto& sum : sums) forget(sum);
}

void read_memory(const uint8_t* p, int64_t bytes) {
  Simd::B64 sums[8];
  for (auto& sum : sums) sum = Simd::load64(p);
  for (int64_t at = 0; at + 512 <= bytes; at += 512) {
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) sums[c] = Simd::or_(sums[c], Simd::load64(p + at + 64 * c));
  }
  for (auto& sum : sums) forget(sum);
}

constexpr int64_t kInt8Operations = int64_t{kChains} * Simd::Panel::kLanes * 4 * 2;
constexpr int64_t kFloatOperations = int64_t{kChains} * Simd::Panel::kLanes * 2;

}  // namespace
}  // namespace hm
