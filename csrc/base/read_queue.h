// Read requests, and the queue of two priorities that the threads of each device drain.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/direct_file.h"

namespace hm {

// A request that has ended. Good if `reason` is empty.
struct ReadEnd {
  int64_t key;
  int32_t range = -1;    // number of the range that failed first
  std::string reason{};  // why, in one line
};

// Thread-safe. Devices are numbers; each is served by its own threads.
class ReadQueue {
 public:
  class Request;

  // One range of a request, the unit of work. Valid until it is finished.
  struct Work {
    Request* request;
    int32_t number;
    const ReadRange& range() const;
  };

  // device_of: by file.
  explicit ReadQueue(std::vector<int> device_of);
  ~ReadQueue();
  ReadQueue(const ReadQueue&) = delete;
  ReadQueue& operator=(const ReadQueue&) = delete;

  // For those who want reads. See FileReader.
  void put(int64_t key, std::span<const ReadRange> ranges, bool is_urgent);
  void make_urgent(int64_t key);
  bool cancel(int64_t key);
  int64_t num_queued(bool is_urgent) const;
  std::optional<ReadEnd> take(double timeout_s);

  // Hands out no further ranges.
  void close();
  bool is_closed() const;

  // For the threads of a device. The next range: `get` waits for it, and returns none once closed;
  // `poll` does not wait, but where there is none, the next change calls the device's `wake`.
  std::optional<Work> get(int device);
  std::optional<Work> poll(int device);
  void set_wake(int device, std::function<void()> wake);

  // Counts a range as read, or failed; the last one ends its request.
  void finish(const Work& work, std::string reason);

  // Queues ranges again that were handed out and not finished, before all others.
  void put_back(int device, std::span<const Work> work);

 private:
  struct Lane {
    std::deque<Work> urgent, prefetches;
    std::condition_variable changed;
    std::function<void()> wake;
    bool wants_wake = false;
  };

  std::optional<Work> pop(Lane& lane);
  void announce(Lane& lane);
  void check_ranges(std::span<const ReadRange> ranges) const;

  const std::vector<int> device_of_;
  mutable std::mutex mutex_;                                        // of all that follows
  std::deque<Lane> lanes_;                                          // by device
  std::unordered_map<int64_t, std::unique_ptr<Request>> requests_;  // queued or being read, by key
  std::deque<ReadEnd> ended_;
  std::condition_variable has_ended_;
  bool is_closed_ = false;
};

}  // namespace hm
