// Gemm: out[t][r] = weights[r] . x[t] for many tokens. Rows are unpacked once into a panel, rows in
// lanes, and multiplied with tile after tile of tokens, out of the cache.
//
// A panel holds kPanelRows rows of K weights. Lane l of group g (gemv-inl.h: 32 or 16 weights)
// lies at l * groups + g, so that a lane's groups, whose products are added in turn, are
// neighbours:
//
//   uint8 codes[lane, group][weights / 4][row][4]   four neighbouring weights of a row: one dot
//   step float d[lane, group][row] float offset[lane, group][row]                  where the format
//   has one
//
// An accumulator lane is one row and one token; the products enter it in the order of
// GroupSums::add, and the lanes of a row are added in the order of its tree. So the bits are the
// same.
#pragma once

#include "kernels/gemv-inl.h"
#include "kernels/panel_columns-inl.h"

namespace hm {
namespace {

template <class Group>
struct PanelOf {
  using Rows = Simd::Panel;
  using Block = typename Group::Block;
  static constexpr int64_t kGroupBytes = Group::kBlocks * static_cast<int64_t>(sizeof(Block));
  static constexpr int kLanes = Group::Lanes::kLanes;
  static constexpr int kLaneWeights = kSuperWeights / kLanes;
  static constexpr int kStepBytes = kPanelRows * 4;
  static constexpr int kVectors = kPanelRows / Rows::kLanes;
  const int64_t groups;
  uint8_t* const codes;
  float* const d;
  float* const offset;

  PanelOf(void* memory, int64_t cols)
      : groups(padded_weights(cols) / kSuperWeights),
        codes(static_cast<uint8_t*>(memory)),
        d((float*)(codes + groups * kSuperWeights * kPanelRows)),
        offset(d + groups * kLanes * kPanelRows) {}

  uint8_t* lane_codes(int64_t lane, int64_t group) const {
    return codes + (lane * groups + group) * kLaneWeights * kPanelRows;
  }
  // Of `d`, and from lane kLanes on of `offset`.
  float* lane_numbers(int64_t lane, int64_t group) const {
    return d + (lane * groups + group) * kPanelRows;
  }

  // Behind the panel: a number for each lane of a token.
  void* token_memory(int64_t t) const { return d + (2 * kPanelRows + t) * groups * kLanes; }

  // Unpacks rows [first, first + kPanelRows) of the weights; zeros where there are no more.
  HM_INLINE void unpack(const MatmulArgs& args, int64_t first) const {
    for (int v = 0; v < kVectors; ++v) {
      for (int64_t g = 0; g < groups; ++g) unpack_group(args, first + v * Rows::kLanes, v, g);
    }
  }

 private:
  HM_INLINE void unpack_group(const MatmulArgs& args, int64_t first, int v, int64_t g) const {
    constexpr int rows = Rows::kLanes, numbers = kLanes * (Group::kOffset ? 2 : 1);
    const ColumnsTo to(*this, v, g);
    if constexpr (Columns<Group>::kKnown) {
      if (first + rows <= args.num_rows && (g + 1) * kGroupBytes <= args.row_bytes) {
        const uint8_t* start = args.weights + first * args.row_bytes + g * kGroupBytes;
        return Columns<Group>::unpack(RowGroups<Rows>{start, args.row_bytes}, to);
      }
    }
    alignas(64) uint8_t row_codes[rows][kSuperWeights];
    alignas(64) float row_numbers[rows][2 * 16] = {};
    for (int r = 0; r < rows; ++r) unpack_row(args, first + r, g, row_codes[r], row_numbers[r]);
    typename Rows::Int words[rows];
    for (int word = 0; word < kSuperWeights / 4; word += rows) {
      Rows::transpose(row_codes[0] + 4 * word, sizeof row_codes[0], words);
      for (int c = 0; c < rows; ++c) to.codes(word + c, words[c]);
    }
    for (int word = 0; word < numbers; word += rows) {
      Rows::transpose((const uint8_t*)&row_numbers[0][word], sizeof row_numbers[0], words);
      for (int c = 0; c < rows && word + c < numbers; ++c) {
        Rows::store_codes((uint8_t*)(lane_numbers(word + c, g) + v * rows), words[c]);
      }
    }
  }

  // Where rows in lanes are stored: vector v of group g.
  class ColumnsTo {
   public:
    ColumnsTo(const PanelOf& panel, int v, int64_t g)
        : codes_(panel.lane_codes(0, g) + v * Rows::kLanes * 4),
          numbers_(panel.lane_numbers(0, g) + v * Rows::kLanes),
          groups_(panel.groups) {}

    HM_INLINE void codes(int word, typename Rows::Int w) const {
      constexpr int steps = kLaneWeights / 4;
      const int64_t lane = word / steps * groups_ * (kLaneWeights * kPanelRows);
      Rows::store_codes(codes_ + lane + word % steps * kStepBytes, w);
    }
    HM_INLINE void d(int lane, typename Rows::Float numbers) const {
      Rows::store(numbers_ + lane * groups_ * kPanelRows, numbers);
    }
    HM_INLINE void offset(int lane, typename Rows::Float numbers) const {
      d(kLanes + lane, numbers);
    }

   private:
    uint8_t* const codes_;
    float* const numbers_;
    const int64_t groups_;
  };

  HM_INLINE void unpack_row(const MatmulArgs& args, int64_t r, int64_t g, uint8_t* row_codes,
                            float* row_numbers) const {
    Block rest[Group::kBlocks];
    const Block* blocks = rest;
    const uint8_t* start = args.weights + r * args.row_bytes;
    const int64_t at = row_scale_bytes<Block>() + g * kGroupBytes;
    const bool is_row = r < args.num_rows;
    const int64_t left = is_row ? args.row_bytes - at : 0;
    if (left >= kGroupBytes) {
      blocks = (const Block*)(start + at);
    } else {  // blocks of zeros complete the group; nothing is read beyond the row
      memset(rest, 0, sizeof rest);
      memcpy(rest, start + at, left);
    }
    Group group;
    load_group(group, blocks, is_row ? Row<Block>(start).scale : 0.0f);
    store_pair<0>(group, blocks, row_codes);
    store_pair<1>(group, blocks, row_codes);
    store_pair<2>(group, blocks, row_codes);
    store_pair<3>(group, blocks, row_codes);
    Group::Lanes::store(row_numbers, group.d);
    if constexpr (Group::kOffset) Group::Lanes::store(row_numbers + kLanes, group.offset);
  }

  template <int P>
  static HM_INLINE void store_pair(const Group& group, const typename Group::Block* blocks,
                                   uint8_t* row_codes) {
    Simd::B64 codes = group.template codes<P>(blocks);
    if constexpr (Group::kShift != 0) {  // the same exact sums as those of gemv-inl.h
      constexpr int lanes = kLanes / 4;
      codes = Simd::add_to_lanes<lanes>(
          codes, Group::kShift * spread_bits(group.shifts >> lanes * P & ((1 << lanes) - 1)));
    }
    Simd::store64(row_codes + 64 * P, Group::kSigned ? Simd::plus_bias(codes) : codes);
  }
};

constexpr int least(int a, int b) { return a < b ? a : b; }

constexpr int reverse_bits(int i, int count) {
  int reversed = 0;
  for (int n = 1; n < count; n *= 2, i /= 2) reversed = 2 * reversed + i % 2;
  return reversed;
}

// Fetches what will be read next, a little at each step.
struct Fetcher {
  const uint8_t* at;
  const uint8_t* end;
  int64_t lines;  // of 64 bytes, each step

  HM_INLINE void fetch() {
    for (int64_t i = 0; i < lines && at < end; ++i, at += 64) Simd::Panel::fetch(at);
  }
};

// A row of activations, lane by lane.
struct LaneActivations {
  const int8_t* q;
  const float* d;
  const int32_t* sums;
  const int32_t* half_sums;
};

HM_INLINE LaneActivations lane_activations(const void* row, int64_t cols) {
  const int64_t padded = padded_weights(cols);
  const int8_t* q = (const int8_t*)(activation_row(row, cols).half_sums + padded / 16);
  const float* d = (const float*)(q + padded);
  const int32_t* sums = (const int32_t*)(d + padded / 32);
  return {q, d, sums, sums + padded / 32};
}

// What a token's sums enter as, lane by lane: the start of an accumulator that takes the bias of
// the codes back, or the factor of the offset.
template <class Group>
void prepare_sums(const void* row, int64_t cols, void* memory) {
  constexpr int lanes = Group::Lanes::kLanes;
  const LaneActivations x = lane_activations(row, cols);
  const int32_t* sums = lanes == 8 ? x.sums : x.half_sums;
  const int64_t groups = padded_weights(cols) / kSuperWeights;
  int32_t* start = static_cast<int32_t*>(memory);
  float* x_sums = static_cast<float*>(memory);
  if constexpr (kTotalBias<Group> != 0) {
    for (int64_t i = 0; i < lanes * groups; ++i) start[i] = -kTotalBias<Group> * sums[i];
  }
  if constexpr (Group::kOffset && lanes == 8) {
    for (int64_t i = 0; i < lanes * groups; ++i) {
      x_sums[i] = x.d[i] * static_cast<float>(sums[i]);
    }
  } else if constexpr (Group::kOffset) {  // two lanes have one scale
    for (int64_t i = 0; i < lanes * groups; i += groups) {
      const float* d = x.d + i / groups / 2 * groups;
      for (int64_t g = 0; g < groups; ++g) {
        x_sums[i + g] = d[g] * static_cast<float>(sums[i + g]);
      }
    }
  }
}

// Rows of a panel times N tokens.
template <class Group, int N>
struct PanelTile {
  using Panel = PanelOf<Group>;
  using Rows = Simd::Panel;
  using Float = typename Rows::Float;
  static constexpr int kVectors = Panel::kVectors, kLanes = Panel::kLanes;

  // Of each token, lane by lane: its codes, its scales, and what its sums enter as.
  struct Token {
    const int8_t* q;
    const float* d;
    const int32_t* start;
    const float* x_sums;
  };

  static HM_INLINE void add_lane(const Panel& panel, const Token (&x)[N], int lane, int64_t group,
                                 Float (&sums)[N][kVectors]) {
    constexpr int halves = kLanes / 8;  // of 32 codes that have one scale
    const int64_t block = lane / halves * panel.groups + group;
    const int64_t at = 32 * block + lane % halves * 16;
    const int64_t number = lane * panel.groups + group;
    const uint8_t* codes = panel.lane_codes(lane, group);
    const float* numbers = panel.lane_numbers(lane, group);
    typename Rows::Int dots[N][kVectors];
    for (int t = 0; t < N; ++t) {
      for (auto& dot : dots[t]) {
        dot = Rows::set_int(kTotalBias<Group> != 0 ? x[t].start[number] : 0);
      }
    }
    constexpr int run_weights = least(4 * Rows::run_length(Group::kMost), Panel::kLaneWeights);
    for (int first = 0; first < Panel::kLaneWeights; first += run_weights) {
      typename Rows::Int runs[N][kVectors];
      for (int t = 0; t < N; ++t) {
        for (int v = 0; v < kVectors; ++v) runs[t][v] = Rows::begin_run(dots[t][v]);
      }
      for (int k = first; k < first + run_weights && k < Panel::kLaneWeights; k += 4) {
        for (int v = 0; v < kVectors; ++v) {
          const auto w = Rows::load_codes(codes + k * kPanelRows + v * Rows::kLanes * 4);
          for (int t = 0; t < N; ++t) {
            int32_t four;
            memcpy(&four, x[t].q + at + k, sizeof four);
            runs[t][v] = Rows::template dot<Group::kSigned>(runs[t][v], w, Rows::set_int(four));
          }
        }
      }
      for (int t = 0; t < N; ++t) {
        for (int v = 0; v < kVectors; ++v) dots[t][v] = Rows::end_run(dots[t][v], runs[t][v]);
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      const Float d = Rows::load(numbers + v * Rows::kLanes);
      for (int t = 0; t < N; ++t) {
        const Float scale = Rows::mul(d, Rows::set(x[t].d[block]));
        sums[t][v] = Rows::fma(Rows::to_float(dots[t][v]), scale, sums[t][v]);
      }
      if constexpr (Group::kOffset) {
        const Float offset =
            Rows::load(panel.lane_numbers(kLanes + lane, group) + v * Rows::kLanes);
        for (int t = 0; t < N; ++t) {
          sums[t][v] = Rows::fma(offset, Rows::set(x[t].x_sums[number]), sums[t][v]);
        }
      }
    }
  }

  // Fetches the codes of the next N tokens while these are multiplied: a part at each group of a
  // lane, as evenly as it goes.
  class TokenFetcher {
   public:
    HM_INLINE TokenFetcher(const MatmulArgs& args, int64_t first_token) {
      for (int64_t i = 0; i < kSteps * kEach; ++i) {
        const int64_t t = first_token + (i < N ? i : N - 1);
        rows_[i] = lane_activations(args.x[t < args.num_tokens ? t : 0], args.cols).q;
      }
    }
    HM_INLINE void fetch() {
      for (int i = 0; i < kEach; ++i) {
        Rows::fetch((const uint8_t*)rows_[step_ % kSteps * kEach + i] + step_ / kSteps * 64);
      }
      ++step_;
    }

   private:
    static constexpr int kSteps = 64 / Panel::kLaneWeights;  // until a line is multiplied
    static constexpr int kEach = (N + kSteps - 1) / kSteps;
    const int8_t* rows_[kSteps * kEach];
    uint64_t step_ = 0;
  };

  static void run(const MatmulArgs& args, const Panel& panel, int64_t first_row,
                  int64_t first_token, Fetcher& next) {
    TokenFetcher next_tokens(args, first_token + N);
    Token x[N];
    for (int t = 0; t < N; ++t) {
      const LaneActivations token = lane_activations(args.x[first_token + t], args.cols);
      const void* sums = panel.token_memory(first_token + t);
      x[t] = {token.q, token.d, static_cast<const int32_t*>(sums), static_cast<const float*>(sums)};
    }
    // Lanes in the order in which their tree is complete soonest: node n of level i waits in
    // pending[i] for its neighbour.
    Float pending[5][N][kVectors];
    for (int i = 0; i < kLanes; ++i) {
      Float sums[N][kVectors];
      for (auto& token : sums) {
        for (Float& sum : token) sum = Rows::set(0.0f);
      }
      for (int64_t g = 0; g < panel.groups; ++g) {
        next.fetch();
        next_tokens.fetch();
        add_lane(panel, x, reverse_bits(i, kLanes), g, sums);
      }
      int level = 0;
      for (; (i >> level) % 2 != 0; ++level) {
        for (int t = 0; t < N; ++t) {
          for (int v = 0; v < kVectors; ++v) {
            sums[t][v] = Rows::add(pending[level][t][v], sums[t][v]);
          }
        }
      }
      memcpy(pending[level], sums, sizeof sums);
    }
    const auto& sums = pending[kLanes == 8 ? 3 : 4];
    const int64_t left = args.num_rows - first_row;
    for (int t = 0; t < N; ++t) {
      float* out = args.out + (first_token + t) * args.out_stride + first_row;
      if (left >= kPanelRows) {
        for (int v = 0; v < kVectors; ++v) Rows::store(out + v * Rows::kLanes, sums[t][v]);
      } else {
        float row[kPanelRows];
        for (int v = 0; v < kVectors; ++v) Rows::store(row + v * Rows::kLanes, sums[t][v]);
        memcpy(out, row, left * sizeof(float));
      }
    }
  }
};

template <class Group, int N>
void gemm_tile(const MatmulArgs& args, const PanelOf<Group>& panel, int64_t first_row,
               int64_t first_token, int64_t count, Fetcher& next) {
  if (count == N) return PanelTile<Group, N>::run(args, panel, first_row, first_token, next);
  if constexpr (N > 1) gemm_tile<Group, N - 1>(args, panel, first_row, first_token, count, next);
}

// As few tiles as there can be, of nearly as many tokens each: one of few takes longer for each.
template <class Group>
void gemm_tiles(const MatmulArgs& args, const PanelOf<Group>& panel, int64_t first_row,
                Fetcher& next) {
  constexpr int most = Simd::Panel::kTokens;
  for (int64_t t = 0, count; t < args.num_tokens; t += count) {
    const int64_t left = args.num_tokens - t, tiles = (left + most - 1) / most;
    count = (left + tiles - 1) / tiles;
    gemm_tile<Group, most>(args, panel, first_row, t, count, next);
  }
}

template <class Group>
void gemm_panels(const MatmulArgs& args) {
  constexpr int tokens = Simd::Panel::kTokens;
  const PanelOf<Group> panel(args.scratch, args.cols);
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    prepare_sums<Group>(args.x[t], args.cols, panel.token_memory(t));
  }
  const int64_t steps = panel.groups * Group::Lanes::kLanes * (args.num_tokens / tokens + 1);
  for (int64_t r = 0; r < args.num_rows; r += kPanelRows) {
    panel.unpack(args, r);
    const int64_t left = args.num_rows - r - kPanelRows;  // rows after this panel
    Fetcher next{args.next, args.next + args.next_bytes, 0};
    if (left > 0) {
      const uint8_t* rows = args.weights + (r + kPanelRows) * args.row_bytes;
      next = {rows, rows + (left < kPanelRows ? left : kPanelRows) * args.row_bytes, 0};
    }
    next.lines = (next.end - next.at) / 64 / steps + 1;
    gemm_tiles<Group>(args, panel, r, next);
  }
}

}  // namespace
}  // namespace hm
