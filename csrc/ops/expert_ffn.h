// The routed experts of one layer: the hot path of the program.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "ops/matrix.h"

namespace hm {

// One of an expert's three matrices, of all experts: a stack in one piece, or each at its address.
struct ExpertMatrix : Matrix {
  const uint8_t* const* at = nullptr;  // (E), null = not in memory; no array: one after the other

  const uint8_t* row(int64_t expert, int64_t r) const {
    return at == nullptr ? Matrix::row(expert, r) : at[expert] + r * row_bytes;
  }
};

struct ExpertFfnArgs {
  const float* x;        // (T, H)
  const int32_t* ids;    // (T, k), -1 = none; null: expert 0 for every token, with weight 1
  const float* weights;  // (T, k)
  int64_t num_tokens, top_k;
  ExpertMatrix gate;  // (E, I, H)
  ExpertMatrix up;    // (E, I, H)
  ExpertMatrix down;  // (E, H, I)
  const float* base;  // (T, H) or null
  float* out;         // (T, H)

  const void* const* rounded = nullptr;  // (T): x by kernels.quantize, or null: not yet
  float* added_to = nullptr;             // (T, H), to which `out` is added, or null
  const float* read_next = nullptr;      // (H), read after this, or null
};

// Expert of a token's j-th choice, pair t * k + j.
inline int64_t expert_of(const ExpertFfnArgs& a, int64_t pair) {
  return a.ids == nullptr ? 0 : a.ids[pair];
}

// Weight of its product with `down`, whose factor it takes in.
inline float pair_weight(const ExpertFfnArgs& a, int64_t pair) {
  return (a.ids == nullptr ? 1.0f : a.weights[pair]) * a.down.scale(expert_of(a, pair));
}

// out[t] = base[t] + sum over j of weights[t, j] * down_e (silu(gate_e x[t]) * up_e x[t]), e =
// ids[t, j], added in the order of j. Reads each distinct expert once. Throws Error, before
// anything is written, where the shapes disagree or an id is outside -1..E-1.
void expert_ffn(const ExpertFfnArgs& args);

// out (T, H) = what `routed` gives plus a dense network of the same tokens, whose args have neither
// base nor ids: the bits of one after the other, in half the jobs where tokens are few.
void expert_ffn_with_dense(const ExpertFfnArgs& routed, const ExpertFfnArgs& dense);

// The same in pieces, bit for bit: experts are computed as they come into memory, and need not be
// there all at once. What `args` points to stays in place from begin to finish. Keeps its memory
// for the next pass.
class ExpertPass {
 public:
  ExpertPass();
  ~ExpertPass();

  // The experts that these tokens need, each once, in the order in which `compute` may have them:
  // the first `num_free` in any order, the rest, which go through matrix tiles and add to the
  // result as they come, only after those and in this order.
  struct Order {
    std::vector<int32_t> experts;
    int64_t num_free;
  };
  Order begin(const ExpertFfnArgs& args);

  // Some experts, which are in memory now. Throws Error, before anything is computed, for one that
  // is not, or that is out of order.
  void compute(std::span<const int32_t> experts);

  // Throws Error where an expert is missing; else args.out is complete.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hm
