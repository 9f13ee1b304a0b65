#include "ops/layer_lru.h"

#include <algorithm>

#include "base/check.h"

namespace hm {

LayerLru::LayerLru(const std::vector<int32_t>& group_of, int64_t num_experts,
                   const std::vector<int64_t>& slots)
    : num_layers_(static_cast<int64_t>(group_of.size())),
      num_experts_(num_experts),
      num_keys_(num_layers_ * num_experts) {
  check(num_layers_ >= 1 && num_layers_ <= 1 << 12 && num_experts >= 1 && num_experts <= 1 << 15,
        "LayerLru: ", num_layers_, " layers of ", num_experts, " experts");
  for (const int64_t count : slots) {
    check(count >= 0, "LayerLru: ", count, " slots");
    groups_.push_back({.num_slots = count});
  }
  nodes_.resize(num_keys_ + num_layers_);
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const int32_t g = group_of[layer];
    check(g >= 0 && g < num_groups(), "LayerLru: layer ", layer, " is of group ", g, " of ",
          num_groups());
    nodes_[head(layer)] = {head(layer), head(layer)};
    layers_.push_back({.group = g, .share = groups_[g].num_layers++});  // its rank, for now
  }
  for (Layer& l : layers_) {
    const auto [count, layers, _] = groups_[l.group];
    l.share = count / layers + (l.share < count % layers ? 1 : 0);
  }
  is_resident_.resize(num_keys_);
  last_used_.resize(num_keys_);
  stamps_.resize(num_keys_);
}

const LayerLru::Decision& LayerLru::on_access(int64_t layer, std::span<const int32_t> experts,
                                              std::span<const int32_t> above, bool is_prefill) {
  check_access(layer, experts, above);
  const int64_t first = layer * num_experts_;
  Decision& d = decision_;
  d.hits.clear();
  d.admitted.clear();
  d.evicted.clear();
  const int64_t visit = ++layers_[layer].visits;
  int64_t num_used = 0;
  for (const int32_t expert : experts) {
    const int64_t key = first + expert;
    d.hits.push_back(is_resident_[key]);
    if (!is_resident_[key]) continue;
    ++num_used;
    last_used_[key] = visit;
    unlink(key);
    link_behind(head(layer), key);
    note_oldest(layer);
  }
  for (std::size_t i = 0; i < experts.size(); ++i) {
    if (d.hits[i]) continue;
    const int64_t key = first + experts[i];
    if (group(layer).is_full()) {
      if (is_prefill || group(layer).num_resident == num_used) continue;
      const int64_t victim = evict(key);
      if (victim < 0) continue;
      d.evicted.push_back(victim);
    }
    last_used_[key] = visit;
    insert(key, head(layer));
    ++num_used;
    d.admitted.push_back(experts[i]);
  }
  for (const int32_t expert : above) last_used_[first + expert] = visit;
  return d;
}

bool LayerLru::discard(int64_t key) {
  check_key(key);
  if (!is_resident_[key]) return false;
  remove(key);
  return true;
}

LayerLru::Offer LayerLru::offer(int64_t key) {
  check_key(key);
  check(!is_resident_[key], "LayerLru: key ", key, " is resident already");
  int64_t victim = -1;
  const Layer& own = layers_[key / num_experts_];
  if (groups_[own.group].is_full()) {
    // As `evict` would choose after the last layer of a step, all layers alike.
    int64_t from = -1, most = own.visits - last_used_[key];
    for (int64_t layer = 0; layer < num_layers_; ++layer) {
      const Layer& l = layers_[layer];
      if (l.group != own.group || l.num_resident == 0) continue;
      const int64_t passed_over = l.passed_over();
      if (passed_over > most || (passed_over == most && from >= 0))
        from = layer, most = passed_over;
    }
    if (from < 0) return {false, -1};
    victim = nodes_[head(from)].before;
    remove(victim);
  }
  const int32_t end = head(key / num_experts_);
  int32_t before = nodes_[end].before;
  while (before != end && last_used_[before] < last_used_[key]) before = nodes_[before].before;
  insert(key, before);
  return {true, victim};
}

void LayerLru::warm(std::span<const int64_t> keys) {
  for (const int64_t key : keys) check_key(key);
  std::vector<int64_t> num_free, chosen;
  for (const Group& g : groups_) num_free.push_back(g.num_slots - g.num_resident);
  for (const int64_t key : keys) {
    if (num_free[layers_[key / num_experts_].group]-- > 0) chosen.push_back(key);
  }
  for (; !chosen.empty(); chosen.pop_back()) {
    const auto expert = static_cast<int32_t>(chosen.back() % num_experts_);
    on_access(chosen.back() / num_experts_, {&expert, 1}, {}, true);
  }
}

std::vector<int64_t> LayerLru::resident() const {
  std::vector<int64_t> keys;
  for (int64_t key = 0; key < num_keys_; ++key) {
    if (is_resident_[key]) keys.push_back(key);
  }
  return keys;
}

void LayerLru::check_key(int64_t key) const {
  check(key >= 0 && key < num_keys_, "LayerLru: key ", key, ", expected 0 to ", num_keys_ - 1);
}

void LayerLru::check_access(int64_t layer, std::span<const int32_t> experts,
                            std::span<const int32_t> above) {
  check(layer >= 0 && layer < num_layers_, "LayerLru: layer ", layer, ", expected 0 to ",
        num_layers_ - 1);
  ++clock_;
  for (const bool is_above : {false, true}) {
    for (const int32_t expert : is_above ? above : experts) {
      check(expert >= 0 && expert < num_experts_, "LayerLru: expert ", expert, ", expected 0 to ",
            num_experts_ - 1);
      const int64_t key = layer * num_experts_ + expert;
      check(stamps_[key] != clock_, "LayerLru: expert ", expert, " twice in one access");
      check(!is_above || !is_resident_[key], "LayerLru: expert ", expert,
            " is resident here and above");
      stamps_[key] = clock_;
    }
  }
}

void LayerLru::link_behind(int32_t node, int64_t key) {
  const auto k = static_cast<int32_t>(key);
  nodes_[k] = {node, nodes_[node].behind};
  nodes_[nodes_[node].behind].before = k;
  nodes_[node].behind = k;
}

void LayerLru::unlink(int64_t key) {
  const auto [before, behind] = nodes_[key];
  nodes_[before].behind = behind;
  nodes_[behind].before = before;
}

void LayerLru::note_oldest(int64_t layer) {
  if (layers_[layer].num_resident > 0) {
    layers_[layer].oldest = last_used_[nodes_[head(layer)].before];
  }
}

void LayerLru::insert(int64_t key, int32_t before) {
  const int64_t layer = key / num_experts_;
  link_behind(before, key);
  is_resident_[key] = true;
  ++layers_[layer].num_resident;
  ++group(layer).num_resident;
  note_oldest(layer);
}

void LayerLru::remove(int64_t key) {
  const int64_t layer = key / num_experts_;
  unlink(key);
  is_resident_[key] = false;
  --layers_[layer].num_resident;
  --group(layer).num_resident;
  note_oldest(layer);
}

// Removes a victim for the newcomer `key`, and returns it; -1: none, the newcomer is streamed.
int64_t LayerLru::evict(int64_t key) {
  const int64_t here = key / num_experts_;
  const Layer& own = layers_[here];
  const bool is_below_share = own.num_resident < own.share;
  int64_t from = -1, best = num_layers_;  // an age of at least one visit is more than this
  int64_t from_rich = -1, best_rich = -1;
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    const Layer& l = layers_[layer];
    if (l.group != own.group || l.num_resident == 0) continue;
    const int64_t passed_over = l.passed_over();
    if (layer == here && passed_over == 0) continue;  // used in this visit
    const int64_t distance = layer > here ? layer - here : layer - here + num_layers_;
    const int64_t age = passed_over * num_layers_ + distance;
    if (age > best) from = layer, best = age;
    if (is_below_share && age > best_rich && l.num_resident > l.share) {
      from_rich = layer, best_rich = age;
    }
  }
  if (from < 0) from = from_rich;
  if (from < 0) return -1;
  const int64_t victim = nodes_[head(from)].before;
  remove(victim);
  return victim;
}

}  // namespace hm
