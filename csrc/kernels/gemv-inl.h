// Gemv: out[r] = weights[r] . x of one token, straight from the blocks.
//
// Order of additions, the same for every number of rows, tokens and threads, and in
// few_tokens-inl.h and gemm-inl.h: for each group of 256 weights in turn, a lane for each 32 (or
// 16) weights takes their exact sum times its scale, then their offset. At the end the lanes are
// added by one tree. So a token's result is the same bits alone or in a batch, and AVX2, AVX-512
// and AMX agree bit for bit.
#pragma once

#include <string.h>

#include "base/inline.h"
#include "kernels/groups-inl.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

struct ActivationRow {
  const int8_t* q;
  const int8_t* strided;
  const float* d;
  const int32_t* sums;
  const int32_t* half_sums;
};

HM_INLINE ActivationRow activation_row(const void* row, int64_t cols) {
  const int64_t padded = padded_weights(cols);
  const int8_t* q = static_cast<const int8_t*>(row);
  const int8_t* strided = q + padded;
  const float* d = (const float*)(strided + padded);
  const int32_t* sums = (const int32_t*)(d + padded / 32);
  return {q, strided, d, sums, sums + padded / 32};
}

// What a product with this format's codes has too much of, in sums of x.
template <class Group>
constexpr int kTotalBias = Group::kSigned ? Simd::kSignedBias : Group::kBias;

template <class Group>
HM_INLINE const int32_t* lane_sums(const ActivationRow& x) {
  return Group::Lanes::kLanes == 8 ? x.sums : x.half_sums;
}

// The group that gemv takes.
template <class Group>
struct GemvGroup {
  using Type = Group;
};

// Strided codes, of types with a codebook whose entries are 8 weights (or pairs of 4): vector V has
// entry V of each of the 8 blocks. All products of a group then add up in one register, or two,
// where those in order need a tree. Signs that are apart are applied to the activations.
template <class Group>
constexpr bool is_strided = requires { Group::kSignsApart; };

// A group that is loaded while the one before is multiplied: its look-ups take longer than a core
// looks ahead.
template <class Group>
constexpr bool loads_ahead = requires { requires Group::kLoadsAhead; };

// Sums of a token over the groups of one row. Vectors is Simd, looked up when a group is: scalar
// code has nothing for strided ones.
template <class Group, class Vectors = Simd>
struct GroupSums {
  using Lanes = typename Group::Lanes;
  using Int = typename Lanes::Int;

  typename Lanes::Float lanes = Lanes::set(0.0f);

  template <int P>
  static HM_INLINE Simd::Dot dot_pair(const Group& group, const typename Group::Block* blocks,
                                      const ActivationRow& x, int64_t at) {
    const Simd::B64 codes = group.template codes<P>(blocks);
    const Simd::B64 q = Simd::load64(x.q + at + 64 * P);
    return Group::kSigned ? Simd::dot_signed(codes, q) : Simd::dot_unsigned(codes, q);
  }

  // Vectors V and V + 1 of strided codes.
  template <int V>
  static HM_INLINE Simd::Dot dot_strided(const Group& group, const typename Group::Block* blocks,
                                         const ActivationRow& x, int64_t at) {
    const Simd::B64 first = group.template codes<V>(blocks);
    const Simd::B64 second = group.template codes<V + 1>(blocks);
    Simd::B64 q0 = Simd::load64(x.strided + at + 64 * V);
    Simd::B64 q1 = Simd::load64(x.strided + at + 64 * (V + 1));
    if constexpr (Group::kSignsApart) {
      q0 = Vectors::with_signs(q0, group.template signs<V>());
      q1 = Vectors::with_signs(q1, group.template signs<V + 1>());
    }
    return Vectors::dot_two(first, q0, second, q1);
  }

  static HM_INLINE Int dot(const Group& group, const typename Group::Block* blocks,
                           const ActivationRow& x, int64_t at) {
    if constexpr (is_strided<Group>) {
      const Simd::Dot low = dot_strided<0>(group, blocks, x, at);
      return Lanes::strided_sums(low, dot_strided<2>(group, blocks, x, at));
    } else {
      const Simd::Dot first = dot_pair<0>(group, blocks, x, at);
      const Simd::Dot second = dot_pair<1>(group, blocks, x, at);
      const Simd::Dot third = dot_pair<2>(group, blocks, x, at);
      return Lanes::sums(first, second, third, dot_pair<3>(group, blocks, x, at));
    }
  }

  // Adds the 256 weights at `blocks` times the activations from index `at`.
  HM_INLINE void add(const typename Group::Block* blocks, float row_scale, const ActivationRow& x,
                     int64_t at) {
    Group group;
    load_group(group, blocks, row_scale);
    add_group(group, blocks, x, at);
  }

  // The same of fewer weights: the lanes of what follows them have no bits in `kept`.
  HM_INLINE void add_first(const typename Group::Block* blocks, float row_scale,
                           const ActivationRow& x, int64_t at, typename Lanes::Float kept) {
    Group group;
    load_group(group, blocks, row_scale);
    group.d = Lanes::keep(group.d, kept);
    if constexpr (Group::kOffset) group.offset = Lanes::keep(group.offset, kept);
    add_group(group, blocks, x, at);
  }

  HM_INLINE void add_group(const Group& group, const typename Group::Block* blocks,
                           const ActivationRow& x, int64_t at) {
    Int sums = dot(group, blocks, x, at);
    const int64_t first_lane = at / kSuperWeights * Lanes::kLanes;
    const Int x_sums = Lanes::load_int(lane_sums<Group>(x) + first_lane);
    if constexpr (kTotalBias<Group> != 0) {
      sums = Lanes::template sub_shifted<__builtin_ctz(kTotalBias<Group>)>(sums, x_sums);
    }
    if constexpr (Group::kShift != 0) {
      sums = Lanes::add_where(group.shifts, sums, Lanes::template times<Group::kShift>(x_sums));
    }
    const typename Lanes::Float d = Lanes::activation_scales(x.d + at / 32);
    lanes = Lanes::fma(Lanes::to_float(sums), Lanes::mul(group.d, d), lanes);
    if constexpr (Group::kOffset) {
      lanes = Lanes::fma(group.offset, Lanes::mul(d, Lanes::to_float(x_sums)), lanes);
    }
  }
};

// Brings what is read kFetchBytes later into the cache: the hardware's own fetching stops at every
// page and does not keep up with a core. After the last row that is args.next.
constexpr int64_t kFetchBytes = 8192;

template <int64_t Bytes>
HM_INLINE void fetch_ahead(const MatmulArgs& args, const void* p) {
  const uint8_t* ahead = static_cast<const uint8_t*>(p) + kFetchBytes;
  const uint8_t* end = args.weights + args.num_rows * args.row_bytes;
  if (ahead >= end) ahead = args.next + (ahead - end);
  for (int64_t i = 0; i < Bytes; i += 64) Simd::Panel::fetch_near(ahead + i);
}

// All bits in the lanes of a group's first `weights`.
template <class Lanes>
HM_INLINE typename Lanes::Float first_lanes(int64_t weights) {
  int32_t bits[Lanes::kLanes];
  for (int i = 0; i < Lanes::kLanes; ++i) {
    bits[i] = i * (kSuperWeights / Lanes::kLanes) < weights ? -1 : 0;
  }
  return Lanes::load((const float*)bits);
}

template <class Group>
void gemv_groups(const MatmulArgs& args, int64_t token) {
  using Block = typename Group::Block;
  const ActivationRow x = activation_row(args.x[token], args.cols);
  const int64_t num_groups = args.cols / kSuperWeights;
  const int64_t rest = args.cols % kSuperWeights;
  const auto kept = first_lanes<typename Group::Lanes>(rest);
  const uint8_t* end = args.weights + args.num_rows * args.row_bytes;
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const Row<Block> row(args.weights + r * args.row_bytes);
    const Block* blocks = row.blocks;
    GroupSums<Group> sums;
    if constexpr (loads_ahead<Group>) {
      Group group;
      if (num_groups > 0) load_group(group, blocks, row.scale);
      for (int64_t g = 0; g < num_groups; ++g) {
        fetch_ahead<Group::kBlocks * sizeof(Block)>(args, blocks + g * Group::kBlocks);
        Group next;
        load_group(next, blocks + (g + 1 < num_groups ? g + 1 : g), row.scale);
        sums.add_group(group, blocks + g * Group::kBlocks, x, g * kSuperWeights);
        group = next;
      }
    } else {
      for (int64_t g = 0; g < num_groups; ++g) {
        fetch_ahead<Group::kBlocks * sizeof(Block)>(args, blocks + g * Group::kBlocks);
        sums.add(blocks + g * Group::kBlocks, row.scale, x, g * kSuperWeights);
      }
    }
    if constexpr (Group::kBlocks > 1) {
      const Block* last = blocks + num_groups * Group::kBlocks;
      if (rest == 0) {
      } else if ((const uint8_t*)(last + Group::kBlocks) <= end) {  // next rows complete the group
        sums.add_first(last, row.scale, x, num_groups * kSuperWeights, kept);
      } else {  // blocks of zeros do; nothing is read beyond the rows
        Block copy[Group::kBlocks] = {};
        memcpy(copy, last, rest / Block::kWeights * static_cast<int64_t>(sizeof(Block)));
        sums.add(copy, row.scale, x, num_groups * kSuperWeights);
      }
    }
    args.out[token * args.out_stride + r] = Group::Lanes::reduce(sums.lanes);
  }
}

}  // namespace
}  // namespace hm
