#include "base/file_reader.h"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <map>
#include <system_error>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/read_loops.h"

namespace hm {
namespace {

constexpr double kCloseSeconds = 3;
constexpr std::chrono::milliseconds kShortPause{1}, kLongPause{64};

// Numbers of the files' devices, from 0.
std::vector<int> number_devices(std::span<const OpenFile> files) {
  std::map<int64_t, int> numbers;
  std::vector<int> device_of;
  for (const OpenFile& file : files) {
    const int next = static_cast<int>(numbers.size());
    device_of.push_back(numbers.try_emplace(file.state.device, next).first->second);
  }
  return device_of;
}

}  // namespace

struct FileReader::Core : ReadSource {
  Core(std::vector<int> device_of, const ReaderOptions& with)
      : ReadSource{.queue = ReadQueue(device_of), .files = {}, .faults = with.faults},
        options(with),
        num_devices(device_of.empty() ? 0 : *std::ranges::max_element(device_of) + 1),
        why_threads(with.why_threads) {}

  // Runs f in a thread, unless the reader is closed. Throws Error.
  static void start(const std::shared_ptr<Core>& core, std::function<void()> f);
  static void start_threads(const std::shared_ptr<Core>& core, int device);
  static void read_by_ring(const std::shared_ptr<Core>& core, int device, RingReads& ring);

  const pid_t pid = getpid();
  const ReaderOptions options;
  const int num_devices;

  mutable std::mutex mutex;  // of all that follows
  std::string why_threads;
  std::vector<std::thread> threads;
  int num_running = 0;
  std::condition_variable has_ended;
};

void FileReader::Core::start(const std::shared_ptr<Core>& core, std::function<void()> f) {
  const std::scoped_lock lock(core->mutex);
  if (core->queue.is_closed()) return;
  try {
    core->threads.emplace_back([core, f = std::move(f)] {
      f();
      const std::scoped_lock lock(core->mutex);
      --core->num_running;
      core->has_ended.notify_all();
    });
  } catch (const std::system_error& error) {
    check(false, "FileReader: no thread: ", error.what());
  }
  ++core->num_running;
}

void FileReader::Core::start_threads(const std::shared_ptr<Core>& core, int device) {
  for (int i = 0; i < core->options.num_threads; ++i) {
    start(core, [core, device] { read_by_thread(*core, device); });
  }
}

// If io_uring fails, threads go on at once with what it has not finished; what the kernel may still
// write follows when that has come.
void FileReader::Core::read_by_ring(const std::shared_ptr<Core>& core, int device,
                                    RingReads& ring) {
  const std::string reason = ring.run();
  bool has_threads = true;
  if (!reason.empty()) {
    const std::string why = "io_uring failed: " + reason;
    std::unique_lock lock(core->mutex);
    core->why_threads = why;
    lock.unlock();
    try {
      start_threads(core, device);
    } catch (const Error&) {
      has_threads = false;
    }
  }
  auto pause = kShortPause;
  while (!ring.give_back()) {
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, kLongPause);
  }
  if (!has_threads) read_by_thread(*core, device);
}

FileReader::FileReader(std::span<const OpenFile> files, const ReaderOptions& options)
    : core_(std::make_shared<Core>(number_devices(files), options)) {
  check(options.num_threads >= 1, "FileReader: ", options.num_threads, " threads");
  try {
    for (int device = 0; device < core_->num_devices; ++device) start(device);
  } catch (...) {
    close(kCloseSeconds);
    throw;
  }
  for (const OpenFile& file : files) core_->files.emplace_back(file);  // no request before
}

void FileReader::start(int device) {
  std::shared_ptr<RingReads> ring;
  if (core_->why_threads.empty()) {
    const ReaderOptions& options = core_->options;
    try {
      ring = std::make_shared<RingReads>(*core_, device, options.ring_depth, options.chunk_bytes);
    } catch (const Error& error) {
      const std::scoped_lock lock(core_->mutex);
      core_->why_threads = error.what();
    }
  }
  if (ring == nullptr) return Core::start_threads(core_, device);
  Core::start(core_, [core = core_, device, ring] { Core::read_by_ring(core, device, *ring); });
}

FileReader::~FileReader() { close(kCloseSeconds); }

void FileReader::submit(int64_t key, std::span<const ReadRange> ranges, bool is_urgent) {
  core_->queue.put(key, ranges, is_urgent);
}

void FileReader::make_urgent(int64_t key) { core_->queue.make_urgent(key); }

bool FileReader::cancel(int64_t key) { return core_->queue.cancel(key); }

std::optional<ReadEnd> FileReader::take(double timeout_s) { return core_->queue.take(timeout_s); }

int64_t FileReader::num_queued(bool is_urgent) const { return core_->queue.num_queued(is_urgent); }

bool FileReader::is_direct() const {
  return std::ranges::all_of(core_->files, &DirectFile::is_direct);
}

int FileReader::num_devices() const { return core_->num_devices; }

std::string FileReader::why_threads() const {
  const std::scoped_lock lock(core_->mutex);
  return core_->why_threads;
}

bool FileReader::close(double seconds) {
  if (getpid() != core_->pid) {
    // A forked child has none of the threads, and locks may be held in it for ever: left alone.
    static_cast<void>(new std::shared_ptr<Core>(core_));
    return true;
  }
  core_->queue.close();
  std::unique_lock lock(core_->mutex);
  const bool is_over = core_->has_ended.wait_for(lock, std::chrono::duration<double>(seconds),
                                                 [&] { return core_->num_running == 0; });
  // Those that hang keep the core, and so the files: another could get their numbers.
  auto threads = std::exchange(core_->threads, {});
  lock.unlock();
  for (std::thread& thread : threads) is_over ? thread.join() : thread.detach();
  if (is_over) std::ranges::for_each(core_->files, &DirectFile::close);
  return is_over;
}

}  // namespace hm
