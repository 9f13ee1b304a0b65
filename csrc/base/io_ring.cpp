#include "base/io_ring.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/ring_kernel.h"

namespace hm {
namespace {

constexpr int kMaxDepth = 1024;
constexpr int64_t kMaxChunkBytes = int64_t{1} << 30;
constexpr double kCloseSeconds = 5;
constexpr std::chrono::milliseconds kPoll{1};

}  // namespace

IoRing::IoRing(int depth, int64_t chunk_bytes, int64_t block_bytes)
    : chunk_bytes_(chunk_bytes), block_bytes_(block_bytes) {
  check(depth >= 1 && depth <= kMaxDepth, "IoRing: depth ", depth, ", expected 1 to ", kMaxDepth);
  check(block_bytes >= 1 && chunk_bytes >= block_bytes && chunk_bytes <= kMaxChunkBytes &&
            chunk_bytes % block_bytes == 0,
        "IoRing: chunks of ", chunk_bytes, " bytes, expected whole blocks of ", block_bytes);
  kernel_ = std::make_unique<RingKernel>(static_cast<unsigned>(depth) + 1);
  chunks_.resize(depth);
  for (int slot = depth; slot-- > 0;) free_slots_.push_back(slot);
}

IoRing::~IoRing() { close(); }

int64_t IoRing::whole_blocks(int64_t num_bytes) const {
  return (num_bytes + block_bytes_ - 1) / block_bytes_ * block_bytes_;
}

bool IoRing::has_room() const {
  int64_t num_chunks = 0;
  for (const OpenRead* read : waiting_) {
    num_chunks += (read->read.num_bytes - read->next + chunk_bytes_ - 1) / chunk_bytes_;
  }
  return num_chunks < static_cast<int64_t>(free_slots_.size());
}

void IoRing::begin(const RingRead& read) {
  check(kernel_ != nullptr && !is_stopped_, "IoRing: closed");
  check(read.fd >= 0 && read.memory != nullptr && read.num_bytes > 0 && read.offset >= 0,
        "IoRing: read of ", read.num_bytes, " bytes at ", read.offset, " of file ", read.fd);
  const auto [place, is_new] = reads_.emplace(read.tag, OpenRead{.read = read});
  check(is_new, "IoRing: tag ", read.tag, " is under way");
  waiting_.push_back(&place->second);  // of a node: stays where it is
}

std::vector<RingEnd> IoRing::wait() {
  check(kernel_ != nullptr && !is_stopped_, "IoRing: closed");
  do {
    start();
    kernel_->enter(ended_.empty() && !is_awake_ ? 1 : 0);
    reap();
  } while (ended_.empty() && !is_awake_);
  start();  // what has become free works while the caller looks at the result
  kernel_->enter(0);
  is_awake_ = false;
  return std::exchange(ended_, {});
}

void IoRing::wake() {
  if (kernel_ != nullptr) kernel_->wake();
}

void IoRing::stop() {
  if (kernel_ == nullptr || std::exchange(is_stopped_, true)) return;
  for (const OpenRead* read : std::exchange(waiting_, {})) {
    if (read->num_chunks == 0) reads_.erase(read->read.tag);
  }
  for (const uint64_t name : kernel_->drop_queued()) let_go(name);
  for (const uint32_t slot : std::exchange(retries_, {})) {
    ++num_under_way_;  // it was not queued again
    let_go(slot);
  }
  kernel_->wake();  // the read of the eventfd ends too
}

bool IoRing::is_idle() {
  uint64_t name = 0;
  int result = 0;
  while (num_under_way_ > 0 && kernel_ != nullptr && kernel_->take(name, result)) let_go(name);
  return num_under_way_ == 0;
}

// By looking, not by `enter`: it may have failed, and its time limits came with Linux 5.11.
bool IoRing::drain(double seconds) {
  if (kernel_ == nullptr || !kernel_->is_ours()) return true;
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  stop();
  while (!is_idle()) {
    if (std::chrono::steady_clock::now() >= until) {
      has_given_up_ = true;
      return false;
    }
    std::this_thread::sleep_for(kPoll);
  }
  return true;
}

void IoRing::close() {
  if (!drain(has_given_up_ ? 0 : kCloseSeconds)) static_cast<void>(kernel_.release());
  kernel_.reset();
}

// Queues chunks while there are free slots.
void IoRing::start() {
  if (!std::exchange(hears_wake_, true)) {
    kernel_->queue_wake();
    ++num_under_way_;
  }
  for (const uint32_t slot : std::exchange(retries_, {})) queue(slot);
  while (!waiting_.empty() && !free_slots_.empty()) {
    OpenRead& read = *waiting_.front();
    const uint32_t slot = free_slots_.back();
    free_slots_.pop_back();
    const int64_t end = std::min(read.next + chunk_bytes_, whole_blocks(read.read.num_bytes));
    chunks_[slot] = {.owner = &read, .position = read.next, .end = end};
    read.next = end;
    ++read.num_chunks;
    if (read.next >= read.read.num_bytes) waiting_.pop_front();
    queue(slot);
  }
}

void IoRing::queue(uint32_t slot) {
  const Chunk& chunk = chunks_[slot];
  const RingRead& read = chunk.owner->read;
  kernel_->queue_read(read.fd, read.memory + chunk.position, chunk.end - chunk.position,
                      read.offset + chunk.position, slot, chunk.may_wait);
  ++num_under_way_;
}

void IoRing::reap() {
  uint64_t name = 0;
  int result = 0;
  while (kernel_->take(name, result)) {
    --num_under_way_;
    if (name == kWakeName) {
      is_awake_ = true;
      hears_wake_ = false;
    } else {
      settle(static_cast<uint32_t>(name), result);
    }
  }
}

// One result of the kernel's: the chunk is done, has failed, or is queued again for its rest.
void IoRing::settle(uint32_t slot, int result) {
  Chunk& chunk = chunks_[slot];
  OpenRead& read = *chunk.owner;
  const int64_t got = chunk.position + std::max(result, 0);
  const int64_t whole = got / block_bytes_ * block_bytes_;  // a direct read goes on from a block
  if (result >= 0 && got >= std::min(chunk.end, read.read.num_bytes)) return finish(slot);
  if (result == -EINTR) {
  } else if (result == -EAGAIN && !chunk.may_wait) {
    chunk.may_wait = true;
  } else if (result < 0) {
    if (read.error == 0) read.error = -result;
  } else if (whole == chunk.position) {
    const int64_t end = read.read.offset + got;
    read.file_end = read.file_end < 0 ? end : std::min(read.file_end, end);
  } else {
    chunk.position = whole;
  }
  if (!read.has_failed()) return retries_.push_back(slot);
  if (read.next < read.read.num_bytes) {
    read.next = read.read.num_bytes;
    std::erase(waiting_, &read);
  }
  finish(slot);
}

// A chunk, or the read of the eventfd, that is not under way any more once the ring is stopped.
void IoRing::let_go(uint64_t name) {
  --num_under_way_;
  if (name == kWakeName) return;
  OpenRead& read = *chunks_[name].owner;
  if (--read.num_chunks == 0) reads_.erase(read.read.tag);
}

void IoRing::finish(uint32_t slot) {
  OpenRead& read = *chunks_[slot].owner;
  free_slots_.push_back(slot);
  if (--read.num_chunks > 0 || read.next < read.read.num_bytes) return;
  ended_.push_back({.tag = read.read.tag, .error = read.error, .file_end = read.file_end});
  reads_.erase(read.read.tag);
}

}  // namespace hm
