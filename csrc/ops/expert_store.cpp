#include "ops/expert_store.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/runtime.h"
#include "ops/touch_rows.h"

namespace hm {

ExpertStore::ExpertStore(std::shared_ptr<FileReader> reader, std::vector<BufferPool> pools,
                         std::vector<ExpertFiles> layers, int64_t num_experts)
    : reader_(std::move(reader)),
      pools_(std::move(pools)),
      layers_(std::move(layers)),
      num_experts_(num_experts) {
  check(reader_ != nullptr, "ExpertStore: no reader");
  for (const ExpertFiles& layer : layers_) {
    check(layer.pool >= 0 && layer.pool < static_cast<int32_t>(pools_.size()), "ExpertStore: pool ",
          layer.pool, " of ", pools_.size());
    for (int i = 0; i < kNumParts; ++i) {
      const ExpertFiles::Part& part = layer.parts[i];
      const int64_t room = pools_[layer.pool].part_bytes[i];
      // Any expert begins anywhere in a block.
      check(part.num_bytes > 0 && part.num_rows > 0 &&
                whole_blocks(part.num_bytes + kBlockBytes - 1) <= room,
            part.name, ": matrices of ", part.num_bytes, " bytes do not fit into buffers of ",
            room);
    }
  }
  int64_t num_buffers = 0;
  for (const BufferPool& pool : pools_) {
    first_buffer_.push_back(num_buffers);
    auto& free = free_.emplace_back();
    for (int64_t i = pool.num_buffers; i-- > 0;) {
      free.push_back(static_cast<int32_t>(num_buffers + i));
    }
    num_buffers += pool.num_buffers;
  }
  first_buffer_.push_back(num_buffers);
  is_claimed_.assign(num_buffers, threads().size() == 1);
  experts_.resize(layers_.size() * num_experts);
  addresses_.resize(kNumParts * experts_.size());
}

bool ExpertStore::request(int64_t key, bool is_urgent) {
  Expert& expert = experts_[key];
  if (expert.place == Place::kLoaded) return true;
  if (expert.place != Place::kFile) {
    expert.place = Place::kInFlight;
    if (is_urgent) reader_->make_urgent(key);
    return true;
  }
  const int64_t buffer = take_buffer(key);
  if (buffer < 0) return false;
  const ExpertFiles& layer = layers_[key / num_experts_];
  ReadRange ranges[kNumParts];
  std::byte* memory = memory_of(buffer);
  for (int i = 0; i < kNumParts; ++i) {
    const ExpertFiles::Part& part = layer.parts[i];
    ranges[i] = {part.file, part.offset_of(key % num_experts_), part.num_bytes, memory};
    memory += pools_[layer.pool].part_bytes[i];
  }
  try {
    reader_->submit(key, ranges, is_urgent);
  } catch (...) {
    give_back(buffer);
    throw;
  }
  expert = {static_cast<int32_t>(buffer), Place::kInFlight};
  ++num_in_flight_;
  return true;
}

bool ExpertStore::release(int64_t key) {
  Expert& expert = experts_[key];
  if (expert.place == Place::kLoaded) {
    free_buffer(key);
  } else if (expert.place == Place::kInFlight) {
    if (reader_->cancel(key)) {
      --num_in_flight_;
      free_buffer(key);
      return true;
    }
    expert.place = Place::kGivenUp;
  }
  return false;
}

const std::vector<ExpertRead>& ExpertStore::collect(double timeout_s) {
  ended_.clear();
  while (auto end = reader_->take(ended_.empty() ? timeout_s : 0)) {
    const int64_t key = end->key;
    check(key >= 0 && key < num_keys(), "ExpertStore: a read of key ", key, " has ended");
    Expert& expert = experts_[key];
    --num_in_flight_;
    const ExpertFiles& layer = layers_[key / num_experts_];
    if (end->reason.empty()) {
      for (const auto& part : layer.parts) bytes_read_ += part.num_bytes;
    }
    const bool is_given_up = expert.place == Place::kGivenUp;
    if (is_given_up || !end->reason.empty()) {
      free_buffer(key);
      ended_.push_back({key, is_given_up ? std::string() : describe(*end)});
      continue;
    }
    set_addresses(key, buffer_addresses(expert.buffer, key));
    expert.place = Place::kLoaded;
    ended_.push_back({key, {}});
  }
  return ended_;
}

ExpertAddresses ExpertStore::addresses(int64_t key) const {
  const uint8_t* const* at = addresses_of_layer(key / num_experts_) + key % num_experts_;
  return {at[0], at[num_experts_], at[2 * num_experts_]};
}

const uint8_t* const* ExpertStore::addresses_of_layer(int64_t layer) const {
  return &addresses_[kNumParts * layer * num_experts_];
}

int64_t ExpertStore::take_buffer(int64_t key) {
  auto& free = free_[pool_of(key)];
  if (free.empty()) return -1;
  const int64_t buffer = free.back();
  free.pop_back();
  if (!is_claimed_[buffer]) claim(key, buffer);
  return buffer;
}

// Lets the threads of each NUMA node touch their rows before the first read does, which would have
// all of them on its own node. Layers of other types divide a buffer nearly alike.
void ExpertStore::claim(int64_t key, int64_t buffer) {
  is_claimed_[buffer] = true;
  const ExpertFiles& layer = layers_[key / num_experts_];
  const auto addresses = buffer_addresses(buffer, key);
  for (int i = 0; i < kNumParts; ++i) {
    const ExpertFiles::Part& part = layer.parts[i];
    // Not const: it is a part of the pool's memory.
    claim_rows(reinterpret_cast<std::byte*>(const_cast<uint8_t*>(addresses[i])), 1, part.num_rows,
               part.num_bytes / part.num_rows);
  }
}

ExpertAddresses ExpertStore::buffer_addresses(int64_t buffer, int64_t key) const {
  ExpertAddresses found;
  const std::byte* memory = memory_of(buffer);
  for (int i = 0; i < kNumParts; ++i) {
    found[i] = reinterpret_cast<const uint8_t*>(memory) + skew(key, i);
    memory += pools_[pool_of(key)].part_bytes[i];
  }
  return found;
}

void ExpertStore::give_back(int64_t buffer) {
  const auto end = std::upper_bound(first_buffer_.begin(), first_buffer_.end(), buffer);
  free_[end - first_buffer_.begin() - 1].push_back(static_cast<int32_t>(buffer));
}

void ExpertStore::adopt(int64_t key, int64_t buffer) {
  check(experts_[key].place == Place::kFile, "ExpertStore: key ", key, " has a buffer");
  experts_[key] = {static_cast<int32_t>(buffer), Place::kLoaded};
  set_addresses(key, buffer_addresses(buffer, key));
}

int64_t ExpertStore::num_free() const {
  int64_t count = 0;
  for (const auto& free : free_) count += static_cast<int64_t>(free.size());
  return count;
}

void ExpertStore::check_buffers(const std::vector<int64_t>& taken) const {
  std::vector<int> owners(first_buffer_.back());
  for (const auto& free : free_) {
    for (const int32_t buffer : free) ++owners[buffer];
  }
  for (const int64_t buffer : taken) ++owners[buffer];
  int64_t num_in_flight = 0;
  for (int64_t key = 0; key < num_keys(); ++key) {
    const Expert& expert = experts_[key];
    num_in_flight += expert.place == Place::kInFlight || expert.place == Place::kGivenUp;
    const bool has_buffer = expert.buffer >= 0;
    check(has_buffer == (expert.place != Place::kFile), "key ", key, ": buffer ", expert.buffer);
    if (has_buffer) ++owners[expert.buffer];
    const auto& at = addresses(key);
    const ExpertAddresses expected =
        is_loaded(key) ? buffer_addresses(expert.buffer, key) : ExpertAddresses{};
    check(at == expected, "key ", key, ": addresses are not those of its buffer");
  }
  for (std::size_t buffer = 0; buffer < owners.size(); ++buffer) {
    check(owners[buffer] == 1, "buffer ", buffer, " has ", owners[buffer], " owners");
  }
  check(num_in_flight == num_in_flight_, num_in_flight_, " reads in flight, ", num_in_flight,
        " experts wait for one");
}

void ExpertStore::free_buffer(int64_t key) {
  give_back(experts_[key].buffer);
  experts_[key] = {};
  set_addresses(key, {});
}

void ExpertStore::set_addresses(int64_t key, const ExpertAddresses& addresses) {
  const uint8_t** at = &addresses_[kNumParts * (key / num_experts_) * num_experts_];
  for (int i = 0; i < kNumParts; ++i) at[i * num_experts_ + key % num_experts_] = addresses[i];
}

std::byte* ExpertStore::memory_of(int64_t buffer) const {
  const auto end = std::upper_bound(first_buffer_.begin(), first_buffer_.end(), buffer);
  const std::size_t pool = end - first_buffer_.begin() - 1;
  return pools_[pool].memory + (buffer - first_buffer_[pool]) * pools_[pool].buffer_bytes();
}

int64_t ExpertStore::skew(int64_t key, int part) const {
  return layers_[key / num_experts_].parts[part].offset_of(key % num_experts_) % kBlockBytes;
}

std::string ExpertStore::describe(const ReadEnd& end) const {
  if (end.reason.empty()) return {};
  const ExpertFiles::Part& part = layers_[end.key / num_experts_].parts[std::max(end.range, 0)];
  const int64_t offset = part.offset_of(end.key % num_experts_);
  return part.name + ": cannot read " + std::to_string(part.num_bytes) + " bytes at offset " +
         std::to_string(offset) + ": " + end.reason;
}

}  // namespace hm
