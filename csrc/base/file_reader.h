// Background reads of file ranges into memory, past the page cache. Needs no GIL.
//
// The files of each device have reads of their own, so that several disks work at once: by
// io_uring, or by threads where the system has none, or it fails in a run. A read may never return:
// a disk that hangs, a network that is gone. So nothing here waits for one without end; files that
// are being read stay open until it returns.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/direct_file.h"
#include "base/read_faults.h"
#include "base/read_queue.h"

namespace hm {

// Of each device.
struct ReaderOptions {
  std::string why_threads;  // instead of io_uring, for users; empty = io_uring where it works
  int num_threads = 4;
  int ring_depth = 32;  // chunks that io_uring has under way
  int64_t chunk_bytes = 512 << 10;
  std::shared_ptr<ReadFaults> faults;  // null = none
};

// Thread-safe.
class FileReader {
 public:
  // Takes over the files, unless it throws Error: where the system starts no thread.
  FileReader(std::span<const OpenFile> files, const ReaderOptions& options);
  ~FileReader();  // closes
  FileReader(const FileReader&) = delete;
  FileReader& operator=(const FileReader&) = delete;

  // Queues a request; `take` returns its end. Requests begin in this order, urgent ones first.
  // Memory must stay until the end is taken, or `cancel` or `close` have returned true. Throws
  // Error for a range that cannot be, for a key that is under way, and once closed.
  void submit(int64_t key, std::span<const ReadRange> ranges, bool is_urgent);

  // Raises the priority of what is still queued of a request, if it is under way.
  void make_urgent(int64_t key);

  // Withdraws a request; false if a read of it has begun, or it is not under way.
  bool cancel(int64_t key);

  // Waits for a request that has ended; none if none does in `timeout_s` (< 0: without end), or the
  // reader is closed meanwhile. Throws Error for waiting on a closed reader.
  std::optional<ReadEnd> take(double timeout_s);

  // Ranges of one priority that are not being read yet.
  int64_t num_queued(bool is_urgent) const;

  // Whether all files are read past the page cache.
  bool is_direct() const;

  int num_devices() const;

  // Why threads read instead of io_uring; empty if they do not.
  std::string why_threads() const;

  // Begins no more reads, waits up to `seconds` for those under way, and closes the files. False if
  // some have not returned: the files stay open, and their memory must stay, until it has returned
  // true. Any number of times.
  bool close(double seconds);

 private:
  struct Core;

  void start(int device);

  std::shared_ptr<Core> core_;  // shared with the threads, which may outlive this
};

}  // namespace hm
