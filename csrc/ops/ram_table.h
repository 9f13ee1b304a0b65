// Residency of a model's experts: each is logically in VRAM, in a RAM slot, or on disk only.
//
// That changes by decisions of policies alone, so it is a function of the routing. Where the bytes
// are lags behind: an expert that is VRAM's has not arrived there, and stays in a "leaving" buffer;
// one that RAM has taken back has to be read, or copied, first. An expert that no tier keeps is
// streamed: read into a free buffer, and given up after its use.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "ops/expert_store.h"
#include "ops/layer_lru.h"

namespace hm {

// Buffers of each pool beside its slots.
struct RamLimits {
  int64_t num_ahead;    // for experts that are read on a hint
  int64_t num_leaving;  // for experts that are VRAM's and have not arrived, or come back
};

// Arrays (keys) of the caller's that accesses write, VRAM's experts too; null for none.
struct RamNotes {
  int64_t* uses;      // counts them
  uint8_t* was_away;  // of the last one: 1 if its bytes were on disk only, 0 if RAM had them
};

// Counted since the beginning. Any thread may look.
struct RamCounters {
  std::atomic<int64_t> hits{0}, misses{0}, uploads{0}, evictions{0};  // of the policy, by accesses
  std::atomic<int64_t> promoted{0}, returned{0};                      // residents to VRAM; back
  std::atomic<int64_t> prefetched{0}, prefetched_used{0}, hinted{0}, hinted_right{0};
  std::atomic<int64_t> bytes_read{0}, num_resident{0};
  std::atomic<double> wait_s{0};
};

// Not thread-safe, except counters. Nothing here waits but `warm`, `wait` and `drain`. Keys and
// layers are checked: Error.
class RamTable {
 public:
  // slots: by pool.
  RamTable(ExpertStore store, const std::vector<int32_t>& pool_of_layer, int64_t num_experts,
           const std::vector<int64_t>& slots, const RamLimits& limits, const RamNotes& notes);

  // --- A layer of a step.

  // The tokens of a step use these experts of a layer (num_ids, -1 = none): decides about all that
  // are not VRAM's, and counts. is_prefill: free slots only. What was admitted is read on
  // `request`.
  void access(int64_t layer, std::span<const int32_t> ids, bool is_prefill);

  // The keys of a layer to come, likeliest first; the next `read_ahead` reads what is missing.
  void hint(int64_t layer, std::vector<int64_t> keys);
  void read_ahead();
  void forget_hints() { hints_.clear(); }

  // Starts a read, and keeps the expert until `release`, whoever else keeps it. False: no buffer.
  bool request(int64_t key, bool is_urgent);
  // Returns true if it was never read. No effect on what others keep.
  bool release(int64_t key);

  // Takes in reads that have ended; `wait` waits for one: StalledRead if none ends for `stall_s`
  // and `is_unwanted` says that nobody needs it.
  const std::vector<ExpertRead>& poll() { return collect(0); }
  const std::vector<ExpertRead>& wait();
  void drain();  // waits until no read is in flight, ignoring errors; StalledRead as above

  // Asked while reads are waited for.
  using IsUnwanted = std::function<bool()>;
  void abandon_when(IsUnwanted is_unwanted, double stall_s);

  bool is_loaded(int64_t key) const { return store_.is_loaded(key); }
  bool is_in_flight(int64_t key) const { return store_.is_in_flight(key); }
  bool has_bytes(int64_t key) const { return store_.has_bytes(key); }
  // Whether the expert stays once it is released.
  bool stays(int64_t key) const { return lru_.is_resident(key) || (flags_[key] & ~kHeld) != 0; }
  int64_t num_free(int64_t layer) const { return store_.num_free(pool_of(layer)); }
  const uint8_t* const* addresses_of_layer(int64_t layer) const;

  // --- Between steps.

  // Makes keys resident, most valuable first, and reads them. Calls progress(bytes) as they come,
  // and now and then while none do; what it throws ends this. Returns how many are resident.
  int64_t warm(std::span<const int64_t> keys, const std::function<void(int64_t)>& progress);

  // The key is VRAM's now. Its bytes stay as leaving, where a buffer may be spent on that. Returns
  // whether it was resident.
  bool discard(int64_t key);
  // The key is VRAM's no more; RAM takes it or not, as LayerLru::offer has it. Leaving bytes become
  // the slot's; where there are none, it is read when it is used, or by `fetch`, or received.
  LayerLru::Offer offer(int64_t key);

  // Reads an expert that VRAM or RAM keeps, behind all that is urgent. Returns true if it is in
  // flight or loaded; false if no buffer is free for it, or nobody keeps it.
  bool fetch(int64_t key);
  // An expert of VRAM has arrived there: its bytes need not be kept here any more.
  void uploaded(int64_t key);
  // Where an expert is that is loaded.
  std::optional<ExpertAddresses> addresses(int64_t key) const;

  // A buffer to copy a resident without bytes to; `received` ends the copy. None: no buffer is
  // free, or bytes are there or on their way.
  struct Receipt {
    int64_t buffer;
    ExpertAddresses addresses;
  };
  std::optional<Receipt> receive(int64_t key);
  void received(int64_t buffer, bool is_good);

  std::vector<int64_t> resident() const { return lru_.resident(); }
  int64_t num_leaving_free(int64_t layer) const;
  int64_t num_free_buffers() const { return store_.num_free(); }
  const std::vector<BufferPool>& pools() const { return store_.pools(); }
  int64_t num_experts() const { return num_experts_; }
  const RamCounters& counters() const { return counters_; }

  // Throws Error unless each expert is in one place, each buffer has one owner, and no pool has
  // more residents, leaving or ahead than it may. Between layers.
  void check_invariants() const;

 private:
  enum Flag : uint8_t { kHeld = 1, kLeaving = 2, kAhead = 4 };  // who keeps it, beside RAM's policy

  int32_t pool_of(int64_t layer) const { return pool_of_layer_[layer]; }
  int32_t pool_of_key(int64_t key) const { return pool_of_layer_[key / num_experts_]; }
  bool is_leaving(int64_t key) const { return (flags_[key] & kLeaving) != 0; }
  void check_key(int64_t key) const;
  void sort_out(int64_t layer, std::span<const int32_t> ids);
  const std::vector<ExpertRead>& collect(double timeout_s);
  bool free_unless_kept(int64_t key);
  bool keep_as_leaving(int64_t key);
  void end_leaving(int64_t key);
  void note_resident();
  void note(int64_t first_key, const std::vector<bool>& hits);
  void count_hint(int64_t layer);
  void end_prefetches(const std::vector<bool>& hits, int64_t first_key);

  ExpertStore store_;
  const std::vector<int32_t> pool_of_layer_;
  const int64_t num_experts_;
  const RamLimits limits_;
  const RamNotes notes_;
  LayerLru lru_;
  std::vector<uint8_t> flags_;                                   // by key
  std::vector<bool> has_arrived_;                                // by key: VRAM has the bytes
  std::vector<bool> is_above_;                                   // by key: VRAM's
  std::vector<int64_t> num_leaving_;                             // by pool, receipts included
  std::vector<std::pair<int64_t, std::vector<int64_t>>> hints_;  // layer -> keys
  std::vector<int64_t> ahead_;                                   // keys read on a hint, in order
  std::vector<std::pair<int64_t, int64_t>> receipts_;            // buffer -> key
  std::vector<int32_t> seen_, above_;                            // of the access under way
  std::vector<int64_t> stamps_;  // by expert: the last access that used it
  int64_t num_accesses_ = 0;
  IsUnwanted is_unwanted_;
  double stall_s_ = 2;
  RamCounters counters_;
};

}  // namespace hm
