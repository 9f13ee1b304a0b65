// What an instruction set's object exports: one table of plain function pointers.
#pragma once

#include <stdint.h>

#include "formats/types.h"

namespace hm {

// A row of activations rounded to int8, in one piece of memory; K' = K rounded up to 256:
//
//   int8  q[K']        round-to-nearest-even of x / d, in -127..127
//   int8  strided[K']  the same, of each 256 first the first 8 of each 32, then the second, ...
//   float d[K' / 32]   scale of each 32: absmax / 127
//   int32 sums[K' / 32]  sum of each 32 codes
//   int32 half_sums[K' / 16]  sum of each 16 codes
//   int8  q[K'], float d[K' / 32], int32 sums[K' / 32], half_sums[K' / 16]  the same again, lane by
//                  lane: what is of the first 32 (or 16) of each 256, then of the second, ...
//
// Everything beyond K is zero. A block that holds a NaN or an infinity has d = NaN; a block whose
// absmax is below 2^-120 (where 127 / absmax would overflow) is zero. A few lines of padding
// follow, so that rows do not meet in one set of a cache.
constexpr int kActivationBlock = 32;
constexpr int32_t kInfinityBits = 0x7f800000;
constexpr float kLeastAbsmax = 0x1p-120f;
constexpr float kRounder = 0x1.8p23f;  // x + kRounder has the integer nearest to x in its low bits

// Static: an ISA file must not export them.
static constexpr int64_t padded_weights(int64_t k) { return (k + 255) / 256 * 256; }
static constexpr int64_t activation_bytes(int64_t k) {
  constexpr int64_t padding = 5 * 64;
  return 3 * padded_weights(k) + 2 * 4 * (padded_weights(k) / 32 * 2 + padded_weights(k) / 16) +
         padding;
}

// Rows that a gemm unpacks into one panel, and its scratch memory: per weight a byte, per 16
// weights a scale and an offset; and 4 bytes per 16 activations. Few tokens take no more.
constexpr int kPanelRows = 32, kLeastScratchTokens = 8;
static constexpr int64_t matmul_scratch_bytes(int64_t cols, int64_t tokens) {
  const int64_t some = tokens < kLeastScratchTokens ? kLeastScratchTokens : tokens;
  return padded_weights(cols) / 16 * (kPanelRows * (16 + 2 * 4) + some * 4);
}

// out[t * out_stride + r] = row r of the weights times activations x[t].
struct MatmulArgs {
  const uint8_t* weights;  // (num_rows, row_bytes)
  int64_t row_bytes;
  int64_t num_rows;
  int64_t cols;
  const void* const*
      x;  // num_tokens rows: activation rows where the format is `quantized`, else f32
  int64_t num_tokens;
  float* out;
  int64_t out_stride;
  void* scratch;  // matmul_scratch_bytes(cols, num_tokens), aligned to 64
  // What will be read after this: fetched into the cache meanwhile, where there is much to compute.
  const uint8_t* next;
  int64_t next_bytes;
};

// The same by matrix tiles: out[r * 16 num_tiles + t]. The product may be made of parts of the
// columns, in order: columns first_col..end_col, both multiples of 256 or the row's
// end. The first part sets `out`, the others add to it.
constexpr int kTokenTile = 16;
constexpr int64_t kHeldTiles = 4;  // sums of so many wait in registers, and few weights in memory
struct TileArgs {
  const uint8_t* weights;  // (num_rows, row_bytes)
  int64_t row_bytes;
  int64_t num_rows;
  int64_t cols;
  int64_t first_col, end_col;
  const uint16_t* x;  // packed tokens, all columns: num_tiles times parts * packed_tile_words(cols)
  int64_t parts;      // of each activation: 2 where FormatKernels::tile_parts says so, else any
  int64_t num_tiles;
  float* out;           // (num_rows rounded up to kPanelRows, 16 num_tiles)
  void* scratch;        // tile_scratch_bytes of these columns, aligned to 64
  const uint8_t* next;  // rows whose same columns will be read after these: only fetched
};
// Two panels of unpacked weights.
static constexpr int64_t tile_scratch_bytes(int64_t num_tiles, int64_t cols) {
  return 2 * kPanelRows * 2 * (num_tiles <= kHeldTiles ? 256 : padded_weights(cols));
}
static constexpr int64_t packed_tile_words(int64_t cols) {
  return padded_weights(cols) * kTokenTile;
}

// As many tokens are multiplied with codes as they come from the blocks (few_tokens-inl.h); more
// with a panel, into which rows are spread so that they lie in lanes, where there are enough rows.
constexpr int kFewTokens = 8;
// Their codes' numbers and copies of their rows (two_rows_few-inl.h).
static_assert(matmul_scratch_bytes(256, 1) >= kFewTokens * (256 + activation_bytes(256)));
static constexpr bool takes_panels(int64_t rows, int64_t tokens) {
  return tokens > kFewTokens && rows >= kPanelRows / 4;
}

// Cost model of a product: cycles for 256 weights of a row. Typical formats, in the cache; only the
// ratios matter.
struct MatmulCosts {
  double unpack, dot;                        // of few tokens; dot: of each token
  double panel_unpack, panel_dot;            // of more
  double matrix_unpack = 0, matrix_dot = 0;  // by matrix tiles, of 16 tokens; 0: there are none
};

// Without matrix tiles.
static constexpr double vector_cost(const MatmulCosts& c, int64_t rows, int64_t tokens) {
  if (!takes_panels(rows, tokens)) {
    const int64_t times = (tokens + kFewTokens - 1) / kFewTokens;
    return static_cast<double>(rows) *
           (static_cast<double>(times) * c.unpack + static_cast<double>(tokens) * c.dot);
  }
  const int64_t padded = (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
  return static_cast<double>(padded) * (c.panel_unpack + static_cast<double>(tokens) * c.panel_dot);
}

static constexpr double tile_cost(const MatmulCosts& c, int64_t rows, int64_t tokens) {
  const int64_t padded = (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
  const int64_t tiles = (tokens + kTokenTile - 1) / kTokenTile;
  return static_cast<double>(padded) *
         (c.matrix_unpack + static_cast<double>(tiles) * c.matrix_dot);
}

struct FormatKernels {
  void (*dequantize)(const void* blocks, int64_t weights, float* out);
  void (*matmul)(const MatmulArgs& args);
  bool quantized;                              // takes int8 activation rows
  void (*matmul_tiles)(const TileArgs& args);  // null without matrix tiles
  int tile_parts;  // of an activation, that matmul_tiles multiplies with: bfloat16(x), and where it
                   // is 2, bfloat16(x - bfloat16(x))
};

// What goes with matmul_tiles; null without matrix tiles.
struct TileKernels {
  // At most 16 rows of floats -> one tile of packed tokens; their second parts, unless `low` is
  // null, too.
  void (*pack)(const float* const* rows, int64_t num_tokens, int64_t cols, uint16_t* packed,
               uint16_t* low);
  // silu(gate) * up of 32 rows (32, stride) by 16 tokens -> 32 columns of a tile of packed tokens.
  void (*pack_swiglu)(const float* gate, const float* up, int64_t stride, int64_t num_rows,
                      uint16_t* packed, uint16_t* low);
  // out[t][r] = in[r][t]; where there are weights, out[t][r] += in[r][t] weights[t].
  void (*finish)(const float* in, int64_t stride, int64_t num_rows, int64_t num_tokens,
                 const float* weights, float* const* out);
};

// A loop in registers; a multiply-add is two operations.
struct Limit {
  void (*run)(int64_t rounds);
  int64_t operations;  // of a round
};

// The KV cache lies in pages of kPageTokens rows, one row a token:
//
//   kKvF32, kKvF16, kKvBF16   dim numbers
//   kKvInt8                           float scales[dim / 64, rounded up], int8 codes[dim],
//                                         padding to 4 bytes
//
// A code times the scale of its 64 is the number; scale = absmax / 127.
enum KvType : int32_t { kKvF32, kKvF16, kKvBF16, kKvInt8, kNumKvTypes };
constexpr int64_t kPageTokens = 64, kKvGroup = 64;

static constexpr int64_t kv_groups(int64_t dim) { return (dim + kKvGroup - 1) / kKvGroup; }

static constexpr int64_t kv_row_bytes(KvType type, int64_t dim) {
  if (type == kKvF32) return 4 * dim;
  if (type == kKvF16 || type == kKvBF16) return 2 * dim;
  return 4 * kv_groups(dim) + (dim + 3) / 4 * 4;
}

// Attention over one block of keys, for `lanes` queries at once: 16, 32, 64 or 128.
constexpr int64_t kAttentionBlock = 256, kMaxAttentionLanes = 128;
constexpr float kNoAttentionKey = -1e30f;  // greatest score of none; finite, so that no inf - inf

struct AttentionBlock {
  const float* queries;        // (dim, lanes) as packed: the first value_dim, then the rest
  const uint8_t* const* rows;  // (num_keys): the keys; the first value_dim of each are its values,
  KvType type;                 // too. For matrix tiles, 16 from a multiple of 16 on lie together
  int64_t num_keys;
  const int32_t* visible;  // (lanes): number of leading keys that each query sees
  int64_t dim, value_dim, lanes;
  float scale;
  float* keys;    // (kAttentionBlock, dim + lanes / 2), scratch
  float* scores;  // (kAttentionBlock, lanes), scratch
};

static constexpr int64_t round_up_16(int64_t n) { return (n + 15) / 16 * 16; }

// A block of keys and values of one head, rounded to 16 bits; two in a word.
struct ExpandedKeys {
  int32_t* keys;          // (kAttentionBlock, dim / 2)
  int32_t* values;        // (kAttentionBlock / 2, value_stride): value_dim words of two positions
  int64_t value_stride;   // words
  float* key_scales;      // (kAttentionBlock); NaN: a number of the key was not finite
  float* value_logs;      // logarithms of the values' scales
  float* value_inverses;  // of these, times a weight's codes
};

struct ExpandedBlock {
  const int32_t* queries;     // (dim / 2, lanes), by round_columns
  const float* query_scales;  // (lanes), times the scale of the scores
  ExpandedKeys keys;
  int64_t num_keys;
  const int32_t* visible;  // (lanes)
  int64_t dim, value_dim, lanes;
  float* scores;     // (kAttentionBlock, lanes), scratch
  int32_t* weights;  // (kAttentionBlock / 2, lanes), scratch
};

// Matrices of one head, by round_columns, with the scales of their columns. All sizes but
// latent_dim are multiples of 16, and it is even.
struct HeadExpansion {
  const int32_t *key_weights, *value_weights;  // (latent_dim / 2, nope_dim), (.., value_dim)
  const float *key_scales, *value_scales;
  int64_t latent_dim, nope_dim, rope_dim, value_dim;

  // Floats of scratch memory that a block takes.
  int64_t scratch_floats() const {
    const int64_t row = nope_dim + value_dim + rope_dim + 1 + latent_dim / 2;
    return kAttentionBlock * row + round_up_16(latent_dim + nope_dim + 2 * rope_dim + value_dim);
  }
};

// An odd number of cache lines, so that a column of values spreads over all sets of a cache.
static constexpr int64_t expanded_stride(int64_t value_dim) { return value_dim / 32 * 32 + 16; }

// Scores of one block of index keys for `lanes` queries: of each token those of its heads, in
// token_lanes lanes, a multiple of 16. A key's score is sum over heads of weight max(q . k, 0).
struct IndexBlock {
  const float* queries;        // (dim, lanes), as AttentionKernels::pack has them
  const uint8_t* const* rows;  // (num_keys)
  KvType type;
  int64_t num_keys, dim, lanes, token_lanes;
  const float* weights;  // (lanes), zero where there is no head
  float* keys;           // (kAttentionBlock, dim), scratch
  float* products;       // (kAttentionBlock, lanes), scratch
  float* const* scores;  // (lanes / token_lanes) of num_keys
};

// A softmax's parts, so that blocks can be put together: the greatest score, the sum of
// e^(score - greatest), and the values weighted with that.
struct AttentionSums {
  float* max;     // (lanes)
  float* sum;     // (lanes)
  float* values;  // (value_dim, lanes)
};

// Layouts of packed queries and of AttentionSums::values are those of the kernels' own.
struct AttentionKernels {
  // packed[d][i] = rows[i][d]; zeros for lanes without a row.
  void (*pack)(const float* const* rows, int64_t num_rows, int64_t dim, int64_t lanes,
               float* packed);
  void (*attend)(const AttentionBlock& block, const AttentionSums& out);
  // Adds a later block's parts. A start that has seen nothing: max = kNoAttentionKey, the rest
  // zeros.
  void (*merge)(const AttentionSums& total, const AttentionSums& block, int64_t value_dim,
                int64_t lanes);
  // rows[i][r] = values[r][i] / sum[i]
  void (*finish)(const AttentionSums& total, int64_t value_dim, int64_t lanes, float* const* rows,
                 int64_t num_rows);
};

struct KernelTable {
  const char* name;
  // Rounds x[0..n) to blocks [first / 32, (first + n) / 32) of an activation row of `cols`; the
  // call with the last block also zeroes the padding. first % 32 == 0; n % 32 == 0 or first + n ==
  // cols.
  void (*quantize)(const float* x, int64_t first, int64_t n, int64_t cols, void* row);
  // out[i] = silu(gate[i]) * up[i]
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);
  // x[i] += residual[i], unless residual is null; out[i] = x[i] / sqrt(mean(x^2) + eps) * weight[i]
  void (*rms_norm)(float* x, const float* residual, const float* weight, int64_t n, float eps,
                   float* out);
  // out[i] = sum over j of weights[j] * rows[j][i], added in the order of j
  void (*weighted_sum)(const float* const* rows, const float* weights, int64_t num_rows, int64_t n,
                       float* out);
  // The greatest of x[0..n), NaN where one is not finite; n >= 1.
  float (*greatest)(const float* x, int64_t n);
  MatmulCosts costs;
  AttentionKernels attention;
  // attention.attend by parts: the scores of some keys, and then, for some numbers of the values,
  // from a multiple of kKvGroup on, the rest. Scores become weights, and out.values has `count`
  // rows.
  void (*score_keys)(const AttentionBlock& block, int64_t first, int64_t count);
  void (*weigh_values)(const AttentionBlock& block, int64_t first, int64_t count,
                       const AttentionSums& out);
  // Rounds x (depth, lanes) to 16 bits: out (depth / 2, lanes) has two rows in a word.
  void (*round_columns)(const float* x, int64_t depth, int64_t lanes, int32_t* out, float* scales);
  // Makes keys and values from rows of the KV cache.
  void (*expand_head)(const HeadExpansion& head, const uint8_t* const* rows, KvType type,
                      int64_t num_keys, float* scratch, const ExpandedKeys& out);
  void (*attend_expanded)(const ExpandedBlock& block, const AttentionSums& out);
  void (*score_index)(const IndexBlock& block);
  // Of kKvF16 and kKvBF16, multiples of 32; null without matrix tiles.
  AttentionKernels tile_attention;
  // Floats -> binary16, to nearest even; a finite number beyond its end becomes the greatest of its
  // sign, infinities and NaN stay what they are.
  void (*round_to_half)(const float* x, int64_t n, uint16_t* out);
  TileKernels tiles;
  Limit int8_limit, float_limit;
  Limit tile_int8_limit, tile_bf16_limit;
  void (*read_memory)(const uint8_t* p, int64_t bytes);  // all but a rest below 512 bytes; >= 64
  FormatKernels formats[kNumTypeIds];  // by TypeId; null pointers where there is no such type
};

extern const KernelTable kScalar;
extern const KernelTable kAvx2;
extern const KernelTable kAvxVnni;
extern const KernelTable kAvx512;
extern const KernelTable kAmx;

}  // namespace hm
