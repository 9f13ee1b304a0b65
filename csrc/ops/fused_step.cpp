#include "ops/fused_step.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/linear.h"

namespace hm {
namespace {

// Rows of the tokens' positions, one after the other.
void gather_rotations(const FusedStep::Args& a, int64_t dim, float* out) {
  for (int64_t s = 0; s < a.batch.num_spans; ++s) {
    const SequenceSpan& span = a.batch.spans[s];
    check(
        span.start >= 0 && span.num_tokens >= 0 && span.start <= a.num_rotations - span.num_tokens,
        "fused step: positions ", span.start, " to ", span.start + span.num_tokens, " of ",
        a.num_rotations);
    out = std::copy_n(a.rotations + span.start * dim, span.num_tokens * dim, out);
  }
}

// The first greatest of a token's logits, by parts; -1 where one is not finite.
void find_best(const float* logits, int64_t num_tokens, int64_t size, int32_t* best) {
  constexpr int64_t part = 1 << 13;
  const KernelTable& kernels = active_table();
  const int64_t parts = (size + part - 1) / part;
  const auto part_size = [&](int64_t p) { return std::min(part, size - p * part); };
  const RuntimeLock runtime;
  float* greatest = runtime->outputs.get<float>(num_tokens * parts);
  runtime->pool.run(num_tokens * parts, [&](int64_t task, int) {
    const int64_t p = task % parts;
    greatest[task] = kernels.greatest(logits + task / parts * size + p * part, part_size(p));
  });
  for (int64_t t = 0; t < num_tokens; ++t, logits += size, greatest += parts) {
    int64_t at = 0;
    bool is_finite = true;
    for (int64_t p = 0; p < parts; ++p) {
      is_finite = is_finite && !std::isnan(greatest[p]);
      if (greatest[p] > greatest[at]) at = p;
    }
    const float* first = logits + at * part;
    const auto found = std::find(first, first + part_size(at), greatest[at]) - logits;
    best[t] = is_finite ? static_cast<int32_t>(found) : -1;
  }
}

}  // namespace

FusedStep::FusedStep(const Matrix& embedding, const FusedLayers& layers, const RmsNorm& norm,
                     const Matrix& head)
    : embedding_(embedding), layers_(layers), norm_(norm), head_(head) {
  check(embedding.cols == layers.hidden() && head.cols == layers.hidden(), "fused step: layers of ",
        layers.hidden(), ", embedding of ", embedding.cols, ", head of ", head.cols);
  check(head.batch == 1 && head.rows >= 1 && head.rows <= INT32_MAX, "fused step: a head of ",
        head.batch, " matrices of ", head.rows, " rows");
}

void FusedStep::forward(const Args& a) const {
  const int64_t hidden = layers_.hidden(), rope_dim = layers_.rope_dim();
  int64_t in_batch = 0;
  for (int64_t s = 0; s < a.batch.num_spans; ++s) in_batch += a.batch.spans[s].num_tokens;
  check(in_batch == a.num_tokens, "fused step: ", a.num_tokens, " tokens, sequences have ",
        in_batch);
  if (a.num_tokens == 0) return;
  thread_local Buffer memory;
  Pieces pieces(memory, a.num_tokens * (rope_dim + hidden));
  float* rotations = pieces.take(a.num_tokens * rope_dim);
  float* normed = pieces.take(a.num_tokens * hidden);
  gather_rotations(a, rope_dim, rotations);
  gather_rows(embedding_, a.ids, a.num_tokens, a.states);
  layers_.forward(a.pages, a.states, a.num_tokens, a.batch, rotations, nullptr, nullptr);
  rms_norm({.x = a.states,
            .x_stride = hidden,
            .residual = nullptr,
            .weight = norm_.weight,
            .num_tokens = a.num_tokens,
            .n = hidden,
            .eps = norm_.eps,
            .out = normed,
            .out_stride = hidden});
  linear({normed, 0, hidden}, a.num_tokens, head_, {a.logits, 0, head_.rows});
  find_best(a.logits, a.num_tokens, head_.rows, a.best);
}

}  // namespace hm
