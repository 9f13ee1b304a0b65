#include "base/read_loops.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "base/check.h"

namespace hm {
namespace {

// Errors that io_uring itself may give a read. Threads then try it, and tell what the disk says.
bool is_of_ring(int error) {
  constexpr int kErrors[] = {EACCES, EAGAIN, EBUSY,      ECANCELED, EINVAL,
                             ENOMEM, ENOSYS, EOPNOTSUPP, EPERM};
  return std::ranges::find(kErrors, error) != std::end(kErrors);
}

}  // namespace

void read_by_thread(ReadSource& source, int device) {
  while (const auto work = source.queue.get(device)) {
    std::string reason;
    try {
      const ReadRange& range = work->range();
      reason = source.files[range.file].read(range, source.faults.get());
    } catch (const std::exception& error) {  // must not end the thread: requests would never end
      reason = error.what();
    }
    source.queue.finish(*work, std::move(reason));
  }
}

RingReads::RingReads(ReadSource& source, int device, int depth, int64_t chunk_bytes)
    : source_(source),
      device_(device),
      chunk_bytes_(chunk_bytes),
      ring_(depth, chunk_bytes, kBlockBytes) {
  source_.queue.set_wake(device, [this] { ring_.wake(); });
}

std::string RingReads::run() {
  std::string reason;
  try {
    for (;;) {
      while (ring_.has_room()) {
        const auto work = source_.queue.poll(device_);
        if (!work) break;
        begin(++num_begun_, *work);
      }
      if (source_.queue.is_closed()) break;
      for (const RingEnd& end : ring_.wait()) settle(end);
    }
  } catch (const std::exception& error) {  // all requests must end, or others wait for ever
    reason = error.what();
  }
  ring_.stop();
  return reason;
}

bool RingReads::give_back() {
  const bool is_all = ring_.is_idle();
  std::vector<ReadQueue::Work> released;
  for (auto begun = under_way_.begin(); begun != under_way_.end();) {
    if (ring_.holds(begun->first)) {
      ++begun;
      continue;
    }
    let_go(begun->second);
    released.push_back(begun->second.work);
    begun = under_way_.erase(begun);
  }
  source_.queue.put_back(device_, released);
  return is_all;
}

void RingReads::let_go(Begun& begun) {
  if (source_.faults) source_.faults->let_go(std::exchange(begun.fd, -1));
}

void RingReads::begin(uint64_t tag, const ReadQueue::Work& work) {
  const ReadRange& range = work.range();
  const DirectFile& file = source_.files[range.file];
  const bool is_direct = file.is_direct();
  int fd = file.fd(is_direct);
  // Chunks of one read would share the pipe that a hanging one reads from.
  const bool may_hang = source_.faults && range.wanted() <= chunk_bytes_;
  if (may_hang) fd = source_.faults->ring_fd(fd, range.wanted(), range.start());
  under_way_[tag] = {work, is_direct, fd};
  ring_.begin({tag, fd, range.memory, range.wanted(), range.start()});
}

void RingReads::settle(RingEnd end) {
  let_go(under_way_.at(end.tag));
  const Begun begun = under_way_.at(end.tag);
  const ReadRange& range = begun.work.range();
  DirectFile& file = source_.files[range.file];
  if (source_.faults) source_.faults->alter(end, begun.is_direct);
  if (file.fall_back_to_buffered(begun.is_direct, end.error)) return begin(end.tag, begun.work);
  check(!is_of_ring(end.error), std::strerror(end.error));
  under_way_.erase(end.tag);
  std::string reason = end.error != 0      ? std::strerror(end.error)
                       : end.file_end >= 0 ? file.find_end(end.file_end)
                                           : file.find_change();
  if (!begun.is_direct) file.drop_cached(range.offset, range.num_bytes);
  source_.queue.finish(begun.work, std::move(reason));
}

}  // namespace hm
