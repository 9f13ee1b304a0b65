// Reads of one open file past the page cache.
//
// With O_DIRECT where the file system supports it. Otherwise buffered, and the pages are dropped at
// once: a file larger than memory must not evict pages that are in use.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string>

namespace hm {

// Direct reads need offsets, lengths and addresses that are multiples of it.
constexpr int64_t kBlockBytes = 4096;

constexpr int64_t whole_blocks(int64_t num_bytes) {
  return (num_bytes + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
}

// Bytes of a file and where they go. `memory` is at a whole block and has room for the whole blocks
// that the range lies in: its first byte arrives at memory + skew().
struct ReadRange {
  int32_t file;  // its number in the reader
  int64_t offset, num_bytes;
  std::byte* memory;

  int64_t skew() const { return offset % kBlockBytes; }
  int64_t start() const { return offset - skew(); }
  int64_t wanted() const { return skew() + num_bytes; }  // from `start` on
};

// Identity, size and last write of a file: equal as long as it has the same content.
struct FileState {
  int64_t device, inode, num_bytes, mtime_ns;
  bool operator==(const FileState&) const = default;
};

// An open file to take over. direct_fd: with O_DIRECT, -1 where that was refused.
struct OpenFile {
  int fd, direct_fd;
  FileState state;  // when it was opened
};

class ReadFaults;

// Thread-safe. Reasons are one line, empty for none.
class DirectFile {
 public:
  explicit DirectFile(const OpenFile& file);
  ~DirectFile() { close(); }
  DirectFile(const DirectFile&) = delete;
  DirectFile& operator=(const DirectFile&) = delete;

  int64_t device() const { return file_.state.device; }
  bool is_direct() const { return is_direct_.load(std::memory_order_relaxed); }
  // is_direct: only if is_direct() is or was true.
  int fd(bool is_direct) const { return is_direct ? file_.direct_fd : file_.fd; }

  // Closes the descriptors; nothing may be read any more. Any number of times.
  void close();

  // Reads a range, whatever it takes; returns why it could not. faults: or null.
  std::string read(const ReadRange& range, ReadFaults* faults);

  // Why a range that has been read does not count: the file was written to meanwhile.
  std::string find_change() const;

  // Why a range has failed whose read found nothing at `position`: it names the file's end, which
  // lies before that if the file was cut there.
  std::string find_end(int64_t position) const;

  // Stops reading directly if `error` (errno) says so; returns whether the read is to be retried.
  bool fall_back_to_buffered(bool was_direct, int error);

  // Drops the pages that a buffered read has cached.
  void drop_cached(int64_t offset, int64_t num_bytes) const;

 private:
  OpenFile file_;
  // Only chooses a descriptor, both of which stay open: no order with anything else.
  std::atomic<bool> is_direct_;
};

}  // namespace hm
