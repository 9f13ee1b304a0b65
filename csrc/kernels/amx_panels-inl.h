// Panels of unpacked weights, each made while the one before it is multiplied.
//
// A panel is some rows by some groups of 256 columns as bfloat16: (groups, rows, 256). Panels go
// along a call's columns, then on to its next rows. There are two of them: between products, which
// take the tiles 16 cycles each and leave the vector units free, a share of the next one is
// unpacked.
#pragma once

#include "kernels/amx_formats-inl.h"

namespace hm {
namespace {

constexpr int kStepsOfGroup = kSuperWeights / kColumnStep;
constexpr int64_t kRowsAhead = 2, kGroupsAhead = 8;  // weights are fetched so far ahead

struct Panels {
  using Unpack = void (*)(Panels& panels, int64_t count);

  const TileArgs& args;
  const int64_t begin, end;                // groups of the call
  const int64_t rows, width;               // of a panel, the latter in groups
  const int64_t steps;                     // of products with each group of a panel
  const int64_t share, rest;               // rows by steps
  const int64_t rows_ahead, groups_ahead;  // what is fetched meanwhile
  const Unpack unpack;                     // some groups of a row each, at most what is left
  uint16_t *panel, *taken;                 // the one in the making, and the other
  int64_t top = 0, left, row = 0, group;   // of the first: where it begins, what comes next
  int64_t owed = 0;

  Panels(const TileArgs& args, int64_t rows, bool is_whole, int64_t steps, Unpack unpack)
      : args(args),
        begin(args.first_col / kSuperWeights),
        end(padded_weights(args.end_col) / kSuperWeights),
        rows(rows),
        width(is_whole ? end - begin : 1),
        steps(steps),
        share(rows / steps),
        rest(rows % steps),
        rows_ahead(is_whole ? kRowsAhead : 0),
        groups_ahead(is_whole                     ? 0
                     : end - begin < kGroupsAhead ? end - begin
                                                  : kGroupsAhead),
        unpack(unpack),
        panel(static_cast<uint16_t*>(args.scratch)),
        taken(panel + rows * width * kSuperWeights),
        left(begin),
        group(begin) {}

  // The panel in the making, now whole; the next one is begun.
  HM_INLINE const uint16_t* take() {
    unpack(*this, rows * width);
    uint16_t* whole = panel;
    panel = taken;
    taken = whole;
    left += width;
    if (left == end) {
      left = begin;
      top += rows;
    }
    row = top < args.num_rows ? 0 : rows;
    group = left;
    owed = 0;
    return whole;
  }

  // What is to be unpacked at each step of products.
  HM_INLINE void run_step() {
    int64_t count = share;
    owed += rest;
    if (owed >= steps) {
      owed -= steps;
      ++count;
    }
    if (count > 0) unpack(*this, count);
  }
};

// Rows beyond the last and columns beyond a row are zeros.
template <class Group>
void unpack_groups(Panels& p, int64_t count) {
  using Block = typename Group::Block;
  constexpr int64_t group_bytes = Group::kBlocks * static_cast<int64_t>(sizeof(Block));
  const TileArgs args = p.args;  // copies: vector stores may write to anything
  const int64_t end = p.left + p.width, rows = p.rows;
  int64_t row = p.row, group = p.group;
  for (; count > 0 && row < rows; --count) {
    const int64_t r = p.top + row, at = row_scale_bytes<Block>() + group * group_bytes;
    const bool is_row = r < args.num_rows;
    const uint8_t* start = args.weights + r * args.row_bytes;
    const float row_scale = is_row ? Row<Block>(start).scale : 0.0f;
    const int64_t left = is_row ? args.row_bytes - at : 0;
    const auto* blocks = (const Block*)(start + at);
    Block rest[Group::kBlocks];
    if (left < group_bytes) {
      memset(rest, 0, sizeof rest);
      memcpy(rest, blocks, left);
      blocks = rest;
    }
    Unpack<Group>::row(blocks, row_scale,
                       p.panel + ((group - p.left) * rows + row) * kSuperWeights);
    int64_t fetched_row = r + p.rows_ahead, fetched = at + p.groups_ahead * group_bytes;
    if (group + p.groups_ahead >= p.end) {
      fetched_row += rows;
      fetched -= (p.end - p.begin) * group_bytes;
    }
    const int64_t beyond = fetched_row - args.num_rows;
    fetched += beyond < 0 ? fetched_row * args.row_bytes : beyond * args.row_bytes;
    const uint8_t* lines = (beyond < 0 ? args.weights : args.next) + fetched;
    for (int64_t i = 0; i < group_bytes; i += 64) Simd::Panel::fetch(lines + i);
    if (++group == end) {
      group = p.left;
      ++row;
    }
  }
  p.row = row;
  p.group = group;
}

}  // namespace
}  // namespace hm
