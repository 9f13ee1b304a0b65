#include "ops/expert_ffn.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "base/runtime.h"
#include "ops/expert_forward-inl.h"
#include "ops/expert_tiles.h"
#include "ops/routing.h"

namespace hm {
namespace {

void check_args(const ExpertFfnArgs& a) {
  const Matrix &gate = a.gate, &up = a.up, &down = a.down;
  check(gate.batch == up.batch && gate.rows == up.rows && gate.cols == up.cols,
        "expert_ffn: gate (", gate.batch, ", ", gate.rows, ", ", gate.cols, ") and up (", up.batch,
        ", ", up.rows, ", ", up.cols, ") differ");
  check(down.batch == gate.batch && down.rows == gate.cols && down.cols == gate.rows,
        "expert_ffn: down (", down.batch, ", ", down.rows, ", ", down.cols, "), expected (",
        gate.batch, ", ", gate.cols, ", ", gate.rows, ")");
  check(a.ids != nullptr || a.num_tokens * a.top_k == 0 || (a.top_k == 1 && gate.batch > 0),
        "expert_ffn: no experts to choose");
  for (int64_t i = 0; a.ids != nullptr && i < a.num_tokens * a.top_k; ++i) {
    check(a.ids[i] >= -1 && a.ids[i] < gate.batch, "expert_ffn: expert id ", a.ids[i], " of token ",
          i / a.top_k, ", expected -1 to ", gate.batch - 1);
  }
}

void check_all(const ExpertFfnArgs& args) {
  check(args.top_k >= 0 && args.top_k <= kMaxTopK, "expert_ffn: ", args.top_k,
        " experts a token, expected at most ", kMaxTopK);
  check_args(args);
}

void check_in_memory(const ExpertMatrix& w, int64_t expert) {
  if (w.at == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(w.at[expert]);
  check(address != 0 && address % static_cast<uintptr_t>(w.type->alignment) == 0,
        "expert_ffn: expert ", expert, " is at ", address, ", expected an address aligned to ",
        w.type->alignment);
}

}  // namespace

void expert_ffn(const ExpertFfnArgs& args) {
  check_all(args);
  if (args.num_tokens == 0) return;
  const RuntimeLock runtime;
  thread_local Routing routing;  // keeps its memory between calls
  route(args, routing);
  ExpertFfnArgs untiled = args;
  if (!routing.tiled.empty()) untiled.added_to = nullptr;
  Forward forward(untiled, routing, *runtime);
  forward.prepare(*runtime);
  if (!routing.untiled.empty()) forward.compute(routing.untiled, *runtime);
  forward.sum(*runtime);
  if (routing.tiled.empty()) return;
  add_expert_tiles(args, routing, routing.tiled, *runtime);
  if (args.added_to == nullptr) return;
  const int64_t hidden = args.gate.cols;
  runtime->pool.run(args.num_tokens, [&](int64_t token, int) {
    for (int64_t i = token * hidden; i < (token + 1) * hidden; ++i) args.added_to[i] += args.out[i];
  });
}

void expert_ffn_with_dense(const ExpertFfnArgs& routed, const ExpertFfnArgs& dense) {
  check_all(routed);
  check_all(dense);
  check(dense.ids == nullptr && dense.base == nullptr && dense.x == routed.x &&
            dense.num_tokens == routed.num_tokens && dense.gate.cols == routed.gate.cols,
        "expert_ffn: the dense network is not one of the same tokens");
  if (routed.num_tokens == 0) return;
  ExpertFfnArgs second = dense;
  second.base = routed.out;
  if (routed.num_tokens >= kLeastTileTokens) {
    expert_ffn(routed);
    return expert_ffn(second);
  }
  const RuntimeLock runtime;
  thread_local Routing routings[2];
  thread_local Buffers buffers;  // of the second
  route(routed, routings[0]);
  route(second, routings[1]);
  Forward experts(routed, routings[0], *runtime), network(second, routings[1], buffers);
  experts.prepare(*runtime);
  network.prepare(*runtime, &experts);
  experts.compute_and_sum_with(network, *runtime);
}

struct ExpertPass::State {
  std::optional<ExpertFfnArgs> args;  // none: no pass is under way
  Routing routing;
  Buffers buffers;
  std::optional<Forward> forward;
  std::vector<const Batch*> waiting;  // (E): of routing.untiled, those not computed yet
  std::vector<Batch> batches;         // of the call under way
  std::size_t num_free_done, num_tiles_done;

  // Writes what routing.untiled gives, once all of it is there, before the tiles add to it.
  void sum(Runtime& runtime) {
    if (num_tiles_done == 0) forward->sum(runtime);
  }
};

ExpertPass::ExpertPass() : state_(std::make_unique<State>()) {}
ExpertPass::~ExpertPass() = default;

ExpertPass::Order ExpertPass::begin(const ExpertFfnArgs& args) {
  check_all(args);
  check(args.added_to == nullptr, "expert_ffn: a pass in pieces adds to nothing");
  const RuntimeLock runtime;
  State& s = *state_;
  s.args = args;
  route(*s.args, s.routing);
  s.forward.emplace(*s.args, s.routing, s.buffers);
  s.forward->prepare(*runtime);
  s.num_free_done = s.num_tiles_done = 0;
  s.waiting.assign(args.gate.batch, nullptr);
  Order order{.experts = {}, .num_free = static_cast<int64_t>(s.routing.untiled.size())};
  for (const Batch& batch : s.routing.untiled) {
    s.waiting[batch.expert] = &batch;
    order.experts.push_back(static_cast<int32_t>(batch.expert));
  }
  for (const Batch& batch : s.routing.tiled) {
    order.experts.push_back(static_cast<int32_t>(batch.expert));
  }
  return order;
}

void ExpertPass::compute(std::span<const int32_t> experts) {
  const RuntimeLock runtime;
  State& s = *state_;
  check(s.args.has_value(), "expert_ffn: no pass has begun");
  const auto& [untiled, tiled] = std::tie(s.routing.untiled, s.routing.tiled);
  s.batches.clear();
  std::size_t tiles = 0;
  for (const int32_t e : experts) {
    check(e >= 0 && e < s.args->gate.batch, "expert_ffn: expert ", e, " does not exist");
    for (const ExpertMatrix* w : {&s.args->gate, &s.args->up, &s.args->down})
      check_in_memory(*w, e);
  }
  for (const int32_t e : experts) {
    if (tiles == 0 && s.waiting[e] != nullptr) {
      s.batches.push_back(*s.waiting[e]);
      s.waiting[e] = nullptr;
      continue;
    }
    const std::size_t next = s.num_tiles_done + tiles;
    const bool is_next = s.num_free_done + s.batches.size() == untiled.size() &&
                         next < tiled.size() && tiled[next].expert == e;
    check(is_next, "expert_ffn: expert ", e, " is out of order");
    ++tiles;
  }
  if (!s.batches.empty()) s.forward->compute(s.batches, *runtime);
  s.num_free_done += s.batches.size();
  if (tiles == 0) return;
  s.sum(*runtime);
  add_expert_tiles(*s.args, s.routing, std::span(tiled).subspan(s.num_tiles_done, tiles), *runtime);
  s.num_tiles_done += tiles;
}

void ExpertPass::finish() {
  const RuntimeLock runtime;
  State& s = *state_;
  check(s.args.has_value(), "expert_ffn: no pass has begun");
  const std::size_t missing =
      s.routing.untiled.size() + s.routing.tiled.size() - s.num_free_done - s.num_tiles_done;
  check(missing == 0, "expert_ffn: ", missing, " experts have not been computed");
  s.sum(*runtime);
  s.forward.reset();
  s.args.reset();
}

}  // namespace hm
