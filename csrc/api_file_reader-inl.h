// Background reads of files.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/file_reader.h"
#include "bindings.h"

namespace py = pybind11;

namespace hm {
namespace {

using State = std::tuple<int64_t, int64_t, int64_t, int64_t>;
using Range = std::tuple<int32_t, int64_t, int64_t, py::buffer>;

constexpr double kSignalSeconds = 0.1;  // a wait looks for Ctrl-C as often

std::unique_ptr<FileReader> open_reader(const std::vector<std::tuple<int, int, State>>& files,
                                        const std::string& why_threads, int num_threads,
                                        int ring_depth, int64_t chunk_bytes,
                                        std::shared_ptr<ReadFaults> faults) {
  std::vector<OpenFile> open;
  for (const auto& [fd, direct_fd, state] : files) {
    const auto [device, inode, num_bytes, mtime_ns] = state;
    open.push_back({fd, direct_fd, {device, inode, num_bytes, mtime_ns}});
  }
  return std::make_unique<FileReader>(
      open, ReaderOptions{why_threads, num_threads, ring_depth, chunk_bytes, std::move(faults)});
}

void submit(FileReader& reader, int64_t key, const std::vector<Range>& parts, bool is_urgent) {
  std::vector<ReadRange> ranges;
  for (const auto& [file, offset, num_bytes, memory] : parts) {
    const py::buffer_info info = memory.request(/*writable=*/true);
    const bool is_plain = info.ndim == 1 && info.strides[0] == info.itemsize;
    const ReadRange range{file, offset, num_bytes, static_cast<std::byte*>(info.ptr)};
    const int64_t room = is_plain ? info.size * info.itemsize : 0;
    check(offset >= 0 && num_bytes > 0 && num_bytes <= room && whole_blocks(range.wanted()) <= room,
          "FileReader: ", num_bytes, " bytes at ", offset, ", in whole blocks, do not fit into ",
          room, " in one piece");
    ranges.push_back(range);
  }
  reader.submit(key, ranges, is_urgent);
}

// (key, number of the range that failed or -1, why or "")
py::object take(FileReader& reader, double timeout_s) {
  const auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(timeout_s);
  for (;;) {
    const std::chrono::duration<double> left = until - std::chrono::steady_clock::now();
    const bool is_last = timeout_s >= 0 && left.count() <= kSignalSeconds;
    std::optional<ReadEnd> end;
    {
      const py::gil_scoped_release released;
      end = reader.take(is_last ? std::max(0.0, left.count()) : kSignalSeconds);
    }
    if (end) return py::make_tuple(end->key, end->range, end->reason);
    if (is_last) return py::none();
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  }
}

}  // namespace

void register_file_reader(py::module_& m) {
  m.attr("BLOCK_BYTES") = kBlockBytes;
  py::class_<ReadFaults, std::shared_ptr<ReadFaults>>(m, "ReadFaults")
      .def(py::init<uint32_t>(), py::arg("seed") = 0)
      .def("fail", &ReadFaults::fail, py::arg("error"), py::arg("rate") = 1.0,
           py::arg("direct_only") = false)
      .def("shorten", &ReadFaults::shorten, py::arg("max_blocks"))
      .def("hang", &ReadFaults::hang, py::arg("most") = INT64_MAX)
      .def("resume", &ReadFaults::resume, NoGil())
      .def("release", &ReadFaults::release)
      .def_property_readonly("num_hung", &ReadFaults::num_hung)
      .def("fail_rings", &ReadFaults::fail_rings, py::arg("num_good"), py::arg("error"));

  py::class_<FileReader, std::shared_ptr<FileReader>>(m, "FileReader")
      .def(py::init(&open_reader), py::arg("files"), py::arg("why_threads") = "",
           py::arg("num_threads") = ReaderOptions{}.num_threads,
           py::arg("ring_depth") = ReaderOptions{}.ring_depth,
           py::arg("chunk_bytes") = ReaderOptions{}.chunk_bytes, py::arg("faults") = nullptr)
      .def("submit", &submit, py::arg("key"), py::arg("ranges"), py::arg("is_urgent"))
      .def("make_urgent", &FileReader::make_urgent, py::arg("key"))
      .def("cancel", &FileReader::cancel, py::arg("key"))
      .def("take", &take, py::arg("timeout_s"))
      .def("num_queued", &FileReader::num_queued, py::arg("is_urgent"))
      .def_property_readonly("is_direct", &FileReader::is_direct)
      .def_property_readonly("num_devices", &FileReader::num_devices)
      .def_property_readonly("why_threads", &FileReader::why_threads)
      .def("close", &FileReader::close, py::arg("seconds"), NoGil());
}

}  // namespace hm
