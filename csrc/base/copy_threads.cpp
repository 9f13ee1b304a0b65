#include "base/copy_threads.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace hm {
namespace {

constexpr int64_t kChunkBytes = 256 << 10;  // below the sizes that memcpy writes past the cache

ThreadPlan on_any_cpu(int num_threads) {
  check(num_threads >= 1 && num_threads <= 1024, "CopyThreads: ", num_threads,
        " threads, expected 1 to 1024");
  return {std::vector<std::vector<int>>(static_cast<std::size_t>(num_threads))};
}

}  // namespace

CopyThreads::CopyThreads(int num_threads) : pool_(on_any_cpu(num_threads)) {}

void CopyThreads::copy(uint8_t* dst, const uint8_t* src, int64_t num_bytes) {
  check(num_bytes >= 0, "CopyThreads: ", num_bytes, " bytes");
  const int64_t num_chunks = (num_bytes + kChunkBytes - 1) / kChunkBytes;
  pool_.run(num_chunks, [=](int64_t i, int) {
    const int64_t first = i * kChunkBytes;
    std::memcpy(dst + first, src + first, std::min(kChunkBytes, num_bytes - first));
  });
}

}  // namespace hm
