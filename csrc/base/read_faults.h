// Faults of a disk, for tests and soaks: a reader that is given some has its reads fail, shortened,
// or hang, and its rings break.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <random>
#include <vector>

#include "base/io_ring.h"

namespace hm {

// Thread-safe. There are none at first.
class ReadFaults {
 public:
  explicit ReadFaults(uint32_t seed = 0) : random_(seed) {}
  ~ReadFaults() { release(); }
  ReadFaults(const ReadFaults&) = delete;
  ReadFaults& operator=(const ReadFaults&) = delete;

  // Lets a share `rate` of reads end with errno `error`. direct_only: of those with O_DIRECT.
  void fail(int error, double rate, bool direct_only);

  // Lets reads of threads bring up to some blocks only, and now and then a part of one; 0: no more.
  void shorten(int max_blocks);

  // Lets the next reads, at most as many, begin and not end until `resume`: those of threads wait,
  // those of io_uring, of one chunk up to kMaxHangingBytes, hang in the kernel.
  void hang(int64_t most);
  // Ends the reads that hang, with the bytes of their files.
  void resume();
  // Ends the reads that hang; those of io_uring fail.
  void release();
  // Reads that hang, or did.
  int64_t num_hung() const;

  // Lets rings fail after as many good reads: with errno `error` for each read, or as a whole if 0.
  void fail_rings(int64_t num_good, int error);

  // pread with these faults.
  int64_t read(int fd, bool is_direct, std::byte* memory, int64_t num_bytes, int64_t offset);
  // The descriptor that a ring is to read from instead, until `let_go`.
  int ring_fd(int fd, int64_t num_bytes, int64_t offset);
  void let_go(int fd);
  // Changes the end of a ring's read. Throws Error where the ring is to fail.
  void alter(RingEnd& end, bool is_direct);

  static constexpr int64_t kMaxHangingBytes = 512 << 10;

 private:
  struct Hanging {
    int ours, theirs;  // a pipe, from which the kernel reads
    int fd;
    int64_t num_bytes, offset;  // of what it asked for
  };

  bool begins_to_hang();
  int pick_error(bool is_direct);

  mutable std::mutex mutex_;  // of all
  std::mt19937 random_;
  int error_ = 0, max_blocks_ = 0;
  double rate_ = 0;
  bool direct_only_ = false;
  std::condition_variable resumed_;
  std::vector<Hanging> hanging_;
  int64_t num_to_hang_ = 0, num_hung_ = 0;
  int64_t num_resumes_ = 0;
  int64_t num_good_ = INT64_MAX;
  int ring_error_ = 0;
};

}  // namespace hm
