// Each api_*.cpp registers its part of the extension module here.
#pragma once

#include <pybind11/pybind11.h>

namespace hm {

void register_host(pybind11::module_& m);
void register_io_ring(pybind11::module_& m);
void register_isa(pybind11::module_& m);
void register_limits(pybind11::module_& m);
void register_ops(pybind11::module_& m);

}  // namespace hm
