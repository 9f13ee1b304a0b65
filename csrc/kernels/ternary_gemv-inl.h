// TQ1_0 for gemv and few tokens: base-3 digits as strided codes (gemv-inl.h), which need no memory
// and half of a group's additions. A register has 40 digits of the bytes that hold five blocks, and
// 24 of the rest; a digit is its byte times a power of three, wrapped to a byte, times 3 >> 8, and
// words are multiplied, the even bytes of them and then the odd ones.
#pragma once

#include "kernels/gemv-inl.h"

namespace hm {
namespace {

// Powers for the bytes of vector V, a word for two.
template <int V>
struct TernaryPowers {
  alignas(64) uint16_t words[32] = {};

  constexpr TernaryPowers() {
    constexpr uint16_t blocks[6] = {1, 3, 9, 27, 81, V < 2 ? 1 : 3};
    for (int i = 0; i < 32; ++i) {
      const int block = i / 4;
      if (block < 6) {
        words[i] = blocks[block];
      } else if (block == 6) {
        words[i] = V < 2 ? 9 : 27;
      } else if (V < 2) {
        words[i] = 81;
      } else {  // digits of qh, four at a time
        words[i] = static_cast<uint16_t>((i % 4 < 2 ? 1 : 3) * (V == 2 ? 1 : 9));
      }
    }
  }
};

template <int V>
constexpr TernaryPowers<V> kTernaryPowers;

struct StridedTQ1_0 : GroupOf<BlockTQ1_0> {
  static constexpr bool kSignsApart = false;
  static constexpr int kMost = 2;
  static constexpr int kBias = 1;
  HM_INLINE void load(const Block* b) { d = Lanes::set(half_to_float(b->d)); }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const uint8_t *first = b->qs + 8 * V, *rest = b->qs + 32 + V % 2 * 8;
    const Simd::B64 bytes =
        V < 2 ? eights(first, rest) : with_last_word(eights(first, rest), b->qh);
    return ternary_digits(bytes, kTernaryPowers<V>.words);
  }
};

template <>
struct GemvGroup<GroupTQ1_0> {
  using Type = StridedTQ1_0;
};

}  // namespace
}  // namespace hm
