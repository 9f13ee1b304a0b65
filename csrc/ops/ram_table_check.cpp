#include "base/check.h"
#include "ops/ram_table.h"

namespace hm {

void RamTable::check_invariants() const {
  std::vector<int64_t> taken, num_leaving(num_leaving_.size());
  for (const auto& [buffer, key] : receipts_) {
    taken.push_back(buffer);
    ++num_leaving[pool_of_key(key)];
  }
  store_.check_buffers(taken);
  int64_t num_ahead = 0;
  for (int64_t key = 0; key < store_.num_keys(); ++key) {
    const bool is_ahead = (flags_[key] & kAhead) != 0, is_resident = lru_.is_resident(key);
    num_ahead += is_ahead;
    num_leaving[pool_of_key(key)] += is_leaving(key);
    check(!is_resident || !is_above_[key], "key ", key, " is in VRAM and in RAM");
    check(!is_leaving(key) || (is_above_[key] && !has_arrived_[key] && store_.has_bytes(key)),
          "key ", key, " leaves, but is not VRAM's, has arrived, or has no bytes");
    check(!is_ahead || !is_above_[key], "key ", key, " of VRAM was read ahead");
    check(!store_.has_bytes(key) || is_resident || flags_[key] != 0, "key ", key,
          " has a buffer that nobody keeps");
  }
  check(num_leaving == num_leaving_, "the leaving buffers are miscounted");
  for (const int64_t count : num_leaving) {
    check(count <= limits_.num_leaving, count, " leaving buffers of ", limits_.num_leaving);
  }
  check(num_ahead == static_cast<int64_t>(ahead_.size()) && num_ahead <= limits_.num_ahead,
        num_ahead, " experts are read ahead, ", ahead_.size(), " are noted, of ",
        limits_.num_ahead);
  for (int32_t group = 0; group < lru_.num_groups(); ++group) {
    check(lru_.num_resident(group) <= lru_.num_slots(group), lru_.num_resident(group),
          " residents in ", lru_.num_slots(group), " slots");
  }
}

}  // namespace hm
