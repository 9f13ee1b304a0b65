#include "base/file_reader.h"

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <map>
#include <system_error>
#include <thread>
#include <utility>

#include "base/check.h"

namespace hm {
namespace {

constexpr double kCloseSeconds = 3;

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

struct FileReader::Core {
  Core(std::vector<int> device_of, const ReaderOptions& with)
      : options(with),
        num_devices(device_of.empty() ? 0 : *std::ranges::max_element(device_of) + 1),
        queue(std::move(device_of)) {}

  void read_by_thread(int device);

  // Runs f(core) in a thread, unless the reader is closed. Throws Error.
  template <class Function>
  static void start(const std::shared_ptr<Core>& core, Function f);

  const pid_t pid = getpid();
  const ReaderOptions options;
  const int num_devices;
  ReadQueue queue;
  std::deque<DirectFile> files;

  mutable std::mutex mutex;  // of all that follows
  std::vector<std::thread> threads;
  int num_running = 0;
  std::condition_variable has_ended;
};

template <class Function>
void FileReader::Core::start(const std::shared_ptr<Core>& core, Function f) {
  const std::scoped_lock lock(core->mutex);
  if (core->queue.is_closed()) return;
  try {
    core->threads.emplace_back([core, f = std::move(f)] {
      f(*core);
      const std::scoped_lock lock(core->mutex);
      --core->num_running;
      core->has_ended.notify_all();
    });
  } catch (const std::system_error& error) {
    check(false, "FileReader: no thread: ", error.what());
  }
  ++core->num_running;
}

void FileReader::Core::read_by_thread(int device) {
  while (const auto work = queue.get(device)) {
    std::string reason;
    try {
      reason = files[work->range().file].read(work->range());
    } catch (const std::exception& error) {  // must not end the thread: requests would never end
      reason = error.what();
    }
    queue.finish(*work, std::move(reason));
  }
}

FileReader::FileReader(std::span<const OpenFile> files, const ReaderOptions& options)
    : core_(std::make_shared<Core>(number_devices(files), options)) {
  check(options.num_threads >= 1, "FileReader: ", options.num_threads, " threads");
  try {
    for (int device = 0; device < core_->num_devices; ++device) {
      for (int i = 0; i < options.num_threads; ++i) {
        Core::start(core_, [device](Core& core) { core.read_by_thread(device); });
      }
    }
  } catch (...) {
    close(kCloseSeconds);
    throw;
  }
  for (const OpenFile& file : files) core_->files.emplace_back(file);  // no request before
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

std::string FileReader::backend() const {
  return std::to_string(core_->options.num_threads) + " threads";
}

bool FileReader::close(double seconds) {
  if (getpid() !=
      core_->pid) {  // a forked child: the threads, and locks that they hold, are not its
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

bool FileReader::is_idle() const {
  const std::scoped_lock lock(core_->mutex);
  return core_->num_running == 0;
}

}  // namespace hm
