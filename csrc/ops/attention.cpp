#include "ops/attention.h"

#include <algorithm>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"

namespace hm {
namespace {

constexpr int64_t kTasksPerThread = 4;

// Queries are numbered token by token, and worked off in tiles of `lanes`. With many tiles, each
// task is one tile and goes through all blocks of positions; with few, a task is one tile and one
// block, and a second stage puts the blocks together. Either way blocks are added in order.
class Attention {
 public:
  Attention(const LatentAttentionArgs& args, Runtime& runtime)
      : a_(args),
        runtime_(runtime),
        kernels_(active_table().attention),
        dim_(args.latent_dim + args.rope_dim),
        num_queries_(args.num_tokens * args.num_heads),
        num_blocks_((args.start + args.num_tokens + kAttentionBlock - 1) / kAttentionBlock) {
    const int64_t wanted = kTasksPerThread * runtime.pool.num_threads();
    lanes_ = kMaxAttentionLanes;
    while (lanes_ > 16 && (num_queries_ <= lanes_ / 2 || num_tiles() * num_blocks_ < wanted)) {
      lanes_ /= 2;
    }
  }

  void run() {
    const int64_t tiles = num_tiles();
    if (num_blocks_ == 1 || tiles >= kTasksPerThread * runtime_.pool.num_threads()) {
      runtime_.pool.run(tiles, [&](int64_t task, int worker) {
        whole_tile(tiles - 1 - task, worker);  // the longest first
      });
      return;
    }
    float* parts = runtime_.outputs.get<float>(tiles * num_blocks_ * sums_floats());
    runtime_.pool.run(tiles * num_blocks_, [&](int64_t task, int worker) {
      const Tile tile = pack(task / num_blocks_, worker);
      attend(tile, task % num_blocks_, sums(parts + task * sums_floats()));
    });
    runtime_.pool.run(tiles, [&](int64_t task, int worker) {
      const Tile tile = empty_tile(task, worker);
      for (int64_t b = 0; b < num_blocks_; ++b) {
        const AttentionSums block = sums(parts + (task * num_blocks_ + b) * sums_floats());
        kernels_.merge(tile.total, block, a_.latent_dim, lanes_);
      }
      finish(tile);
    });
  }

 private:
  struct Tile {
    int64_t first, count;  // queries
    float* packed;         // (R + P, lanes)
    float* scores;         // (kAttentionBlock, lanes)
    AttentionSums total, block;
  };

  int64_t num_tiles() const { return (num_queries_ + lanes_ - 1) / lanes_; }
  int64_t sums_floats() const { return (a_.latent_dim + 2) * lanes_; }
  AttentionSums sums(float* memory) const { return {memory, memory + lanes_, memory + 2 * lanes_}; }

  // In the worker's scratch memory; `total` has seen nothing.
  Tile empty_tile(int64_t index, int worker) const {
    const int64_t packed_floats = dim_ * lanes_, scores_floats = kAttentionBlock * lanes_;
    float* memory =
        runtime_.scratch[worker].get<float>(packed_floats + scores_floats + 2 * sums_floats());
    float* total = memory + packed_floats + scores_floats;
    const int64_t first = index * lanes_;
    const Tile tile{first,       std::min(lanes_, num_queries_ - first),
                    memory,      memory + packed_floats,
                    sums(total), sums(total + sums_floats())};
    std::fill_n(total, sums_floats(), 0.0f);
    std::fill_n(tile.total.max, lanes_, kNoAttentionKey);
    return tile;
  }

  Tile pack(int64_t index, int worker) const {
    const Tile tile = empty_tile(index, worker);
    const float* rows[kMaxAttentionLanes];
    for (int64_t i = 0; i < tile.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.latent_queries + (head * a_.num_tokens + token) * a_.latent_dim;
    }
    kernels_.pack(rows, tile.count, a_.latent_dim, lanes_, tile.packed);
    for (int64_t i = 0; i < tile.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.rope_queries + token * a_.token_stride + head * a_.head_stride;
    }
    kernels_.pack(rows, tile.count, a_.rope_dim, lanes_, tile.packed + a_.latent_dim * lanes_);
    return tile;
  }

  void attend(const Tile& tile, int64_t block, const AttentionSums& out) const {
    const int64_t first = block * kAttentionBlock;
    int32_t visible[kMaxAttentionLanes] = {};
    int64_t num_keys = 0;
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t keys = a_.start + token_and_head(tile, i).token + 1 - first;
      visible[i] = static_cast<int32_t>(std::clamp<int64_t>(keys, 0, kAttentionBlock));
      num_keys = std::max<int64_t>(num_keys, visible[i]);
    }
    kernels_.attend({.queries = tile.packed,
                     .keys = a_.latents + first * dim_,
                     .key_stride = dim_,
                     .num_keys = num_keys,
                     .visible = visible,
                     .dim = dim_,
                     .value_dim = a_.latent_dim,
                     .lanes = lanes_,
                     .scale = a_.scale,
                     .scores = tile.scores},
                    out);
  }

  void whole_tile(int64_t index, int worker) const {
    const Tile tile = pack(index, worker);
    const int64_t last_token = token_and_head(tile, tile.count - 1).token;
    for (int64_t b = 0; b * kAttentionBlock <= a_.start + last_token; ++b) {
      attend(tile, b, tile.block);
      kernels_.merge(tile.total, tile.block, a_.latent_dim, lanes_);
    }
    finish(tile);
  }

  void finish(const Tile& tile) const {
    float* rows[kMaxAttentionLanes];
    for (int64_t i = 0; i < tile.count; ++i) {
      const auto [token, head] = token_and_head(tile, i);
      rows[i] = a_.out + (head * a_.num_tokens + token) * a_.latent_dim;
    }
    kernels_.finish(tile.total, a_.latent_dim, lanes_, rows, tile.count);
  }

  struct TokenAndHead {
    int64_t token, head;
  };
  TokenAndHead token_and_head(const Tile& tile, int64_t i) const {
    return {(tile.first + i) / a_.num_heads, (tile.first + i) % a_.num_heads};
  }

  const LatentAttentionArgs& a_;
  Runtime& runtime_;
  const AttentionKernels& kernels_;
  const int64_t dim_, num_queries_, num_blocks_;
  int64_t lanes_;
};

}  // namespace

void latent_attention(const LatentAttentionArgs& args) {
  check(args.num_heads >= 1 && args.latent_dim >= 1 && args.rope_dim >= 0 && args.start >= 0,
        "latent_attention: ", args.num_heads, " heads, latent ", args.latent_dim, ", rope ",
        args.rope_dim, ", start ", args.start, " is not usable");
  if (args.num_tokens == 0) return;
  const RuntimeLock runtime;
  Attention(args, *runtime).run();
}

}  // namespace hm
