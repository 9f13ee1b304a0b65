#include "ops/expanded_attention.h"

#include <algorithm>
#include <iterator>
#include <numeric>
#include <vector>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kLanes = kMaxAttentionLanes;
constexpr int64_t kTasksPerThread = 2;
// Queries that share an expanded block: fewer would be bound by expanding, more need much memory.
constexpr int64_t kLeastPartTokens = 256, kMostPartTokens = 4096;

// A task is one head of a part of a sequence's tokens. It goes through the positions in blocks:
// expands one, then lets all tiles of its queries attend to it. Blocks are added in order, and a
// query's numbers depend on no other query.
class ExpandedAttention {
 public:
  ExpandedAttention(const ExpandedAttentionArgs& args, const KvPages& pages,
                    const SequenceBatch& batch, Runtime& runtime)
      : a_(args),
        pages_(pages),
        runtime_(runtime),
        kernels_(active_table()),
        num_heads_(args.k_b.batch),
        latent_dim_(args.k_b.rows),
        nope_dim_(args.k_b.cols),
        key_dim_(args.k_b.cols + args.rope_dim),
        value_dim_(args.v_b.rows),
        stride_(expanded_stride(key_dim_, value_dim_)) {
    cut(batch);
  }

  void run() {
    const auto tasks = static_cast<int64_t>(parts_.size()) * num_heads_;
    runtime_.pool.run(tasks, [&](int64_t task, int worker) {
      attend(parts_[task / num_heads_], task % num_heads_, worker);
    });
  }

 private:
  struct Part {
    int64_t first, count;  // tokens of the batch
    int64_t start;         // position of the first
    const int32_t* table;

    int64_t num_tiles() const { return ceil_div(count, kLanes); }
    int64_t end() const { return start + count; }
  };
  struct Tile {
    const float* queries;  // (nope + P, kLanes)
    AttentionSums total;
  };
  struct Scratch {
    float* expanded;  // (kAttentionBlock, stride)
    float* scores;
    AttentionSums sums;  // of a block
  };

  // Parts of sequences, those that see most first.
  void cut(const SequenceBatch& batch) {
    const int64_t wanted = kTasksPerThread * runtime_.pool.num_threads();
    const int64_t parts = ceil_div(wanted, num_heads_ * batch.num_spans);
    int64_t token = 0;
    for (int64_t s = 0; s < batch.num_spans; ++s) {
      const SequenceSpan& span = batch.spans[s];
      const int64_t tokens =
          std::clamp(ceil_div(span.num_tokens, parts), kLeastPartTokens, kMostPartTokens);
      const int64_t step = ceil_div(tokens, kLanes) * kLanes;
      for (int64_t done = 0; done < span.num_tokens; done += step) {
        parts_.push_back({token + done, std::min(step, span.num_tokens - done), span.start + done,
                          batch.tables + span.table});
      }
      token += span.num_tokens;
    }
    std::stable_sort(parts_.begin(), parts_.end(),
                     [](const Part& x, const Part& y) { return x.end() > y.end(); });
  }

  void attend(const Part& part, int64_t head, int worker) const {
    const int64_t weight_floats = latent_dim_ * (nope_dim_ + value_dim_);
    const int64_t tile_floats = key_dim_ * kLanes + sums_floats();
    const int64_t sizes[] = {weight_floats,
                             kAttentionBlock * stride_,
                             kAttentionBlock * kLanes,
                             sums_floats(),
                             part.num_tiles() * tile_floats,
                             kAttentionBlock * (latent_dim_ + a_.rope_dim)};
    float* weights =
        runtime_.scratch[worker].get<float>(std::reduce(std::begin(sizes), std::end(sizes)));
    float* expanded = weights + sizes[0];
    float* scores = expanded + sizes[1];
    float* block_sums = scores + sizes[2];
    float* tile_memory = block_sums + sizes[3];
    float* latents = tile_memory + sizes[4];
    const Scratch scratch = {expanded, scores, sums(block_sums)};
    const HeadExpansion expansion = unpack_weights(head, weights, latents);
    std::vector<Tile> tiles;
    tiles.reserve(part.num_tiles());
    for (int64_t t = 0; t < part.num_tiles(); ++t) {
      tiles.push_back(pack(part, head, t, tile_memory + t * tile_floats));
    }
    for (int64_t first = 0; first < part.end(); first += kAttentionBlock) {
      const int64_t num_keys = std::min(kAttentionBlock, part.end() - first);
      const uint8_t* rows[kAttentionBlock];
      for (int64_t i = 0; i < num_keys; ++i) rows[i] = pages_.row(part.table, first + i);
      kernels_.expand_head(expansion, rows, pages_.type, num_keys, latents, expanded);
      for (int64_t t = 0; t < part.num_tiles(); ++t) {
        attend(part, t, expansion, first, scratch, tiles[t]);
      }
    }
    for (int64_t t = 0; t < part.num_tiles(); ++t) finish(part, head, t, tiles[t]);
  }

  // scratch: (V, R), as v_b has it.
  HeadExpansion unpack_weights(int64_t head, float* memory, float* scratch) const {
    const auto unpack_row = [&](const Matrix& w, int64_t row, float* out) {
      kernels_.formats[w.type->id].dequantize(w.row(head, row), w.cols, out);
      scale_products(w.scale(head), out, w.cols);
      return out;
    };
    for (int64_t r = 0; r < latent_dim_; ++r) unpack_row(a_.k_b, r, memory + r * nope_dim_);
    const float* rows[kAttentionBlock];
    for (int64_t v = 0; v < value_dim_; ++v) {
      rows[v] = unpack_row(a_.v_b, v, scratch + v * latent_dim_);
    }
    float* values = memory + latent_dim_ * nope_dim_;
    kernels_.attention.pack(rows, value_dim_, latent_dim_, value_dim_, values);
    return {memory, values, latent_dim_, nope_dim_, a_.rope_dim, value_dim_, stride_};
  }

  // In `memory`, packed; the total has seen nothing.
  Tile pack(const Part& part, int64_t head, int64_t tile, float* memory) const {
    const int64_t first = part.first + tile * kLanes, lanes = num_lanes(part, tile);
    const float* rows[kLanes];
    for (int64_t i = 0; i < lanes; ++i) rows[i] = row(a_.q_nope, head, first + i);
    kernels_.attention.pack(rows, lanes, nope_dim_, kLanes, memory);
    for (int64_t i = 0; i < lanes; ++i) rows[i] = row(a_.q_rope, head, first + i);
    kernels_.attention.pack(rows, lanes, a_.rope_dim, kLanes, memory + nope_dim_ * kLanes);
    float* total = memory + key_dim_ * kLanes;
    std::fill_n(total, sums_floats(), 0.0f);
    std::fill_n(total, kLanes, kNoAttentionKey);
    return {memory, sums(total)};
  }

  void attend(const Part& part, int64_t tile, const HeadExpansion& head, int64_t first_key,
              const Scratch& scratch, const Tile& to) const {
    const int64_t lanes = num_lanes(part, tile), position = part.start + tile * kLanes;
    int32_t visible[kLanes] = {};
    for (int64_t i = 0; i < lanes; ++i) {
      visible[i] = static_cast<int32_t>(
          std::clamp<int64_t>(position + i + 1 - first_key, 0, kAttentionBlock));
    }
    const int64_t num_keys = visible[lanes - 1];
    if (num_keys == 0) return;
    kernels_.attend_expanded({.queries = to.queries,
                              .keys = scratch.expanded,
                              .values = scratch.expanded + key_dim_,
                              .stride = head.stride,
                              .num_keys = num_keys,
                              .visible = visible,
                              .dim = key_dim_,
                              .value_dim = value_dim_,
                              .lanes = kLanes,
                              .scale = a_.scale,
                              .scores = scratch.scores},
                             scratch.sums);
    kernels_.attention.merge(to.total, scratch.sums, value_dim_, kLanes);
  }

  void finish(const Part& part, int64_t head, int64_t tile, const Tile& from) const {
    float* rows[kLanes];
    const int64_t lanes = num_lanes(part, tile);
    for (int64_t i = 0; i < lanes; ++i) {
      rows[i] = row(a_.out, head, part.first + tile * kLanes + i);
    }
    kernels_.attention.finish(from.total, value_dim_, kLanes, rows, lanes);
  }

  template <class T>
  static T* row(const Rows<T>& rows, int64_t head, int64_t token) {
    return rows.data + head * rows.batch_stride + token * rows.token_stride;
  }
  static int64_t num_lanes(const Part& part, int64_t tile) {
    return std::min(kLanes, part.count - tile * kLanes);
  }
  int64_t sums_floats() const { return (value_dim_ + 2) * kLanes; }
  static AttentionSums sums(float* memory) {
    return {memory, memory + kLanes, memory + 2 * kLanes};
  }

  const ExpandedAttentionArgs& a_;
  const KvPages& pages_;
  Runtime& runtime_;
  const KernelTable& kernels_;
  const int64_t num_heads_, latent_dim_, nope_dim_, key_dim_, value_dim_, stride_;
  std::vector<Part> parts_;
};

}  // namespace

void expanded_attention(const ExpandedAttentionArgs& args, const KvPages& pages,
                        const SequenceBatch& batch) {
  const Matrix &k = args.k_b, &v = args.v_b;
  check(k.batch >= 1 && k.rows >= 1 && v.batch == k.batch && v.cols == k.rows && k.cols % 16 == 0 &&
            args.rope_dim >= 0 && args.rope_dim % 16 == 0 && v.rows >= 16 && v.rows % 16 == 0 &&
            v.rows <= kAttentionBlock && k.rows + args.rope_dim == pages.dim,
        "expanded_attention: k_b (", k.batch, ", ", k.rows, ", ", k.cols, "), v_b (", v.batch, ", ",
        v.rows, ", ", v.cols, "), rope ", args.rope_dim, " are not usable with pages of ",
        pages.dim, " numbers a token");
  check_batch("expanded_attention", pages, batch, args.num_tokens);
  if (args.num_tokens == 0) return;
  const RuntimeLock runtime;
  ExpandedAttention(args, pages, batch, *runtime).run();
}

}  // namespace hm
