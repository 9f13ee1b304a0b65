#include "base/read_queue.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/await.h"
#include "base/check.h"

namespace hm {

class ReadQueue::Request {
 public:
  Request(int64_t key, std::span<const ReadRange> of)
      : ranges(of.begin(), of.end()), num_left(static_cast<int>(of.size())), end{.key = key} {}

  const std::vector<ReadRange> ranges;
  int num_begun = 0, num_left;
  ReadEnd end;
};

const ReadRange& ReadQueue::Work::range() const { return request->ranges[number]; }

ReadQueue::ReadQueue(std::vector<int> device_of) : device_of_(std::move(device_of)) {
  int num_devices = 0;
  for (const int device : device_of_) num_devices = std::max(num_devices, device + 1);
  lanes_.resize(num_devices);
}

ReadQueue::~ReadQueue() = default;

void ReadQueue::check_ranges(std::span<const ReadRange> ranges) const {
  check(!ranges.empty(), "FileReader: a request without ranges");
  for (const ReadRange& range : ranges) {
    check(range.file >= 0 && range.file < static_cast<int64_t>(device_of_.size()),
          "FileReader: file ", range.file, " of ", device_of_.size());
    check(range.offset >= 0 && range.num_bytes > 0, "FileReader: read of ", range.num_bytes,
          " bytes at ", range.offset);
    check(range.memory != nullptr && reinterpret_cast<uintptr_t>(range.memory) % kBlockBytes == 0,
          "FileReader: memory at ", static_cast<const void*>(range.memory),
          ", expected whole blocks of ", kBlockBytes);
  }
}

void ReadQueue::put(int64_t key, std::span<const ReadRange> ranges, bool is_urgent) {
  check_ranges(ranges);
  const std::scoped_lock lock(mutex_);
  check(!is_closed_, "FileReader: closed");
  const auto [place, is_new] = requests_.try_emplace(key);
  check(is_new, "FileReader: key ", key, " is under way");
  place->second = std::make_unique<Request>(key, ranges);
  for (int32_t i = 0; i < static_cast<int32_t>(ranges.size()); ++i) {
    Lane& lane = lanes_[device_of_[ranges[i].file]];
    (is_urgent ? lane.urgent : lane.prefetches).push_back({place->second.get(), i});
    announce(lane);
  }
}

void ReadQueue::make_urgent(int64_t key) {
  const std::scoped_lock lock(mutex_);
  const auto found = requests_.find(key);
  if (found == requests_.end()) return;
  for (Lane& lane : lanes_) {
    const auto first = std::stable_partition(
        lane.prefetches.begin(), lane.prefetches.end(),
        [&](const Work& work) { return work.request != found->second.get(); });
    lane.urgent.insert(lane.urgent.end(), first, lane.prefetches.end());
    lane.prefetches.erase(first, lane.prefetches.end());
  }
}

bool ReadQueue::cancel(int64_t key) {
  const std::scoped_lock lock(mutex_);
  const auto found = requests_.find(key);
  if (found == requests_.end() || found->second->num_begun > 0) return false;
  const auto is_its = [&](const Work& work) { return work.request == found->second.get(); };
  for (Lane& lane : lanes_) {
    std::erase_if(lane.urgent, is_its);
    std::erase_if(lane.prefetches, is_its);
  }
  requests_.erase(found);
  return true;
}

int64_t ReadQueue::num_queued(bool is_urgent) const {
  const std::scoped_lock lock(mutex_);
  int64_t count = 0;
  for (const Lane& lane : lanes_) count += std::ssize(is_urgent ? lane.urgent : lane.prefetches);
  return count;
}

std::optional<ReadEnd> ReadQueue::take(double timeout_s) {
  std::unique_lock lock(mutex_);
  if (ended_.empty() && timeout_s != 0) {
    check(!is_closed_, "FileReader: closed");
    const auto is_over = [&] { return is_closed_ || !ended_.empty(); };
    if (timeout_s < 0) {
      await(has_ended_, lock, is_over);
    } else {
      has_ended_.wait_for(lock, std::chrono::duration<double>(timeout_s), is_over);
    }
  }
  if (ended_.empty()) return std::nullopt;
  ReadEnd end = std::move(ended_.front());
  ended_.pop_front();
  return end;
}

void ReadQueue::close() {
  const std::scoped_lock lock(mutex_);
  is_closed_ = true;
  has_ended_.notify_all();
  for (Lane& lane : lanes_) {
    lane.changed.notify_all();
    if (lane.wake) lane.wake();
  }
}

bool ReadQueue::is_closed() const {
  const std::scoped_lock lock(mutex_);
  return is_closed_;
}

std::optional<ReadQueue::Work> ReadQueue::get(int device) {
  std::unique_lock lock(mutex_);
  Lane& lane = lanes_[device];
  await(lane.changed, lock,
        [&] { return is_closed_ || !lane.urgent.empty() || !lane.prefetches.empty(); });
  return pop(lane);
}

std::optional<ReadQueue::Work> ReadQueue::poll(int device) {
  const std::scoped_lock lock(mutex_);
  std::optional<Work> work = pop(lanes_[device]);
  lanes_[device].wants_wake = !work;
  return work;
}

void ReadQueue::set_wake(int device, std::function<void()> wake) {
  const std::scoped_lock lock(mutex_);
  lanes_[device].wake = std::move(wake);
}

void ReadQueue::finish(const Work& work, std::string reason) {
  const std::scoped_lock lock(mutex_);
  Request& request = *work.request;
  if (!reason.empty() && request.end.reason.empty()) {
    request.end.range = work.number;
    request.end.reason = std::move(reason);
  }
  if (--request.num_left > 0) return;
  const int64_t key = request.end.key;
  ended_.push_back(std::move(request.end));
  requests_.erase(key);
  has_ended_.notify_one();
}

void ReadQueue::put_back(int device, std::span<const Work> work) {
  const std::scoped_lock lock(mutex_);
  Lane& lane = lanes_[device];
  lane.urgent.insert(lane.urgent.begin(), work.begin(), work.end());
  lane.changed.notify_all();
}

std::optional<ReadQueue::Work> ReadQueue::pop(Lane& lane) {
  std::deque<Work>& queue = lane.urgent.empty() ? lane.prefetches : lane.urgent;
  if (is_closed_ || queue.empty()) return std::nullopt;
  const Work work = queue.front();
  queue.pop_front();
  ++work.request->num_begun;
  return work;
}

// Tells the device's threads of one more range.
void ReadQueue::announce(Lane& lane) {
  lane.changed.notify_one();
  if (std::exchange(lane.wants_wake, false) && lane.wake) lane.wake();
}

}  // namespace hm
