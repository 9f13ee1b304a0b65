// Instruction sets, threads, and the layout constants of the formats.
#pragma once

#include <pybind11/stl.h>

#include "base/check.h"
#include "base/runtime.h"
#include "bindings.h"
#include "kernels/select.h"
#include "ops/read_log.h"

namespace py = pybind11;

namespace hm {
namespace {

std::vector<std::string> names(const std::vector<const KernelTable*>& tables) {
  std::vector<std::string> result;
  for (const KernelTable* table : tables) result.emplace_back(table->name);
  return result;
}

// {type id: (name, (weights of a block, its bytes, bytes of a row's scale), whether activations are
// rounded to int8)}
py::dict types() {
  py::dict result;
  for (const TypeInfo& type : kTypes) {
    result[py::int_(static_cast<int>(type.id))] = py::make_tuple(
        type.name, py::make_tuple(type.block_weights, type.block_bytes, type.row_scale_bytes),
        kScalar.formats[type.id].quantized);
  }
  return result;
}

void begin_job_trace() {
  const RuntimeLock runtime;
  runtime->pool.set_trace(&runtime->trace.emplace());
}

// (jobs, seconds after the last one), a job being (seconds before it, whether its chunks stay with
// their nodes, chunks of nodes 0..n, seconds of each chunk).
py::tuple end_job_trace() {
  const RuntimeLock runtime;
  check(runtime->trace.has_value(), "no jobs are being traced");
  const double after_s = runtime->trace->after_s();
  py::list jobs;
  for (const JobTrace::Job& job : runtime->trace->jobs()) {
    jobs.append(py::make_tuple(job.before_s, job.is_local, job.ends, job.seconds));
  }
  runtime->pool.set_trace(nullptr);
  runtime->trace.reset();
  return py::make_tuple(std::move(jobs), after_s);
}

// (address, bytes, node or -1, kind) of each access.
py::list end_reads() {
  py::list found;
  for (const WeightAccess& a : end_read_log()) {
    found.append(py::make_tuple(a.address, a.num_bytes, a.node, static_cast<int>(a.kind)));
  }
  return found;
}

}  // namespace

void register_isa(py::module_& m) {
  m.def("isa_compiled", [] { return py::tuple(py::cast(names(compiled_tables()))); });
  m.def("isa_supported", [] { return py::tuple(py::cast(names(supported_tables()))); });
  m.def("isa_active", [] { return active_table().name; });
  m.def("set_isa", &select_table, py::arg("name"));
  m.def("threads", &threads, NoGil());
  m.def("set_threads", &set_threads, py::arg("plan"), NoGil());
  m.def("begin_job_trace", &begin_job_trace, NoGil());
  m.def("end_job_trace", &end_job_trace);
  m.def("begin_read_log", &begin_read_log, py::arg("with_tiles"), NoGil());
  m.def("end_read_log", &end_reads);
  m.attr("TYPES") = types();
  m.attr("ACTIVATION_BLOCK") = kActivationBlock;
}

}  // namespace hm
