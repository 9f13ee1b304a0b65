// Products with weights of F32, F16 and BF16, which are widened to float32: activations are
// float32, too. Order of additions: 16 lanes over K, for any number of rows and tokens, and at the
// end the lanes by the tree of gemv-inl.h. So the bits are the same in every instruction set with
// FMA.
#pragma once

#include <string.h>

#include "base/inline.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

// Weights that a vector load widens to floats.
struct FloatsF32 {
  using Element = float;
  static HM_INLINE Simd::F16 load(const float* p) { return Simd::load(p); }
};

struct FloatsF16 {
  using Element = uint16_t;
  static HM_INLINE Simd::F16 load(const uint16_t* p) { return Simd::load_half(p); }
};

struct FloatsBF16 {
  using Element = uint16_t;
  static HM_INLINE Simd::F16 load(const uint16_t* p) { return Simd::load_bf16(p); }
};

// Sums of R rows times N tokens: enough of them to hide an FMA's latency, each weight widened once
// for N tokens, each activation loaded once for R rows.
template <class Floats, int R, int N>
struct FloatSums {
  using Element = typename Floats::Element;
  Simd::F16 lanes[R][N];

  HM_INLINE void add(const Element* const (&w)[R], const float* const (&x)[N], int64_t at) {
    Simd::F16 weights[R];
    for (int r = 0; r < R; ++r) weights[r] = Floats::load(w[r] + at);
    for (int t = 0; t < N; ++t) {
      const Simd::F16 values = Simd::load(x[t] + at);
      for (int r = 0; r < R; ++r) lanes[r][t] = Simd::fma(weights[r], values, lanes[r][t]);
    }
  }

  // The last columns, completed by zeros; nothing is read beyond a row.
  HM_INLINE void add_rest(const Element* const (&w)[R], const float* const (&x)[N], int64_t at,
                          int64_t rest) {
    Element last_w[R][16] = {};
    float last_x[N][16] = {};
    const Element* rows[R];
    const float* tokens[N];
    for (int r = 0; r < R; ++r) {
      memcpy(last_w[r], w[r] + at, rest * sizeof(Element));
      rows[r] = last_w[r];
    }
    for (int t = 0; t < N; ++t) {
      memcpy(last_x[t], x[t] + at, rest * sizeof(float));
      tokens[t] = last_x[t];
    }
    add(rows, tokens, 0);
  }
};

constexpr int64_t kLineBytes = 64;
constexpr int64_t kFetchBytesOfRow = 2048;  // of each of four rows

// The columns of whole lines of R rows times few tokens, which memory bounds: weights are fetched
// 8 KB before they are multiplied, at the end of rows those of the next R. Where a core multiplies
// fast enough to wait for them, runs of one row after one of another, and at last args.next.
template <class Floats, int R, int N>
HM_INLINE void add_fetched(const MatmulArgs& args, const typename Floats::Element* const (&w)[R],
                           const float* const (&x)[N], FloatSums<Floats, R, N>& sums) {
  constexpr auto element_bytes = static_cast<int64_t>(sizeof(typename Floats::Element));
  constexpr int64_t line = kLineBytes / element_bytes;                 // columns
  constexpr int64_t run = Simd::kFetchesRuns ? 8 / element_bytes : 0;  // lines
  const uint8_t* end = args.weights + args.num_rows * args.row_bytes;
  const int64_t whole = args.cols / line * line;
  const auto add_line = [&](int64_t at) {
#pragma GCC unroll 2
    for (int64_t i = at; i < at + line; i += 16) sums.add(w, x, i);
  };
  const auto ahead_of = [&](int64_t at) {
    const int64_t ahead = at * element_bytes + 4 / R * kFetchBytesOfRow;
    return ahead < args.row_bytes ? ahead : ahead + (R - 1) * args.row_bytes;
  };
  int64_t k = 0;
  while (run > 0 && k + R * run * line <= whole) {
    const int64_t ahead = ahead_of(k);
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = (const uint8_t*)w[r] + ahead;
      if (p >= end) p = args.next + (p - end);
      for (int64_t i = 0; i < run; ++i, k += line, p += R * kLineBytes) {
        for (int j = 0; j < R; ++j) Simd::Panel::fetch_near(p + j * kLineBytes);
        add_line(k);
      }
    }
  }
  for (; k < whole; k += line) {
    if constexpr (run == 0) {
      for (int r = 0; r < R; ++r) Simd::Panel::fetch_near((const uint8_t*)w[r] + ahead_of(k));
    }
    add_line(k);
  }
}

// Rows first.. as many as R go into, before `end`, times N tokens.
template <class Floats, int R, int N>
void multiply_rows(const MatmulArgs& args, int64_t first, int64_t end, int64_t token) {
  using Element = typename Floats::Element;
  constexpr bool few = 3 * N <= 2 * Simd::kFloatTokens;  // two sets of columns fit the registers
  constexpr int64_t step = few ? kLineBytes / static_cast<int64_t>(sizeof(Element)) : 16;
  const int64_t whole = args.cols / 16 * 16, rest = args.cols - whole;
  const float* x[N];
  for (int t = 0; t < N; ++t) x[t] = static_cast<const float*>(args.x[token + t]);
  int64_t row = first;
  for (; row + R <= end; row += R) {
    const Element* w[R];
    FloatSums<Floats, R, N> sums;
    for (int r = 0; r < R; ++r) {
      w[r] = (const Element*)(args.weights + (row + r) * args.row_bytes);
      for (int t = 0; t < N; ++t) sums.lanes[r][t] = Simd::zero();
    }
    int64_t k = 0;
    if constexpr (few) {
      add_fetched(args, w, x, sums);
      k = args.cols / step * step;
    }
    for (; k < whole; k += 16) {
      if constexpr (!few) {
        int64_t ahead = k * static_cast<int64_t>(sizeof(Element)) + kFetchBytesOfRow;
        if (ahead >= args.row_bytes) ahead += (R - 1) * args.row_bytes;
        for (int r = 0; r < R; ++r) Simd::Panel::fetch((const uint8_t*)w[r] + ahead);
      }
      sums.add(w, x, k);
    }
    if (rest) sums.add_rest(w, x, whole, rest);
    for (int t = 0; t < N; ++t) {
      float* out = args.out + (token + t) * args.out_stride + row;
      for (int r = 0; r < R; ++r) out[r] = Simd::reduce(sums.lanes[r][t]);
    }
  }
  if constexpr (R > 1) multiply_rows<Floats, 1, N>(args, row, end, token);
}

// Rows first..end times `count` tokens, N at most.
template <class Floats, int N>
void multiply_tokens(const MatmulArgs& args, int64_t first, int64_t end, int64_t token,
                     int64_t count) {
  if (count < N) {
    if constexpr (N > 1) multiply_tokens<Floats, N - 1>(args, first, end, token, count);
  } else {
    constexpr int rows = N == 1 ? Simd::kFloatRowsOfOneToken : Simd::kFloatRows;
    multiply_rows<Floats, rows, N>(args, first, end, token);
  }
}

// Blocks of rows stay in the L2 cache until all tokens have been multiplied, by as few tiles of
// nearly as many tokens each as there can be.
template <class Floats>
void matmul_float(const MatmulArgs& args) {
  constexpr int64_t block_bytes = 256 * 1024, most = Simd::kFloatTokens;
  // Memory is fastest with one row after the other; from a cache, FMAs of one row wait for another.
  if constexpr (Simd::kFetchesRuns && sizeof(typename Floats::Element) == 2) {
    if (args.num_tokens == 1 && args.num_rows * args.row_bytes > 2 * block_bytes) {
      return multiply_rows<Floats, 1, 1>(args, 0, args.num_rows, 0);
    }
  }
  const int64_t fitting = block_bytes / args.row_bytes / 4 * 4 + 4;
  const int64_t block = args.num_tokens <= most ? args.num_rows : fitting;
  for (int64_t first = 0, end; first < args.num_rows; first = end) {
    end = first + block < args.num_rows ? first + block : args.num_rows;
    for (int64_t t = 0, count; t < args.num_tokens; t += count) {
      const int64_t left = args.num_tokens - t, tiles = (left + most - 1) / most;
      count = (left + tiles - 1) / tiles;
      multiply_tokens<Floats, most>(args, first, end, t, count);
    }
  }
}

}  // namespace
}  // namespace hm
