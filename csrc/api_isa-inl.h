// Instruction sets, threads, and the layout constants of the formats.
#pragma once

#include <pybind11/stl.h>

#include "base/runtime.h"
#include "bindings.h"
#include "kernels/select.h"

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

}  // namespace

void register_isa(py::module_& m) {
  m.def("isa_compiled", [] { return py::tuple(py::cast(names(compiled_tables()))); });
  m.def("isa_supported", [] { return py::tuple(py::cast(names(supported_tables()))); });
  m.def("isa_active", [] { return active_table().name; });
  m.def("set_isa", &select_table, py::arg("name"));
  m.def("threads", &threads, NoGil());
  m.def("set_threads", &set_threads, py::arg("plan"), NoGil());
  m.attr("TYPES") = types();
  m.attr("ACTIVATION_BLOCK") = kActivationBlock;
}

}  // namespace hm
