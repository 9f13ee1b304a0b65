// Products of one to four tokens by two rows at a time in AVX2, of the strided groups of
// codebook_gemv_avx2-inl.h, in the order of GroupSums (gemv-inl.h), so with the same bits.
//
// A core starts about three vector operations a cycle here, joining entries of codebooks among
// them, and loads of vectors compete with those of indices. So rows share loads of activations and
// of constants, and tokens share codes and signs.
#pragma once

#include "base/forget.h"
#include "kernels/gemv-inl.h"

namespace hm {
namespace {

// What is fetched lies so far behind the rows that are multiplied.
constexpr int64_t kFetchedBytes = 4096;

// Groups of R rows as they come from the blocks, or with indices that were made before: what was
// just stored takes a load long.
template <class Group, int R>
struct PlainRows {
  using Loaded = Group;
  using Block = typename Group::Block;
  static constexpr int kAhead = 0;

  HM_INLINE void make(uint64_t, const Block*, int64_t) {}
  HM_INLINE void load(uint64_t, const Block* const (&blocks)[R], Group (&groups)[R]) const {
    for (int r = 0; r < R; ++r) groups[r].load(blocks[r]);
  }
};

template <class Group, int R>
struct AheadRows {
  using Loaded = typename Group::Ahead;
  using Block = typename Group::Block;
  static constexpr int kAhead = 4, kSlots = 2 * kAhead;
  alignas(64) uint16_t indices[kSlots][R][Loaded::kIndices];

  HM_INLINE void make(uint64_t slot, const Block* first, int64_t stride) {
    for (int r = 0; r < R; ++r) {
      Loaded::make_indices(first + r * stride, indices[slot % kSlots][r]);
    }
  }
  HM_INLINE void load(uint64_t slot, const Block* const (&blocks)[R], Loaded (&groups)[R]) const {
    for (int r = 0; r < R; ++r) groups[r].load(blocks[r], indices[slot % kSlots][r]);
  }
};

// R rows times N tokens.
template <class Group, int R, int N>
struct TileSums {
  using Lanes = typename Group::Lanes;
  using Block = typename Group::Block;
  using Int = typename Lanes::Int;
  using Registers = Simd::Panel;
  using Sums = __m256i[R][N];
  static constexpr bool kByBlock = Lanes::kLanes == 8;
  static constexpr int kRun = Registers::run_length(Group::kMost);

  typename Lanes::Float lanes[R][N];

  HM_INLINE TileSums() {
    for (auto& row : lanes) {
      for (auto& v : row) v = Lanes::set(0.0f);
    }
  }

  HM_INLINE void add(const Group (&groups)[R], const Block* const (&blocks)[R],
                     const ActivationRow (&x)[N], int64_t at) {
    Simd::Dot low[R][N], high[R][N];
    dot_half<0>(groups, blocks, x, at, low, high);
    dot_half<1>(groups, blocks, x, at, low, high);
    const int64_t first_lane = at / kSuperWeights * Lanes::kLanes;
#pragma GCC unroll 4
    for (int t = 0; t < N; ++t) {
      const Int x_sums = Lanes::load_int(lane_sums<Group>(x[t]) + first_lane);
      const typename Lanes::Float d = Lanes::activation_scales(x[t].d + at / 32);
#pragma GCC unroll 2
      for (int r = 0; r < R; ++r) {
        Int sums = Lanes::strided_sums(low[r][t], high[r][t]);
        if constexpr (kTotalBias<Group> != 0) {
          sums = Lanes::template sub_shifted<__builtin_ctz(kTotalBias<Group>)>(sums, x_sums);
        }
        if constexpr (Group::kShift != 0) {
          sums = Lanes::add_where(groups[r].shifts, sums,
                                  Lanes::template times<Group::kShift>(x_sums));
        }
        auto& lane = lanes[r][t];
        lane = Lanes::fma(Lanes::to_float(sums), Lanes::mul(groups[r].d, d), lane);
      }
    }
  }

 private:
  // Half H of the vectors.
  template <int H>
  static HM_INLINE void dot_half(const Group (&groups)[R], const Block* const (&blocks)[R],
                                 const ActivationRow (&x)[N], int64_t at, Simd::Dot (&low)[R][N],
                                 Simd::Dot (&high)[R][N]) {
    Sums sums, runs;
    clear(sums);
    begin(sums, runs);
    add_vector<H, 0>(groups, blocks, x, at, runs);
    add_vector<H, 1>(groups, blocks, x, at, runs);
    if constexpr (!kByBlock || kRun < 4) end(sums, runs);
    if constexpr (!kByBlock) {
      keep<H>(sums, low);
      clear(sums);
    }
    if constexpr (!kByBlock || kRun < 4) begin(sums, runs);
    add_vector<H, 2>(groups, blocks, x, at, runs);
    add_vector<H, 3>(groups, blocks, x, at, runs);
    end(sums, runs);
    keep<H>(sums, high);
    if constexpr (kByBlock) {
      clear(sums);
      keep<H>(sums, low);
    }
  }

  static HM_INLINE void clear(Sums& sums) {
    for (auto& row : sums) {
      for (__m256i& v : row) v = _mm256_setzero_si256();
    }
  }
  static HM_INLINE void begin(const Sums& sums, Sums& runs) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < N; ++t) runs[r][t] = Registers::begin_run(sums[r][t]);
    }
  }
  static HM_INLINE void end(Sums& sums, const Sums& runs) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < N; ++t) sums[r][t] = Registers::end_run(sums[r][t], runs[r][t]);
    }
  }
  template <int H>
  static HM_INLINE void keep(const Sums& sums, Simd::Dot (&out)[R][N]) {
    for (int r = 0; r < R; ++r) {
      for (int t = 0; t < N; ++t) (H == 0 ? out[r][t].lo : out[r][t].hi) = sums[r][t];
    }
  }

  template <int H, int V>
  static HM_INLINE void add_vector(const Group (&groups)[R], const Block* const (&blocks)[R],
                                   const ActivationRow (&x)[N], int64_t at, Sums& runs) {
    __m256i q[N];
#pragma GCC unroll 4
    for (int t = 0; t < N; ++t) {
      q[t] = _mm256_loadu_si256((const __m256i*)(x[t].strided + at + 64 * V + 32 * H));
      if constexpr (R > 1) forget(q[t]);  // one load for both rows
    }
#pragma GCC unroll 2
    for (int r = 0; r < R; ++r) {
      const __m256i codes = groups[r].template half_codes<V, H>(blocks[r]);
      if constexpr (Group::kSignsApart) {
        const __m256i signs = groups[r].template half_signs<V, H>();
#pragma GCC unroll 4
        for (int t = 0; t < N; ++t) {
          runs[r][t] =
              Registers::template dot<false>(runs[r][t], codes, _mm256_sign_epi8(q[t], signs));
        }
      } else {
#pragma GCC unroll 4
        for (int t = 0; t < N; ++t) {
          runs[r][t] = Registers::template dot<false>(runs[r][t], codes, q[t]);
        }
      }
    }
  }
};

// Tokens first_token..first_token + N. Rows are whole groups, and follow each other.
template <class Rows, int R, int N>
void multiply_tile(const MatmulArgs& args, int64_t first_token) {
  using Group = typename Rows::Loaded;
  using Block = typename Rows::Block;
  constexpr auto block_bytes = static_cast<int64_t>(sizeof(Block));
  ActivationRow x[N];
  for (int t = 0; t < N; ++t) x[t] = activation_row(args.x[first_token + t], args.cols);
  const int64_t num_groups = args.cols / kSuperWeights, num_rows = args.num_rows;
  const auto* first = (const Block*)args.weights;
  const uint8_t* end = args.weights + num_rows * args.row_bytes;
  const uint8_t* fetched = args.weights + R * args.row_bytes + kFetchedBytes;
  float* out = args.out + first_token * args.out_stride;
  Rows rows;
  // Groups from a row to the next one: of one row that is left it is both.
  const auto stride_of = [=](int64_t left) { return left < R ? 0 : num_groups; };
  int64_t stride = stride_of(num_rows);
  for (int64_t i = 0; i < Rows::kAhead; ++i) rows.make(i, first + i, stride);
  uint64_t slot = 0;
  for (int64_t r = 0; r < num_rows; r += R) {
    // Indices of the next rows' first groups are made with the last ones of these; after the last
    // rows their own once more.
    const int64_t left = num_rows - r - R;
    const Block* next = left > 0 ? first + R * num_groups : first;
    const int64_t next_stride = left > 0 ? stride_of(left) : stride;
    if (fetched >= end) fetched = args.next + (fetched - end);
    TileSums<Group, R, N> sums;
    const Block* made = first + Rows::kAhead;
    const Block* made_end = first + num_groups;
    int64_t made_stride = stride, at = 0;
    for (int part = 0; part < (Rows::kAhead == 0 ? 1 : 2); ++part) {
      for (; made != made_end; ++made, ++first, ++slot, at += kSuperWeights) {
        for (int64_t i = 0; i < R * block_bytes; i += 64) Simd::Panel::fetch(fetched + i);
        fetched += R * block_bytes;
        rows.make(slot + Rows::kAhead, made, made_stride);
        const Block* blocks[R];
        for (int i = 0; i < R; ++i) blocks[i] = first + i * stride;
        Group groups[R];
        rows.load(slot, blocks, groups);
        sums.add(groups, blocks, x, at);
      }
      made = next;
      made_end = next + Rows::kAhead;
      made_stride = next_stride;
    }
    for (int t = 0; t < N; ++t) {
      for (int i = 0; i < R && r + i < num_rows; ++i) {
        out[t * args.out_stride + r + i] = Group::Lanes::reduce(sums.lanes[i][t]);
      }
    }
    first = next;
    stride = next_stride;
  }
}

template <class Type, int R>
struct RowsOf {
  using Rows = PlainRows<Type, R>;
};
template <class Type, int R>
  requires requires { typename Type::Ahead; }
struct RowsOf<Type, R> {
  using Rows = AheadRows<Type, R>;
};

// Whether rows have as many groups as indices are made ahead.
template <class Type>
HM_INLINE bool takes_tiles(const MatmulArgs& args) {
  return args.cols >= RowsOf<Type, 2>::Rows::kAhead * kSuperWeights;
}

// Three tokens leave no registers for a second row.
template <class Type, int N>
void multiply_tokens(const MatmulArgs& args, int64_t first_token) {
  constexpr int rows = N == 3 ? 1 : 2;
  multiply_tile<typename RowsOf<Type, rows>::Rows, rows, N>(args, first_token);
}

template <class Type>
void gemv_tiles(const MatmulArgs& args, int64_t token) {
  if (takes_tiles<Type>(args)) return multiply_tokens<Type, 1>(args, token);
  multiply_tile<PlainRows<Type, 1>, 1, 1>(args, token);
}

}  // namespace
}  // namespace hm
