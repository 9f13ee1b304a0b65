// Tables of the codes that other codes stand for, for the lookups of a Simd.
#pragma once

#include <stdint.h>

namespace hm {

// Values plus `bias`, `half` of them in each 16.
template <int N>
struct CodeTable {
  int8_t codes[N] = {};

  template <int M>
  constexpr CodeTable(const int8_t (&values)[M], int bias, int half = 16) {
    for (int i = 0; i < M; ++i) {
      codes[16 * (i / half) + i % half] = static_cast<int8_t>(values[i] + bias);
    }
  }
};

// The two codes of each index, apart and together as a word, the first lower.
struct PairTable {
  int8_t codes[2][32] = {};
  alignas(64) uint16_t words[32] = {};

  constexpr PairTable(const int8_t (&values)[2][32], int bias) {
    for (int i = 0; i < 64; ++i) {
      const int k = i / 32, code = values[k][i % 32] + bias;
      codes[k][i % 32] = static_cast<int8_t>(code);
      words[i % 32] = static_cast<uint16_t>(words[i % 32] | (code & 255) << (8 * k));
    }
  }
};

}  // namespace hm
