#include "ops/attention.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/attention_tiles-inl.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kTasksPerThread = 4, kLeastTasksPerThread = 2;
constexpr int64_t kMostShares = 8, kLeastSharedKeys = 64;  // of a block's values; of a block
constexpr int64_t kMostPartBytes = int64_t{256} << 20;

// Queries are numbered token by token, and worked off in tiles of at most `lanes`, none of which
// reaches from one sequence into the next, or into a token that attends to a selection. Where tiles
// are many and alike, each task is one tile and goes through all its blocks of positions; else a
// task is one tile and one block, or a share of its keys and then of its values' numbers, and a
// last stage puts the blocks together, shared out by numbers, too. Either way blocks are added in
// order. Prompts go by matrix tiles where there are any.
class Attention : AttentionTiles {
 public:
  Attention(const LatentAttentionArgs& args, const KvPages& pages, const SequenceBatch& batch,
            int num_threads)
      : AttentionTiles(args, pages, batch, kTasksPerThread * num_threads),
        pages_(pages),
        num_threads_(num_threads),
        dim_(args.latent_dim + args.rope_dim) {
    const int64_t wanted = kTasksPerThread * num_threads, tiles = std::ssize(tiles_);
    const bool is_even = tiles >= wanted && tiles_[0].num_blocks * wanted <= total_blocks_;
    const int64_t part_bytes = total_blocks_ * sums_floats(lanes_) * 4;
    const bool is_single = total_blocks_ == tiles && !shares_blocks();
    is_by_tiles_ = is_single || is_even || (tiles >= wanted && part_bytes > kMostPartBytes);
    if (!is_by_tiles_ && shares_blocks()) cut_blocks();
  }

  void run(Runtime& runtime) {
    runtime_ = &runtime;
    if (!is_by_tiles_) return by_blocks();
    runtime.pool.run(std::ssize(tiles_),
                     [&](int64_t task, int worker) { whole_tile(tiles_[task], worker); });
  }

 private:
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
    return !has_matrix_tiles_ && num_threads_ > 1 &&
           total_blocks_ < kLeastTasksPerThread * num_threads_ && most_keys_ >= kLeastSharedKeys;
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
    float* memory = runtime_->outputs.get<float>(total_blocks_ * (sums_size + scores_size));
    const auto part = [&](const Place& place, int64_t block) {
      return sums(memory + (place.first_part + block) * sums_size, place.lanes);
    };
    if (is_shared) {
      share_blocks(memory + total_blocks_ * sums_size, part);
    } else {
      std::vector<int64_t> tile_of;
      tile_of.reserve(total_blocks_);
      for (int64_t t = 0; t < std::ssize(tiles_); ++t) {
        tile_of.insert(tile_of.end(), tiles_[t].num_blocks, t);
      }
      runtime_->pool.run(total_blocks_, [&](int64_t task, int worker) {
        const Place& place = tiles_[tile_of[task]];
        const int64_t block = task - place.first_part;
        attend(pack(place, worker), block, part(place, block));
      });
    }
    put_together(part);
  }

  // Some keys of a block, or some numbers of its values.
  struct Share {
    const Place& place;
    int64_t block, first, count;
  };

  // Where threads are enough, each has one task of either kind: packing queries and weighing scores
  // are part of each.
  void cut_blocks() {
    const int64_t keys = std::clamp<int64_t>(round_up_16(total_keys_ / num_threads_),
                                             kLeastSharedKeys / 2, 2 * kLeastSharedKeys);
    const int64_t numbers = value_share(total_keys_, kAttentionBlock * num_threads_);
    by_keys_.reserve(total_keys_ / keys + 2 * total_blocks_);
    by_numbers_.reserve(total_blocks_ * kMostShares);
    for (const Place& place : tiles_) {
      for (int64_t b = 0; b < place.num_blocks; ++b) {
        const int64_t n = std::min(kAttentionBlock, place.num_keys - b * kAttentionBlock);
        const int64_t width = n < keys ? a_.latent_dim : numbers;
        for (int64_t k = 0; k < n; k += keys)
          by_keys_.push_back({place, b, k, std::min(keys, n - k)});
        for (int64_t r = 0; r < a_.latent_dim; r += width) {
          by_numbers_.push_back({place, b, r, std::min(width, a_.latent_dim - r)});
        }
      }
    }
  }

  // Scores by keys, then weighted values by their numbers.
  template <class Part>
  void share_blocks(float* scores, const Part& part) {
    const auto scores_of = [&](const Share& share) {
      return scores + (share.place.first_part + share.block) * kAttentionBlock * lanes_;
    };
    runtime_->pool.run(std::ssize(by_keys_), [&](int64_t task, int worker) {
      const Share& share = by_keys_[task];
      const Tile tile = scratch(share.place, worker);
      Block block;
      look_at(tile, share.block, block);
      pack_queries(tile);
      block.args.scores = scores_of(share);
      active_table().score_keys(block.args, share.first, share.count);
    });
    runtime_->pool.run(std::ssize(by_numbers_), [&](int64_t task, int worker) {
      const Share& share = by_numbers_[task];
      const Tile tile = scratch(share.place, worker);
      Block block;
      look_at(tile, share.block, block);
      std::copy_n(scores_of(share), block.args.num_keys * share.place.lanes, tile.scores);
      const AttentionSums whole = part(share.place, share.block);
      const AttentionSums own = {share.first == 0 ? whole.max : tile.block.max,
                                 share.first == 0 ? whole.sum : tile.block.sum,
                                 whole.values + share.first * share.place.lanes};
      active_table().weigh_values(block.args, share.first, share.count, own);
    });
  }

  // The blocks of each tile, in order.
  template <class Part>
  void put_together(const Part& part) {
    const auto tiles = std::ssize(tiles_);
    const int64_t numbers =  // matrix tiles have a layout of their own
        has_matrix_tiles_ ? a_.latent_dim : value_share(tiles, 2 * num_threads_);
    runtime_->pool.run(tiles * ceil_div(a_.latent_dim, numbers), [&](int64_t task, int worker) {
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

  int64_t sums_floats(int64_t lanes) const { return (a_.latent_dim + 2) * lanes; }
  AttentionSums sums(float* memory, int64_t lanes) const {
    return {memory, memory + lanes, memory + 2 * lanes};
  }

  // In the worker's scratch memory.
  Tile scratch(const Place& place, int worker) const {
    const int64_t lanes = place.lanes, num_sums = sums_floats(lanes);
    const int64_t packed = dim_ * lanes, keys = kAttentionBlock * (dim_ + lanes / 2);
    const int64_t scores = kAttentionBlock * lanes;
    float* memory = runtime_->scratch[worker].get<float>(packed + keys + scores + 2 * num_sums);
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

  const KvPages& pages_;
  const int num_threads_;  // that it is cut for
  const int64_t dim_;
  bool is_by_tiles_;
  std::vector<Share> by_keys_, by_numbers_;  // where blocks are shared
  Runtime* runtime_ = nullptr;
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

class PlannedAttention::Impl : public Attention {
 public:
  using Attention::Attention;
};

PlannedAttention::PlannedAttention(const LatentAttentionArgs& args, const KvPages& pages,
                                   const SequenceBatch& batch, int num_threads) {
  check(args.num_heads >= 1 && args.latent_dim >= 1 && args.rope_dim >= 0 &&
            args.latent_dim + args.rope_dim == pages.dim,
        "latent_attention: ", args.num_heads, " heads, latent ", args.latent_dim, ", rope ",
        args.rope_dim, " is not usable with pages of ", pages.dim, " numbers a token");
  check_batch("latent_attention", pages, batch, args.num_tokens);
  if (args.selected != nullptr) check_selected(args, batch);
  if (args.num_tokens > 0) impl_ = std::make_unique<Impl>(args, pages, batch, num_threads);
}

PlannedAttention::~PlannedAttention() = default;

void PlannedAttention::run() {
  if (impl_ == nullptr) return;
  const RuntimeLock runtime;
  impl_->run(*runtime);
}

void latent_attention(const LatentAttentionArgs& args, const KvPages& pages,
                      const SequenceBatch& batch) {
  const int num_threads = RuntimeLock()->pool.num_threads();
  PlannedAttention(args, pages, batch, num_threads).run();
}

}  // namespace hm
