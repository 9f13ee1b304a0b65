// Requests of several threads, on two devices where there are, while reads fail, hang and return,
// and rings break: each request ends once or is cancelled, good ones with the bytes of their file,
// and no memory is written to afterwards. Run under ThreadSanitizer by `make tsan`.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/file_reader.h"

namespace {

constexpr int64_t kFileBytes = 300 * hm::kBlockBytes + 777;
constexpr int64_t kMaxBytes = 20 * hm::kBlockBytes;
constexpr int kClients = 3, kRequests = 150;

// What a file has at a position.
std::byte byte_at(int file, int64_t position) {
  return static_cast<std::byte>((position * 2654435761u + file * 97u) >> 7);
}

hm::OpenFile make_file(int number, const char* folder) {
  const std::string path = std::string(folder) + "/stress_reader." + std::to_string(getpid());
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  hm::check(fd >= 0, path, ": ", std::strerror(errno));
  std::vector<std::byte> content(kFileBytes);
  for (int64_t i = 0; i < kFileBytes; ++i) content[i] = byte_at(number, i);
  hm::check(write(fd, content.data(), content.size()) == kFileBytes, path, ": ",
            std::strerror(errno));
  fsync(fd);
  const int direct_fd = open(path.c_str(), O_RDONLY | O_DIRECT);
  unlink(path.c_str());
  struct stat status;
  fstat(fd, &status);
  return {fd,
          direct_fd,
          {static_cast<int64_t>(status.st_dev), static_cast<int64_t>(status.st_ino),
           static_cast<int64_t>(status.st_size),
           int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec}};
}

struct Request {
  std::vector<hm::ReadRange> ranges;
  std::vector<std::unique_ptr<std::byte, decltype(&std::free)>> memory;
  std::atomic<int> num_ended = 0;
};

void fill(Request& request, std::mt19937& random) {
  for (int i = 1 + random() % 3; i > 0; --i) {
    const int64_t num_bytes = 1 + random() % kMaxBytes;
    const int64_t offset = random() % (kFileBytes - num_bytes + 1);
    const auto room = hm::whole_blocks(num_bytes) + hm::kBlockBytes;
    auto* memory = static_cast<std::byte*>(std::aligned_alloc(hm::kBlockBytes, room));
    request.memory.emplace_back(memory, &std::free);
    request.ranges.push_back({static_cast<int32_t>(random() % 2), offset, num_bytes, memory});
  }
}

bool has_its_bytes(const Request& request) {
  for (const hm::ReadRange& range : request.ranges) {
    for (int64_t i = 0; i < range.num_bytes; ++i) {
      if (range.memory[range.skew() + i] != byte_at(range.file, range.offset + i)) return false;
    }
  }
  return true;
}

constexpr std::byte kUnused{0xEE};

// Gives a request's memory another content.
void overwrite(const Request& request) {
  for (const hm::ReadRange& range : request.ranges) {
    std::memset(range.memory, static_cast<int>(kUnused), hm::whole_blocks(range.wanted()));
  }
}

bool is_overwritten(const Request& request) {
  for (const hm::ReadRange& range : request.ranges) {
    for (int64_t i = 0; i < hm::whole_blocks(range.wanted()); ++i) {
      if (range.memory[i] != kUnused) return false;
    }
  }
  return true;
}

// Returns what went wrong, or null.
const char* failure(bool by_ring, uint32_t seed) {
  const hm::OpenFile files[] = {make_file(0, "."),
                                make_file(1, access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp")};
  const auto faults = std::make_shared<hm::ReadFaults>(seed);
  hm::FileReader reader(files, {.why_threads = by_ring ? "" : "asked for",
                                .num_threads = 2,
                                .ring_depth = 4,
                                .chunk_bytes = 4 * hm::kBlockBytes,
                                .faults = faults});
  std::vector<Request> requests(kClients * kRequests);
  std::atomic<int> num_cancelled = 0;
  std::vector<std::thread> clients;
  for (int client = 0; client < kClients; ++client) {
    clients.emplace_back([&, client] {
      std::mt19937 random(seed + client);
      for (int key = client; key < kClients * kRequests; key += kClients) {
        fill(requests[key], random);
        reader.submit(key, requests[key].ranges, random() % 2 == 0);
        if (random() % 4 == 0) reader.make_urgent(key - kClients * (random() % 3));
        if (random() % 4 == 0 && reader.cancel(key)) {
          overwrite(requests[key]);
          ++requests[key].num_ended;
          ++num_cancelled;
        }
      }
    });
  }
  std::atomic<bool> is_over = false;
  std::thread trouble([&] {
    std::mt19937 random(seed);
    for (int i = 0; !is_over; ++i) {
      faults->fail(EIO, random() % 2 == 0 ? 0.1 : 0, false);
      faults->hang(random() % 3);
      if (i == 3) faults->fail_rings(random() % 50, random() % 2 == 0 ? 0 : ENOMEM);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      faults->resume();
    }
    faults->resume();
  });
  const char* wrong = nullptr;
  int num_taken = 0;
  while (wrong == nullptr && num_taken + num_cancelled < kClients * kRequests) {
    const auto end = reader.take(0.2);
    if (!end) continue;
    ++num_taken;
    Request& request = requests[end->key];
    if (++request.num_ended != 1) wrong = "a request ends twice";
    if (!end->reason.empty() && end->reason != std::strerror(EIO)) {
      std::printf("%s\n", end->reason.c_str());
      wrong = "a request fails";
    }
    if (end->reason.empty() && !has_its_bytes(request)) wrong = "a read brings other bytes";
    overwrite(request);
  }
  for (std::thread& client : clients) client.join();
  is_over = true;
  trouble.join();
  if (!reader.close(10)) wrong = "a read does not return";
  for (const Request& request : requests) {
    if (wrong == nullptr && !is_overwritten(request)) wrong = "a read writes after its end";
  }
  return wrong;
}

}  // namespace

int main(int count, char** arguments) {
  const int rounds = count > 1 ? std::atoi(arguments[1]) : 10;
  for (int round = 0; round < rounds; ++round) {
    for (const bool by_ring : {false, true}) {
      if (const char* wrong = failure(by_ring, round); wrong != nullptr) {
        std::printf("%s, round %d: %s\n", by_ring ? "io_uring" : "threads", round, wrong);
        return 1;
      }
    }
  }
  return 0;
}
