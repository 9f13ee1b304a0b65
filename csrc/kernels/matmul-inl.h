// out[t][r] = weights[r] . x[t], for one instruction set: three ways, by what the format allows.
//
// Order of additions, the same for every number of rows, tokens and threads. Quantised formats:
// for each group of 256 weights in turn, the offset term into 8 lanes, then 4 pairs of blocks into
// 16 lanes; floats: 16 lanes over K. At the end Simd::reduce. So a token's result is the same bits
// alone or in a batch, and AVX2, AVX-512 and AMX agree bit for bit.
//
// Tokens go Simd::kTileTokens at a time: a group's codes are unpacked once for all of them, and
// four rounded rows of K = 7168 (36 KB) stay in or near the L1 cache while the rows of a task
// stream past.
#pragma once

#include <string.h>

#include "base/inline.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

struct ActivationRow {
  const int8_t* q;
  const float* d;
  const int16_t* sums;
};

HM_INLINE ActivationRow activation_row(const void* row, int64_t cols) {
  const int8_t* q = static_cast<const int8_t*>(row);
  const int64_t padded = padded_weights(cols);
  return {q, (const float*)(q + padded), (const int16_t*)(q + padded + padded / 8)};
}

template <class Group, int P>
HM_INLINE Simd::F16 dot_pair(Simd::B64 codes, const int8_t* q, const Group& group) {
  const Simd::B64 x = Simd::load64(q + 64 * P);
  if constexpr (Group::kMultiplied && Group::kSigned) {
    return Simd::dot_signed_multiplied<P>(codes, x, group.multipliers);
  } else if constexpr (Group::kMultiplied) {
    return Simd::dot_multiplied<P>(codes, x, group.multipliers);
  } else if constexpr (Group::kSigned) {
    return Simd::dot_signed(codes, x);
  } else {
    return Simd::dot_unsigned(codes, x);
  }
}

// Sums of N tokens over the groups of one row.
template <class Group, int N>
struct GroupSums {
  Simd::F16 dots[N];
  Simd::F8 offsets[N];

  template <int P>
  HM_INLINE void add_pair(const Group& group, const typename Group::Block* blocks,
                          const ActivationRow (&x)[N], int64_t at,
                          const Simd::Scales (&scales)[N]) {
    const Simd::B64 codes = group.template codes<P>(blocks);
    for (int t = 0; t < N; ++t) {
      dots[t] = Simd::fma(dot_pair<Group, P>(codes, x[t].q + at, group),
                          Simd::template scale<P>(scales[t]), dots[t]);
    }
  }

  // Adds the 256 weights at `blocks` times the activations from index `at`.
  HM_INLINE void add(const typename Group::Block* blocks, const ActivationRow (&x)[N], int64_t at) {
    Group group;
    group.load(blocks);
    Simd::Scales scales[N];
    for (int t = 0; t < N; ++t) {
      const Simd::F8 d = Simd::load8(x[t].d + at / 32);
      scales[t] = Simd::scales(Simd::mul(group.d, d));
      if constexpr (Group::kOffset) {
        offsets[t] = Simd::fma(Simd::pair_sums(group.offset, x[t].sums + at / 16),
                               Simd::mul(group.offset_scale, d), offsets[t]);
      }
    }
    add_pair<0>(group, blocks, x, at, scales);
    add_pair<1>(group, blocks, x, at, scales);
    add_pair<2>(group, blocks, x, at, scales);
    add_pair<3>(group, blocks, x, at, scales);
  }
};

template <class Group, int N>
void matmul_groups(const MatmulArgs& args, int64_t first_token) {
  using Block = typename Group::Block;
  ActivationRow x[N];
  for (int t = 0; t < N; ++t) x[t] = activation_row(args.x[first_token + t], args.cols);
  const int64_t num_groups = args.cols / kSuperWeights;
  const int64_t rest_bytes =
      args.cols % kSuperWeights / Block::kWeights * static_cast<int64_t>(sizeof(Block));
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const Block* blocks = (const Block*)(args.weights + r * args.row_bytes);
    GroupSums<Group, N> sums;
    for (int t = 0; t < N; ++t) {
      sums.dots[t] = Simd::zero();
      sums.offsets[t] = Simd::set8(0.0f);
    }
    for (int64_t g = 0; g < num_groups; ++g) {
      sums.add(blocks + g * Group::kBlocks, x, g * kSuperWeights);
    }
    if (rest_bytes) {  // blocks of zeros complete the group; nothing is read beyond the row
      Block rest[Group::kBlocks] = {};
      memcpy(rest, blocks + num_groups * Group::kBlocks, rest_bytes);
      sums.add(rest, x, num_groups * kSuperWeights);
    }
    for (int t = 0; t < N; ++t) {
      args.out[(first_token + t) * args.out_stride + r] =
          Simd::reduce(sums.dots[t], sums.offsets[t]);
    }
  }
}

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

template <class Floats, int N>
void matmul_floats(const MatmulArgs& args, int64_t first_token) {
  using Element = typename Floats::Element;
  const int64_t whole = args.cols / 16 * 16, rest = args.cols - whole;
  const float* x[N];
  for (int t = 0; t < N; ++t) x[t] = static_cast<const float*>(args.x[first_token + t]);
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const Element* w = (const Element*)(args.weights + r * args.row_bytes);
    Simd::F16 sums[N];
    for (int t = 0; t < N; ++t) sums[t] = Simd::zero();
    for (int64_t k = 0; k < whole; k += 16) {
      const Simd::F16 weights = Floats::load(w + k);
      for (int t = 0; t < N; ++t) sums[t] = Simd::fma(weights, Simd::load(x[t] + k), sums[t]);
    }
    if (rest) {
      Element last[16] = {};
      memcpy(last, w + whole, rest * sizeof(Element));
      const Simd::F16 weights = Floats::load(last);
      for (int t = 0; t < N; ++t) {
        float last_x[16] = {};
        memcpy(last_x, x[t] + whole, rest * sizeof(float));
        sums[t] = Simd::fma(weights, Simd::load(last_x), sums[t]);
      }
    }
    for (int t = 0; t < N; ++t) {
      args.out[(first_token + t) * args.out_stride + r] = Simd::reduce(sums[t], Simd::set8(0.0f));
    }
  }
}

template <class Group>
struct ByGroups {
  template <int N>
  static void tile(const MatmulArgs& args, int64_t first_token) {
    matmul_groups<Group, N>(args, first_token);
  }
};

template <class Floats>
struct ByFloats {
  template <int N>
  static void tile(const MatmulArgs& args, int64_t first_token) {
    matmul_floats<Floats, N>(args, first_token);
  }
};

template <class Method, int N>
void matmul_tiles(const MatmulArgs& args, int64_t first_token) {
  int64_t t = first_token;
  for (; t + N <= args.num_tokens; t += N) Method::template tile<N>(args, t);
  if constexpr (N > 1) matmul_tiles<Method, N - 1>(args, t);
}

template <class Method>
void matmul(const MatmulArgs& args) {
  matmul_tiles<Method, Simd::kTileTokens>(args, 0);
}

// Any other format: decode a row to floats, once for all tokens, then multiply.
template <class Block>
void matmul_decoded(const MatmulArgs& args) {
  for (int64_t r = 0; r < args.num_rows; ++r) {
    decode_row<Block>(args.weights + r * args.row_bytes, args.cols, args.scratch);
    MatmulArgs row = args;
    row.weights = (const uint8_t*)args.scratch;
    row.num_rows = 1;
    row.out = args.out + r;
    matmul<ByFloats<FloatsF32>>(row);
  }
}

}  // namespace
}  // namespace hm
