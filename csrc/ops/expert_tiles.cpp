#include "ops/expert_tiles.h"

#include <algorithm>

#include "base/row_tasks.h"
#include "kernels/select.h"
#include "ops/tiles.h"
#include "ops/uneven_tasks.h"

namespace hm {
namespace {

// Some tiles of one expert's tokens.
struct Chunk {
  int64_t expert, slot, count;  // tokens slot..slot+count of the sorted order
  int64_t tile;                 // of all packed tiles of hidden activations
  int64_t packed_tile = -1;     // of those packed for several tasks; none: its task packs them
  int64_t num_tiles() const { return ceil_div(count, kTokenTile); }
};

// Splits the tokens of all experts into chunks that share an unpacking. Returns the number of
// tiles.
int64_t split(std::span<const Batch> batches, std::vector<Chunk>& chunks) {
  chunks.clear();
  int64_t tile = 0;
  for (const Batch& batch : batches) {
    const int64_t tiles = ceil_div(batch.count, kTokenTile);
    const int64_t step = tiles_together(tiles);
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
    inter_x_ = runtime_.hidden.get<uint16_t>(split(batches_, chunks) * inter_words_);
    run_gate_up(chunks);
    run_down(chunks);
  }

 private:
  int64_t parts_of(const ExpertMatrix& w) const { return kernels_.formats[w.type->id].tile_parts; }

  // Of a row of a matrix with `cols` columns times a chunk's tokens.
  double row_cycles(const Chunk& chunk, int64_t cols) const {
    const auto groups = static_cast<double>(padded_weights(cols) / 256);
    return groups * tile_cost(kernels_.costs, kPanelRows, chunk.count) / kPanelRows;
  }

  void run_gate_up(std::vector<Chunk>& chunks) {
    std::vector<double> cycles;
    for (const Chunk& chunk : chunks) cycles.push_back(2 * row_cycles(chunk, hidden_));
    const UnevenTasks tasks(runtime_.pool.thread_ends(), cycles, inter_, kPanelRows, kPanelRows);
    pack_shared(chunks, tasks);
    runtime_.pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
      const RowTasks::Task part = tasks[task];
      gate_up(chunks[part.matrix], part.first_row, part.end_row, worker);
    });
  }

  // Packs the tokens of chunks that several tasks multiply with; others' are packed by their task,
  // into its core's own cache.
  void pack_shared(std::vector<Chunk>& chunks, const UnevenTasks& tasks) {
    struct Place {
      int64_t chunk, tile;
    };
    std::vector<Place> places;
    for (std::size_t c = 0; c < chunks.size(); ++c) {
      if (!tasks.is_cut(static_cast<int64_t>(c))) continue;
      chunks[c].packed_tile = static_cast<int64_t>(places.size());
      for (int64_t t = 0; t < chunks[c].num_tiles(); ++t) {
        places.push_back({static_cast<int64_t>(c), t});
      }
    }
    const auto count = static_cast<int64_t>(places.size());
    hidden_x_ = runtime_.activations.get<uint16_t>(count * hidden_words_);
    runtime_.pool.run(count, [&](int64_t i, int) {
      pack_tile(chunks[places[i].chunk], places[i].tile, hidden_x_ + i * hidden_words_);
    });
  }

  void run_down(const std::vector<Chunk>& chunks) {
    double cycles = 0;
    int64_t bytes = 0, row_bytes = 0;
    for (const Chunk& chunk : chunks) {
      cycles += row_cycles(chunk, inter_);
      bytes += chunk.num_tiles() * inter_words_ * int64_t{sizeof(uint16_t)};
      row_bytes += a_.down.row_bytes;
    }
    const TaskSize size =
        best_task({.batch = 1,
                   .rows = hidden_,
                   .tokens = 1,
                   .row_step = kPanelRows,
                   .token_step = 1,
                   .most_rows = 512,
                   .most_tokens = 1},
                  runtime_.pool.num_threads(), [&](int64_t rows, int64_t) {
                    return static_cast<double>(rows + kPanelRows) * cycles +
                           kCyclesPerByte * static_cast<double>(bytes + rows * row_bytes);
                  });
    const RowTasks tasks(runtime_.pool.thread_ends(), 1, hidden_, size.rows);
    runtime_.pool.run_on_nodes(tasks.ends(), [&](int64_t task, int worker) {
      const RowTasks::Task part = tasks[task];
      for (std::size_t c = 0; c < chunks.size(); ++c) {
        const Chunk& next = chunks[std::min(c + 1, chunks.size() - 1)];
        const uint8_t* after = a_.down.row(next.expert, part.first_row);
        down(chunks[c], part.first_row, part.end_row, after, worker);
      }
    });
  }

  const float* token(int64_t slot) const {
    return a_.x + routing_.pair_of[slot] / a_.top_k * hidden_;
  }

  // Rows first..last of the chunk's expert.
  void gate_up(const Chunk& chunk, int64_t first, int64_t last, int worker) const {
    const int64_t tiles = chunk.num_tiles(), stride = tiles * kTokenTile;
    const int64_t most_rows = rows_together(tiles);
    const int64_t columns = columns_together(tiles, hidden_parts_, hidden_);
    const int64_t panel_bytes = tile_scratch_bytes(tiles, columns);
    uint8_t* scratch = runtime_.scratch[worker].get<uint8_t>(
        panel_bytes + tiles * hidden_words_ * int64_t{sizeof(uint16_t)} +
        2 * most_rows * stride * int64_t{sizeof(float)});
    auto* own = reinterpret_cast<uint16_t*>(scratch + panel_bytes);
    auto* gate = reinterpret_cast<float*>(own + tiles * hidden_words_);
    float* up = gate + most_rows * stride;
    const bool is_packed = chunk.packed_tile >= 0;
    const uint16_t* x = is_packed ? hidden_x_ + chunk.packed_tile * hidden_words_ : own;
    for (int64_t t = 0; !is_packed && t < tiles; ++t) pack_tile(chunk, t, own + t * hidden_words_);
    for (int64_t r = first; r < last; r += most_rows) {
      const int64_t rows = std::min(most_rows, last - r);
      for (int64_t col = 0; col < hidden_; col += columns) {
        TileArgs args{
            .weights = a_.gate.row(chunk.expert, r),
            .row_bytes = a_.gate.row_bytes,
            .num_rows = rows,
            .cols = hidden_,
            .first_col = col,
            .end_col = std::min(hidden_, col + columns),
            .x = x,
            .parts = hidden_parts_,
            .num_tiles = tiles,
            .out = gate,
            .scratch = scratch,
            .next = a_.up.row(chunk.expert, r),
        };
        kernels_.formats[a_.gate.type->id].matmul_tiles(args);
        args.weights = a_.up.row(chunk.expert, r);
        args.row_bytes = a_.up.row_bytes;
        args.out = up;
        args.next = a_.gate.row(chunk.expert, r + rows < last ? r + rows : first);
        kernels_.formats[a_.up.type->id].matmul_tiles(args);
      }
      scale_products(a_.gate.scale(chunk.expert), gate, rows * stride);
      scale_products(a_.up.scale(chunk.expert), up, rows * stride);
      pack_hidden(chunk, gate, up, r, rows);
    }
  }

  void pack_tile(const Chunk& chunk, int64_t t, uint16_t* tile) const {
    const int64_t done = t * kTokenTile, count = std::min<int64_t>(kTokenTile, chunk.count - done);
    const float* rows[kTokenTile];
    for (int64_t i = 0; i < count; ++i) rows[i] = token(chunk.slot + done + i);
    uint16_t* low = hidden_parts_ == 2 ? tile + packed_tile_words(hidden_) : nullptr;
    kernels_.tiles.pack(rows, count, hidden_, tile, low);
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
    const int64_t tiles = chunk.num_tiles(), stride = tiles * kTokenTile;
    const int64_t most_rows = rows_together(tiles);
    const int64_t columns = columns_together(tiles, inter_parts_, inter_);
    const int64_t panel_bytes = tile_scratch_bytes(tiles, columns);
    uint8_t* scratch = runtime_.scratch[worker].get<uint8_t>(
        panel_bytes + most_rows * stride * int64_t{sizeof(float)} +
        chunk.count * int64_t{sizeof(float*) + sizeof(float)});
    auto* sums = reinterpret_cast<float*>(scratch + panel_bytes);
    auto* out = reinterpret_cast<float**>(sums + most_rows * stride);
    auto* weights = reinterpret_cast<float*>(out + chunk.count);
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t pair = routing_.pair_of[chunk.slot + i];
      out[i] = a_.out + pair / a_.top_k * hidden_ + first;
      weights[i] = pair_weight(a_, pair);
    }
    for (int64_t r = first; r < last; r += most_rows) {
      const int64_t rows = std::min(most_rows, last - r), after = r + rows;
      for (int64_t col = 0; col < inter_; col += columns) {
        kernels_.formats[a_.down.type->id].matmul_tiles({
            .weights = a_.down.row(chunk.expert, r),
            .row_bytes = a_.down.row_bytes,
            .num_rows = rows,
            .cols = inter_,
            .first_col = col,
            .end_col = std::min(inter_, col + columns),
            .x = inter_x_ + chunk.tile * inter_words_,
            .parts = inter_parts_,
            .num_tiles = tiles,
            .out = sums,
            .scratch = scratch,
            .next = after < last ? a_.down.row(chunk.expert, after) : next,
        });
      }
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
  uint16_t* hidden_x_ = nullptr;              // (tiles of cut chunks, hidden_words)
  uint16_t* inter_x_ = nullptr;               // (tiles, inter_words)
};

}  // namespace

void add_expert_tiles(const ExpertFfnArgs& args, const Routing& routing,
                      std::span<const Batch> batches, Runtime& runtime) {
  thread_local std::vector<Chunk> chunks;  // keeps its memory between calls
  if (!batches.empty()) TileForward(args, routing, batches, runtime).run(chunks);
}

}  // namespace hm
