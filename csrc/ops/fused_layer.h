// The halves of a decoder layer, norm and attention, norm and feed-forward network, each as one
// call, and all layers as one: between their steps runs no Python, which all threads would wait
// for.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "ops/expert_ffn.h"
#include "ops/kv_pages.h"
#include "ops/matrix.h"
#include "ops/token_ops.h"

namespace hm {

struct RmsNorm {
  const float* weight;
  float eps;
};

// The states of a step's tokens. What the half before this added may lie apart: `residual` is added
// to x first, unless it is null.
struct StepStates {
  float* x;               // (T, H)
  const float* residual;  // (T, H)
  int64_t num_tokens;
  float* out;                        // (T, H): what this half adds; null: it is added to x
  const float* read_next = nullptr;  // (H): weights of the next norm
};

// Multi-head latent attention, dense, absorbed: hybridmoe/model/mla.py, step by step.
class FusedAttention {
 public:
  struct Weights {
    RmsNorm norm;
    std::optional<Matrix> q_a;  // (Q, H); none: q_b takes the normed states
    const float* q_a_norm;      // (Q)
    Matrix q_b;                 // (N (nope + P), Q)
    Matrix kv_a;                // (R + P, H)
    const float* kv_a_norm;     // (R)
    Matrix k_b;                 // (N, R, nope)
    Matrix v_b;                 // (N, V, R)
    Matrix out;                 // (H, N V)
    float scale;
  };

  // Throws Error where sizes do not fit each other.
  explicit FusedAttention(const Weights& weights);

  // cos_sin: (T, P). Throws Error where the batch does not fit the pages.
  void forward(const StepStates& states, const KvPages& pages, const SequenceBatch& batch,
               const float* cos_sin) const;

  int64_t hidden() const { return hidden_; }
  int64_t rope_dim() const { return rope_dim_; }
  const float* norm_weight() const { return w_.norm.weight; }

 private:
  const Weights w_;
  const int64_t hidden_, latent_dim_, rope_dim_, nope_dim_;
};

// Routed experts that are all in memory, a shared expert, or both: hybridmoe/model/moe.py.
class FusedFfn {
 public:
  struct Swiglu {
    Matrix gate, up, down;
  };
  struct Routed {
    Matrix router;      // (E, H)
    const float* bias;  // (E) or null
    int64_t top_k, num_groups, num_groups_used;
    bool is_sigmoid, is_normalized;
    float scale;
    Swiglu experts;
  };

  // One of both at least. Throws Error where sizes do not fit each other.
  FusedFfn(const RmsNorm& norm, std::optional<Routed> routed, std::optional<Swiglu> dense);

  // ids, weights: (T, k), where there are routed experts.
  void forward(const StepStates& states, int32_t* ids, float* weights) const;

  int64_t hidden() const { return (dense_ ? *dense_ : routed_->experts).gate.cols; }
  int64_t top_k() const { return routed_ ? routed_->top_k : 0; }
  const float* norm_weight() const { return norm_.weight; }

 private:
  const RmsNorm norm_;
  const std::optional<Routed> routed_;
  const std::optional<Swiglu> dense_;
};

// Consecutive layers of a model.
class FusedLayers {
 public:
  struct Layer {
    const FusedAttention* attention;
    const FusedFfn* ffn;
  };

  // At least one. Throws Error where they do not fit each other.
  explicit FusedLayers(std::vector<Layer> layers);

  // x (T, H) becomes the states behind the last layer. pages: of each layer. ids, weights: (layers
  // with routed experts, T, k), or null.
  void forward(std::span<const KvPages> pages, float* x, int64_t num_tokens,
               const SequenceBatch& batch, const float* cos_sin, int32_t* ids,
               float* weights) const;

  int64_t hidden() const { return layers_[0].attention->hidden(); }
  int64_t rope_dim() const { return layers_[0].attention->rope_dim(); }

 private:
  const std::vector<Layer> layers_;
  int64_t most_top_k_ = 0;
};

}  // namespace hm
