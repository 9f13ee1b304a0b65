// Reads by io_uring.
#pragma once

#include "base/check.h"
#include "base/io_ring.h"
#include "bindings.h"

namespace py = pybind11;

namespace hm {

void register_io_ring(py::module_& m) {
  py::class_<IoRing>(m, "IoRing")
      .def(py::init<int, int64_t, int64_t>(), py::arg("depth"), py::arg("chunk_bytes"),
           py::arg("block_bytes"))
      .def_property_readonly("has_room", &IoRing::has_room)
      .def(
          "begin",
          [](IoRing& ring, uint64_t tag, int fd, const py::buffer& memory, int64_t num_bytes,
             int64_t offset) {
            const py::buffer_info info = memory.request(/*writable=*/true);
            const bool is_plain = info.ndim == 1 && info.strides[0] == info.itemsize;
            const int64_t room = is_plain ? info.size * info.itemsize : 0;
            check(ring.whole_blocks(num_bytes) <= room, "IoRing: ", num_bytes,
                  " bytes, in whole blocks, do not fit into ", room, " in one piece");
            ring.begin({tag, fd, static_cast<std::byte*>(info.ptr), num_bytes, offset});
          },
          py::arg("tag"), py::arg("fd"), py::arg("memory"), py::arg("num_bytes"), py::arg("offset"))
      .def("wait",
           [](IoRing& ring) {
             std::vector<RingEnd> ends;
             {
               const py::gil_scoped_release released;
               ends = ring.wait();
             }
             py::list result;
             for (const RingEnd& end : ends) {
               result.append(py::make_tuple(end.tag, end.error, end.file_end));
             }
             return result;
           })
      // With the GIL, which so keeps one from the other.
      .def("wake", &IoRing::wake)
      .def("drain", &IoRing::drain, py::arg("seconds"), py::call_guard<py::gil_scoped_release>())
      .def("close", &IoRing::close);
}

}  // namespace hm
