#include "ops/fused_layer.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/runtime.h"
#include "ops/attention.h"
#include "ops/linear.h"

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

void norm_in_place(const float* weight, float eps, float* x, int64_t num_tokens, int64_t n,
                   int64_t stride) {
  rms_norm({.x = x,
            .x_stride = stride,
            .residual = nullptr,
            .weight = weight,
            .num_tokens = num_tokens,
            .n = n,
            .eps = eps,
            .out = x,
            .out_stride = stride});
}

// out (T, rows) = x (T, cols) w^T
void product(const float* x, int64_t num_tokens, const Matrix& w, float* out) {
  linear({x, 0, w.cols}, num_tokens, w, {out, 0, w.rows});
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
  thread_local Buffer memory;
  Pieces pieces(memory, tokens * (hidden_ + row + low_rank + heads * query_dim +
                                  heads * (2 * latent_dim_ + value_dim)));
  float* normed = pieces.take(tokens * hidden_);
  float* rows = pieces.take(tokens * row);
  float* q_low = pieces.take(tokens * low_rank);
  float* q = pieces.take(tokens * heads * query_dim);
  float* q_latent = pieces.take(heads * tokens * latent_dim_);
  float* mixed = pieces.take(heads * tokens * latent_dim_);
  float* values = pieces.take(tokens * heads * value_dim);

  norm(w_.norm, states, hidden_, normed);
  if (w_.q_a.has_value()) {
    linear_pair({normed, 0, hidden_}, tokens, {&w_.kv_a, &*w_.q_a},
                {{rows, 0, row}, {q_low, 0, low_rank}});
  } else {
    product(normed, tokens, w_.kv_a, rows);
  }
  norm_in_place(w_.kv_a_norm, w_.norm.eps, rows, tokens, latent_dim_, row);
  rotate({rows + latent_dim_, tokens, 1, row, rope_dim_, rope_dim_ / 2, cos_sin});
  store_kv(rows, tokens, pages, batch);

  if (w_.q_a.has_value()) {
    norm_in_place(w_.q_a_norm, w_.norm.eps, q_low, tokens, low_rank, low_rank);
  }
  product(w_.q_a.has_value() ? q_low : normed, tokens, w_.q_b, q);
  float* q_rope = q + nope_dim_;
  rotate({q_rope, tokens, heads, heads * query_dim, query_dim, rope_dim_ / 2, cos_sin});

  linear({q, query_dim, heads * query_dim}, tokens, w_.k_b,
         {q_latent, tokens * latent_dim_, latent_dim_});
  latent_attention({.q_latent = q_latent,
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
                    .out = mixed},
                   pages, batch);
  linear({mixed, tokens * latent_dim_, latent_dim_}, tokens, w_.v_b,
         {values, value_dim, heads * value_dim});
  product(values, tokens, w_.out, states.out);
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
  thread_local Buffer memory;
  Pieces pieces(memory, tokens * (hidden + experts + (has_both ? hidden : 0)));
  float* normed = pieces.take(tokens * hidden);
  float* logits = pieces.take(tokens * experts);
  float* routed = has_both ? pieces.take(tokens * hidden) : states.out;
  norm(norm_, states, hidden, normed);
  if (routed_) {
    const Routed& r = *routed_;
    product(normed, tokens, r.router, logits);
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
                        int64_t top_k, float* out) {
    return ExpertFfnArgs{.x = normed,
                         .ids = chosen,
                         .weights = of_chosen,
                         .num_tokens = tokens,
                         .top_k = top_k,
                         .gate = {w.gate},
                         .up = {w.up},
                         .down = {w.down},
                         .base = nullptr,
                         .out = out};
  };
  if (!routed_) return expert_ffn(args(*dense_, nullptr, nullptr, 1, states.out));
  const ExpertFfnArgs of_experts = args(routed_->experts, ids, weights, routed_->top_k, routed);
  if (!dense_) return expert_ffn(of_experts);
  expert_ffn_with_dense(of_experts, args(*dense_, nullptr, nullptr, 1, states.out));
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
  const int64_t states = num_tokens * hidden(), choices = num_tokens * most_top_k_;
  const bool is_traced = ids != nullptr;
  thread_local Buffer memory, id_memory;
  Pieces pieces(memory, 2 * states + choices);
  float* const by_attention = pieces.take(states);
  float* const by_ffn = pieces.take(states);
  if (!is_traced) {
    ids = id_memory.get<int32_t>(choices);
    weights = pieces.take(choices);
  }
  const float* residual = nullptr;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    const auto& [attention, ffn] = layers_[i];
    attention->forward({x, residual, num_tokens, by_attention}, pages[i], batch, cos_sin);
    ffn->forward({x, by_attention, num_tokens, by_ffn}, ids, weights);
    residual = by_ffn;
    if (!is_traced) continue;
    ids += num_tokens * ffn->top_k();
    weights += num_tokens * ffn->top_k();
  }
  for (int64_t i = 0; i < states; ++i) x[i] += by_ffn[i];
}

}  // namespace hm
