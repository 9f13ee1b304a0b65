// The routed experts of one layer: the hot path of the program.
#pragma once

#include <cstdint>

#include "ops/matrix.h"

namespace hm {

struct ExpertFfnArgs {
  const float* x;        // (T, H)
  const int32_t* ids;    // (T, k), -1 = none; null: expert 0 for every token, with weight 1
  const float* weights;  // (T, k)
  int64_t num_tokens, top_k;
  const Matrix& gate;  // (E, I, H)
  const Matrix& up;    // (E, I, H)
  const Matrix& down;  // (E, H, I)
  const float* base;   // (T, H) or null
  float* out;          // (T, H)
};

// out[t] = base[t] + sum over j of weights[t, j] * down_e (silu(gate_e x[t]) * up_e x[t]), e =
// ids[t, j], added in the order of j. Reads each distinct expert once. Throws Error, before
// anything is written, where the shapes disagree or an id is outside -1..E-1.
void expert_ffn(const ExpertFfnArgs& args);

}  // namespace hm
