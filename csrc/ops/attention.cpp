#include "ops/attention.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kTasksPerThread = 4, kLeastTasksPerThread = 2;
constexpr int64_t kMostShares = 8, kLeastSharedKeys = 64;  // of a block
constexpr int64_t kMostPartBytes = int64_t{256} << 20;
constexpr int64_t kTileDims = 32, kLeastTileDim = 128;  // what attention by matrix tiles takes

// The first tokens of a sequence, which see all positions.
int64_t num_dense_tokens(const LatentAttentionArgs& args, const SequenceSpan& span) {
  if (args.selected == nullptr) return span.num_tokens;
  return std::clamp<int64_t>(args.top_k - span.start, 0, span.num_tokens);
}

// Queries are numbered token by token, and worked off in tiles of at most `lanes`, none of which
// reaches from one sequence into the next, or into a token that attends to a selection. Where tiles
// are many and alike, each task is one tile and goes through all its blocks of positions; else a
// task is one tile and one block, or a share of its keys and then of its values' numbers, and a
// last stage puts the blocks together, shared out by numbers, too. Either way blocks are added in
// order. Prompts go by matrix tiles where there are any.
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
    const int64_t part_bytes = total_blocks_ * sums_floats(lanes_) * 4;
    const bool is_single = total_blocks_ == tiles && !shares_blocks();
    if (is_single || is_even || (tiles >= wanted && part_bytes > kMostPartBytes)) {
      runtime_.pool.run(tiles, [&](int64_t task, int worker) { whole_tile(tiles_[task], worker); });
      return;
    }
    by_blocks();
  }

 private:
  struct Place {
    const AttentionKernels* kernels;
    int64_t first, count;  // queries
    int64_t lanes;
    int64_t shift;  // position of a token = its number in the batch + shift
    const int32_t* table;
    const int32_t* selected;  // (top_k) positions, or null: all that a token sees
    int64_t num_blocks;
    int64_t first_part;  // where all tiles' blocks are counted
  };
  // What a kernel sees of a block of positions.
  struct Block {
    AttentionBlock args;
    int32_t visible[kMaxAttentionLanes];
    const uint8_t* rows[kAttentionBlock];
  };
  struct Tile {
    const Place& place;
    float* packed;  // (R + P, lanes)
    float* keys;    // (kAttentionBlock, R + P + lanes / 2)
    float* scores;  // (kAttentionBlock, lanes)
    AttentionSums total, block;
  };

  // True if blocks are too few for the threads, and long enough to be worth two stages.
  bool shares_blocks() const {
    const int threads = runtime_.pool.num_threads();
    return !has_matrix_tiles_ && threads > 1 && total_blocks_ < kLeastTasksPerThread * threads &&
           most_keys_ >= kLeastSharedKeys;
  }

  // Numbers of the values that a task takes, so that `count` tasks become about `wanted`.
  int64_t value_share(int64_t count, int64_t wanted) const {
    const int64_t shares = std::clamp<int64_t>(ceil_div(wanted, count), 1, kMostShares);
    return ceil_div(ceil_div(a_.latent_dim, shares), kKvGroup) * kKvGroup;
  }

  void by_blocks() {
    const int64_t sums_size = sums_floats(lanes_);
    const bool is_shared = shares_blocks();
    const int64_t scores_size = is_shared ? kAttentionBlock * lanes_ : 0;
    float* memory = runtime_.outputs.get<float>(total_blocks_ * (sums_size + scores_size));
    const auto part = [&](const Place& place, int64_t block) {
      return sums(memory + (place.first_part + block) * sums_size, place.lanes);
    };
    std::vector<int64_t> tile_of;
    tile_of.reserve(total_blocks_);
    for (int64_t t = 0; t < std::ssize(tiles_); ++t) {
      tile_of.insert(tile_of.end(), tiles_[t].num_blocks, t);
    }
    if (is_shared) {
      share_blocks(tile_of, memory + total_blocks_ * sums_size, part);
    } else {
      runtime_.pool.run(total_blocks_, [&](int64_t task, int worker) {
        const Place& place = tiles_[tile_of[task]];
        const int64_t block = task - place.first_part;
        attend(pack(place, worker), block, part(place, block));
      });
    }
    put_together(part);
  }

  // Scores by keys, then weighted values by their numbers.
  template <class Part>
  void share_blocks(const std::vector<int64_t>& tile_of, float* scores, const Part& part) {
    const int64_t wanted = kLeastTasksPerThread * runtime_.pool.num_threads();
    const int64_t scores_size = kAttentionBlock * lanes_;
    const int64_t keys = std::clamp<int64_t>(round_up_16(total_keys_ / wanted),
                                             kAttentionBlock / kMostShares, kAttentionBlock);
    const int64_t numbers = value_share(total_keys_, kAttentionBlock * wanted);
    runtime_.pool.run(
        total_blocks_ * ceil_div(kAttentionBlock, keys), [&](int64_t task, int worker) {
          const int64_t at = task % total_blocks_, first = task / total_blocks_ * keys;
          const Place& place = tiles_[tile_of[at]];
          Block block;
          const Tile tile = scratch(place, worker);
          look_at(tile, at - place.first_part, block);
          const int64_t count = std::min(keys, block.args.num_keys - first);
          if (count <= 0) return;
          pack_queries(tile);
          block.args.scores = scores + at * scores_size;
          active_table().score_keys(block.args, first, count);
        });
    runtime_.pool.run(total_blocks_ * ceil_div(a_.latent_dim, numbers), [&](int64_t task,
                                                                            int worker) {
      const int64_t at = task % total_blocks_, first = task / total_blocks_ * numbers;
      const Place& place = tiles_[tile_of[at]];
      Block block;
      const Tile tile = scratch(place, worker);
      look_at(tile, at - place.first_part, block);
      std::copy_n(scores + at * scores_size, block.args.num_keys * place.lanes, tile.scores);
      const AttentionSums whole = part(place, at - place.first_part);
      const AttentionSums own = {first == 0 ? whole.max : tile.block.max,
                                 first == 0 ? whole.sum : tile.block.sum,
                                 whole.values + first * place.lanes};
      active_table().weigh_values(block.args, first, std::min(numbers, a_.latent_dim - first), own);
    });
  }

  // The blocks of each tile, in order.
  template <class Part>
  void put_together(const Part& part) {
    const auto tiles = std::ssize(tiles_);
    const int64_t numbers =  // matrix tiles have a layout of their own
        has_matrix_tiles_ ? a_.latent_dim : value_share(tiles, 2 * runtime_.pool.num_threads());
    runtime_.pool.run(tiles * ceil_div(a_.latent_dim, numbers), [&](int64_t task, int worker) {
      const Place& place = tiles_[task % tiles];
      const int64_t first = task / tiles * numbers, lanes = place.lanes;
      const int64_t count = std::min(numbers, a_.latent_dim - first);
      const Tile tile = empty_tile(place, worker);
      for (int64_t b = 0; b < place.num_blocks; ++b) {
        AttentionSums of_block = part(place, b);
        of_block.values += first * lanes;
        place.kernels->merge(tile.total, of_block, count, lanes);
      }
      finish(tile, first, count);
    });
  }

  // The tiles of at most `lanes_` queries, the longest first.
  void cut() {
    tiles_.clear();
    total_blocks_ = total_keys_ = most_queries_ = most_keys_ = 0;
    has_matrix_tiles_ = false;
    int64_t token = 0;
    for (int64_t s = 0; s < batch_.num_spans; ++s) {
      const SequenceSpan& span = batch_.spans[s];
      const int64_t num_dense = num_dense_tokens(a_, span), end = token + span.num_tokens;
      cut_dense(span, token, num_dense);
      for (int64_t t = token + num_dense; t < end; ++t) cut_selected(span, t, span.start - token);
      token = end;
    }
    std::stable_sort(tiles_.begin(), tiles_.end(),
                     [](const Place& x, const Place& y) { return x.num_blocks > y.num_blocks; });
    for (Place& place : tiles_) {
      place.first_part = total_blocks_;
      total_blocks_ += place.num_blocks;
    }
  }

  // The first tokens of a sequence, which see all positions up to their own.
  void cut_dense(const SequenceSpan& span, int64_t token, int64_t num_tokens) {
    const KernelTable& table = active_table();
    const bool is_short = pages_.type == kKvF16 || pages_.type == kKvBF16;
    const bool can_tile = table.tile_attention.attend != nullptr && is_short &&
                          a_.latent_dim >= kLeastTileDim && a_.latent_dim % kTileDims == 0 &&
                          a_.rope_dim % kTileDims == 0;
    const bool is_tiled = can_tile && num_tokens >= kLeastTileTokens;
    const int64_t end = (token + num_tokens) * a_.num_heads, shift = span.start - token;
    most_queries_ = std::max(most_queries_, num_tokens * a_.num_heads);
    has_matrix_tiles_ = has_matrix_tiles_ || is_tiled;
    for (int64_t first = token * a_.num_heads; first < end; first += lanes_) {
      const int64_t count = std::min(lanes_, end - first);
      const int64_t last_position = (first + count - 1) / a_.num_heads + shift;
      tiles_.push_back({is_tiled ? &table.tile_attention : &table.attention, first, count, lanes_,
                        shift, batch_.tables + span.table, nullptr,
                        last_position / kAttentionBlock + 1, 0});
      most_keys_ = std::max(most_keys_, std::min(last_position + 1, kAttentionBlock));
      total_keys_ += last_position + 1;
    }
  }

  // One token, which sees the positions selected for it.
  void cut_selected(const SequenceSpan& span, int64_t token, int64_t shift) {
    const int64_t end = (token + 1) * a_.num_heads;
    const int64_t num_blocks = (a_.top_k + kAttentionBlock - 1) / kAttentionBlock;
    most_queries_ = std::max(most_queries_, a_.num_heads);
    int64_t lanes = lanes_;
    while (lanes > 16 && a_.num_heads <= lanes / 2) lanes /= 2;
    for (int64_t first = token * a_.num_heads; first < end; first += lanes) {
      tiles_.push_back({&active_table().attention, first, std::min(lanes, end - first), lanes,
                        shift, batch_.tables + span.table, a_.selected + token * a_.top_k,
                        num_blocks, 0});
      most_keys_ = std::max(most_keys_, std::min(a_.top_k, kAttentionBlock));
      total_keys_ += a_.top_k;
    }
  }

  int64_t sums_floats(int64_t lanes) const { return (a_.latent_dim + 2) * lanes; }
  AttentionSums sums(float* memory, int64_t lanes) const {
    return {memory, memory + lanes, memory + 2 * lanes};
  }

  // In the worker's scratch memory.
  Tile scratch(const Place& place, int worker) const {
    const int64_t lanes = place.lanes, num_sums = sums_floats(lanes);
    const int64_t packed = dim_ * lanes, keys = kAttentionBlock * (dim_ + lanes / 2);
    const int64_t scores = kAttentionBlock * lanes;
    float* memory = runtime_.scratch[worker].get<float>(packed + keys + scores + 2 * num_sums);
    float* total = memory + packed + keys + scores;
    return {place,
            memory,
            memory + packed,
            memory + packed + keys,
            sums(total, lanes),
            sums(total + num_sums, lanes)};
  }

  // `total` has seen nothing.
  Tile empty_tile(const Place& place, int worker) const {
    const Tile tile = scratch(place, worker);
    std::fill_n(tile.total.max, sums_floats(place.lanes), 0.0f);  // sums and values are behind
    std::fill_n(tile.total.max, place.lanes, kNoAttentionKey);
    return tile;
  }

  Tile pack(const Place& place, int worker) const {
    const Tile tile = empty_tile(place, worker);
    pack_queries(tile);
    return tile;
  }

  void pack_queries(const Tile& tile) const {
    const Place& place = tile.place;
    const float* rows[kMaxAttentionLanes];
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.q_latent + (head * a_.num_tokens + token) * a_.latent_dim;
    }
    place.kernels->pack(rows, tile.place.count, a_.latent_dim, place.lanes, tile.packed);
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.q_rope + token * a_.token_stride + head * a_.head_stride;
    }
    place.kernels->pack(rows, tile.place.count, a_.rope_dim, place.lanes,
                        tile.packed + a_.latent_dim * place.lanes);
  }

  void look_at(const Tile& tile, int64_t number, Block& block) const {
    const int64_t first = number * kAttentionBlock;
    std::fill_n(block.visible, tile.place.lanes, 0);
    int64_t num_keys = 0;
    const int32_t* selected = tile.place.selected;
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const int64_t end =
          selected ? a_.top_k : token_and_head(tile, i).token + tile.place.shift + 1;
      block.visible[i] = static_cast<int32_t>(std::clamp<int64_t>(end - first, 0, kAttentionBlock));
      num_keys = std::max<int64_t>(num_keys, block.visible[i]);
    }
    std::fill(block.rows, block.rows + kAttentionBlock, nullptr);
    for (int64_t i = 0; i < num_keys; ++i) {
      block.rows[i] = pages_.row(tile.place.table, selected ? selected[first + i] : first + i);
    }
    block.args = {.queries = tile.packed,
                  .rows = block.rows,
                  .type = pages_.type,
                  .num_keys = num_keys,
                  .visible = block.visible,
                  .dim = dim_,
                  .value_dim = a_.latent_dim,
                  .lanes = tile.place.lanes,
                  .scale = a_.scale,
                  .keys = tile.keys,
                  .scores = tile.scores};
  }

  void attend(const Tile& tile, int64_t number, const AttentionSums& out) const {
    Block block;
    look_at(tile, number, block);
    tile.place.kernels->attend(block.args, out);
  }

  void whole_tile(const Place& place, int worker) const {
    const Tile tile = pack(place, worker);
    for (int64_t b = 0; b < place.num_blocks; ++b) {
      attend(tile, b, tile.block);
      place.kernels->merge(tile.total, tile.block, a_.latent_dim, place.lanes);
    }
    finish(tile, 0, a_.latent_dim);
  }

  // Writes `count` numbers of the results from `first` on.
  void finish(const Tile& tile, int64_t first, int64_t count) const {
    float* rows[kMaxAttentionLanes];
    for (int64_t i = 0; i < tile.place.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.out + (head * a_.num_tokens + token) * a_.latent_dim + first;
    }
    tile.place.kernels->finish(tile.total, count, tile.place.lanes, rows, tile.place.count);
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
  int64_t total_blocks_ = 0, total_keys_ = 0;  // of all tiles
  int64_t most_queries_ = 0, most_keys_ = 0;   // of a sequence; of a block
  bool has_matrix_tiles_ = false;
};

void check_selected(const LatentAttentionArgs& args, const SequenceBatch& batch) {
  check(args.top_k >= 1, "latent_attention: a selection of ", args.top_k, " positions");
  int64_t token = 0;
  for (int64_t s = 0; s < batch.num_spans; ++s) {
    const SequenceSpan& span = batch.spans[s];
    for (int64_t t = num_dense_tokens(args, span); t < span.num_tokens; ++t) {
      const int32_t* selected = args.selected + (token + t) * args.top_k;
      const auto [least, most] = std::minmax_element(selected, selected + args.top_k);
      check(*least >= 0 && *most <= span.start + t, "latent_attention: position ", span.start + t,
            " attends to ", *least, "..", *most);
    }
    token += span.num_tokens;
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
  if (args.selected != nullptr) check_selected(args, batch);
  if (args.num_tokens == 0) return;
  const RuntimeLock runtime;
  Attention(args, pages, batch, *runtime).run();
}

}  // namespace hm
