#include "ops/ram_table.h"

#include <algorithm>
#include <chrono>

#include "base/check.h"
#include "ops/read_errors.h"

namespace hm {

RamTable::RamTable(ExpertStore store, const std::vector<int32_t>& pool_of_layer,
                   int64_t num_experts, const std::vector<int64_t>& slots, const RamLimits& limits,
                   const RamNotes& notes)
    : store_(std::move(store)),
      pool_of_layer_(pool_of_layer),
      num_experts_(num_experts),
      limits_(limits),
      notes_(notes),
      lru_(pool_of_layer, num_experts, slots),
      flags_(store_.num_keys()),
      has_arrived_(store_.num_keys()),
      is_above_(store_.num_keys()),
      num_leaving_(slots.size()),
      stamps_(num_experts) {
  check(limits.num_ahead >= 0 && limits.num_leaving >= 0, "RamTable: ", limits.num_ahead,
        " ahead, ", limits.num_leaving, " leaving");
}

void RamTable::access(int64_t layer, std::span<const int32_t> ids, bool is_prefill) {
  sort_out(layer, ids);
  const LayerLru::Decision& decision = lru_.on_access(layer, seen_, above_, is_prefill);
  const int64_t first_key = layer * num_experts_;
  const auto num_hits = std::count(decision.hits.begin(), decision.hits.end(), true);
  const auto count = [](auto& counter, std::size_t n) { counter += static_cast<int64_t>(n); };
  count(counters_.hits, num_hits);
  count(counters_.misses, seen_.size() - num_hits);
  count(counters_.uploads, decision.admitted.size());
  count(counters_.evictions, decision.evicted.size());
  note(first_key, decision.hits);
  for (const int64_t key : decision.evicted) free_unless_kept(key);
  note_resident();
  count_hint(layer);
  end_prefetches(decision.hits, first_key);
}

// The distinct experts of an access, in order of first use: this tier's, and VRAM's.
void RamTable::sort_out(int64_t layer, std::span<const int32_t> ids) {
  check(layer >= 0 && layer < static_cast<int64_t>(pool_of_layer_.size()), "RamTable: layer ",
        layer, " of ", pool_of_layer_.size());
  for (const int32_t id : ids) {
    check(id >= -1 && id < num_experts_, "expert_ffn: expert id ", id, ", expected -1 to ",
          num_experts_ - 1);
  }
  seen_.clear();
  above_.clear();
  ++num_accesses_;
  for (const int32_t id : ids) {
    if (id < 0 || stamps_[id] == num_accesses_) continue;
    stamps_[id] = num_accesses_;
    (is_above_[layer * num_experts_ + id] ? above_ : seen_).push_back(id);
  }
}

void RamTable::note(int64_t first_key, const std::vector<bool>& hits) {
  if (notes_.uses != nullptr) {
    for (const auto* experts : {&seen_, &above_}) {
      for (const int32_t expert : *experts) ++notes_.uses[first_key + expert];
    }
  }
  if (notes_.was_away != nullptr) {
    for (std::size_t i = 0; i < seen_.size(); ++i) {
      notes_.was_away[first_key + seen_[i]] = hits[i] ? 0 : 1;
    }
    for (const int32_t expert : above_) {
      notes_.was_away[first_key + expert] = store_.has_bytes(first_key + expert) ? 0 : 1;
    }
  }
}

void RamTable::count_hint(int64_t layer) {
  const auto hint = std::find_if(hints_.begin(), hints_.end(),
                                 [&](const auto& entry) { return entry.first == layer; });
  if (hint == hints_.end()) return;
  const int64_t first_key = layer * num_experts_;
  counters_.hinted += static_cast<int64_t>(seen_.size());
  for (const int64_t key : hint->second) {
    const auto expert = static_cast<int32_t>(key - first_key);
    if (std::find(seen_.begin(), seen_.end(), expert) != seen_.end()) ++counters_.hinted_right;
  }
  hints_.erase(hint);
}

// Of the experts read on a hint, keeps those that the access has missed, for its own use.
void RamTable::end_prefetches(const std::vector<bool>& hits, int64_t first_key) {
  for (const int64_t key : ahead_) {
    flags_[key] &= ~kAhead;
    const auto found = std::find(seen_.begin(), seen_.end(), key - first_key);
    if (found != seen_.end() && !hits[found - seen_.begin()]) {
      flags_[key] |= kHeld;
      ++counters_.prefetched_used;
    } else if (free_unless_kept(key)) {
      --counters_.prefetched;  // cancelled before it was read
    }
  }
  ahead_.clear();
}

void RamTable::hint(int64_t layer, std::vector<int64_t> keys) {
  for (const int64_t key : keys) check_key(key);
  for (auto& entry : hints_) {
    if (entry.first == layer) {
      entry.second = std::move(keys);
      return;
    }
  }
  hints_.emplace_back(layer, std::move(keys));
}

void RamTable::read_ahead() {
  for (const auto& [_, keys] : hints_) {
    for (const int64_t key : keys) {
      if (static_cast<int64_t>(ahead_.size()) >= limits_.num_ahead) return;
      if (is_above_[key] || store_.has_bytes(key)) continue;
      if (!store_.request(key, false)) return;
      flags_[key] |= kAhead;
      ahead_.push_back(key);
      ++counters_.prefetched;
    }
  }
}

bool RamTable::request(int64_t key, bool is_urgent) {
  check_key(key);
  if (!store_.request(key, is_urgent)) return false;
  flags_[key] |= kHeld;
  return true;
}

bool RamTable::release(int64_t key) {
  check_key(key);
  flags_[key] &= ~kHeld;
  if (is_above_[key]) keep_as_leaving(key);  // VRAM may want what was read
  return free_unless_kept(key);
}

const std::vector<ExpertRead>& RamTable::collect(double timeout_s) {
  const std::vector<ExpertRead>& ended = store_.collect(timeout_s);
  for (const ExpertRead& read : ended) {
    if (read.error.empty()) continue;
    if (is_leaving(read.key)) end_leaving(read.key);
    if ((flags_[read.key] & kAhead) != 0) {
      flags_[read.key] &= ~kAhead;
      std::erase(ahead_, read.key);
    }
  }
  counters_.bytes_read = store_.bytes_read();
  return ended;
}

const std::vector<ExpertRead>& RamTable::wait() {
  using Clock = std::chrono::steady_clock;
  check(store_.num_in_flight() > 0, "RamTable: no read is in flight");
  const auto begin = Clock::now();
  const auto note_wait = [&] {
    const std::chrono::duration<double> waited = Clock::now() - begin;
    counters_.wait_s = counters_.wait_s + waited.count();  // nobody else writes
  };
  while (collect(stall_s_).empty()) {
    if (!is_unwanted_ || !is_unwanted_()) continue;
    note_wait();
    throw StalledRead(stall_s_);
  }
  note_wait();
  return store_.ended();
}

void RamTable::drain() {
  while (store_.num_in_flight() > 0) wait();
}

void RamTable::abandon_when(IsUnwanted is_unwanted, double stall_s) {
  is_unwanted_ = std::move(is_unwanted);
  stall_s_ = stall_s;
}

const uint8_t* const* RamTable::addresses_of_layer(int64_t layer) const {
  return store_.addresses_of_layer(layer);
}

int64_t RamTable::warm(std::span<const int64_t> keys,
                       const std::function<void(int64_t)>& progress) {
  for (const int64_t key : keys) {
    check_key(key);
    check(!is_above_[key], "RamTable: key ", key, " is VRAM's");
  }
  lru_.warm(keys);
  note_resident();
  for (const int64_t key : lru_.resident()) {
    check(store_.request(key, true), "RamTable: no buffer for key ", key);
  }
  std::string error;
  while (store_.num_in_flight() > 0) {
    const int64_t before = store_.bytes_read();
    for (const ExpertRead& read : collect(stall_s_)) {
      if (error.empty()) error = read.error;
    }
    progress(store_.bytes_read() - before);  // also where none has come: a disk that hangs
  }
  if (!error.empty()) throw ReadFailure(error);
  return counters_.num_resident;
}

bool RamTable::discard(int64_t key) {
  check_key(key);
  const bool was_resident = lru_.discard(key);
  if (was_resident) ++counters_.promoted;
  note_resident();
  is_above_[key] = true;
  has_arrived_[key] = false;
  if ((flags_[key] & kAhead) != 0) {
    flags_[key] &= ~kAhead;
    std::erase(ahead_, key);
  }
  keep_as_leaving(key);
  free_unless_kept(key);
  return was_resident;
}

LayerLru::Offer RamTable::offer(int64_t key) {
  check_key(key);
  check(is_above_[key], "RamTable: key ", key, " is not VRAM's");
  const LayerLru::Offer offer = lru_.offer(key);
  is_above_[key] = has_arrived_[key] = false;
  if (offer.is_taken) ++counters_.returned;
  if (offer.evicted >= 0) {
    ++counters_.evictions;
    free_unless_kept(offer.evicted);
  }
  if (is_leaving(key)) end_leaving(key);
  note_resident();
  return offer;
}

bool RamTable::fetch(int64_t key) {
  check_key(key);
  if (!is_above_[key]) return lru_.is_resident(key) && store_.request(key, false);
  if (has_arrived_[key]) return false;
  if (store_.has_bytes(key)) return keep_as_leaving(key);
  if (num_leaving_[pool_of_key(key)] == limits_.num_leaving) return false;
  return store_.request(key, false) && keep_as_leaving(key);
}

void RamTable::uploaded(int64_t key) {
  check_key(key);
  has_arrived_[key] = is_above_[key];
  if (is_leaving(key)) end_leaving(key);
}

std::optional<ExpertAddresses> RamTable::addresses(int64_t key) const {
  check_key(key);
  if (!store_.is_loaded(key)) return std::nullopt;
  return store_.addresses(key);
}

std::optional<RamTable::Receipt> RamTable::receive(int64_t key) {
  check_key(key);
  int64_t& num_leaving = num_leaving_[pool_of_key(key)];
  if (!lru_.is_resident(key) || store_.has_buffer(key) || num_leaving == limits_.num_leaving) {
    return std::nullopt;
  }
  for (const auto& [_, coming] : receipts_) {
    if (coming == key) return std::nullopt;
  }
  const int64_t buffer = store_.take_buffer(key);
  if (buffer < 0) return std::nullopt;
  ++num_leaving;
  receipts_.emplace_back(buffer, key);
  return Receipt{buffer, store_.buffer_addresses(buffer, key)};
}

void RamTable::received(int64_t buffer, bool is_good) {
  const auto receipt = std::find_if(receipts_.begin(), receipts_.end(),
                                    [&](const auto& entry) { return entry.first == buffer; });
  check(receipt != receipts_.end(), "RamTable: nothing is copied to buffer ", buffer);
  const int64_t key = receipt->second;
  receipts_.erase(receipt);
  --num_leaving_[pool_of_key(key)];
  if (is_good && lru_.is_resident(key) && !store_.has_buffer(key)) {
    store_.adopt(key, buffer);
  } else {
    store_.give_back(buffer);
  }
}

int64_t RamTable::num_leaving_free(int64_t layer) const {
  return limits_.num_leaving - num_leaving_[pool_of(layer)];
}

void RamTable::check_key(int64_t key) const {
  check(key >= 0 && key < store_.num_keys(), "RamTable: key ", key, ", expected 0 to ",
        store_.num_keys() - 1);
}

bool RamTable::free_unless_kept(int64_t key) {
  return !lru_.is_resident(key) && flags_[key] == 0 && store_.release(key);
}

bool RamTable::keep_as_leaving(int64_t key) {
  if (is_leaving(key)) return true;
  int64_t& num_leaving = num_leaving_[pool_of_key(key)];
  const bool is_of_use = store_.has_bytes(key) && !has_arrived_[key];
  if (!is_of_use || num_leaving == limits_.num_leaving) return false;
  ++num_leaving;
  flags_[key] |= kLeaving;
  return true;
}

void RamTable::end_leaving(int64_t key) {
  flags_[key] &= ~kLeaving;
  --num_leaving_[pool_of_key(key)];
  free_unless_kept(key);
}

void RamTable::note_resident() {
  int64_t count = 0;
  for (int32_t group = 0; group < lru_.num_groups(); ++group) count += lru_.num_resident(group);
  counters_.num_resident = count;
}

}  // namespace hm
