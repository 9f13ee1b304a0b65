#include "base/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/read_faults.h"

namespace hm {

DirectFile::DirectFile(const OpenFile& file) : file_(file), is_direct_(file.direct_fd >= 0) {
#if defined(POSIX_FADV_RANDOM)
  posix_fadvise(file_.fd, 0, 0, POSIX_FADV_RANDOM);  // no read-ahead
#endif
}

void DirectFile::close() {
  for (int* fd : {&file_.fd, &file_.direct_fd}) {
    if (*fd >= 0) ::close(std::exchange(*fd, -1));
  }
}

std::string DirectFile::read(const ReadRange& range, ReadFaults* faults) {
  const int64_t wanted = range.wanted(), padded = whole_blocks(wanted);
  int64_t done = 0;
  while (done < wanted) {
    const bool direct = is_direct();
    const int64_t position = range.start() + done;
    std::byte* memory = range.memory + done;
    const int64_t count = faults != nullptr
                              ? faults->read(fd(direct), direct, memory, padded - done, position)
                              : pread(fd(direct), memory, padded - done, position);
    if (count < 0) {
      const int error = errno;
      if (error == EINTR || fall_back_to_buffered(direct, error)) continue;
      return std::strerror(error);
    }
    if (!direct) drop_cached(position, count);
    const int64_t whole =
        (done + count) / kBlockBytes * kBlockBytes;  // a direct read goes on there
    if (done + count < wanted && whole == done) return find_end(position + count);
    done = done + count >= wanted ? done + count : whole;
  }
  return find_change();
}

std::string DirectFile::find_change() const {
  struct stat status;
  if (fstat(file_.fd, &status) != 0) return std::strerror(errno);  // a file system that is gone
  const FileState state{
      .device = static_cast<int64_t>(status.st_dev),
      .inode = static_cast<int64_t>(status.st_ino),
      .num_bytes = static_cast<int64_t>(status.st_size),
      .mtime_ns = int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec};
  if (state == file_.state) return {};
  return "the file was changed after it was opened; load it again";
}

std::string DirectFile::find_end(int64_t position) const {
  struct stat status;
  if (fstat(file_.fd, &status) == 0 && status.st_size < position) position = status.st_size;
  return "the file ends at " + std::to_string(position);
}

bool DirectFile::fall_back_to_buffered(bool was_direct, int error) {
  if (!was_direct || error != EINVAL) return false;
  is_direct_.store(false, std::memory_order_relaxed);  // some accept O_DIRECT at open only
  return true;
}

void DirectFile::drop_cached(int64_t offset, int64_t num_bytes) const {
#if defined(POSIX_FADV_DONTNEED)
  posix_fadvise(file_.fd, offset, num_bytes, POSIX_FADV_DONTNEED);
#endif
}

}  // namespace hm
