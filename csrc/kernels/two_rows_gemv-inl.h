// Few tokens by two rows at a time, IQ1 by four: a group is loaded while the one before is
// multiplied, as look-ups take long.
#pragma once

#include "base/forget.h"
#include "kernels/extra_kernels.h"
#include "kernels/two_rows_few-inl.h"
#include "kernels/two_rows_iq1-inl.h"
#include "kernels/two_rows_iq3-inl.h"

namespace hm {
namespace {

// Fetches what is read later, a step for each that is multiplied: from `distance` bytes on, after
// the last row from args.next on.
class RowsFetch {
 public:
  HM_INLINE RowsFetch(const MatmulArgs& args, int64_t distance)
      : ahead_(args.weights),
        end_(args.weights + args.num_rows * args.row_bytes),
        next_(args.next) {
    advance(distance);
  }
  template <int64_t Bytes>
  HM_INLINE void step() {
#pragma GCC unroll 8
    for (int64_t i = 0; i < Bytes; i += 64) _mm_prefetch((const char*)(ahead_ + i), _MM_HINT_T0);
    advance(Bytes);
  }

 private:
  HM_INLINE void advance(int64_t bytes) {
    ahead_ += bytes;
    if (ahead_ >= end_ && next_ != nullptr) {
      ahead_ = next_ + (ahead_ - end_);
      next_ = nullptr;
    }
  }

  const uint8_t *ahead_, *end_, *next_;
};

// First blocks of a unit's rows, from a group on; beyond the last row it again.
template <class U>
HM_INLINE void blocks_of(const MatmulArgs& args, int64_t row, int64_t group,
                         const typename U::Block* (&blocks)[U::kRows]) {
#pragma GCC unroll 4
  for (int r = 0; r < U::kRows; ++r) {
    const int64_t i = row + r < args.num_rows ? row + r : args.num_rows - 1;
    blocks[r] = (const typename U::Block*)(args.weights + i * args.row_bytes) + group;
  }
}

// Groups of a unit of rows from `blocks` on, added to `lanes`, (kRegisters, N) registers. `unit` is
// the first group, and becomes that at `next`.
template <class U, int N>
HM_INLINE void add_groups_ahead(const typename U::template Tokens<N>& tokens, int64_t first,
                                int64_t end, const typename U::Block* (&blocks)[U::kRows],
                                const typename U::Block* const (&next)[U::kRows], RowsFetch& fetch,
                                U& unit, float* lanes) {
  constexpr int64_t bytes = U::kRows * sizeof(typename U::Block);
  __m512 sums[U::kRegisters][N];
#pragma GCC unroll 16
  for (int i = 0; i < U::kRegisters * N; ++i) sums[i / N][i % N] = _mm512_load_ps(lanes + 16 * i);
  for (int64_t g = first; g < end; ++g) {
    fetch.step<bytes>();
    const typename U::Block* after[U::kRows];
#pragma GCC unroll 4
    for (int r = 0; r < U::kRows; ++r) after[r] = g + 1 < end ? blocks[r] + 1 : next[r];
    U unit_after;
    tokens.add(unit, blocks, g, sums, unit_after, after);
    unit = unit_after;
#pragma GCC unroll 4
    for (int r = 0; r < U::kRows; ++r) blocks[r] = after[r];
  }
#pragma GCC unroll 16
  for (int i = 0; i < U::kRegisters * N; ++i) _mm512_store_ps(lanes + 16 * i, sums[i / N][i % N]);
}

// As multiply_few; rows are whole groups. Where they are one chunk, weights are read from end to
// end.
template <class U, int N>
void multiply_ahead(const MatmulArgs& args, int64_t first_token, int64_t count) {
  using Tokens = typename U::template Tokens<N>;
  constexpr int64_t block_rows = 32, near_bytes = 16384;
  const int64_t groups = args.cols / kSuperWeights, chunk = Tokens::chunk(groups);
  const Tokens tokens(args, first_token, count);
  RowsFetch fetch(args, chunk == groups ? near_bytes : block_rows * args.row_bytes);
  alignas(64) float lanes[block_rows / U::kRows][U::kRegisters * N * 16];
  const typename U::Block* blocks[U::kRows];
  blocks_of<U>(args, 0, 0, blocks);
  U unit;
  unit.load(blocks);
  for (int64_t row = 0; row < args.num_rows; row += block_rows) {
    const int64_t left = args.num_rows - row;
    const int64_t rows = left < block_rows ? left : block_rows;
    memset(lanes, 0, sizeof lanes);
    for (int64_t first = 0; first < groups; first += chunk) {
      const bool is_last = first + chunk >= groups;
      const int64_t end = is_last ? groups : first + chunk;
      for (int64_t r = 0; r < rows; r += U::kRows) {
        const bool is_next = r + U::kRows < rows;
        const int64_t next_row = is_next ? r + U::kRows : is_last ? rows : 0;
        const typename U::Block* next[U::kRows];
        blocks_of<U>(args, row + next_row, is_next ? first : is_last ? 0 : end, next);
        add_groups_ahead<U, N>(tokens, first, end, blocks, next, fetch, unit, lanes[r / U::kRows]);
      }
    }
    for (int64_t r = 0; r < rows; r += U::kRows) {
      store_results<U, N>(args, lanes[r / U::kRows], row + r, first_token, count);
    }
  }
}

template <class U>
struct MultiplyAhead {
  template <int N>
  static void run(const MatmulArgs& args, int64_t first_token, int64_t count) {
    if constexpr (U::kRegisters * N > 16) {  // as many sums are in registers
      run<N / 2>(args, first_token, N / 2);
      run<N / 2>(args, first_token + N / 2, count - N / 2);
    } else {
      multiply_ahead<U, N>(args, first_token, count);
    }
  }
};

// Many tokens take the panels of AVX-512: there, unpacking is not what takes the time.
template <class U, int Type>
void matmul_ahead(const MatmulArgs& args) {
  if (args.num_tokens > kFewTokens) return kAvx512.formats[Type].matmul(args);
  if (args.num_tokens > 1) return few_tokens_by<MultiplyAhead<U>>(args);
  if (args.num_tokens == 1) multiply_ahead<U, 1>(args, 0, 1);
}

constexpr ExtraKernels two_rows_kernels() {
  ExtraKernels kernels{};
  kernels.matmul[kIQ1_S] = matmul_ahead<PairsUnit<TwoRowsIQ1_S, 2>, kIQ1_S>;
  kernels.matmul[kIQ1_M] = matmul_ahead<PairsUnit<TwoRowsIQ1_M, 2>, kIQ1_M>;
  kernels.matmul[kIQ2_XXS] = matmul_ahead<PairsUnit<TwoRowsIQ2_XXS, 1>, kIQ2_XXS>;
  kernels.matmul[kIQ2_XS] = matmul_ahead<PairsUnit<TwoRowsIQ2_XS, 1>, kIQ2_XS>;
  kernels.matmul[kIQ2_S] = matmul_ahead<PairsUnit<TwoRowsIQ2_S, 1>, kIQ2_S>;
  kernels.matmul[kIQ3_XXS] = matmul_ahead<UnitIQ3<TwoRowsIQ3_XXS>, kIQ3_XXS>;
  kernels.matmul[kIQ3_S] = matmul_ahead<UnitIQ3<TwoRowsIQ3_S>, kIQ3_S>;
  return kernels;
}

}  // namespace
}  // namespace hm
