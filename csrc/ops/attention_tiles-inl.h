// How attention's queries are cut into tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/select.h"
#include "ops/attention.h"
#include "ops/tiles.h"

namespace hm {
namespace {

constexpr int64_t kTileDims = 32, kLeastTileDim = 128;  // what attention by matrix tiles takes

// The first tokens of a sequence, which see all positions.
int64_t num_dense_tokens(const LatentAttentionArgs& args, const SequenceSpan& span) {
  if (args.selected == nullptr) return span.num_tokens;
  return std::clamp<int64_t>(args.top_k - span.start, 0, span.num_tokens);
}

// Tiles of queries, the longest first.
class AttentionTiles {
 protected:
  struct Place {
    const AttentionKernels* kernels;
    int64_t first, count;  // queries
    int64_t lanes;
    int64_t shift;  // position of a token = its number in the batch + shift
    const int32_t* table;
    const int32_t* selected;       // (top_k) positions, or null: all that a token sees
    int64_t num_keys, num_blocks;  // that its last query sees
    int64_t first_part;            // where all tiles' blocks are counted
  };

  // Tiles as narrow as blocks must be to become `wanted`.
  AttentionTiles(const LatentAttentionArgs& args, const KvPages& pages, const SequenceBatch& batch,
                 int64_t wanted)
      : a_(args), batch_(batch), type_(pages.type), lanes_(kMaxAttentionLanes) {
    cut();
    while (lanes_ > 16 && (most_queries_ <= lanes_ / 2 || total_blocks_ < wanted)) {
      lanes_ /= 2;
      cut();
    }
  }

  const LatentAttentionArgs& a_;
  const SequenceBatch& batch_;
  const KvType type_;
  int64_t lanes_;
  std::vector<Place> tiles_;
  int64_t total_blocks_ = 0, total_keys_ = 0;  // of all tiles
  int64_t most_queries_ = 0, most_keys_ = 0;   // of a sequence; of a block
  bool has_matrix_tiles_ = false;

 private:
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
    const bool is_short = type_ == kKvF16 || type_ == kKvBF16;
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
                        shift, batch_.tables + span.table, nullptr, last_position + 1,
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
                        shift, batch_.tables + span.table, a_.selected + token * a_.top_k, a_.top_k,
                        num_blocks, 0});
      most_keys_ = std::max(most_keys_, std::min(a_.top_k, kAttentionBlock));
      total_keys_ += a_.top_k;
    }
  }
};

}  // namespace
}  // namespace hm
