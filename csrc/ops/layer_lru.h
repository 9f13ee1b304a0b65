// Which experts stay in RAM: layer-aware LRU, decision for decision that of the Python package
// (hybridmoe/experts/policy/lru.py, which explains it and cites its source), so that a simulated
// cache and a live one count the same.
//
// A key is layer * experts + expert. A key "above" is kept by the tier above, VRAM: it is in none
// of the lists, but the time of its last use is known, for when it comes back.
//
// Layers whose experts differ in size have slots of their own: each group of layers is a cache for
// itself.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace hm {

// Not thread-safe. Arguments are checked: Error before anything has changed.
class LayerLru {
 public:
  // group_of: by layer. slots: by group.
  LayerLru(const std::vector<int32_t>& group_of, int64_t num_experts,
           const std::vector<int64_t>& slots);

  struct Decision {
    std::vector<bool> hits;         // for each expert of the access: it was resident before
    std::vector<int32_t> admitted;  // misses to keep, in their order
    std::vector<int64_t> evicted;   // keys that leave for them; none of this access
  };
  // One layer of one step uses these distinct experts, in order of first use, and those above.
  // is_prefill: takes free slots only. The result is valid until the next call.
  const Decision& on_access(int64_t layer, std::span<const int32_t> experts,
                            std::span<const int32_t> above, bool is_prefill);

  // Forgets a resident key, since it goes above. Returns false if it was not resident.
  bool discard(int64_t key);

  struct Offer {
    bool is_taken;
    int64_t evicted;  // key that leaves for it, or -1
  };
  // A key comes back from above between two steps: it takes a free slot, or that of a victim which
  // its layer has passed over more often.
  Offer offer(int64_t key);

  // Admits keys while slots are free, the most valuable first; it is the last to leave.
  void warm(std::span<const int64_t> keys);

  bool is_resident(int64_t key) const { return is_resident_[key]; }
  int64_t num_resident(int32_t group) const { return groups_[group].num_resident; }
  int64_t num_slots(int32_t group) const { return groups_[group].num_slots; }
  int32_t num_groups() const { return static_cast<int32_t>(groups_.size()); }
  std::vector<int64_t> resident() const;  // ascending

 private:
  struct Node {
    int32_t before, behind;
  };
  struct Layer {
    int32_t group;
    int64_t share;  // even share of its group's slots
    int64_t visits = 0, num_resident = 0;
    int64_t oldest = 0;  // visit of the last use of its least recently used resident

    int64_t passed_over() const { return visits - oldest; }
  };
  struct Group {
    int64_t num_slots, num_layers = 0, num_resident = 0;

    bool is_full() const { return num_resident == num_slots; }
  };

  int32_t head(int64_t layer) const { return static_cast<int32_t>(num_keys_ + layer); }
  Group& group(int64_t layer) { return groups_[layers_[layer].group]; }
  void check_key(int64_t key) const;
  void check_access(int64_t layer, std::span<const int32_t> experts,
                    std::span<const int32_t> above);
  void link_behind(int32_t node, int64_t key);
  void unlink(int64_t key);
  void note_oldest(int64_t layer);
  void insert(int64_t key, int32_t before);
  void remove(int64_t key);
  int64_t evict(int64_t key);

  const int64_t num_layers_, num_experts_, num_keys_;
  int64_t clock_ = 0;  // accesses
  std::vector<Node>
      nodes_;  // keys, then the heads of the layers' lists: newest key behind the head
  std::vector<bool> is_resident_;
  std::vector<int64_t> last_used_;  // in visits of the key's layer
  std::vector<int64_t> stamps_;     // number of the last access that used the key
  std::vector<Layer> layers_;
  std::vector<Group> groups_;
  Decision decision_;
};

}  // namespace hm
