#include "ops/indexer.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"

namespace hm {
namespace {

constexpr int64_t kMostScores = int64_t{8} << 20;  // in memory at a time, unless one token has more
constexpr int64_t kLaneUnit = 16;
constexpr int64_t kRadixBits[] = {11, 11, 10};

// Unsigned numbers in the order of floats; both zeros are one, and NaN lies at an end.
uint32_t order_of(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x + 0.0f);
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

// The least of the `count` greatest orders, digit by digit from the top. What shares the digits so
// far is moved to the front.
uint32_t least_of_greatest(uint32_t* orders, int64_t num_orders, int64_t count) {
  uint32_t found = 0;
  int64_t shift = 32;
  for (const int64_t bits : kRadixBits) {
    shift -= bits;
    const uint32_t mask = (uint32_t{1} << bits) - 1;
    int64_t counts[1 << 11] = {};
    for (int64_t i = 0; i < num_orders; ++i) ++counts[orders[i] >> shift & mask];
    uint32_t digit = mask;
    while (counts[digit] < count) count -= counts[digit--];
    found |= digit << shift;
    int64_t kept = 0;
    for (int64_t i = 0; i < num_orders; ++i) {
      const uint32_t order = orders[i];
      orders[kept] = order;
      kept += (order >> shift & mask) == digit;
    }
    num_orders = kept;
  }
  return found;
}

// `scratch`: as long as scores.
void select(const float* scores, int64_t num_scores, int64_t top_k, uint32_t* scratch,
            int32_t* selected) {
  for (int64_t i = 0; i < num_scores; ++i) scratch[i] = order_of(scores[i]);
  const uint32_t least = least_of_greatest(scratch, num_scores, top_k);
  int64_t greater = 0;
  for (int64_t i = 0; i < num_scores; ++i) greater += order_of(scores[i]) > least;
  int64_t equals = top_k - greater;
  for (int64_t i = 0, n = 0; n < top_k; ++i) {
    const uint32_t order = order_of(scores[i]);
    selected[n] = static_cast<int32_t>(i);
    n += order > least || (order == least && equals-- > 0);
  }
}

// Tokens that see more than top_k positions, in tiles of as many as lanes hold, none of which
// reaches from one sequence into the next; a task scores one tile and one block of positions.
class Selection {
 public:
  Selection(const IndexArgs& args, const KvPages& pages, const SequenceBatch& batch,
            Runtime& runtime)
      : a_(args),
        pages_(pages),
        runtime_(runtime),
        token_lanes_((args.num_heads + kLaneUnit - 1) / kLaneUnit * kLaneUnit) {
    const int64_t most_tokens = std::max<int64_t>(1, kMaxAttentionLanes / token_lanes_);
    int64_t token = 0;
    for (int64_t s = 0; s < batch.num_spans; ++s) {
      const SequenceSpan& span = batch.spans[s];
      const int64_t shift = span.start - token, end = token + span.num_tokens;
      int64_t first = token + std::clamp<int64_t>(a_.top_k - span.start, 0, span.num_tokens);
      for (; first < end; first += most_tokens) {
        tiles_.push_back(
            {first, std::min(most_tokens, end - first), shift, batch.tables + span.table});
      }
      token = end;
    }
  }

  void run() {
    for (std::size_t first = 0; first < tiles_.size();) {
      std::size_t end = first;
      int64_t num_scores = 0;
      while (end < tiles_.size() && (end == first || num_scores < kMostScores)) {
        num_scores += num_scores_of(tiles_[end++]);
      }
      run({tiles_.data() + first, end - first}, num_scores);
      first = end;
    }
  }

 private:
  struct Tile {
    int64_t first, count;  // tokens
    int64_t shift;         // position of a token = its number in the batch + shift
    const int32_t* table;
    int64_t num_seen() const { return first + count + shift; }  // by its last token
  };

  static int64_t num_scores_of(const Tile& tile) { return tile.count * tile.num_seen(); }

  void run(std::span<const Tile> tiles, int64_t num_scores) {
    struct Block {
      const Tile* tile;
      float* scores;  // of the tile: (count, num_seen)
      int64_t first;  // position
    };
    struct Token {
      const Tile* tile;
      const float* scores;
      int64_t number;
    };
    std::vector<Block> blocks;
    std::vector<Token> tokens;
    float* scores = runtime_.outputs.get<float>(num_scores);
    for (const Tile& tile : tiles) {
      for (int64_t p = 0; p < tile.num_seen(); p += kAttentionBlock) {
        blocks.push_back({&tile, scores, p});
      }
      for (int64_t i = 0; i < tile.count; ++i, scores += tile.num_seen()) {
        tokens.push_back({&tile, scores, tile.first + i});
      }
    }
    runtime_.pool.run(std::ssize(blocks), [&](int64_t task, int worker) {
      score(*blocks[task].tile, blocks[task].first, blocks[task].scores, worker);
    });
    runtime_.pool.run(std::ssize(tokens), [&](int64_t task, int worker) {
      const Token& token = tokens[task];
      const int64_t num_seen = token.number + 1 + token.tile->shift;
      auto* scratch = runtime_.scratch[worker].get<uint32_t>(num_seen);
      select(token.scores, num_seen, a_.top_k, scratch, a_.selected + token.number * a_.top_k);
    });
  }

  void score(const Tile& tile, int64_t first, float* scores, int worker) const {
    const int64_t lanes = tile.count * token_lanes_;
    const int64_t num_keys = std::min(kAttentionBlock, tile.num_seen() - first);
    float* queries = runtime_.scratch[worker].get<float>((a_.dim + kAttentionBlock + 1) * lanes +
                                                         kAttentionBlock * a_.dim);
    float* products = queries + a_.dim * lanes;
    float* weights = products + kAttentionBlock * lanes;
    float* keys = weights + lanes;
    pack(tile, lanes, queries, weights);
    const uint8_t* rows[kAttentionBlock];
    for (int64_t k = 0; k < num_keys; ++k) rows[k] = pages_.row(tile.table, first + k);
    float* token_scores[kMaxAttentionLanes];
    for (int64_t i = 0; i < tile.count; ++i) token_scores[i] = scores + i * tile.num_seen() + first;
    active_table().score_index({.queries = queries,
                                .rows = rows,
                                .type = pages_.type,
                                .num_keys = num_keys,
                                .dim = a_.dim,
                                .lanes = lanes,
                                .token_lanes = token_lanes_,
                                .weights = weights,
                                .keys = keys,
                                .products = products,
                                .scores = token_scores});
  }

  // Heads of one token after the other, each token's filled up with zeros.
  void pack(const Tile& tile, int64_t lanes, float* queries, float* weights) const {
    std::vector<float> padding(a_.dim);
    std::vector<const float*> rows(lanes, padding.data());
    std::fill_n(weights, lanes, 0.0f);
    for (int64_t i = 0; i < tile.count; ++i) {
      const int64_t token = tile.first + i;
      for (int64_t head = 0; head < a_.num_heads; ++head) {
        rows[i * token_lanes_ + head] = a_.queries + (token * a_.num_heads + head) * a_.dim;
      }
      std::copy_n(a_.weights + token * a_.num_heads, a_.num_heads, weights + i * token_lanes_);
    }
    active_table().attention.pack(rows.data(), lanes, a_.dim, lanes, queries);
  }

  const IndexArgs& a_;
  const KvPages& pages_;
  Runtime& runtime_;
  const int64_t token_lanes_;
  std::vector<Tile> tiles_;
};

}  // namespace

void select_positions(const IndexArgs& args, const KvPages& pages, const SequenceBatch& batch) {
  constexpr int64_t most = int64_t{1} << 16;  // no product overflows
  check(args.num_heads >= 1 && args.num_heads <= most && args.dim == pages.dim &&
            args.dim <= most && args.top_k >= 1,
        "select_positions: ", args.num_heads, " heads of ", args.dim, ", top_k ", args.top_k,
        " is not usable with pages of ", pages.dim, " numbers a token");
  check_batch("select_positions", pages, batch, args.num_tokens);
  const RuntimeLock runtime;
  Selection(args, pages, batch, *runtime).run();
}

}  // namespace hm
