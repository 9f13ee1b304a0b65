// A step of few tokens as one call, from their ids to the greedy tokens behind them.
#pragma once

#include <span>

#include "ops/fused_layer.h"

namespace hm {

class FusedStep {
 public:
  // `layers` stay where they are. Throws Error where sizes do not fit each other.
  FusedStep(const Matrix& embedding, const FusedLayers& layers, const RmsNorm& norm,
            const Matrix& head);

  struct Args {
    const int64_t* ids;  // (T)
    int64_t num_tokens;
    SequenceBatch batch;
    std::span<const KvPages> pages;  // of each layer
    const float* rotations;          // (positions, P), by position
    int64_t num_rotations;
    float* states;  // (T, H), behind the last layer
    float* logits;  // (T, V)
    int32_t* best;  // (T): the first token of the greatest logit; -1 where one is not finite
  };

  // Throws Error for an id or a position that does not exist.
  void forward(const Args& args) const;

 private:
  const Matrix embedding_;
  const FusedLayers& layers_;
  const RmsNorm norm_;
  const Matrix head_;
};

}  // namespace hm
