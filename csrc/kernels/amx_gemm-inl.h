// Gemm by AMX tiles: out[r][t] = weights[r] . x[t], in bfloat16, added up in float32.
//
// Weights are tile A, as they lie (16 rows of 32 columns), so that unpacking them needs no
// transposition; tokens are tile B, whose transposition is done once and serves every row. Sums
// stay in four tiles over all columns of a call: stored after each group of 256, they left the L1
// cache before the next, which took as long as the products (docs/log.md). A step of 32 columns is
//
//   up to 32 tokens, and more than 64, in pairs of tiles     33 to 64 tokens
//
//   tmm0 tmm1 += tmm4 (rows 0..15)  x  tmm6  tmm7            tmm0..tmm3 += tmm4 (16 rows) x tmm5..
//   tmm2 tmm3    tmm5 (rows 16..31)
//
// or four products of 16 cycles for four, or five, loads of 8. Up to 64 tokens each weight is used
// by one step only: panels (amx_panels-inl.h) are one group of columns, which the L1 cache holds,
// and tokens come from the L2 cache. With more, panels have all columns of the call, and both come
// from there.
//
// Rounding: weights and activations to bfloat16 (8 bits) each, products exact, sums in float32 in
// the order of the hardware, two columns at a time. Where the weights are bfloat16 themselves, all
// error would be the activations': these are the sum of two bfloat16 then (16 bits), and each block
// is multiplied twice. A token's numbers depend on neither the other tokens nor threads, but they
// are not those of the other kernels.
#pragma once

#include "kernels/amx_panels-inl.h"
#include "kernels/amx_tokens-inl.h"

namespace hm {
namespace {

// Tile shapes: all of them 16 rows of 64 bytes.
HM_INLINE void configure_tiles() {
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t column_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int i = 0; i < 8; ++i) {
    config.column_bytes[i] = kTileBytes;
    config.rows[i] = kTileRows;
  }
  asm volatile("" : : "r"(&config) : "memory");  // GCC 12 drops stores that it believes unread
  _tile_loadconfig(&config);
}

template <class Group>
constexpr int kTileParts = 1;
template <>
constexpr int kTileParts<GroupBF16> = 2;

// The sums of one or two tiles of rows by some tiles of tokens: of two, each has tmm0 and tmm1, or
// tmm2 and tmm3; one has all four.
template <int RowTiles, int TokenTiles>
struct Sums {
  static_assert(RowTiles == 1 || TokenTiles <= 2);
  static constexpr bool kHas1 = TokenTiles >= 2, kHas2 = RowTiles == 2 || TokenTiles >= 3,
                        kHas3 = RowTiles * TokenTiles == 4;
  float *first, *second;
  int64_t bytes;

  Sums(float* out, int64_t stride)
      : first(out),
        second(out + (RowTiles == 2 ? kTileRows * stride : 2 * kTokenTile)),
        bytes(stride * static_cast<int64_t>(sizeof(float))) {}

  HM_INLINE void zero() const {
    _tile_zero(0);
    if (kHas1) _tile_zero(1);
    if (kHas2) _tile_zero(2);
    if (kHas3) _tile_zero(3);
  }
  HM_INLINE void load() const {
    _tile_loadd(0, first, bytes);
    if (kHas1) _tile_loadd(1, first + kTokenTile, bytes);
    if (kHas2) _tile_loadd(2, second, bytes);
    if (kHas3) _tile_loadd(3, second + kTokenTile, bytes);
  }
  HM_INLINE void store() const {
    _tile_stored(0, first, bytes);
    if (kHas1) _tile_stored(1, first + kTokenTile, bytes);
    if (kHas2) _tile_stored(2, second, bytes);
    if (kHas3) _tile_stored(3, second + kTokenTile, bytes);
  }
};

// 32 columns of two tiles of rows and one or two of tokens, `stride` words apart.
template <bool IsPair>
HM_INLINE void multiply_rows(const uint16_t* a, const uint16_t* b, int64_t stride) {
  constexpr int row_bytes = kSuperWeights * 2;
  _tile_loadd(4, a, row_bytes);
  _tile_loadd(5, a + kTileRows * kSuperWeights, row_bytes);
  _tile_loadd(6, b, kTileBytes);
  if (IsPair) _tile_loadd(7, b + stride, kTileBytes);
  _tile_dpbf16ps(0, 4, 6);
  if (IsPair) _tile_dpbf16ps(1, 4, 7);
  _tile_dpbf16ps(2, 5, 6);
  if (IsPair) _tile_dpbf16ps(3, 5, 7);
}

// The same of one tile of rows and three or four of tokens. Registers take turns, so that no load
// waits for the products just before it.
template <bool IsOdd, bool HasFourth>
HM_INLINE void multiply_tokens(const uint16_t* a, const uint16_t* b, int64_t stride) {
  constexpr int row_bytes = kSuperWeights * 2;
  if constexpr (IsOdd) {
    _tile_loadd(6, a, row_bytes);
    _tile_loadd(7, b, kTileBytes);
    _tile_dpbf16ps(0, 6, 7);
    _tile_loadd(4, b + stride, kTileBytes);
    _tile_dpbf16ps(1, 6, 4);
    _tile_loadd(5, b + 2 * stride, kTileBytes);
    _tile_dpbf16ps(2, 6, 5);
    if (!HasFourth) return;
    _tile_loadd(7, b + 3 * stride, kTileBytes);
    _tile_dpbf16ps(3, 6, 7);
  } else {
    _tile_loadd(4, a, row_bytes);
    _tile_loadd(5, b, kTileBytes);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, b + stride, kTileBytes);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, b + 2 * stride, kTileBytes);
    _tile_dpbf16ps(2, 4, 7);
    if (!HasFourth) return;
    _tile_loadd(5, b + 3 * stride, kTileBytes);
    _tile_dpbf16ps(3, 4, 5);
  }
}

// Packed tokens of a call, from its first column on.
struct PackedTokens {
  const uint16_t* first;
  int64_t part, stride;  // words from part to part, from tile to tile

  explicit PackedTokens(const TileArgs& args)
      : first(args.x + args.first_col * kTokenTile),
        part(padded_weights(args.cols) * kTokenTile),
        stride(args.parts * part) {}
};

// All columns of a panel whose first group is `first`.
template <int RowTiles, int TokenTiles, int Parts>
HM_INLINE void multiply_panel(Panels& panels, const uint16_t* weights, int64_t first,
                              const PackedTokens& x, const uint16_t* tokens) {
  for (int64_t g = 0; g < panels.width; ++g) {
    const uint16_t* a = weights + g * panels.rows * kSuperWeights;
    const int64_t cols = panels.args.cols - (first + g) * kSuperWeights;
    const int64_t steps = cols >= kSuperWeights ? kStepsOfGroup : (cols + 63) / 64 * 2;
    for (int part = 0; part < Parts; ++part) {
      const uint16_t* b = tokens + part * x.part + g * kStepsOfGroup * kPackedTile;
      for (int64_t step = 0; step < steps; step += 2) {
        const uint16_t *a0 = a + step * kColumnStep, *b0 = b + step * kPackedTile;
        const uint16_t *a1 = a0 + kColumnStep, *b1 = b0 + kPackedTile;
        if constexpr (RowTiles == 2) {
          multiply_rows<TokenTiles == 2>(a0, b0, x.stride);
          panels.run_step();
          multiply_rows<TokenTiles == 2>(a1, b1, x.stride);
        } else {
          multiply_tokens<false, TokenTiles == 4>(a0, b0, x.stride);
          panels.run_step();
          multiply_tokens<true, TokenTiles == 4>(a1, b1, x.stride);
        }
        panels.run_step();
      }
    }
  }
}

// Up to kHeldTiles: a panel is a group of columns, and sums stay in their tiles from one to the
// next.
template <int RowTiles, int TokenTiles, int Parts>
void multiply_held(const TileArgs& args, Panels::Unpack unpack) {
  constexpr int64_t rows = RowTiles * kTileRows;
  Panels panels(args, rows, false, Parts * kStepsOfGroup, unpack);
  const PackedTokens x(args);
  for (int64_t r = 0; r < args.num_rows; r += rows) {
    const Sums<RowTiles, TokenTiles> sums(args.out + r * args.num_tiles * kTokenTile,
                                          args.num_tiles * kTokenTile);
    args.first_col == 0 ? sums.zero() : sums.load();
    const uint16_t* tokens = x.first;
    for (int64_t g = panels.begin; g < panels.end; ++g) {
      multiply_panel<RowTiles, TokenTiles, Parts>(panels, panels.take(), g, x, tokens);
      tokens += kStepsOfGroup * kPackedTile;
    }
    sums.store();
  }
}

template <int TokenTiles, int Parts>
HM_INLINE void multiply_whole(Panels& panels, const uint16_t* weights, const PackedTokens& x,
                              int64_t tile, float* out) {
  const TileArgs& args = panels.args;
  const Sums<2, TokenTiles> sums(out + tile * kTokenTile, args.num_tiles * kTokenTile);
  args.first_col == 0 ? sums.zero() : sums.load();
  multiply_panel<2, TokenTiles, Parts>(panels, weights, panels.begin, x, x.first + tile * x.stride);
  sums.store();
}

// More: a panel is unpacked for all tokens.
template <int Parts>
void multiply_pairs(const TileArgs& args, Panels::Unpack unpack) {
  const int64_t pairs = (args.num_tiles + 1) / 2;
  Panels panels(args, kPanelRows, true, Parts * kStepsOfGroup * pairs, unpack);
  const PackedTokens x(args);
  for (int64_t r = 0; r < args.num_rows; r += kPanelRows) {
    const uint16_t* weights = panels.take();
    float* out = args.out + r * args.num_tiles * kTokenTile;
    int64_t t = 0;
    for (; t + 2 <= args.num_tiles; t += 2) multiply_whole<2, Parts>(panels, weights, x, t, out);
    if (t < args.num_tiles) multiply_whole<1, Parts>(panels, weights, x, t, out);
  }
}

template <int Parts>
void multiply_tiles(const TileArgs& args, Panels::Unpack unpack) {
  static_assert(kHeldTiles <= 4);
  configure_tiles();
  switch (args.num_tiles <= kHeldTiles ? args.num_tiles : 0) {
    case 1:
      multiply_held<2, 1, Parts>(args, unpack);
      break;
    case 2:
      multiply_held<2, 2, Parts>(args, unpack);
      break;
    case 3:
      multiply_held<1, 3, Parts>(args, unpack);
      break;
    case 4:
      multiply_held<1, 4, Parts>(args, unpack);
      break;
    default:
      multiply_pairs<Parts>(args, unpack);
  }
  _tile_release();
}

template <class Group>
void matmul_tiles(const TileArgs& args) {
  multiply_tiles<kTileParts<Group>>(args, unpack_groups<Group>);
}

// ---- limits -------------------------------------------------------------------------------------

// Four products of full tiles a round; nothing is loaded between them.
template <bool IsInt8>
void tile_limit(int64_t rounds) {
  configure_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int64_t i = 0; i < rounds; ++i) {
    if constexpr (IsInt8) {
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_release();
}

}  // namespace
}  // namespace hm
