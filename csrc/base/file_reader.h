// Background reads of file ranges into memory, past the page cache. Needs no GIL.
//
// The files of each device have reads of their own, so that several disks work at once. A read may
// never return: a disk that hangs, a network that is gone. So nothing here waits for one without
// end; files that are being read stay open until it returns.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/direct_file.h"
#include "base/read_queue.h"

namespace hm {

struct ReaderOptions {
  int num_threads = 4;  // of each device
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

  // What reads, for users.
  std::string backend() const;

  // Begins no more reads and waits up to `seconds` for those under way. False if some have not
  // returned: their memory must stay until `is_idle`. Idempotent.
  bool close(double seconds);

  // Whether a closed reader writes to no memory any more.
  bool is_idle() const;

 private:
  struct Core;
  std::shared_ptr<Core> core_;  // shared with the threads, which may outlive this
};

}  // namespace hm
