#include "ops/token_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "base/check.h"
#include "base/runtime.h"
#include "kernels/select.h"

namespace hm {
namespace {

constexpr int64_t kTaskFloats = 1 << 15;  // what is worth a task; less is done by the caller alone

// f(first, last) for ranges of tokens that have `floats` numbers each.
template <class Function>
void each_range(int64_t num_tokens, int64_t floats, const Function& f) {
  const int64_t step = std::max<int64_t>(1, kTaskFloats / std::max<int64_t>(1, floats));
  if (num_tokens <= step) return f(0, num_tokens);
  const RuntimeLock runtime;
  runtime->pool.run((num_tokens + step - 1) / step, [&](int64_t task, int) {
    f(task * step, std::min(num_tokens, (task + 1) * step));
  });
}

void norm_tokens(const RmsNormArgs& a, int64_t first, int64_t last) {
  const KernelTable& kernels = active_table();
  for (int64_t t = first; t < last; ++t) {
    kernels.rms_norm(a.x + t * a.x_stride, a.residual == nullptr ? nullptr : a.residual + t * a.n,
                     a.weight, a.n, a.eps, a.out + t * a.out_stride);
  }
}

void rotate_tokens(const RotateArgs& a, int64_t first, int64_t last) {
  for (int64_t t = first; t < last; ++t) {
    const float* unit = a.cos_sin + t * a.num_pairs * 2;
    for (int64_t h = 0; h < a.num_heads; ++h) {
      float* x = a.x + t * a.token_stride + h * a.head_stride;
      for (int64_t i = 0; i < a.num_pairs * 2; i += 2) {
        const float re = x[i] * unit[i] - x[i + 1] * unit[i + 1];
        x[i + 1] = x[i] * unit[i + 1] + x[i + 1] * unit[i];
        x[i] = re;
      }
    }
  }
}

// The k best of `choice`, best first.
struct Best {
  const float* choice;
  int32_t* ids;
  int64_t k, count = 0;

  void offer(int64_t e) {
    if (count == k && !(choice[e] > choice[ids[k - 1]])) return;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && choice[e] > choice[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = static_cast<int32_t>(e);
  }
};

class Router {
 public:
  explicit Router(const RouteArgs& args) : a_(args), size_(args.num_experts / args.num_groups) {}

  void route(int64_t first, int64_t last) const {
    thread_local std::vector<float> memory;  // keeps its memory between calls
    thread_local std::vector<int32_t> groups;
    memory.resize(2 * a_.num_experts + a_.num_groups);
    groups.resize(a_.num_groups_used);
    float* scores = memory.data();
    float* choice = scores + a_.num_experts;
    float* strength = choice + a_.num_experts;
    for (int64_t t = first; t < last; ++t) {
      score(a_.logits + t * a_.num_experts, scores);
      for (int64_t e = 0; e < a_.num_experts; ++e) {
        const float c = a_.bias == nullptr ? scores[e] : scores[e] + a_.bias[e];
        choice[e] = std::isnan(c) ? std::numeric_limits<float>::infinity() : c;  // seen, not lost
      }
      choose(choice, strength, groups.data(), a_.ids + t * a_.top_k);
      weigh(scores, a_.ids + t * a_.top_k, a_.weights + t * a_.top_k);
    }
  }

 private:
  void score(const float* logits, float* scores) const {
    const int64_t n = a_.num_experts;
    if (a_.is_sigmoid) {
      for (int64_t e = 0; e < n; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
      return;
    }
    const float max = *std::max_element(logits, logits + n);
    float sum = 0.0f;
    for (int64_t e = 0; e < n; ++e) sum += scores[e] = std::exp(logits[e] - max);
    for (int64_t e = 0; e < n; ++e) scores[e] /= sum;
  }

  void choose(const float* choice, float* strength, int32_t* groups, int32_t* ids) const {
    Best best{choice, ids, a_.top_k};
    if (a_.num_groups_used == a_.num_groups) {
      for (int64_t e = 0; e < a_.num_experts; ++e) best.offer(e);
      return;
    }
    for (int64_t g = 0; g < a_.num_groups; ++g) strength[g] = strength_of(choice + g * size_);
    Best best_groups{strength, groups, a_.num_groups_used};
    for (int64_t g = 0; g < a_.num_groups; ++g) best_groups.offer(g);
    std::sort(groups, groups + a_.num_groups_used);
    for (int64_t i = 0; i < a_.num_groups_used; ++i) {
      for (int64_t e = groups[i] * size_; e < (groups[i] + 1) * size_; ++e) best.offer(e);
    }
  }

  float strength_of(const float* choice) const {
    constexpr float none = -std::numeric_limits<float>::infinity();
    float first = none, second = none;
    for (int64_t e = 0; e < size_; ++e) {
      second = std::max(second, std::min(first, choice[e]));
      first = std::max(first, choice[e]);
    }
    return a_.is_sigmoid && size_ > 1 ? first + second : first;
  }

  void weigh(const float* scores, const int32_t* ids, float* weights) const {
    float sum = 0.0f;
    for (int64_t j = 0; j < a_.top_k; ++j) sum += scores[ids[j]];
    const float factor = a_.is_normalized ? a_.scale / (sum + 1e-20f) : a_.scale;
    for (int64_t j = 0; j < a_.top_k; ++j) weights[j] = scores[ids[j]] * factor;
  }

  const RouteArgs& a_;
  const int64_t size_;  // experts in a group
};

}  // namespace

void rms_norm(const RmsNormArgs& a) {
  each_range(a.num_tokens, a.n, [&](int64_t first, int64_t last) { norm_tokens(a, first, last); });
}

void rms_norm_alone(const RmsNormArgs& a) { norm_tokens(a, 0, a.num_tokens); }

float norm_scale(const float* x, int64_t n, float eps) {
  constexpr int lanes = 16;
  float sums[lanes] = {};
  const int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) sums[lane] += x[i + lane] * x[i + lane];
  }
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += x[i] * x[i];
  for (int width = lanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  return 1.0f / std::sqrt(sums[0] / static_cast<float>(n) + eps);
}

void rotate(const RotateArgs& a) {
  each_range(a.num_tokens, a.num_heads * a.num_pairs * 2,
             [&](int64_t first, int64_t last) { rotate_tokens(a, first, last); });
}

void rotate_alone(const RotateArgs& a) { rotate_tokens(a, 0, a.num_tokens); }

void route(const RouteArgs& a) {
  check(a.num_groups >= 1 && a.num_experts % a.num_groups == 0 && a.num_groups_used >= 1 &&
            a.num_groups_used <= a.num_groups && a.top_k >= 1 &&
            a.top_k <= a.num_experts / a.num_groups * a.num_groups_used,
        "route: ", a.top_k, " of ", a.num_experts, " experts in ", a.num_groups_used, " of ",
        a.num_groups, " groups is not usable");
  const Router router(a);
  each_range(a.num_tokens, 16 * a.num_experts,
             [&](int64_t first, int64_t last) { router.route(first, last); });
}

}  // namespace hm
