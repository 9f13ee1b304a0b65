#include "ops/fused_layer.h"

#include "base/check.h"
#include "base/runtime.h"
#include "ops/attention.h"
#include "ops/linear.h"

namespace hm {
namespace {

// Pieces of memory that the calling thread keeps, in turn; until it makes others.
class Pieces {
 public:
  explicit Pieces(int64_t floats) {
    thread_local Buffer memory;
    at_ = memory.get<float>(floats);
  }
  float* take(int64_t floats) {
    float* piece = at_;
    at_ += floats;
    return piece;
  }

 private:
  float* at_;
};

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
  Pieces pieces(tokens * (hidden_ + row + low_rank + heads * query_dim +
                          heads * (2 * latent_dim_ + value_dim)));
  float* normed = pieces.take(tokens * hidden_);
  float* rows = pieces.take(tokens * row);
  float* q_low = pieces.take(tokens * low_rank);
  float* q = pieces.take(tokens * heads * query_dim);
  float* q_latent = pieces.take(heads * tokens * latent_dim_);
  float* mixed = pieces.take(heads * tokens * latent_dim_);
  float* values = pieces.take(tokens * heads * value_dim);

  norm(w_.norm, states, hidden_, normed);
  product(normed, tokens, w_.kv_a, rows);
  norm_in_place(w_.kv_a_norm, w_.norm.eps, rows, tokens, latent_dim_, row);
  rotate({rows + latent_dim_, tokens, 1, row, rope_dim_, rope_dim_ / 2, cos_sin});
  store_kv(rows, tokens, pages, batch);

  if (w_.q_a.has_value()) {
    product(normed, tokens, *w_.q_a, q_low);
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
  const int64_t hidden = (dense_ ? *dense_ : routed_->experts).gate.cols;
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
  const int64_t tokens = states.num_tokens;
  const int64_t hidden = (dense_ ? *dense_ : routed_->experts).gate.cols;
  const int64_t experts = routed_ ? routed_->router.rows : 0;
  const bool has_both = routed_ && dense_;
  Pieces pieces(tokens * (hidden + experts + (has_both ? hidden : 0)));
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
    expert_ffn({.x = normed,
                .ids = ids,
                .weights = weights,
                .num_tokens = tokens,
                .top_k = r.top_k,
                .gate = {r.experts.gate},
                .up = {r.experts.up},
                .down = {r.experts.down},
                .base = nullptr,
                .out = routed});
  }
  if (!dense_) return;
  expert_ffn({.x = normed,
              .ids = nullptr,
              .weights = nullptr,
              .num_tokens = tokens,
              .top_k = 1,
              .gate = {dense_->gate},
              .up = {dense_->up},
              .down = {dense_->down},
              .base = routed_ ? routed : nullptr,
              .out = states.out});
}

void run_layers(std::span<const FusedLayer> layers, float* x, int64_t num_tokens, int64_t hidden,
                const SequenceBatch& batch, const float* cos_sin, float* added, int32_t* ids,
                float* weights) {
  float* const by_attention = added;
  float* const by_ffn = added + num_tokens * hidden;
  const float* residual = nullptr;
  for (const FusedLayer& layer : layers) {
    layer.attention->forward({x, residual, num_tokens, by_attention}, *layer.pages, batch, cos_sin);
    layer.ffn->forward({x, by_attention, num_tokens, by_ffn}, ids, weights);
    residual = by_ffn;
    ids += num_tokens * layer.ffn->top_k();
    weights += num_tokens * layer.ffn->top_k();
  }
  if (residual == nullptr) return;
  for (int64_t i = 0; i < num_tokens * hidden; ++i) x[i] += residual[i];
}

void run_head(const RmsNorm& weights, const Matrix& head, float* x, int64_t num_tokens,
              float* normed, float* logits) {
  norm(weights, {x, nullptr, num_tokens, normed}, head.cols, normed);
  product(normed, num_tokens, head, logits);
}

}  // namespace hm
