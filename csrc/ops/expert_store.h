// Where the bytes of experts are: in a RAM buffer, on their way into one, or only in the file.
//
// Buffers come in pools, one for each size of expert. What is read and what is given up are the
// caller's decisions. Keys as in LayerLru.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/file_reader.h"

namespace hm {

constexpr int kNumParts = 3;  // an expert's gate, up and down
using ExpertAddresses = std::array<const uint8_t*, kNumParts>;

// Buffers of one size, one after the other.
struct BufferPool {
  std::byte* memory;  // of whole blocks
  int64_t num_buffers;
  std::array<int64_t, kNumParts> part_bytes;  // room for a gate, an up, a down: whole blocks

  int64_t buffer_bytes() const { return part_bytes[0] + part_bytes[1] + part_bytes[2]; }
};

// A layer's experts in the file: three stacks of equal matrices, two of which may be in one tensor.
struct ExpertFiles {
  struct Part {
    int32_t file;
    int64_t offset;     // of expert 0
    int64_t stride;     // from one expert to the next
    int64_t num_bytes;  // of each
    int64_t num_rows;   // of each
    std::string name;   // for messages

    int64_t offset_of(int64_t expert) const { return offset + expert * stride; }
  };
  int32_t pool;
  std::array<Part, kNumParts> parts;
};

// A read that has ended.
struct ExpertRead {
  int64_t key;
  std::string error;  // one line; empty: none
};

// Not thread-safe: only the reads are another thread's. The memory of the pools stays in place
// until the reader is idle.
class ExpertStore {
 public:
  // Throws Error where an expert does not fit into its pool's buffers.
  ExpertStore(std::shared_ptr<FileReader> reader, std::vector<BufferPool> pools,
              std::vector<ExpertFiles> layers, int64_t num_experts);

  int64_t num_keys() const { return static_cast<int64_t>(experts_.size()); }
  bool is_loaded(int64_t key) const { return experts_[key].place == Place::kLoaded; }
  // A read that was given up is not one.
  bool is_in_flight(int64_t key) const { return experts_[key].place == Place::kInFlight; }
  bool has_bytes(int64_t key) const { return is_loaded(key) || is_in_flight(key); }
  bool has_buffer(int64_t key) const { return experts_[key].place != Place::kFile; }

  // Starts a read, unless the expert is loaded or in flight; an urgent one overtakes others.
  // Returns false if no buffer is free.
  bool request(int64_t key, bool is_urgent);

  // Frees an expert's buffer, now or once its read has ended. Returns true if it was never read.
  bool release(int64_t key);

  // Takes in reads that have ended, and waits up to `timeout_s` for the first; those given up are
  // among them, without an error. The result is valid until the next call.
  const std::vector<ExpertRead>& collect(double timeout_s);

  const std::vector<ExpertRead>& ended() const { return ended_; }  // the last result of collect

  // Of an expert that is loaded; else nulls.
  ExpertAddresses addresses(int64_t key) const;
  // (3, E): of a layer, as ExpertMatrix::at wants them.
  const uint8_t* const* addresses_of_layer(int64_t layer) const;

  // A buffer for an expert that comes from elsewhere, or -1 if none is free. `give_back` ends it.
  int64_t take_buffer(int64_t key);
  ExpertAddresses buffer_addresses(int64_t buffer, int64_t key) const;
  void give_back(int64_t buffer);
  // A taken buffer holds the expert now, which has no bytes anywhere else.
  void adopt(int64_t key, int64_t buffer);

  int64_t num_free() const;  // of all pools
  int64_t num_free(int32_t pool) const { return static_cast<int64_t>(free_[pool].size()); }
  int32_t pool_of(int64_t key) const { return layers_[key / num_experts_].pool; }
  const std::vector<BufferPool>& pools() const { return pools_; }
  int64_t num_in_flight() const { return num_in_flight_; }  // given up or not
  int64_t bytes_read() const { return bytes_read_; }

  // Throws Error unless each buffer is free, an expert's, or one of the `taken`, exactly once.
  void check_buffers(const std::vector<int64_t>& taken) const;

 private:
  enum class Place : uint8_t { kFile, kInFlight, kGivenUp, kLoaded };  // kGivenUp: still in flight
  struct Expert {
    int32_t buffer = -1;  // of all pools'
    Place place = Place::kFile;
  };

  void free_buffer(int64_t key);
  void set_addresses(int64_t key, const ExpertAddresses& addresses);
  std::byte* memory_of(int64_t buffer) const;
  int64_t skew(int64_t key, int part) const;
  void claim(int64_t key, int64_t buffer);
  std::string describe(const ReadEnd& end) const;

  const std::shared_ptr<FileReader> reader_;
  const std::vector<BufferPool> pools_;
  const std::vector<ExpertFiles> layers_;
  const int64_t num_experts_;
  std::vector<int64_t> first_buffer_;       // by pool, and the number of all
  std::vector<std::vector<int32_t>> free_;  // by pool; the lowest is last, and is used first
  std::vector<bool> is_claimed_;            // by buffer: its pages are on their nodes
  std::vector<Expert> experts_;             // by key
  std::vector<const uint8_t*> addresses_;   // (L, 3, E), null = not loaded
  std::vector<ExpertRead> ended_;
  int64_t num_in_flight_ = 0;
  int64_t bytes_read_ = 0;
};

}  // namespace hm
