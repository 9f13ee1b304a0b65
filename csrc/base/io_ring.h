// File reads by io_uring: one thread keeps many in flight.
//
// Linux's own interface, no liburing. Where it is missing (another system, an old kernel, a seccomp
// filter, sysctl kernel.io_uring_disabled), the constructor throws Error with the reason.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

namespace hm {

// `num_bytes` from `offset` on, to `memory`, which has room up to the end of the last block. memory
// and offset are whole blocks where the file wants that (O_DIRECT).
struct RingRead {
  uint64_t tag;  // the caller's name for it
  int fd;
  std::byte* memory;
  int64_t num_bytes;
  int64_t offset;
};

// A read that has ended. Good if `error` is 0 and `file_end` is -1.
struct RingEnd {
  uint64_t tag;
  int error;         // errno
  int64_t file_end;  // where the file ended before all bytes had come
};

class RingKernel;

// Not thread-safe, except `wake`. Memory of a read must stay until the read has ended.
//
// Large reads are cut into chunks. A read that the block layer must split cannot be submitted
// without blocking: io_uring would hand it to a kernel thread, which costs what the ring saves.
class IoRing {
 public:
  // depth: chunks in flight. chunk_bytes: a multiple of block_bytes. Throws Error.
  IoRing(int depth, int64_t chunk_bytes, int64_t block_bytes);
  ~IoRing();
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  // Memory that a read of num_bytes may write to.
  int64_t whole_blocks(int64_t num_bytes) const;

  // Whether one more read would start at once.
  bool has_room() const;

  // Queues a read; `wait` starts it. Reads start in this order. Throws Error for an unusable one.
  void begin(const RingRead& read);

  // Blocks until a read has ended, or `wake` was called since the last return: the reads that have
  // ended. Throws Error where the system refuses; no read ends any more then.
  std::vector<RingEnd> wait();

  // Ends a `wait` of now or, if none is going on, the next. From any thread, but not during
  // `close`.
  void wake();

  // Begins no more, even where the system has refused to go on. No `begin` or `wait` after it,
  // which would tell how reads end; what was not begun yet never begins.
  void stop();

  // After `stop`, without waiting: whether the kernel has let go of all reads, or else of one:
  // until then it may write to their memory.
  bool is_idle();
  bool holds(uint64_t tag) const { return reads_.contains(tag); }

  // Stops, and waits up to `seconds` until it is idle.
  bool drain(double seconds);

  // Drains for some seconds and gives everything back; a disk that hangs keeps its ring, or the
  // end of the process would wait for it. Any number of times.
  void close();

 private:
  struct OpenRead {
    RingRead read;
    int64_t next = 0;  // bytes that chunks were cut from
    int num_chunks = 0;
    int error = 0;
    int64_t file_end = -1;
    bool has_failed() const { return error != 0 || file_end >= 0; }
  };
  struct Chunk {
    OpenRead* owner = nullptr;
    int64_t position = 0, end = 0;  // within the read
    bool may_wait = false;          // in a thread of the kernel
  };

  void start();
  void queue(uint32_t slot);
  void reap();
  void settle(uint32_t slot, int result);
  void finish(uint32_t slot);
  void let_go(uint64_t name);

  std::unique_ptr<RingKernel> kernel_;  // null when closed
  int64_t chunk_bytes_, block_bytes_;
  std::vector<Chunk> chunks_;         // by slot, which is the kernel's name for a chunk
  std::vector<uint32_t> free_slots_;  // the rest is under way, or in `retries_`
  std::vector<uint32_t> retries_;
  std::unordered_map<uint64_t, OpenRead> reads_;  // by tag
  std::deque<OpenRead*> waiting_;                 // those with bytes that no chunk was cut from
  std::vector<RingEnd> ended_;                    // and not told yet
  int num_under_way_ = 0;                         // chunks and the read of the eventfd
  bool is_awake_ = false, hears_wake_ = false;
  bool is_stopped_ = false, has_given_up_ = false;
};

}  // namespace hm
