// The CPU's experts between two pieces of a GPU's work: host functions of a CUDA stream, and the
// driver's function that runs them; hand-overs by counters; threads that copy for a stream.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <vector>

#include "api_host_calls.h"
#include "base/copy_threads.h"
#include "base/cuda_driver.h"
#include "bindings.h"
#include "ops/hand_over.h"
#include "ops/host_experts.h"

namespace py = pybind11;

namespace hm {

void register_host_calls(py::module_& m) {
  py::class_<HostCall>(m, "HostCall")
      .def_property("num_tokens", &HostCall::num_tokens, &HostCall::set_num_tokens)
      .def("run", &HostCall::run, NoGil())
      .def("take_error", &HostCall::take_error)
      .def("times", &HostCall::times);

  py::class_<HostExpertCall, HostCall>(m, "HostExpertCall")
      .def(py::init([](Address x, Address ids, Address weights, Address out, int64_t max_tokens,
                       int64_t top_k, const Matrix& gate, const Matrix& up, const Matrix& down,
                       Address slot_of) {
             return std::make_unique<HostExpertCall>(HostExpertArgs{
                 .memory = call_memory(x, ids, weights, out, max_tokens, top_k, slot_of),
                 .gate = gate,
                 .up = up,
                 .down = down,
             });
           }),
           py::arg("x"), py::arg("ids"), py::arg("weights"), py::arg("out"), py::arg("max_tokens"),
           py::arg("top_k"), py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("slot_of"));

  py::class_<CopyThreads>(m, "CopyThreads")
      .def(py::init<int>(), py::arg("num_threads"))
      .def_property_readonly("num_threads", &CopyThreads::num_threads)
      .def(
          "copy",
          [](CopyThreads& threads, Address dst, Address src, int64_t num_bytes) {
            threads.copy(pointer<uint8_t>(dst), pointer<const uint8_t>(src), num_bytes);
          },
          py::arg("dst"), py::arg("src"), py::arg("num_bytes"), NoGil());

  py::class_<CudaDriver>(m, "CudaDriver")
      .def(py::init<const std::string&>(), py::arg("library"))
      .def(
          "launch",
          [](const CudaDriver& driver, Address stream, HostCall& call) {
            driver.launch(
                pointer<void>(stream), [](void* data) { static_cast<HostCall*>(data)->run(); },
                &call);
          },
          py::arg("stream"), py::arg("call"), NoGil())
      .def(
          "copy",
          [](const CudaDriver& driver, Address stream, Address dst, Address src,
             std::size_t num_bytes) { driver.copy(pointer<void>(stream), dst, src, num_bytes); },
          py::arg("stream"), py::arg("dst"), py::arg("src"), py::arg("num_bytes"), NoGil());

  py::class_<HandOver>(m, "HandOver")
      .def(py::init([](Address sent, Address done) {
             return std::make_unique<HandOver>(pointer<uint32_t>(sent), pointer<uint32_t>(done));
           }),
           py::arg("sent"), py::arg("done"))
      .def(
          "serve",
          [](HandOver& hand_over, const std::vector<HostCall*>& calls,
             const HandOver::HasEnded& has_ended) { hand_over.serve(calls, has_ended); },
          py::arg("calls"), py::arg("has_ended"), NoGil())
      .def("release", &HandOver::release, py::arg("has_ended"), NoGil());
}

}  // namespace hm
