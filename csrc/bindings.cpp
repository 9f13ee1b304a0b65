// hybridmoe._C: the module, and the translation of hm::Error to its Python twins. One translation
// unit: pybind11's headers take longer to compile than all that is bound here.
#include "bindings.h"

#include <exception>

#include "api_attention-inl.h"
#include "api_experts-inl.h"
#include "api_file_reader-inl.h"
#include "api_fused_layer-inl.h"
#include "api_host_calls-inl.h"
#include "api_io_ring-inl.h"
#include "api_isa-inl.h"
#include "api_limits-inl.h"
#include "api_linear-inl.h"
#include "api_ram_experts-inl.h"
#include "api_tokens-inl.h"
#include "base/check.h"
#include "ops/read_errors.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels of hybridmoe. Use hybridmoe.kernels.ops, which checks what it passes.";
  // Leaked on purpose: the translator may run while the interpreter shuts down. Local, since
  // another extension's global one (libcachesim's) may take every std::exception.
  static const auto* errors = new py::module_(py::module_::import("hybridmoe.errors"));
  py::register_local_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const hm::ReadFailure& error) {
      py::set_error(errors->attr("DiskError"), error.what());
    } catch (const hm::StalledRead& error) {
      py::set_error(errors->attr("StalledReadError"), error.what());
    } catch (const hm::Error& error) {
      py::set_error(errors->attr("ShapeError"), error.what());
    }
  });
  hm::register_attention(m);
  hm::register_experts(m);
  hm::register_file_reader(m);
  hm::register_fused_layer(m);
  hm::register_host_calls(m);
  hm::register_io_ring(m);
  hm::register_isa(m);
  hm::register_limits(m);
  hm::register_linear(m);
  hm::register_ram_experts(m);
  hm::register_tokens(m);
}
