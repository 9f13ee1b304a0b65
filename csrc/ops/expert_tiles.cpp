#include "ops/expert_tiles.h"

#include <algorithm>

#include "base/row_tasks.h"
#include "kernels/select.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kTasksPerThread = 8;

// Some tiles of one expert's tokens.
struct Chunk {
  int64_t expert, slot, count;  // tokens slot..slot+count of the sorted order
  int64_t tile;                 // of all packed tiles of hidden activations
  int64_t num_tiles() const { return ceil_div(count, kTokenTile); }
};

// Splits the tokens of all experts into chunks that stay in the cache, with tiles of tile_words.
// Returns the number of tiles.
int64_t split(std::span<const Batch> batches, int64_t tile_words, std::vector<Chunk>& chunks) {
  chunks.clear();
  int64_t tile = 0;
  for (const Batch& batch : batches) {
    const int64_t tiles = ceil_div(batch.count, kTokenTile);
    const int64_t step = tiles_together(tiles, tile_words);
    for (int64_t t = 0; t < tiles; t += step) {
      const int64_t done = t * kTokenTile;
      chunks.push_back({batch.expert, batch.first + done,
                        std::min(batch.count - done, step * kTokenTile), tile + t});
    }
    tile += tiles;
  }
  return tile;
}

// Two stages. The first makes silu(gate x) * up x, a task for some rows of an expert and all of its
// tokens that fit the cache, and leaves it packed as the second wants it. The second is split by
// rows of `down` alone: a task adds every expert's share to its own columns of the result, one
// expert after the other, so that the order of additions does not depend on threads and no product
// is kept.
class TileForward {
 public:
  TileForward(const ExpertFfnArgs& args, const Routing& routing, std::span<const Batch> batches,
              Runtime& runtime)
      : a_(args),
        routing_(routing),
        batches_(batches),
        runtime_(runtime),
        kernels_(active_table()),
        hidden_(args.gate.cols),
        inter_(args.gate.rows),
        hidden_parts_(std::max(parts_of(args.gate), parts_of(args.up))),
        inter_parts_(parts_of(args.down)),
        hidden_words_(hidden_parts_ * packed_tile_words(hidden_)),
        inter_words_(inter_parts_ * packed_tile_words(inter_)) {}

  void run(std::vector<Chunk>& chunks) {
    const int64_t wanted = kTasksPerThread * runtime_.pool.num_threads();
    inter_x_ = runtime_.hidden.get<uint16_t>(split(batches_, hidden_words_, chunks) * inter_words_);
    const int64_t num_chunks = static_cast<int64_t>(chunks.size());
    const int64_t row_blocks = std::clamp<int64_t>(ceil_div(wanted, num_chunks), 1,
                                                   std::max<int64_t>(1, inter_ / kTileBlockRows));
    const int64_t rows = ceil_div(ceil_div(inter_, row_blocks), kPanelRows) * kPanelRows;
    const RowTasks inter_tasks(runtime_.pool.thread_ends(), num_chunks, inter_, rows);
    runtime_.pool.run_on_nodes(inter_tasks.ends(), [&](int64_t task, int worker) {
      const RowTasks::Task part = inter_tasks[task];
      gate_up(chunks[part.matrix], part.first_row, part.end_row, worker);
    });
    split(batches_, inter_words_, chunks);
    const int64_t columns =
        ceil_div(std::clamp<int64_t>(2 * hidden_ / wanted, 64, 512), kPanelRows) * kPanelRows;
    const RowTasks hidden_tasks(runtime_.pool.thread_ends(), 1, hidden_, columns);
    runtime_.pool.run_on_nodes(hidden_tasks.ends(), [&](int64_t task, int worker) {
      const int64_t first = hidden_tasks[task].first_row, last = hidden_tasks[task].end_row;
      for (std::size_t c = 0; c < chunks.size(); ++c) {
        const Chunk& next = chunks[std::min(c + 1, chunks.size() - 1)];
        down(chunks[c], first, last, a_.down.row(next.expert, first), worker);
      }
    });
  }

 private:
  int64_t parts_of(const ExpertMatrix& w) const { return kernels_.formats[w.type->id].tile_parts; }

  const float* token(int64_t slot) const {
    return a_.x + routing_.pair_of[slot] / a_.top_k * hidden_;
  }

  // Rows first..last of the chunk's expert.
  void gate_up(const Chunk& chunk, int64_t first, int64_t last, int worker) const {
    const int64_t tiles = chunk.num_tiles(), stride = tiles * kTokenTile;
    uint8_t* scratch = runtime_.scratch[worker].get<uint8_t>(
        kTileScratchBytes + tiles * hidden_words_ * int64_t{sizeof(uint16_t)} +
        2 * kTileBlockRows * stride * int64_t{sizeof(float)});
    auto* x = reinterpret_cast<uint16_t*>(scratch + kTileScratchBytes);
    auto* gate = reinterpret_cast<float*>(x + tiles * hidden_words_);
    float* up = gate + kTileBlockRows * stride;
    pack_tokens(chunk, x);
    for (int64_t r = first; r < last; r += kTileBlockRows) {
      const int64_t rows = std::min(kTileBlockRows, last - r);
      TileArgs args{
          .weights = a_.gate.row(chunk.expert, r),
          .row_bytes = a_.gate.row_bytes,
          .num_rows = rows,
          .cols = hidden_,
          .first_col = 0,
          .end_col = hidden_,
          .x = x,
          .parts = hidden_parts_,
          .num_tiles = tiles,
          .out = gate,
          .scratch = scratch,
          .next = a_.up.row(chunk.expert, r),
      };
      kernels_.formats[a_.gate.type->id].matmul_tiles(args);
      scale_products(a_.gate.scale(chunk.expert), gate, rows * stride);
      args.weights = a_.up.row(chunk.expert, r);
      args.row_bytes = a_.up.row_bytes;
      args.out = up;
      args.next = a_.gate.row(chunk.expert, r + rows < last ? r + rows : first);
      kernels_.formats[a_.up.type->id].matmul_tiles(args);
      scale_products(a_.up.scale(chunk.expert), up, rows * stride);
      pack_hidden(chunk, gate, up, r, rows);
    }
  }

  void pack_tokens(const Chunk& chunk, uint16_t* x) const {
    for (int64_t t = 0; t < chunk.num_tiles(); ++t) {
      const int64_t done = t * kTokenTile,
                    count = std::min<int64_t>(kTokenTile, chunk.count - done);
      const float* rows[kTokenTile];
      for (int64_t i = 0; i < count; ++i) rows[i] = token(chunk.slot + done + i);
      uint16_t* tile = x + t * hidden_words_;
      uint16_t* low = hidden_parts_ == 2 ? tile + packed_tile_words(hidden_) : nullptr;
      kernels_.tiles.pack(rows, count, hidden_, tile, low);
    }
  }

  // Rows first..first+rows become the same columns of the next stage.
  void pack_hidden(const Chunk& chunk, const float* gate, const float* up, int64_t first,
                   int64_t rows) const {
    constexpr int64_t step = 32;  // columns that are packed together
    const int64_t part = packed_tile_words(inter_);
    const int64_t tiles = chunk.num_tiles(), stride = tiles * kTokenTile;
    for (int64_t t = 0; t < tiles; ++t) {
      uint16_t* packed = inter_x_ + (chunk.tile + t) * inter_words_;
      uint16_t* low = inter_parts_ == 2 ? packed + part : nullptr;
      for (int64_t r = 0; r < rows; r += step) {
        const int64_t at = r * stride + t * kTokenTile;
        const int64_t to = (first + r) * kTokenTile;
        kernels_.tiles.pack_swiglu(gate + at, up + at, stride, std::min(step, rows - r),
                                   packed + to, low == nullptr ? nullptr : low + to);
      }
      if (first + rows == inter_) {
        const int64_t end = ceil_div(inter_, step) * step * kTokenTile;
        std::fill(packed + end, packed + part, 0);
        if (low != nullptr) std::fill(low + end, low + part, 0);
      }
    }
  }

  // Adds the chunk's share to columns first..last of the result. `next`: what is read after this.
  void down(const Chunk& chunk, int64_t first, int64_t last, const uint8_t* next,
            int worker) const {
    const int64_t stride = chunk.num_tiles() * kTokenTile;
    uint8_t* scratch = runtime_.scratch[worker].get<uint8_t>(
        kTileScratchBytes + kTileBlockRows * stride * int64_t{sizeof(float)} +
        chunk.count * int64_t{sizeof(float*) + sizeof(float)});
    auto* sums = reinterpret_cast<float*>(scratch + kTileScratchBytes);
    auto* out = reinterpret_cast<float**>(sums + kTileBlockRows * stride);
    auto* weights = reinterpret_cast<float*>(out + chunk.count);
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t pair = routing_.pair_of[chunk.slot + i];
      out[i] = a_.out + pair / a_.top_k * hidden_ + first;
      weights[i] = pair_weight(a_, pair);
    }
    for (int64_t r = first; r < last; r += kTileBlockRows) {
      const int64_t rows = std::min(kTileBlockRows, last - r), after = r + rows;
      kernels_.formats[a_.down.type->id].matmul_tiles({
          .weights = a_.down.row(chunk.expert, r),
          .row_bytes = a_.down.row_bytes,
          .num_rows = rows,
          .cols = inter_,
          .first_col = 0,
          .end_col = inter_,
          .x = inter_x_ + chunk.tile * inter_words_,
          .parts = inter_parts_,
          .num_tiles = chunk.num_tiles(),
          .out = sums,
          .scratch = scratch,
          .next = after < last ? a_.down.row(chunk.expert, after) : next,
      });
      kernels_.tiles.finish(sums, stride, rows, chunk.count, weights, out);
      for (int64_t i = 0; i < chunk.count; ++i) out[i] += rows;
    }
  }

  const ExpertFfnArgs& a_;
  const Routing& routing_;
  const std::span<const Batch> batches_;
  Runtime& runtime_;
  const KernelTable& kernels_;
  const int64_t hidden_, inter_;
  const int64_t hidden_parts_, inter_parts_;  // bfloat16 of an activation
  const int64_t hidden_words_, inter_words_;  // of a packed tile
  uint16_t* inter_x_ = nullptr;               // (tiles, inter_words)
};

}  // namespace

void add_expert_tiles(const ExpertFfnArgs& args, const Routing& routing,
                      std::span<const Batch> batches, Runtime& runtime) {
  thread_local std::vector<Chunk> chunks;  // keeps its memory between calls
  if (!batches.empty()) TileForward(args, routing, batches, runtime).run(chunks);
}

}  // namespace hm
