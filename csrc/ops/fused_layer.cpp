#include "ops/fused_layer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/fetch.h"
#include "base/runtime.h"
#include "ops/attention.h"
#include "ops/linear.h"
#include "ops/shared_norm.h"

namespace hm {
namespace {

void norm(const RmsNorm& norm, const StepStates& s, int64_t hidden, float* out) {
  rms_norm({.x = s.x,
            .x_stride = hidden,
            .residual = s.residual,
            .weight = norm.weight,
            .num_tokens = s.num_tokens,
            .n = hidden,
            .eps = norm.eps,
            .out = out,
            .out_stride = hidden});
}

RmsNormArgs in_place(const float* weight, float eps, float* x, int64_t num_tokens, int64_t n,
                     int64_t stride) {
  return {.x = x,
          .x_stride = stride,
          .residual = nullptr,
          .weight = weight,
          .num_tokens = num_tokens,
          .n = n,
          .eps = eps,
          .out = x,
          .out_stride = stride};
}

// out (T, rows) = x (T, cols) w^T
void product(const float* x, int64_t num_tokens, const Matrix& w, float* out,
             const SideWork& work = {}) {
  linear({x, 0, w.cols}, num_tokens, w, {out, 0, w.rows}, work);
}

// Brings every num_shares-th of the positions before a step's into the cache, where they are few.
void fetch_rows(const KvPages& pages, const SequenceBatch& batch, int64_t share,
                int64_t num_shares) {
  constexpr int64_t most_bytes = 1 << 20;
  for (int64_t s = 0; s < batch.num_spans; ++s) {
    const SequenceSpan& span = batch.spans[s];
    if (span.start * batch.num_spans * pages.row_bytes() > most_bytes) continue;
    for (int64_t p = share; p < span.start; p += num_shares) {
      fetch(pages.row(batch.tables + span.table, p), pages.row_bytes());
    }
  }
}

void check_shape(const char* name, const Matrix& w, int64_t batch, int64_t rows, int64_t cols) {
  check(w.batch == batch && w.rows == rows && w.cols == cols, "fused layer: ", name, " is (",
        w.batch, ", ", w.rows, ", ", w.cols, "), expected (", batch, ", ", rows, ", ", cols, ")");
}

}  // namespace

FusedAttention::FusedAttention(const Weights& weights)
    : w_(weights),
      hidden_(w_.kv_a.cols),
      latent_dim_(w_.k_b.rows),
      rope_dim_(w_.kv_a.rows - w_.k_b.rows),
      nope_dim_(w_.k_b.cols) {
  const int64_t heads = w_.k_b.batch, value_dim = w_.v_b.rows;
  check(rope_dim_ >= 0 && rope_dim_ % 2 == 0, "fused layer: ", rope_dim_, " numbers to rotate");
  if (w_.q_a.has_value()) check_shape("q_a", *w_.q_a, 1, w_.q_a->rows, hidden_);
  check_shape("q_b", w_.q_b, 1, heads * (nope_dim_ + rope_dim_),
              w_.q_a.has_value() ? w_.q_a->rows : hidden_);
  check_shape("kv_a", w_.kv_a, 1, latent_dim_ + rope_dim_, hidden_);
  check_shape("v_b", w_.v_b, heads, value_dim, latent_dim_);
  check_shape("out", w_.out, 1, hidden_, heads * value_dim);
}

void FusedAttention::forward(const StepStates& states, const KvPages& pages,
                             const SequenceBatch& batch, const float* cos_sin) const {
  const int64_t tokens = states.num_tokens, heads = w_.k_b.batch, value_dim = w_.v_b.rows;
  const int64_t query_dim = nope_dim_ + rope_dim_, row = latent_dim_ + rope_dim_;
  const int64_t low_rank = w_.q_a.has_value() ? w_.q_a->rows : 0;
  check(pages.dim == row, "fused layer: pages of ", pages.dim, " numbers a token, expected ", row);
  const bool is_few = tokens <= kFewTokens;
  thread_local Buffer memory, rounded_memory[3];
  Pieces pieces(memory, tokens * (2 * hidden_ + row + low_rank + heads * query_dim +
                                  heads * (2 * latent_dim_ + value_dim)));
  float* normed = pieces.take(tokens * hidden_);
  float* rows = pieces.take(tokens * row);
  float* q_low = pieces.take(tokens * low_rank);
  float* q = pieces.take(tokens * heads * query_dim);
  float* q_latent = pieces.take(heads * tokens * latent_dim_);
  float* mixed = pieces.take(heads * tokens * latent_dim_);
  float* values = pieces.take(tokens * heads * value_dim);
  float* out = states.out != nullptr ? states.out : pieces.take(tokens * hidden_);
  const int num_threads = RuntimeLock()->pool.num_threads();

  if (low_rank > 0 && is_few && states.residual == nullptr && are_alike(w_.kv_a, *w_.q_a)) {
    const bool rounds = takes_rounded(w_.kv_a, tokens);
    const RoundedRows rounded(rounds ? tokens : 0, hidden_, rounded_memory[0]);
    const SharedNorm shared(w_.norm, states.x, tokens, hidden_, rounds ? nullptr : normed,
                            rounds ? &rounded : nullptr);
    SideWork work;
    shared.add_to(work);
    linear_pair_of(shared.rows(), tokens, {&w_.kv_a, &*w_.q_a},
                   {{rows, 0, row}, {q_low, 0, low_rank}}, work);
  } else {
    norm(w_.norm, states, hidden_, normed);
    if (low_rank > 0) {
      linear_pair({normed, 0, hidden_}, tokens, {&w_.kv_a, &*w_.q_a},
                  {{rows, 0, row}, {q_low, 0, low_rank}});
    } else {
      product(normed, tokens, w_.kv_a, rows);
    }
  }
  const auto append = [&] {
    rms_norm_alone(in_place(w_.kv_a_norm, w_.norm.eps, rows, tokens, latent_dim_, row));
    rotate_alone({rows + latent_dim_, tokens, 1, row, rope_dim_, rope_dim_ / 2, cos_sin});
    store_kv(rows, tokens, pages, batch);
  };
  SideWork appending{.once = append};
  if (low_rank > 0 && is_few) {
    const bool rounds = takes_rounded(w_.q_b, tokens);
    const RoundedRows rounded(rounds ? tokens : 0, low_rank, rounded_memory[1]);
    const SharedNorm shared({w_.q_a_norm, w_.norm.eps}, q_low, tokens, low_rank,
                            rounds ? nullptr : q_low, rounds ? &rounded : nullptr);
    shared.add_to(appending);
    linear_of(shared.rows(), tokens, w_.q_b, {q, 0, w_.q_b.rows}, appending);
  } else if (low_rank > 0) {
    rms_norm(in_place(w_.q_a_norm, w_.norm.eps, q_low, tokens, low_rank, low_rank));
    product(q_low, tokens, w_.q_b, q, appending);
  } else {
    product(normed, tokens, w_.q_b, q, appending);
  }

  float* q_rope = q + nope_dim_;
  const LatentAttentionArgs args{.q_latent = q_latent,
                                 .q_rope = q_rope,
                                 .token_stride = heads * query_dim,
                                 .head_stride = query_dim,
                                 .num_tokens = tokens,
                                 .num_heads = heads,
                                 .latent_dim = latent_dim_,
                                 .rope_dim = rope_dim_,
                                 .scale = w_.scale,
                                 .selected = nullptr,
                                 .top_k = 0,
                                 .out = mixed};
  std::optional<PlannedAttention> attention;
  const auto plan = [&] { attention.emplace(args, pages, batch, num_threads); };
  const auto rotate_head = [&](const SideWork::Part& part) {  // k_b takes the other part of it
    if (part.first_row != 0) return;
    if (part.first_token == 0) fetch_rows(pages, batch, part.matrix, heads);
    float* x = q_rope + part.first_token * heads * query_dim + part.matrix * query_dim;
    rotate_alone({x, part.num_tokens, 1, heads * query_dim, query_dim, rope_dim_ / 2,
                  cos_sin + part.first_token * rope_dim_});
  };
  linear({q, query_dim, heads * query_dim}, tokens, w_.k_b,
         {q_latent, tokens * latent_dim_, latent_dim_}, {.once = plan, .before = rotate_head});
  attention->run();

  const bool rounds = value_dim % kActivationBlock == 0 && takes_rounded(w_.out, tokens);
  const RoundedRows rounded(rounds ? tokens : 0, w_.out.cols, rounded_memory[2]);
  const auto round = [&](const SideWork::Part& part) {
    for (int64_t t = part.first_token; t < part.first_token + part.num_tokens; ++t) {
      const int64_t first = part.matrix * value_dim + part.first_row;
      rounded.round(t, values + t * heads * value_dim + first, first, part.num_rows);
    }
  };
  SideWork rounding;
  if (rounds) rounding = {.after = round, .row_step = kActivationBlock};
  linear({mixed, tokens * latent_dim_, latent_dim_}, tokens, w_.v_b,
         {values, value_dim, heads * value_dim}, rounding);

  const auto add = [&](const SideWork::Part& part) {
    if (states.read_next != nullptr) {
      fetch(states.read_next + part.first_row, part.num_rows * int64_t{sizeof(float)});
    }
    for (int64_t t = part.first_token; t < part.first_token + part.num_tokens; ++t) {
      const int64_t first = t * hidden_ + part.first_row;
      for (int64_t i = first; i < first + part.num_rows; ++i) states.x[i] += out[i];
    }
  };
  SideWork adding;
  if (states.out == nullptr) adding.after = add;
  if (rounds) {
    linear_of(rounded.pointers(), tokens, w_.out, {out, 0, hidden_}, adding);
  } else {
    product(values, tokens, w_.out, out, adding);
  }
}

FusedFfn::FusedFfn(const RmsNorm& norm, std::optional<Routed> routed, std::optional<Swiglu> dense)
    : norm_(norm), routed_(std::move(routed)), dense_(std::move(dense)) {
  check(routed_.has_value() || dense_.has_value(), "fused layer: a network of nothing");
  const int64_t hidden = this->hidden();
  if (routed_) {
    const Swiglu& e = routed_->experts;
    check_shape("router", routed_->router, 1, e.gate.batch, hidden);
    check_shape("up", e.up, e.gate.batch, e.gate.rows, hidden);
    check_shape("down", e.down, e.gate.batch, hidden, e.gate.rows);
  }
  if (dense_) {
    check_shape("dense up", dense_->up, 1, dense_->gate.rows, hidden);
    check_shape("dense down", dense_->down, 1, hidden, dense_->gate.rows);
  }
}

void FusedFfn::forward(const StepStates& states, int32_t* ids, float* weights) const {
  const int64_t tokens = states.num_tokens, hidden = this->hidden();
  const int64_t experts = routed_ ? routed_->router.rows : 0;
  const bool has_both = routed_ && dense_;
  thread_local Buffer memory, rounded_memory;
  Pieces pieces(memory, tokens * (hidden + experts + (has_both ? 2 : 1) * hidden));
  float* normed = pieces.take(tokens * hidden);
  float* logits = pieces.take(tokens * experts);
  float* routed = has_both ? pieces.take(tokens * hidden) : nullptr;
  float* out = states.out != nullptr ? states.out : pieces.take(tokens * hidden);
  // Threads that norm for the router round for the experts, too.
  const bool is_shared = routed_ && tokens <= kFewTokens && states.residual == nullptr &&
                         !takes_rounded(routed_->router, tokens);
  const bool rounds = is_shared && takes_rounded(routed_->experts.gate, tokens);
  const RoundedRows rounded(rounds ? tokens : 0, hidden, rounded_memory);
  if (!is_shared) norm(norm_, states, hidden, normed);
  if (routed_) {
    const Routed& r = *routed_;
    if (is_shared) {
      const SharedNorm shared(norm_, states.x, tokens, hidden, normed, rounds ? &rounded : nullptr);
      const void* rows[kFewTokens];
      for (int64_t t = 0; t < tokens; ++t) rows[t] = normed + t * hidden;
      SideWork work;
      shared.add_to(work);
      linear_of(rows, tokens, r.router, {logits, 0, experts}, work);
    } else {
      product(normed, tokens, r.router, logits);
    }
    route({.logits = logits,
           .bias = r.bias,
           .num_tokens = tokens,
           .num_experts = experts,
           .top_k = r.top_k,
           .num_groups = r.num_groups,
           .num_groups_used = r.num_groups_used,
           .is_sigmoid = r.is_sigmoid,
           .is_normalized = r.is_normalized,
           .scale = r.scale,
           .ids = ids,
           .weights = weights});
  }
  const auto args = [&](const Swiglu& w, const int32_t* chosen, const float* of_chosen,
                        int64_t top_k, bool is_last) {
    return ExpertFfnArgs{.x = normed,
                         .ids = chosen,
                         .weights = of_chosen,
                         .num_tokens = tokens,
                         .top_k = top_k,
                         .gate = {w.gate},
                         .up = {w.up},
                         .down = {w.down},
                         .base = nullptr,
                         .out = is_last ? out : routed,
                         .rounded = rounds ? rounded.pointers() : nullptr,
                         .added_to = is_last && states.out == nullptr ? states.x : nullptr,
                         .read_next = is_last ? states.read_next : nullptr};
  };
  if (!routed_) return expert_ffn(args(*dense_, nullptr, nullptr, 1, true));
  const ExpertFfnArgs of_experts =
      args(routed_->experts, ids, weights, routed_->top_k, !dense_.has_value());
  if (!dense_) return expert_ffn(of_experts);
  expert_ffn_with_dense(of_experts, args(*dense_, nullptr, nullptr, 1, true));
}

FusedLayers::FusedLayers(std::vector<Layer> layers) : layers_(std::move(layers)) {
  check(!layers_.empty(), "fused layers: there is none");
  for (const auto& [attention, ffn] : layers_) {
    check(attention != nullptr && ffn != nullptr, "fused layers: one is missing");
    check(attention->hidden() == hidden() && ffn->hidden() == hidden() &&
              attention->rope_dim() == rope_dim(),
          "fused layers: one has other sizes than the first");
    check(ffn->top_k() == 0 || most_top_k_ == 0 || ffn->top_k() == most_top_k_,
          "fused layers: ", ffn->top_k(), " experts of a token in one, in another ", most_top_k_);
    most_top_k_ = std::max(most_top_k_, ffn->top_k());
  }
}

void FusedLayers::forward(std::span<const KvPages> pages, float* x, int64_t num_tokens,
                          const SequenceBatch& batch, const float* cos_sin, int32_t* ids,
                          float* weights) const {
  check(pages.size() == layers_.size(), "fused layers: pages of ", pages.size(), " of ",
        layers_.size(), " layers");
  const int64_t choices = num_tokens * most_top_k_;
  const bool is_traced = ids != nullptr;
  thread_local Buffer memory, id_memory;
  if (!is_traced) {
    ids = id_memory.get<int32_t>(choices);
    weights = memory.get<float>(choices);
  }
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const auto& [attention, ffn] = layers_[i];
    const bool is_last = i + 1 == layers_.size();
    const float* next = is_last ? nullptr : layers_[i + 1].attention->norm_weight();
    attention->forward({x, nullptr, num_tokens, nullptr, ffn->norm_weight()}, pages[i], batch,
                       cos_sin);
    ffn->forward({x, nullptr, num_tokens, nullptr, next}, ids, weights);
    if (!is_traced) continue;
    ids += num_tokens * ffn->top_k();
    weights += num_tokens * ffn->top_k();
  }
}

}  // namespace hm
