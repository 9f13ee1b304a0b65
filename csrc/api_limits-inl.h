// The limits of the machine, the cost model of the active kernels, and copies by their threads.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/check.h"
#include "base/runtime.h"
#include "bindings.h"
#include "kernels/select.h"
#include "ops/tiles.h"

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

const Limit& find_limit(const std::string& kind) {
  const KernelTable& table = active_table();
  if (kind == "int8") return table.int8_limit;
  if (kind == "float") return table.float_limit;
  check(kind == "tile_int8" || kind == "tile_bf16", "no limit is called \"", kind, "\"");
  check(table.tiles.pack != nullptr, table.name, " has no matrix tiles");
  return kind == "tile_int8" ? table.tile_int8_limit : table.tile_bf16_limit;
}

int64_t run_limit(const std::string& kind, int64_t rounds, int64_t chunks) {
  check(rounds >= 0 && chunks >= 1, "needs rounds and at least one chunk");
  const Limit& limit = find_limit(kind);
  each_chunk(chunks, [&](int64_t) { limit.run(rounds); });
  return limit.operations * rounds * chunks;
}

void read_memory(Address data, int64_t num_bytes, int64_t chunks) {
  check(chunks >= 1 && num_bytes / chunks >= 512, "needs at least 512 bytes for each chunk");
  const int64_t part = num_bytes / chunks;
  each_chunk(chunks, [&](int64_t chunk) {
    active_table().read_memory(pointer<const uint8_t>(data) + chunk * part, part);
  });
}

// Ordinary stores in chunks below the size from which memcpy writes past the cache.
void copy_memory(Address dst, Address src, int64_t num_bytes) {
  constexpr int64_t kChunk = 128 << 10;
  check(num_bytes >= 0, "copies ", num_bytes, " bytes");
  auto* const to = pointer<uint8_t>(dst);
  const auto* const from = pointer<const uint8_t>(src);
  each_chunk((num_bytes + kChunk - 1) / kChunk, [=](int64_t chunk) {
    const int64_t first = chunk * kChunk;
    std::memcpy(to + first, from + first, std::min(kChunk, num_bytes - first));
  });
}

std::map<std::string, double> matmul_costs() {
  const KernelTable& table = active_table();
  const MatmulCosts& c = table.costs;
  std::map<std::string, double> costs = {{"unpack", c.unpack},
                                         {"dot", c.dot},
                                         {"panel_unpack", c.panel_unpack},
                                         {"panel_dot", c.panel_dot},
                                         {"panels_from_tokens", kFewTokens + 1}};
  if (table.tiles.pack != nullptr) {
    costs["matrix_unpack"] = c.matrix_unpack;
    costs["matrix_dot"] = c.matrix_dot;
    int64_t tokens = kLeastTileTokens;
    while (tokens < 1024 &&
           tile_cost(c, kPanelRows, tokens) >= vector_cost(c, kPanelRows, tokens)) {
      ++tokens;
    }
    costs["matrix_tiles_from_tokens"] = static_cast<double>(tokens);
  }
  return costs;
}

bool takes_tiles(int32_t type, int64_t rows, int64_t tokens) {
  check(find_type(type) != nullptr, "tensor type ", type, " has no CPU kernel");
  return tokens >= kLeastTileTokens &&
         prefers_tiles(active_table(), active_table().formats[type], rows, tokens);
}

}  // namespace

void register_limits(py::module_& m) {
  m.def("run_limit", &run_limit, py::arg("kind"), py::arg("rounds"), py::arg("chunks"), NoGil());
  m.def("read_memory", &read_memory, py::arg("data"), py::arg("num_bytes"), py::arg("chunks"),
        NoGil());
  m.def("copy_memory", &copy_memory, py::arg("dst"), py::arg("src"), py::arg("num_bytes"), NoGil());
  m.def("matmul_costs", &matmul_costs);
  m.def("takes_tiles", &takes_tiles, py::arg("type"), py::arg("rows"), py::arg("tokens"));
}

}  // namespace hm
