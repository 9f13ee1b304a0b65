// Each api_*-inl.h registers its part of the extension module. Arrays cross as addresses: the
// Python wrappers have checked shape, element type and layout. What a wrong number could make a
// kernel read or write out of bounds is checked again in ops/.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace hm {

using Address = uintptr_t;
using NoGil = pybind11::call_guard<pybind11::gil_scoped_release>;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace hm
