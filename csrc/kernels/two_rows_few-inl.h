// The types of codebook_gemv_vbmi-inl.h for few_tokens-inl.h: codes of two rows are looked up at
// once, and get their signs and shifts, before they are multiplied with all tokens.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"
#include "kernels/few_tokens-inl.h"
#include "kernels/two_rows_iq3-inl.h"

namespace hm {
namespace {

template <int Parts>
struct LanesOfParts {
  using Type = Simd::PerBlock;
};
template <>
struct LanesOfParts<2> {
  using Type = Simd::PerHalf;
};

template <class Rows>
struct TwoRowsUnit {
  using Block = typename Rows::Block;
  struct Codes {
    static constexpr int kBias = Rows::kBias;
  };
  static constexpr int kBlocks = 1, kRows = 2, kRegisters = Rows::kParts;
  using Lanes = typename LanesOfParts<Rows::kParts>::Type;
  static constexpr bool kOffset = false;

  __m512i codes[kRows][4];
  __m512 d[kRegisters], offset[kRegisters];

  HM_INLINE void load(const Block* const (&blocks)[kRows], const float (&)[kRows]) {
    Rows pairs[1];
    load_pairs<1>(blocks, pairs);
    const Rows& rows = pairs[0];
    load_entry<0>(rows);
    load_entry<1>(rows);
    load_entry<2>(rows);
    load_entry<3>(rows);
    if constexpr (kRegisters == 1) {  // of two blocks each: first row, second row
      d[0] = in_pairs<0, 4>(rows.d[0], rows.d[0]);
    } else {  // first halves, second halves
      d[0] = in_pairs<0, 8>(rows.d[0], rows.d[1]);
      d[1] = in_pairs<4, 12>(rows.d[0], rows.d[1]);
    }
  }

 private:
  // The first and the last four codes of entry E of each block -> eight of a row.
  template <int E>
  HM_INLINE void load_entry(const Rows& rows) {
    const __m512i first = rows.template biased<E, 0>(Rows::template codes<E>(rows.low));
    const __m512i last = rows.template biased<E, 1>(Rows::template codes<E>(rows.high));
    const __m512i order = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    codes[0][E] = _mm512_permutex2var_epi32(first, order, last);
    codes[1][E] =
        _mm512_permutex2var_epi32(first, _mm512_add_epi32(order, _mm512_set1_epi32(8)), last);
  }

  template <int First, int Second>
  static HM_INLINE __m512 in_pairs(__m512 a, __m512 b) {
    const __m512i order = _mm512_set_epi64(Second + 3, First + 3, Second + 2, First + 2, Second + 1,
                                           First + 1, Second, First);
    return _mm512_castsi512_ps(
        _mm512_permutex2var_epi64(_mm512_castps_si512(a), order, _mm512_castps_si512(b)));
  }
};

template <class Rows>
struct TwoRowsUnitIQ3 {
  using Block = typename Rows::Block;
  using Lanes = Simd::PerBlock;
  struct Codes {
    static constexpr int kBias = kSignedBiasIQ3;
  };
  static constexpr int kBlocks = 1, kRows = 2, kRegisters = 1;
  static constexpr bool kOffset = false;

  __m512i codes[kRows][4];
  __m512 d[kRegisters], offset[kRegisters];

  HM_INLINE void load(const Block* const (&blocks)[kRows], const float (&)[kRows]) {
    Rows rows;
    rows.load(blocks);
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      codes[r][0] = rows.template codes<0>(r);
      codes[r][1] = rows.template codes<1>(r);
      codes[r][2] = rows.template codes<2>(r);
      codes[r][3] = rows.template codes<3>(r);
    }
    d[0] = rows.d;
  }
};

// IQ3's codes have an order of their own, so its products are with rows of activations that have it
// in place of the strided one.
template <class Rows>
void few_tokens_iq3(const MatmulArgs& args) {
  const int64_t padded = padded_weights(args.cols), bytes = activation_bytes(args.cols);
  const int64_t behind = 2 * padded;  // scales and sums
  int8_t* memory =
      static_cast<int8_t*>(args.scratch) + padded * kFewTokens;  // after FewTokens' own
  const void* rows[kFewTokens];
  for (int64_t t = 0; t < args.num_tokens; ++t, memory += bytes) {
    const int8_t* x = static_cast<const int8_t*>(args.x[t]);
    for (int64_t i = 0; i < padded; i += kSuperWeights) order_by_code(x + i, memory + padded + i);
    memcpy(memory + behind, x + behind, bytes - behind);
    rows[t] = memory;
  }
  MatmulArgs ordered = args;
  ordered.x = rows;
  few_tokens_by<TwoRowsUnitIQ3<Rows>>(ordered);
}

}  // namespace
}  // namespace hm
