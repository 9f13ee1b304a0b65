#include "ops/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kMostPartBytes = int64_t{256} << 20;
constexpr int64_t kTileDims = 32, kLeastTileDim = 128;  // what attention by matrix tiles takes

// Queries are numbered token by token, and worked off in tiles of at most `lanes`, none of which
// reaches from one sequence into the next. Where tiles are many and alike, each task is one tile
// and goes through all its blocks of positions; else a task is one tile and one block, and a second
// stage puts the blocks together. Either way blocks are added in order. Prompts go by matrix tiles
// where there are any.
class Attention {
 public:
  Attention(const LatentAttentionArgs& args, const KvPages& pages, const SequenceBatch& batch,
            Runtime& runtime)
      : a_(args),
        pages_(pages),
        batch_(batch),
        runtime_(runtime),
        dim_(args.latent_dim + args.rope_dim),
        lanes_(kMaxAttentionLanes) {
    const int64_t wanted = kTasksPerThread * runtime.pool.num_threads();
    cut();
    while (lanes_ > 16 && (most_queries_ <= lanes_ / 2 || total_blocks_ < wanted)) {
      lanes_ /= 2;
      cut();
    }
  }

  void run() {
    const int64_t wanted = kTasksPerThread * runtime_.pool.num_threads();
    const int64_t tiles = static_cast<int64_t>(tiles_.size());
    const bool is_even = tiles >= wanted && tiles_[0].num_blocks * wanted <= total_blocks_;
    const int64_t part_bytes = total_blocks_ * sums_floats() * 4;
    if (total_blocks_ == tiles || is_even || (tiles >= wanted && part_bytes > kMostPartBytes)) {
      runtime_.pool.run(tiles, [&](int64_t task, int worker) { whole_tile(tiles_[task], worker); });
      return;
    }
    std::vector<int64_t> tile_of;
    tile_of.reserve(total_blocks_);
    for (int64_t t = 0; t < tiles; ++t) tile_of.insert(tile_of.end(), tiles_[t].num_blocks, t);
    float* parts = runtime_.outputs.get<float>(total_blocks_ * sums_floats());
    runtime_.pool.run(total_blocks_, [&](int64_t task, int worker) {
      const Place& place = tiles_[tile_of[task]];
      attend(pack(place, worker), task - place.first_part, sums(parts + task * sums_floats()));
    });
    runtime_.pool.run(tiles, [&](int64_t task, int worker) {
      const Place& place = tiles_[task];
      const Tile tile = empty_tile(place, worker);
      for (int64_t b = 0; b < place.num_blocks; ++b) {
        const AttentionSums block = sums(parts + (place.first_part + b) * sums_floats());
        place.kernels->merge(tile.total, block, a_.latent_dim, lanes_);
      }
      finish(tile);
    });
  }

 private:
  struct Place {
    const AttentionKernels* kernels;
    int64_t first, count;  // queries
    int64_t shift;         // position of a token = its number in the batch + shift
    const int32_t* table;
    int64_t num_blocks;
    int64_t first_part;  // where all tiles' blocks are counted
  };
  struct Tile {
    const Place& place;
    float* packed;  // (R + P, lanes)
    float* keys;    // (kAttentionBlock, R + P + lanes / 2)
    float* scores;  // (kAttentionBlock, lanes)
    AttentionSums total, block;
  };

  // The tiles of `lanes_` queries, the longest first.
  void cut() {
    tiles_.clear();
    total_blocks_ = most_queries_ = 0;
    int64_t token = 0;
    const KernelTable& table = active_table();
    const bool is_short = pages_.type == kKvF16 || pages_.type == kKvBF16;
    const bool can_tile = table.tile_attention.attend != nullptr && is_short &&
                          a_.latent_dim >= kLeastTileDim && a_.latent_dim % kTileDims == 0 &&
                          a_.rope_dim % kTileDims == 0;
    for (int64_t s = 0; s < batch_.num_spans; ++s) {
      const SequenceSpan& span = batch_.spans[s];
      const bool is_tiled = can_tile && span.num_tokens >= kLeastTileTokens;
      const int64_t end = (token + span.num_tokens) * a_.num_heads, shift = span.start - token;
      most_queries_ = std::max(most_queries_, span.num_tokens * a_.num_heads);
      for (int64_t first = token * a_.num_heads; first < end; first += lanes_) {
        const int64_t count = std::min(lanes_, end - first);
        const int64_t last_position = (first + count - 1) / a_.num_heads + shift;
        tiles_.push_back({is_tiled ? &table.tile_attention : &table.attention, first, count, shift,
                          batch_.tables + span.table, last_position / kAttentionBlock + 1, 0});
      }
      token += span.num_tokens;
    }
    std::stable_sort(tiles_.begin(), tiles_.end(),
                     [](const Place& x, const Place& y) { return x.num_blocks > y.num_blocks; });
    for (Place& place : tiles_) {
      place.first_part = total_blocks_;
      total_blocks_ += place.num_blocks;
    }
  }

  int64_t sums_floats() const { return (a_.latent_dim + 2) * lanes_; }
  AttentionSums sums(float* memory) const { return {memory, memory + lanes_, memory + 2 * lanes_}; }

  // In the worker's scratch memory; `total` has seen nothing.
  Tile empty_tile(const Place& place, int worker) const {
    const int64_t packed = dim_ * lanes_, keys = kAttentionBlock * (dim_ + lanes_ / 2);
    const int64_t scores = kAttentionBlock * lanes_;
    float* memory = runtime_.scratch[worker].get<float>(packed + keys + scores + 2 * sums_floats());
    float* total = memory + packed + keys + scores;
    const Tile tile{place,           memory,
                    memory + packed, memory + packed + keys,
                    sums(total),     sums(total + sums_floats())};
    std::fill_n(total, sums_floats(), 0.0f);
    std::fill_n(tile.total.max, lanes_, kNoAttentionKey);
    return tile;
  }

  Tile pack(const Place& place, int worker) const {
    const Tile tile = empty_tile(place, worker);
    const float* rows[kMaxAttentionLanes];
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.q_latent + (head * a_.num_tokens + token) * a_.latent_dim;
    }
    place.kernels->pack(rows, tile.place.count, a_.latent_dim, lanes_, tile.packed);
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.q_rope + token * a_.token_stride + head * a_.head_stride;
    }
    place.kernels->pack(rows, tile.place.count, a_.rope_dim, lanes_,
                        tile.packed + a_.latent_dim * lanes_);
    return tile;
  }

  void attend(const Tile& tile, int64_t block, const AttentionSums& out) const {
    const int64_t first = block * kAttentionBlock;
    int32_t visible[kMaxAttentionLanes] = {};
    int64_t num_keys = 0;
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const int64_t keys = token_and_head(tile, i).token + tile.place.shift + 1 - first;
      visible[i] = static_cast<int32_t>(std::clamp<int64_t>(keys, 0, kAttentionBlock));
      num_keys = std::max<int64_t>(num_keys, visible[i]);
    }
    const uint8_t* block_pages[kBlockPages] = {};
    for (int64_t i = 0; i * kPageTokens < num_keys; ++i) {
      const int64_t page = tile.place.table[block * kBlockPages + i];
      block_pages[i] = pages_.data + page * pages_.page_bytes();
    }
    tile.place.kernels->attend({.queries = tile.packed,
                                .pages = block_pages,
                                .type = pages_.type,
                                .num_keys = num_keys,
                                .visible = visible,
                                .dim = dim_,
                                .value_dim = a_.latent_dim,
                                .lanes = lanes_,
                                .scale = a_.scale,
                                .keys = tile.keys,
                                .scores = tile.scores},
                               out);
  }

  void whole_tile(const Place& place, int worker) const {
    const Tile tile = pack(place, worker);
    for (int64_t b = 0; b < place.num_blocks; ++b) {
      attend(tile, b, tile.block);
      place.kernels->merge(tile.total, tile.block, a_.latent_dim, lanes_);
    }
    finish(tile);
  }

  void finish(const Tile& tile) const {
    float* rows[kMaxAttentionLanes];
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.out + (head * a_.num_tokens + token) * a_.latent_dim;
    }
    tile.place.kernels->finish(tile.total, a_.latent_dim, lanes_, rows, tile.place.count);
  }

  struct TokenAndHead {
    int64_t token, head;
  };
  TokenAndHead token_and_head(const Tile& tile, int64_t i) const {
    return {(tile.place.first + i) / a_.num_heads, (tile.place.first + i) % a_.num_heads};
  }

  const LatentAttentionArgs& a_;
  const KvPages& pages_;
  const SequenceBatch& batch_;
  Runtime& runtime_;
  const int64_t dim_;
  int64_t lanes_;
  std::vector<Place> tiles_;
  int64_t total_blocks_ = 0, most_queries_ = 0;  // blocks of all tiles; queries of a sequence
};

void check_batch(const char* op, const KvPages& pages, const SequenceBatch& batch,
                 int64_t num_tokens) {
  int64_t tokens = 0;
  for (int64_t s = 0; s < batch.num_spans; ++s) {
    const auto [count, start, table] = batch.spans[s];
    check(count >= 0 && count <= num_tokens && start >= 0 && start < int64_t{1} << 40 &&
              table >= 0 && table <= batch.num_entries,
          op, ": sequence ", s, " has ", count, " tokens from ", start, ", its table at ", table);
    const int64_t used = (start + count + kPageTokens - 1) / kPageTokens;
    check(used <= batch.num_entries - table, op, ": sequence ", s, " needs ", used,
          " pages, its table has ", batch.num_entries - table);
    for (int64_t i = 0; i < used; ++i) {
      const int64_t page = batch.tables[table + i];
      check(page >= 0 && page < pages.num_pages, op, ": page ", page, " of ", pages.num_pages);
    }
    tokens += count;
  }
  check(tokens == num_tokens, op, ": the sequences have ", tokens, " tokens, expected ",
        num_tokens);
}

// Round to nearest even; NaN stays NaN.
uint16_t to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 64);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

void pack_kv_row(const float* x, KvType type, int64_t dim, uint8_t* row) {
  if (type == kKvF32) {
    std::memcpy(row, x, dim * sizeof(float));
    return;
  }
  if (type == kKvF16) {
    active_table().round_to_half(x, dim, reinterpret_cast<uint16_t*>(row));
    return;
  }
  if (type == kKvBF16) {
    auto* out = reinterpret_cast<uint16_t*>(row);
    for (int64_t i = 0; i < dim; ++i) out[i] = to_bf16(x[i]);
    return;
  }
  auto* codes = reinterpret_cast<int8_t*>(row) + 4 * kv_groups(dim);
  for (int64_t first = 0; first < dim; first += kKvGroup) {
    const int64_t end = std::min(dim, first + kKvGroup);
    float most = 0.0f, nan = 0.0f;  // x - x: not zero where x is no finite number
    for (int64_t i = first; i < end; ++i) {
      most = std::max(most, std::fabs(x[i]));
      nan += x[i] - x[i];
    }
    const float scale = most / 127.0f + nan;
    const float inverse = scale >= 0x1p-120f ? 1.0f / scale : 0.0f;
    for (int64_t i = first; i < end; ++i) {
      const float code = nan == 0.0f ? std::nearbyint(x[i] * inverse) : 1.0f;
      codes[i] = static_cast<int8_t>(std::clamp(code, -127.0f, 127.0f));
    }
    std::memcpy(row + first / kKvGroup * sizeof scale, &scale, sizeof scale);
  }
}

}  // namespace

void latent_attention(const LatentAttentionArgs& args, const KvPages& pages,
                      const SequenceBatch& batch) {
  check(args.num_heads >= 1 && args.latent_dim >= 1 && args.rope_dim >= 0 &&
            args.latent_dim + args.rope_dim == pages.dim,
        "latent_attention: ", args.num_heads, " heads, latent ", args.latent_dim, ", rope ",
        args.rope_dim, " is not usable with pages of ", pages.dim, " numbers a token");
  check_batch("latent_attention", pages, batch, args.num_tokens);
  if (args.num_tokens == 0) return;
  const RuntimeLock runtime;
  Attention(args, pages, batch, *runtime).run();
}

void store_kv(const float* rows, int64_t num_tokens, const KvPages& pages,
              const SequenceBatch& batch) {
  check_batch("store_kv", pages, batch, num_tokens);
  for (int64_t s = 0; s < batch.num_spans; ++s) {
    const auto [count, start, table] = batch.spans[s];
    for (int64_t t = 0; t < count; ++t, rows += pages.dim) {
      const int64_t position = start + t;
      const int64_t page = batch.tables[table + position / kPageTokens];
      pack_kv_row(
          rows, pages.type, pages.dim,
          pages.data + page * pages.page_bytes() + position % kPageTokens * pages.row_bytes());
    }
  }
}

}  // namespace hm
