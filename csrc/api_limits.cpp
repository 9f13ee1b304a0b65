// The limits of the machine, and the cost model of the active kernels.
#include <pybind11/stl.h>

#include <map>

#include "base/check.h"
#include "base/runtime.h"
#include "bindings.h"
#include "kernels/select.h"

namespace py = pybind11;

namespace hm {
namespace {

template <class Function>
void each_chunk(int64_t chunks, const Function& f) {
  RuntimeLock runtime;
  if (chunks == 1) {
    f(0);
  } else {
    runtime->pool.run(chunks, [&](int64_t chunk, int) { f(chunk); });
  }
}

int64_t run_limit(const std::string& kind, int64_t rounds, int64_t chunks) {
  check(kind == "int8" || kind == "float", "a limit is \"int8\" or \"float\"");
  check(rounds >= 0 && chunks >= 1, "needs rounds and at least one chunk");
  const KernelTable& table = active_table();
  const Limit& limit = kind == "int8" ? table.int8_limit : table.float_limit;
  each_chunk(chunks, [&](int64_t) { limit.run(rounds); });
  return limit.operations * rounds * chunks;
}

void read_memory(uintptr_t data, int64_t num_bytes, int64_t chunks) {
  check(chunks >= 1 && num_bytes / chunks >= 512, "needs at least 512 bytes for each chunk");
  const int64_t part = num_bytes / chunks;
  each_chunk(chunks, [&](int64_t chunk) {
    active_table().read_memory(reinterpret_cast<const uint8_t*>(data) + chunk * part, part);
  });
}

std::map<std::string, double> matmul_costs() {
  const MatmulCosts& c = active_table().costs;
  int64_t tokens = 1;
  while (tokens < 1024 &&
         panels_cost(c, kPanelRows, tokens) >= few_tokens_cost(c, kPanelRows, tokens)) {
    ++tokens;
  }
  return {{"unpack", c.unpack},           {"dot", c.dot},
          {"spread", c.spread},           {"panel_dot", c.panel_dot},
          {"tile_tokens", c.tile_tokens}, {"panels_from_tokens", tokens}};
}

}  // namespace

void register_limits(py::module_& m) {
  using release = py::call_guard<py::gil_scoped_release>;
  m.def("run_limit", &run_limit, py::arg("kind"), py::arg("rounds"), py::arg("chunks"), release());
  m.def("read_memory", &read_memory, py::arg("data"), py::arg("num_bytes"), py::arg("chunks"),
        release());
  m.def("matmul_costs", &matmul_costs);
}

}  // namespace hm
