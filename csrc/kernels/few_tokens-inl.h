// Products with 2 to 8 tokens: a group's codes are unpacked once for all of them.
//
// Codes are strided (gemv-inl.h), as activations are. So the products of a run of two or four
// vectors add up in one register, two of its lanes for each lane of the format, and two runs make
// one register of lanes. A unit is the rows that are multiplied at once: two in AVX-512, which
// share a loaded activation; where the format has 8 lanes, one register holds those of both.
//
// Many tokens go by chunks of columns, whose activations stay in the L1 cache for a block of rows;
// meanwhile the lanes of each row and token wait in memory. They are added to in the order of
// GroupSums::add_group, and at the end by the same tree. So the bits are the same.
#pragma once

#include "base/forget.h"
#include "kernels/gemm-inl.h"

namespace hm {
namespace {

// Codes as they are multiplied: where signs are apart, they get a bias instead.
template <class Group>
struct UnitCodes {
  static constexpr bool kSignsApart = [] {
    if constexpr (is_strided<Group>) return Group::kSignsApart;
    return false;
  }();
  static constexpr int kBias = kSignsApart ? 64 : kTotalBias<Group>;
  static constexpr bool kSigned = Group::kSigned && Simd::kSignedBias == 0;
  static constexpr int kMost = kSignsApart ? 127 : Group::kMost;
  static constexpr int kRun = kSigned ? 1 : Simd::Panel::run_length(kMost);  // in vectors
};

// A group of each row of a unit.
template <class Group>
struct Unit {
  static constexpr int kBlocks = Group::kBlocks;
  static constexpr bool kOffset = Group::kOffset;
  using Block = typename Group::Block;
  using Lanes = typename Group::Lanes;
  using Codes = UnitCodes<Group>;
  static constexpr int kRows = Simd::kUnitRows;
  static constexpr int kRegisters = kRows * Lanes::kLanes / Simd::Panel::kLanes;

  Simd::B64 codes[kRows][4];
  Simd::Panel::Float d[kRegisters], offset[kRegisters];

  HM_INLINE void load(const Block* const (&blocks)[kRows], const float (&row_scales)[kRows]) {
    typename Lanes::Float d_of[kRows], offset_of[kRows];
#pragma GCC unroll 2
    for (int r = 0; r < kRows; ++r) {
      Group group;
      load_group(group, blocks[r], row_scales[r]);
      load_codes<0>(group, blocks[r], codes[r]);
      load_codes<1>(group, blocks[r], codes[r]);
      load_codes<2>(group, blocks[r], codes[r]);
      load_codes<3>(group, blocks[r], codes[r]);
      if constexpr (!is_strided<Group>) Simd::stride(codes[r]);
      d_of[r] = group.d;
      if constexpr (Group::kOffset) offset_of[r] = group.offset;
    }
    Lanes::to_unit(d_of, d);
    if constexpr (Group::kOffset) Lanes::to_unit(offset_of, offset);
  }

  static HM_INLINE void reduce(const Simd::Panel::Float (&sums)[kRegisters], float (&out)[kRows]) {
    Lanes::reduce_unit(sums, out);
  }

 private:
  template <int V>
  static HM_INLINE void load_codes(const Group& group, const Block* blocks, Simd::B64 (&out)[4]) {
    Simd::B64 v = group.template codes<V>(blocks);
    if constexpr (Codes::kSignsApart) {
      v = Simd::add(Simd::with_signs(v, group.template signs<V>()), Simd::set_bytes(Codes::kBias));
    } else if constexpr (Group::kSigned) {
      v = Simd::plus_bias(v);
    }
    if constexpr (Group::kShift != 0 && is_strided<Group>) {  // the same exact sums as gemv's
      v = Simd::add(v, Simd::of_blocks(group.shifts, Group::kShift));
    } else if constexpr (Group::kShift != 0) {
      constexpr int lanes = Lanes::kLanes / 4;
      const uint32_t shifts = group.shifts >> lanes * V & ((1 << lanes) - 1);
      v = Simd::add_to_lanes<lanes>(v, Group::kShift * spread_bits(shifts));
    }
    out[V] = v;
  }
};

// N tokens; beyond the last of them it again.
template <class U, int N>
class FewTokens {
 public:
  using Lanes = typename U::Lanes;
  using Registers = Simd::Panel;
  using Float = Registers::Float;
  using Int = Registers::Int;
  static constexpr int kRegisters = U::kRegisters;

  FewTokens(const MatmulArgs& args, int64_t first_token, int64_t count)
      : numbers_(static_cast<float*>(args.scratch)) {
    for (int t = 0; t < N; ++t) {
      const int64_t token = first_token + (t < count ? t : count - 1);
      const ActivationRow x = activation_row(args.x[token], args.cols);
      q_[t] = x.strided;
      prepare(x, padded_weights(args.cols) / kSuperWeights, numbers_ + t * kTokenNumbers);
    }
  }

  // Adds products with group g to `lanes`.
  HM_INLINE void add(const U& unit, int64_t g, Float (&lanes)[kRegisters][N]) const {
    constexpr int together = least(N, U::kRows == 2 ? 1 : 4), rest = N % together;
#pragma GCC unroll 8
    for (int t = 0; t + together <= N; t += together) add_tokens<together>(unit, g, t, lanes);
    if constexpr (rest != 0) add_tokens<rest>(unit, g, N - rest, lanes);
  }

 private:
  static constexpr bool kByBlock = Lanes::kLanes == 8;
  static constexpr bool kHasBias = U::Codes::kBias != 0;
  // What a token has for each group, the same for all rows of a unit: the scale of each lane, then
  // its sum times its scale, or minus the bias.
  static constexpr int kOneNumbers = U::kRows == 2 ? Registers::kLanes : Lanes::kLanes;
  static constexpr int kTokenNumbers = 2 * kOneNumbers;

  static void prepare(const ActivationRow& x, int64_t groups, float* to) {
    const int32_t* sums = kByBlock ? x.sums : x.half_sums;
    for (int64_t g = 0; g < groups; ++g, sums += Lanes::kLanes, to += N * kTokenNumbers) {
      const auto d = Lanes::activation_scales(x.d + g * 8);
      store(to, d);
      if constexpr (U::kOffset) {
        store(to + kOneNumbers, Lanes::mul(d, Lanes::to_float(Lanes::load_int(sums))));
      } else if constexpr (kHasBias) {
        int32_t minus_bias[Lanes::kLanes];
        for (int i = 0; i < Lanes::kLanes; ++i) minus_bias[i] = -U::Codes::kBias * sums[i];
        store(to + kOneNumbers, Lanes::load((const float*)minus_bias));
      }
    }
  }

  static HM_INLINE void store(float* to, typename Lanes::Float v) {
    typename Lanes::Float rows[U::kRows];
    for (auto& row : rows) row = v;
    Float registers[kRegisters];
    Lanes::to_unit(rows, registers);
    for (int i = 0; i < kOneNumbers; i += Registers::kLanes) {
      Registers::store(to + i, registers[i / Registers::kLanes]);
    }
  }

  template <int M>
  HM_INLINE void add_tokens(const U& unit, int64_t g, int first,
                            Float (&lanes)[kRegisters][N]) const {
    Int sums[kRegisters][M];
    if constexpr (U::kRows == 2) {
      dot_two_rows(unit, q_[first] + g * kSuperWeights, sums);
    } else {
      dot_row(unit, first, g * kSuperWeights, sums);
    }
#pragma GCC unroll 2
    for (int c = 0; c < kRegisters; ++c) {
#pragma GCC unroll 4
      for (int t = 0; t < M; ++t) {
        const float* token = numbers_ + (g * N + first + t) * kTokenNumbers;
        const float* scales = token + c * Registers::kLanes % kOneNumbers;
        const Float last = Registers::load(scales + kOneNumbers);
        Int sum = sums[c][t];
        if constexpr (kHasBias) sum = Registers::add_int(sum, Registers::as_int(last));
        Float& lane = lanes[c][first + t];
        const Float d = Registers::mul(unit.d[c], Registers::load(scales));
        lane = Registers::fma(Registers::to_float(sum), d, lane);
        if constexpr (U::kOffset) lane = Registers::fma(unit.offset[c], last, lane);
      }
    }
  }

  static HM_INLINE void dot_two_rows(const U& unit, const int8_t* q, Int (&sums)[kRegisters][1]) {
    Int runs[2][2];
    for (auto& row : runs) row[0] = row[1] = Registers::set_int(0);
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      Int x = Registers::load_codes((const uint8_t*)q + 64 * v);
      forget(x);  // one load for both rows
#pragma GCC unroll 2
      for (int r = 0; r < 2; ++r) {
        Int& run = kByBlock ? runs[0][r] : runs[r][v / 2];
        run = Registers::template dot<false>(run, unit.codes[r][v], x);
      }
    }
#pragma GCC unroll 2
    for (int c = 0; c < kRegisters; ++c) sums[c][0] = Registers::add_runs(runs[c][0], runs[c][1]);
  }

  // Codes are loaded once for M tokens: there are too few registers to keep them.
  template <int M>
  HM_INLINE void dot_row(const U& unit, int first, int64_t at, Int (&sums)[kRegisters][M]) const {
    constexpr int steps = kByBlock ? 4 : 2;
#pragma GCC unroll 2
    for (int c = 0; c < kRegisters; ++c) {
      Int runs[2][M];
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        for (Int& run : runs[j]) run = Registers::set_int(0);
#pragma GCC unroll 4
        for (int from = 0; from < steps; from += U::Codes::kRun) {
          Int parts[M];
          for (int t = 0; t < M; ++t) parts[t] = Registers::begin_run(runs[j][t]);
          for (int k = from; k < from + least(U::Codes::kRun, steps); ++k) {
            const int byte = kByBlock ? 64 * k + 32 * j : 64 * (2 * j + k) + 32 * c;
            const Int w = Registers::load_codes((const uint8_t*)unit.codes + byte);
#pragma GCC unroll 4
            for (int t = 0; t < M; ++t) {
              const Int x = Registers::load_codes((const uint8_t*)q_[first + t] + at + byte);
              parts[t] = Registers::template dot<U::Codes::kSigned>(parts[t], w, x);
            }
          }
          for (int t = 0; t < M; ++t) runs[j][t] = Registers::end_run(runs[j][t], parts[t]);
        }
      }
      for (int t = 0; t < M; ++t) sums[c][t] = Registers::add_runs(runs[0][t], runs[1][t]);
    }
  }

  const int8_t* q_[N];
  float* numbers_;  // (groups, N, kTokenNumbers)
};

// Groups first..end of a unit of rows from `row` on, added to `lanes`, (kRegisters, N) registers.
// `ahead` bytes on lies what will be read later.
template <class U, int N>
HM_INLINE void add_groups(const MatmulArgs& args, const FewTokens<U, N>& tokens, int64_t row,
                          int64_t first, int64_t end, int64_t ahead, float* lanes) {
  using Block = typename U::Block;
  using Registers = Simd::Panel;
  constexpr auto block_bytes = static_cast<int64_t>(sizeof(Block));
  const Block* blocks[U::kRows];
  float scales[U::kRows];
  for (int r = 0; r < U::kRows; ++r) {  // beyond the last row it again
    const int64_t i = row + r < args.num_rows ? row + r : args.num_rows - 1;
    const Row<Block> start(args.weights + i * args.row_bytes);
    blocks[r] = start.blocks + first * U::kBlocks;
    scales[r] = start.scale;
  }
  Registers::Float sums[U::kRegisters][N];
#pragma GCC unroll 16
  for (int i = 0; i < U::kRegisters * N; ++i) {
    sums[i / N][i % N] = Registers::load(lanes + i * Registers::kLanes);
  }
  Block rest[U::kRows][U::kBlocks];
  for (int64_t g = first; g < end; ++g) {
    if (g == args.cols / kSuperWeights) {  // blocks of zeros complete the group: see gemv
      memset(rest, 0, sizeof rest);
      for (int r = 0; r < U::kRows; ++r) {
        memcpy(rest[r], blocks[r], args.cols % kSuperWeights / Block::kWeights * block_bytes);
        blocks[r] = rest[r];
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < U::kRows; ++r) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < U::kBlocks * block_bytes; i += 64) {
        Registers::fetch((const uint8_t*)blocks[r] + ahead + i);
      }
    }
    U unit;
    unit.load(blocks, scales);
    tokens.add(unit, g, sums);
    for (auto& b : blocks) b += U::kBlocks;
  }
#pragma GCC unroll 16
  for (int i = 0; i < U::kRegisters * N; ++i) {
    Registers::store(lanes + i * Registers::kLanes, sums[i / N][i % N]);
  }
}

// Results of a unit of rows from `row` on for `count` tokens, from its lanes, (kRegisters, N).
template <class U, int N>
inline void store_results(const MatmulArgs& args, const float* lanes, int64_t row,
                          int64_t first_token, int64_t count) {
  using Registers = Simd::Panel;
  for (int64_t t = 0; t < count; ++t) {
    Registers::Float sums[U::kRegisters];
    for (int c = 0; c < U::kRegisters; ++c) {
      sums[c] = Registers::load(lanes + (c * N + t) * Registers::kLanes);
    }
    float results[U::kRows];
    U::reduce(sums, results);
    float* out = args.out + (first_token + t) * args.out_stride + row;
    for (int i = 0; i < U::kRows && row + i < args.num_rows; ++i) out[i] = results[i];
  }
}

template <class U, int N>
void multiply_few(const MatmulArgs& args, int64_t first_token, int64_t count) {
  using Registers = Simd::Panel;
  constexpr int64_t block_rows = 32, chunk = N <= 4 ? 32 : 4;
  constexpr int64_t chunk_bytes =
      chunk * U::kBlocks * static_cast<int64_t>(sizeof(typename U::Block));
  const int64_t groups = padded_weights(args.cols) / kSuperWeights;
  const FewTokens<U, N> tokens(args, first_token, count);
  alignas(64) float lanes[block_rows / U::kRows][U::kRegisters * N * Registers::kLanes];
  for (int64_t row = 0; row < args.num_rows; row += block_rows) {
    const int64_t left = args.num_rows - row;
    const int64_t rows = left < block_rows ? left : block_rows;
    memset(lanes, 0, sizeof lanes);
    // What is read after these rows: the next ones, or after the last what args.next names.
    const uint8_t* start = args.weights + row * args.row_bytes;
    const uint8_t* next = left > rows            ? start + rows * args.row_bytes
                          : args.next != nullptr ? args.next
                                                 : start;
    for (int64_t first = 0; first < groups; first += chunk) {
      const bool is_last = first + chunk >= groups;
      const int64_t end = is_last ? groups : first + chunk;
      const int64_t ahead = is_last ? next - start - first / chunk * chunk_bytes : chunk_bytes;
      for (int64_t r = 0; r < rows; r += U::kRows) {
        add_groups(args, tokens, row + r, first, end, ahead, lanes[r / U::kRows]);
      }
    }
    for (int64_t r = 0; r < rows; r += U::kRows) {
      store_results<U, N>(args, lanes[r / U::kRows], row + r, first_token, count);
    }
  }
}

// Multiply::run<N> multiplies with `count` tokens, at most N.
template <class Multiply>
void few_tokens_by(const MatmulArgs& args) {
  static_assert(kFewTokens == 8);
  for (int64_t first = 0; first < args.num_tokens; first += kFewTokens) {
    const int64_t left = args.num_tokens - first;
    if (left > 6) {
      Multiply::template run<8>(args, first, left < 8 ? left : 8);
    } else if (left > 4) {
      Multiply::template run<6>(args, first, left);
    } else if (left == 4) {
      Multiply::template run<4>(args, first, left);
    } else if (left == 3) {
      Multiply::template run<3>(args, first, left);
    } else {
      Multiply::template run<2>(args, first, left);
    }
  }
}

template <class U>
struct MultiplyFew {
  template <int N>
  static void run(const MatmulArgs& args, int64_t first_token, int64_t count) {
    multiply_few<U, N>(args, first_token, count);
  }
};

template <class Group>
void few_tokens(const MatmulArgs& args) {
  few_tokens_by<MultiplyFew<Unit<Group>>>(args);
}

}  // namespace
}  // namespace hm
