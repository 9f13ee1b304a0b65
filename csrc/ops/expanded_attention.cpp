#include "ops/expanded_attention.h"

#include <algorithm>
#include <utility>
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
        value_dim_(args.v_b.rows) {
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
    const int32_t* queries;  // (key_dim / 2, kLanes)
    const float* query_scales;
    AttentionSums total;
  };
  // A task's memory, cut from one piece.
  struct Scratch {
    ExpandedKeys keys;
    float* expansion;
    float* scores;
    int32_t* weights;
    AttentionSums sums;  // of a block
  };
  class Memory {
   public:
    explicit Memory(float* start) : next_(start) {}
    float* floats(int64_t count) { return std::exchange(next_, next_ + round_up_16(count)); }
    int32_t* words(int64_t count) { return reinterpret_cast<int32_t*>(floats(count)); }

   private:
    float* next_;
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
    const int64_t value_stride = expanded_stride(value_dim_);
    HeadExpansion sizes{};
    sizes.latent_dim = latent_dim_;
    sizes.nope_dim = nope_dim_;
    sizes.rope_dim = a_.rope_dim;
    sizes.value_dim = value_dim_;
    const int64_t weight_floats = (latent_dim_ / 2 + 1) * (nope_dim_ + value_dim_);
    const int64_t key_floats = kAttentionBlock * (key_dim_ / 2 + value_stride / 2 + 3);
    const int64_t unpacking_floats = latent_dim_ * std::max(nope_dim_, 2 * value_dim_);
    const int64_t block_floats = kAttentionBlock * kLanes * 3 / 2 + sums_floats();
    const int64_t tile_floats = (key_dim_ / 2 + 1) * kLanes + sums_floats();
    Memory memory(runtime_.scratch[worker].get<float>(
        weight_floats + key_floats + sizes.scratch_floats() + block_floats +
        std::max(unpacking_floats, key_dim_ * kLanes) + part.num_tiles() * tile_floats));
    const Scratch scratch = {{memory.words(kAttentionBlock * key_dim_ / 2),
                              memory.words(kAttentionBlock * value_stride / 2), value_stride,
                              memory.floats(kAttentionBlock), memory.floats(kAttentionBlock),
                              memory.floats(kAttentionBlock)},
                             memory.floats(sizes.scratch_floats()),
                             memory.floats(kAttentionBlock * kLanes),
                             memory.words(kAttentionBlock * kLanes / 2),
                             sums(memory.floats(sums_floats()))};
    float* unpacked = memory.floats(std::max(unpacking_floats, key_dim_ * kLanes));
    const HeadExpansion expansion = unpack_weights(head, sizes, memory, unpacked);
    std::vector<Tile> tiles;
    tiles.reserve(part.num_tiles());
    for (int64_t t = 0; t < part.num_tiles(); ++t) {
      tiles.push_back(pack(part, head, t, memory, unpacked));
    }
    for (int64_t first = 0; first < part.end(); first += kAttentionBlock) {
      const int64_t num_keys = std::min(kAttentionBlock, part.end() - first);
      const uint8_t* rows[kAttentionBlock];
      for (int64_t i = 0; i < num_keys; ++i) rows[i] = pages_.row(part.table, first + i);
      kernels_.expand_head(expansion, rows, pages_.type, num_keys, scratch.expansion, scratch.keys);
      for (int64_t t = 0; t < part.num_tiles(); ++t) attend(part, t, first, scratch, tiles[t]);
    }
    for (int64_t t = 0; t < part.num_tiles(); ++t) finish(part, head, t, tiles[t]);
  }

  HeadExpansion unpack_weights(int64_t head, HeadExpansion to, Memory& memory,
                               float* unpacked) const {
    const auto unpack_row = [&](const Matrix& w, int64_t row, float* out) {
      kernels_.formats[w.type->id].dequantize(w.row(head, row), w.cols, out);
      scale_products(w.scale(head), out, w.cols);
      return out;
    };
    const auto round = [&](const float* x, int64_t width, const int32_t*& codes,
                           const float*& scales) {
      int32_t* words = memory.words(latent_dim_ / 2 * width);
      float* column_scales = memory.floats(width);
      kernels_.round_columns(x, latent_dim_, width, words, column_scales);
      codes = words;
      scales = column_scales;
    };
    for (int64_t r = 0; r < latent_dim_; ++r) unpack_row(a_.k_b, r, unpacked + r * nope_dim_);
    round(unpacked, nope_dim_, to.key_weights, to.key_scales);
    const float* rows[kAttentionBlock];
    float* values = unpacked + latent_dim_ * value_dim_;
    for (int64_t v = 0; v < value_dim_; ++v) {
      rows[v] = unpack_row(a_.v_b, v, unpacked + v * latent_dim_);
    }
    kernels_.attention.pack(rows, value_dim_, latent_dim_, value_dim_, values);
    round(values, value_dim_, to.value_weights, to.value_scales);
    return to;
  }

  // The total has seen nothing.
  Tile pack(const Part& part, int64_t head, int64_t tile, Memory& memory, float* packed) const {
    const int64_t first = part.first + tile * kLanes, lanes = num_lanes(part, tile);
    const float* rows[kLanes];
    for (int64_t i = 0; i < lanes; ++i) rows[i] = row(a_.q_nope, head, first + i);
    kernels_.attention.pack(rows, lanes, nope_dim_, kLanes, packed);
    for (int64_t i = 0; i < lanes; ++i) rows[i] = row(a_.q_rope, head, first + i);
    kernels_.attention.pack(rows, lanes, a_.rope_dim, kLanes, packed + nope_dim_ * kLanes);
    int32_t* queries = memory.words(key_dim_ / 2 * kLanes);
    float* scales = memory.floats(kLanes);
    kernels_.round_columns(packed, key_dim_, kLanes, queries, scales);
    for (int64_t i = 0; i < kLanes; ++i) scales[i] *= a_.scale;
    float* total = memory.floats(sums_floats());
    std::fill_n(total, sums_floats(), 0.0f);
    std::fill_n(total, kLanes, kNoAttentionKey);
    return {queries, scales, sums(total)};
  }

  void attend(const Part& part, int64_t tile, int64_t first_key, const Scratch& scratch,
              const Tile& to) const {
    const int64_t lanes = num_lanes(part, tile), position = part.start + tile * kLanes;
    int32_t visible[kLanes] = {};
    for (int64_t i = 0; i < lanes; ++i) {
      visible[i] = static_cast<int32_t>(
          std::clamp<int64_t>(position + i + 1 - first_key, 0, kAttentionBlock));
    }
    const int64_t num_keys = visible[lanes - 1];
    if (num_keys == 0) return;
    kernels_.attend_expanded({.queries = to.queries,
                              .query_scales = to.query_scales,
                              .keys = scratch.keys,
                              .num_keys = num_keys,
                              .visible = visible,
                              .dim = key_dim_,
                              .value_dim = value_dim_,
                              .lanes = kLanes,
                              .scores = scratch.scores,
                              .weights = scratch.weights},
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
  const int64_t num_heads_, latent_dim_, nope_dim_, key_dim_, value_dim_;
  std::vector<Part> parts_;
};

}  // namespace

void expanded_attention(const ExpandedAttentionArgs& args, const KvPages& pages,
                        const SequenceBatch& batch) {
  const Matrix &k = args.k_b, &v = args.v_b;
  check(k.batch >= 1 && k.rows >= 2 && k.rows % 2 == 0 && v.batch == k.batch && v.cols == k.rows &&
            k.cols % 16 == 0 && args.rope_dim >= 0 && args.rope_dim % 16 == 0 && v.rows >= 16 &&
            v.rows % 16 == 0 && v.rows <= kAttentionBlock && k.rows + args.rope_dim == pages.dim,
        "expanded_attention: k_b (", k.batch, ", ", k.rows, ", ", k.cols, "), v_b (", v.batch, ", ",
        v.rows, ", ", v.cols, "), rope ", args.rope_dim, " are not usable with pages of ",
        pages.dim, " numbers a token");
  check_batch("expanded_attention", pages, batch, args.num_tokens);
  if (args.num_tokens == 0) return;
  const RuntimeLock runtime;
  ExpandedAttention(args, pages, batch, *runtime).run();
}

}  // namespace hm
