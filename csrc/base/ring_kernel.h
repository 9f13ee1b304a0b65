// Linux's side of a ring: the memory that is shared with the kernel, and the calls. io_ring.cpp's.
#pragma once

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "base/check.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#if defined(IORING_FEAT_RW_CUR_POS) && defined(__NR_io_uring_setup)  // headers of Linux 5.6
#define HM_HAVE_IO_URING 1
#endif
#endif

namespace hm {

constexpr uint64_t kWakeName = ~uint64_t{0};  // the kernel's name for the read of the eventfd

#if defined(HM_HAVE_IO_URING)

// The two rings that are shared with the kernel, and an eventfd that ends waiting.
//
// Each ring has one writer and one reader. Of the submission ring we write the tail: its release
// hands over the entries written before it; the kernel moves the head after it has read them, and
// our acquire of the head lets us write there again. Of the completion ring the kernel writes the
// tail: our acquire makes the entries before it visible; our release of the head says that we have
// read them, so that the kernel may write there. An index that only we write is read relaxed.
class RingKernel {
 public:
  explicit RingKernel(unsigned num_entries) {
    try {
      open(num_entries);
      check_that_it_reads();
    } catch (...) {
      release();
      throw;
    }
  }
  ~RingKernel() { release(); }
  RingKernel(const RingKernel&) = delete;
  RingKernel& operator=(const RingKernel&) = delete;

  // A forked child has its parent's rings, which are none of its business.
  bool is_ours() const { return getpid() == pid_; }

  // Room is the caller's concern: there are never more reads under way than entries.
  void queue_read(int fd, void* memory, int64_t num_bytes, int64_t offset, uint64_t name,
                  bool may_wait) {
    const unsigned tail = index(sq_tail_).load(std::memory_order_relaxed);
    io_uring_sqe& entry = sqes_[tail & sq_mask_];
    std::memset(&entry, 0, sizeof entry);
    entry.opcode = IORING_OP_READ;
    entry.flags = may_wait ? IOSQE_ASYNC : 0;
    entry.fd = fd;
    entry.addr = reinterpret_cast<uint64_t>(memory);
    entry.len = static_cast<uint32_t>(num_bytes);
    entry.off = static_cast<uint64_t>(offset);
    entry.user_data = name;
    sq_array_[tail & sq_mask_] = tail & sq_mask_;
    index(sq_tail_).store(tail + 1, std::memory_order_release);
  }

  void queue_wake() { queue_read(wake_fd_, &wake_count_, sizeof wake_count_, 0, kWakeName, false); }

  // Hands over what was queued and waits for `least` results, 0 or 1; less after a signal.
  void enter(unsigned least) {
    const unsigned queued = index(sq_tail_).load(std::memory_order_relaxed) -
                            index(sq_head_).load(std::memory_order_acquire);
    if (queued == 0 && least == 0) return;
    if (call(queued, least) >= 0 || errno == EINTR) return;
    // No memory for more requests, or results to be taken first: what is under way goes on.
    const int error = errno;
    if ((error == EAGAIN || error == EBUSY) && (call(0, 1) >= 0 || errno == EINTR)) return;
    check(false, "io_uring_enter: ", std::strerror(error));
  }

  // Takes back what was queued and not handed over yet, which `enter` alone does: the names.
  std::vector<uint64_t> drop_queued() {
    const unsigned head = index(sq_head_).load(std::memory_order_acquire);
    const unsigned tail = index(sq_tail_).load(std::memory_order_relaxed);
    std::vector<uint64_t> names;
    for (unsigned i = head; i != tail; ++i) names.push_back(sqes_[i & sq_mask_].user_data);
    index(sq_tail_).store(head, std::memory_order_release);
    return names;
  }

  // The next result, if there is one.
  bool take(uint64_t& name, int& result) {
    const unsigned head = index(cq_head_).load(std::memory_order_relaxed);
    if (head == index(cq_tail_).load(std::memory_order_acquire)) return false;
    const io_uring_cqe& entry = cqes_[head & cq_mask_];
    name = entry.user_data;
    result = entry.res;
    index(cq_head_).store(head + 1, std::memory_order_release);
    return true;
  }

  void wake() {
    const uint64_t one = 1;
    // Only a full counter refuses, and that wakes as well.
    static_cast<void>(!write(wake_fd_, &one, sizeof one));
  }

 private:
  static std::atomic_ref<unsigned> index(unsigned* at) { return std::atomic_ref<unsigned>(*at); }

  long call(unsigned queued, unsigned least) {
    return syscall(__NR_io_uring_enter, ring_fd_, queued, least,
                   least > 0 ? IORING_ENTER_GETEVENTS : 0, nullptr, 0);
  }

  void open(unsigned num_entries) {
    io_uring_params params{};
#if defined(IORING_SETUP_COOP_TASKRUN)
    params.flags = IORING_SETUP_COOP_TASKRUN;  // results need not interrupt us: we wait for them
#endif
    ring_fd_ = static_cast<int>(syscall(__NR_io_uring_setup, num_entries, &params));
    if (ring_fd_ < 0 && errno == EINVAL) {
      params = {};
      ring_fd_ = static_cast<int>(syscall(__NR_io_uring_setup, num_entries, &params));
    }
    const int error = errno;
    check(ring_fd_ >= 0, "io_uring_setup: ", std::strerror(error), reason(error));
    constexpr unsigned needed =
        IORING_FEAT_SINGLE_MMAP | IORING_FEAT_NODROP | IORING_FEAT_RW_CUR_POS;
    check((params.features & needed) == needed, "io_uring: the kernel is older than 5.6");

    rings_bytes_ = std::max(params.sq_off.array + params.sq_entries * sizeof(unsigned),
                            params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe));
    sqes_bytes_ = params.sq_entries * sizeof(io_uring_sqe);
    rings_ = static_cast<std::byte*>(map(rings_bytes_, IORING_OFF_SQ_RING));
    sqes_ = static_cast<io_uring_sqe*>(map(sqes_bytes_, IORING_OFF_SQES));
    const auto at = [&](uint32_t offset) { return reinterpret_cast<unsigned*>(rings_ + offset); };
    sq_head_ = at(params.sq_off.head), sq_tail_ = at(params.sq_off.tail);
    cq_head_ = at(params.cq_off.head), cq_tail_ = at(params.cq_off.tail);
    sq_mask_ = *at(params.sq_off.ring_mask), cq_mask_ = *at(params.cq_off.ring_mask);
    sq_array_ = at(params.sq_off.array);
    cqes_ = reinterpret_cast<io_uring_cqe*>(rings_ + params.cq_off.cqes);
    wake_fd_ = eventfd(0, EFD_CLOEXEC);
    check(wake_fd_ >= 0, "eventfd: ", std::strerror(errno));
  }

  // A sandbox may let a ring be made and refuse what it is for.
  void check_that_it_reads() {
    uint64_t name = 0;
    int result = -EINTR;
    wake();
    queue_wake();
    do enter(1);
    while (!take(name, result));
    check(result == sizeof wake_count_, "io_uring: reads are refused: ", std::strerror(-result));
  }

  void* map(std::size_t num_bytes, uint64_t offset) {
    void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                        ring_fd_, static_cast<off_t>(offset));
    check(memory != MAP_FAILED, "io_uring: mmap: ", std::strerror(errno));
    return memory;
  }

  static const char* reason(int error) {
    if (error == ENOSYS) return " (the kernel has no io_uring)";
    if (error == EPERM) return " (sysctl kernel.io_uring_disabled, or a seccomp filter)";
    if (error == ENOMEM) return " (ulimit -l may be too small)";
    return "";
  }

  void release() {
    if (sqes_ != nullptr) munmap(sqes_, sqes_bytes_);
    if (rings_ != nullptr) munmap(rings_, rings_bytes_);
    for (const int fd : {ring_fd_, wake_fd_}) {
      if (fd >= 0) ::close(fd);
    }
  }

  const pid_t pid_ = getpid();
  int ring_fd_ = -1, wake_fd_ = -1;
  std::byte* rings_ = nullptr;  // both in one piece
  io_uring_sqe* sqes_ = nullptr;
  std::size_t rings_bytes_ = 0, sqes_bytes_ = 0;
  unsigned *sq_head_ = nullptr, *sq_tail_ = nullptr, *sq_array_ = nullptr;
  unsigned *cq_head_ = nullptr, *cq_tail_ = nullptr;
  unsigned sq_mask_ = 0, cq_mask_ = 0;
  io_uring_cqe* cqes_ = nullptr;
  uint64_t wake_count_ = 0;  // where the eventfd is read to
};

#else

class RingKernel {
 public:
  explicit RingKernel(unsigned) {
    check(false, "io_uring: not in this build (no Linux 5.6 headers)");
  }
  bool is_ours() const { return false; }
  void queue_read(int, void*, int64_t, int64_t, uint64_t, bool) {}
  void queue_wake() {}
  void enter(unsigned) {}
  std::vector<uint64_t> drop_queued() { return {}; }
  bool take(uint64_t&, int&) { return false; }
  void wake() {}
};

#endif

}  // namespace hm
