#include "base/read_faults.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <utility>

#include "base/await.h"
#include "base/check.h"
#include "base/direct_file.h"

namespace hm {

void ReadFaults::fail(int error, double rate, bool direct_only) {
  const std::scoped_lock lock(mutex_);
  error_ = error, rate_ = rate, direct_only_ = direct_only;
}

void ReadFaults::shorten(int max_blocks) {
  const std::scoped_lock lock(mutex_);
  max_blocks_ = max_blocks;
}

void ReadFaults::hang(int64_t most) {
  const std::scoped_lock lock(mutex_);
  num_to_hang_ = most;
}

void ReadFaults::resume() {
  const std::scoped_lock lock(mutex_);
  num_to_hang_ = 0;
  ++num_resumes_;
  resumed_.notify_all();
  const std::unique_ptr<void, decltype(&std::free)> content(
      std::aligned_alloc(kBlockBytes, whole_blocks(kMaxHangingBytes)), &std::free);
  for (Hanging& read : hanging_) {
    if (read.theirs < 0) continue;
    const int64_t got = pread(read.fd, content.get(), whole_blocks(read.num_bytes), read.offset);
    const int64_t wanted = std::min(std::max<int64_t>(got, 0), read.num_bytes);
    const int64_t sent = write(read.theirs, content.get(), wanted);
    check(got >= 0 && sent == wanted, "ReadFaults: ", sent, " of ", wanted, " bytes sent");
    ::close(std::exchange(read.theirs, -1));
  }
}

void ReadFaults::release() {
  const std::scoped_lock lock(mutex_);
  num_to_hang_ = 0;
  ++num_resumes_;
  resumed_.notify_all();
  for (const Hanging& read : std::exchange(hanging_, {})) {
    if (read.theirs >= 0) ::close(read.theirs);
    ::close(read.ours);
  }
}

int64_t ReadFaults::num_hung() const {
  const std::scoped_lock lock(mutex_);
  return num_hung_;
}

void ReadFaults::fail_rings(int64_t num_good, int error) {
  const std::scoped_lock lock(mutex_);
  num_good_ = num_good, ring_error_ = error;
}

int64_t ReadFaults::read(int fd, bool is_direct, std::byte* memory, int64_t num_bytes,
                         int64_t offset) {
  {
    std::unique_lock lock(mutex_);
    if (begins_to_hang()) {
      await(resumed_, lock, [this, before = num_resumes_] { return num_resumes_ > before; });
    }
    if (const int error = pick_error(is_direct); error != 0) {
      errno = error;
      return -1;
    }
  }
  const int64_t got = pread(fd, memory, num_bytes, offset);
  const std::scoped_lock lock(mutex_);
  if (max_blocks_ == 0 || got <= 0) return got;
  const int64_t part = random_() % 2 == 0 ? 100 : 0;
  const auto blocks = 1 + static_cast<int64_t>(random_() % static_cast<uint32_t>(max_blocks_));
  return std::min(got, blocks * kBlockBytes + part);
}

int ReadFaults::ring_fd(int fd, int64_t num_bytes, int64_t offset) {
  const std::scoped_lock lock(mutex_);
  if (num_bytes > kMaxHangingBytes || !begins_to_hang()) return fd;
  int ends[2];
  check(pipe2(ends, O_CLOEXEC) == 0, "ReadFaults: no pipe");
  hanging_.push_back({ends[0], ends[1], fd, num_bytes, offset});
  check(fcntl(ends[1], F_SETPIPE_SZ, int{kMaxHangingBytes}) > 0, "ReadFaults: pipes are too small");
  return ends[0];
}

void ReadFaults::let_go(int fd) {
  const std::scoped_lock lock(mutex_);
  std::erase_if(hanging_, [&](const Hanging& read) {
    if (read.ours != fd) return false;
    if (read.theirs >= 0) ::close(read.theirs);
    ::close(read.ours);
    return true;
  });
}

void ReadFaults::alter(RingEnd& end, bool is_direct) {
  const std::scoped_lock lock(mutex_);
  if (const int error = pick_error(is_direct); error != 0) end.error = error;
  if (num_good_ > 0) {
    --num_good_;
    return;
  }
  check(ring_error_ != 0, "io_uring_enter: Bad address");
  end.error = ring_error_;
}

// Both under the lock.
bool ReadFaults::begins_to_hang() {
  if (num_to_hang_ == 0) return false;
  --num_to_hang_;
  ++num_hung_;
  return true;
}

int ReadFaults::pick_error(bool is_direct) {
  if (error_ == 0 || (direct_only_ && !is_direct)) return 0;
  return std::uniform_real_distribution<>()(random_) < rate_ ? error_ : 0;
}

}  // namespace hm
