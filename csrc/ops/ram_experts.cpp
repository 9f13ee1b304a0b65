#include "ops/ram_experts.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "ops/read_errors.h"

namespace hm {

RamExperts::RamExperts(std::unique_ptr<RamTable> table, std::vector<RamLayer> layers,
                       int64_t decode_tokens)
    : table_(std::move(table)), layers_(std::move(layers)), decode_tokens_(decode_tokens) {
  for (const RamLayer& layer : layers_) {
    check(layer.num_staging >= 1, "RamExperts: ", layer.num_staging,
          " buffers for experts that do not stay");
    check(layer.gate.batch == table_->num_experts(), "RamExperts: ", layer.gate.batch,
          " experts in a layer, ", table_->num_experts(), " in the table");
  }
}

int64_t RamExperts::hidden(int64_t layer) const {
  check(layer >= 0 && layer < static_cast<int64_t>(layers_.size()), "RamExperts: layer ", layer,
        " of ", layers_.size());
  return layers_[layer].gate.cols;
}

void RamExperts::compute(const RamStep& step) {
  const int64_t hidden = this->hidden(step.layer), first_key = step.layer * table_->num_experts();
  const bool is_prefill = step.num_tokens > decode_tokens_;
  const bool is_needed = take_ids(step);
  ExpertPass::Order order{};
  if (is_needed) {
    const auto& [gate, up, down, _] = layers_[step.layer];
    const uint8_t* const* at = table_->addresses_of_layer(step.layer);
    order = pass_.begin({
        .x = step.x,
        .ids = ids_.data(),
        .weights = step.weights,
        .num_tokens = step.num_tokens,
        .top_k = step.top_k,
        .gate = {gate, at},
        .up = {up, at + gate.batch},
        .down = {down, at + 2 * gate.batch},
        .base = nullptr,
        .out = step.out,
    });
  }
  const auto num_ids = static_cast<std::size_t>(step.num_tokens * step.top_k);
  table_->access(step.layer, {step.ids, num_ids}, is_prefill);
  try {
    compute(order, first_key, layers_[step.layer].num_staging);
  } catch (const StalledRead&) {  // its reads keep their buffers until they return
    table_->forget_hints();
    for (const int32_t expert : order.experts) table_->release(first_key + expert);
    throw;
  } catch (...) {
    table_->forget_hints();
    for (const int32_t expert : order.experts) table_->release(first_key + expert);
    table_->drain();
    throw;
  }
  if (is_needed) {
    pass_.finish();
  } else {  // not worth waking the pool
    std::fill_n(step.out, step.num_tokens * hidden, 0.0f);
  }
}

// Fills ids_ with the experts that the GPU does not compute; returns whether there are any.
bool RamExperts::take_ids(const RamStep& step) {
  const int64_t num_ids = step.num_tokens * step.top_k, num_experts = table_->num_experts();
  ids_.resize(num_ids);
  bool is_needed = false;
  for (int64_t i = 0; i < num_ids; ++i) {
    const int32_t id = step.ids[i];
    check(id >= -1 && id < num_experts, "expert_ffn: expert id ", id, " of token ", i / step.top_k,
          ", expected -1 to ", num_experts - 1);
    const bool is_on_gpu = id >= 0 && step.slot_of != nullptr && step.slot_of[id] >= 0;
    ids_[i] = is_on_gpu ? -1 : id;
    is_needed |= ids_[i] >= 0;
  }
  return is_needed;
}

void RamExperts::compute(const ExpertPass::Order& order, int64_t first_key, int64_t num_staging) {
  RamTable& table = *table_;
  const auto first_tiled = order.experts.begin() + order.num_free;
  free_.assign(order.experts.begin(), first_tiled);
  tiled_.assign(first_tiled, order.experts.end());
  wanted_.clear();
  table.poll();  // prefetches; one that has failed is requested again
  for (const int32_t expert : order.experts) {
    const int64_t key = first_key + expert;
    if (table.has_bytes(key)) {
      table.request(key, true);  // holds it
    } else {
      wanted_.push_back(expert);
    }
  }
  request(first_key);
  table.read_ahead();
  while (!free_.empty() || !tiled_.empty()) {
    take_ready(first_key, num_staging);
    compute_ready(first_key);
    for (const ExpertRead& read : ready_.empty() ? table.wait() : table.poll()) {
      if (read.error.empty()) continue;
      const auto is_of = [&](const std::vector<int32_t>& experts) {
        return std::find(experts.begin(), experts.end(), read.key - first_key) != experts.end();
      };
      if (is_of(free_) || is_of(tiled_)) throw ReadFailure(read.error);
    }
    request(first_key);
  }
}

// Requests what is missing, in its order, while buffers are free.
void RamExperts::request(int64_t first_key) {
  const auto end = std::find_if_not(wanted_.begin(), wanted_.end(), [&](int32_t expert) {
    return table_->request(first_key + expert, true);
  });
  wanted_.erase(wanted_.begin(), end);
}

// The loaded experts that may be computed next. While reads wait for a free buffer, at most half
// of the staging buffers' experts: the other half is read meanwhile.
void RamExperts::take_ready(int64_t first_key, int64_t num_staging) {
  const bool is_free = !free_.empty();
  int64_t passing_left =
      wanted_.empty() ? table_->num_experts() : std::max<int64_t>(1, num_staging / 2);
  ready_.clear();
  for (const int32_t expert : is_free ? free_ : tiled_) {
    const int64_t key = first_key + expert;
    if (table_->is_loaded(key)) {
      if (!table_->stays(key) && --passing_left < 0) break;
      ready_.push_back(expert);
    } else if (!is_free) {
      break;
    }
  }
}

void RamExperts::compute_ready(int64_t first_key) {
  if (ready_.empty()) return;
  pass_.compute(ready_);
  auto& rest = free_.empty() ? tiled_ : free_;
  std::erase_if(rest, [&](int32_t expert) {
    return std::find(ready_.begin(), ready_.end(), expert) != ready_.end();
  });
  for (const int32_t expert : ready_) table_->release(first_key + expert);
}

void RamExperts::note_failure(Failure failure) {
  has_failed_ = true;
  if (failure_ == Failure::kNone) failure_ = failure;
}

RamExpertCall::RamExpertCall(RamExperts& experts, int64_t layer, const HostCallMemory& memory)
    : HostCall(memory, experts.hidden(layer)), experts_(experts), layer_(layer) {}

void RamExpertCall::compute(int64_t num_tokens) {
  if (experts_.has_failed()) {
    std::fill_n(memory_.out, num_tokens * hidden_, 0.0f);
    return;
  }
  try {
    experts_.compute({
        .layer = layer_,
        .x = memory_.x,
        .ids = memory_.ids,
        .weights = memory_.weights,
        .num_tokens = num_tokens,
        .top_k = memory_.top_k,
        .slot_of = memory_.slot_of,
        .out = memory_.out,
    });
  } catch (const StalledRead&) {
    experts_.note_failure(RamExperts::Failure::kStall);
    throw;
  } catch (const ReadFailure&) {
    experts_.note_failure(RamExperts::Failure::kRead);
    throw;
  } catch (...) {
    experts_.note_failure(RamExperts::Failure::kOther);
    throw;
  }
}

}  // namespace hm
