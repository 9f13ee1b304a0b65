// What serves a device's queue: threads that each wait for one read, or one thread with a ring that
// has many under way.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>

#include "base/direct_file.h"
#include "base/io_ring.h"
#include "base/read_faults.h"
#include "base/read_queue.h"

namespace hm {

// What the threads of all devices share.
struct ReadSource {
  ReadQueue queue;
  std::deque<DirectFile> files;
  std::shared_ptr<ReadFaults> faults;  // or null
};

// Reads one range after the other until the queue is closed.
void read_by_thread(ReadSource& source, int device);

// Reads by io_uring.
class RingReads {
 public:
  // depth: chunks of chunk_bytes under way. Throws Error where the system has no io_uring.
  RingReads(ReadSource& source, int device, int depth, int64_t chunk_bytes);
  ~RingReads() { source_.queue.set_wake(device_, {}); }
  RingReads(const RingReads&) = delete;
  RingReads& operator=(const RingReads&) = delete;

  // Reads until the queue is closed. Returns why io_uring failed, or "". It has begun its last
  // read.
  std::string run();

  // After `run`: puts what the kernel has let go of since the last call back into the queue.
  // Returns whether that was all: the kernel still writes to the memory of the others.
  bool give_back();

 private:
  struct Begun {
    ReadQueue::Work work;
    bool is_direct;
    int fd;
  };

  void let_go(Begun& begun);
  void begin(uint64_t tag, const ReadQueue::Work& work);
  void settle(RingEnd end);

  ReadSource& source_;
  const int device_;
  const int64_t chunk_bytes_;
  std::unordered_map<uint64_t, Begun> under_way_;  // by tag
  uint64_t num_begun_ = 0;
  IoRing ring_;
};

}  // namespace hm
