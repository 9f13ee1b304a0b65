// Experts of a model larger than RAM: their policy, their residency, a layer of them.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "api_host_calls.h"
#include "base/check.h"
#include "bindings.h"
#include "ops/layer_lru.h"
#include "ops/ram_experts.h"

namespace py = pybind11;

namespace hm {
namespace {

using Keys = std::vector<int64_t>;
using Ids = std::vector<int32_t>;
using PartAddresses = std::tuple<Address, Address, Address>;

PartAddresses as_numbers(const ExpertAddresses& at) {
  return {reinterpret_cast<Address>(at[0]), reinterpret_cast<Address>(at[1]),
          reinterpret_cast<Address>(at[2])};
}

std::pair<bool, int64_t> as_pair(const LayerLru::Offer& offer) {
  return {offer.is_taken, offer.evicted};
}

void register_layer_lru(py::module_& m) {
  py::class_<LayerLru>(m, "LayerLru")
      .def(py::init<const Ids&, int64_t, const Keys&>(), py::arg("group_of"),
           py::arg("num_experts"), py::arg("slots"))
      .def(
          "on_access",
          [](LayerLru& lru, int64_t layer, const Ids& experts, const Ids& above, bool is_prefill) {
            const auto& [hits, admitted, evicted] =
                lru.on_access(layer, experts, above, is_prefill);
            return std::tuple(hits, admitted, evicted);
          },
          py::arg("layer"), py::arg("experts"), py::arg("above"), py::arg("is_prefill"))
      .def("discard", &LayerLru::discard, py::arg("key"))
      .def(
          "offer", [](LayerLru& lru, int64_t key) { return as_pair(lru.offer(key)); },
          py::arg("key"))
      .def(
          "warm", [](LayerLru& lru, const Keys& keys) { lru.warm(keys); }, py::arg("keys"))
      .def("resident", &LayerLru::resident);
}

// Memory, slots, staging buffers, room for a gate, an up and a down.
using PoolTuple = std::tuple<Address, int64_t, int64_t, std::array<int64_t, kNumParts>>;
using PartTuple = std::tuple<int32_t, int64_t, int64_t, int64_t, std::string>;
using LayerTuple =
    std::tuple<std::array<const Matrix*, kNumParts>, int32_t, std::array<PartTuple, kNumParts>>;

std::unique_ptr<RamExperts> make_ram_experts(std::shared_ptr<FileReader> reader,
                                             const std::vector<PoolTuple>& pools,
                                             const std::vector<LayerTuple>& layers,
                                             int64_t num_ahead, int64_t num_leaving,
                                             int64_t decode_tokens, Address uses,
                                             Address was_away) {
  check(!layers.empty(), "RamExperts: no layers");
  std::vector<BufferPool> buffers;
  Keys slots;
  for (const auto& [memory, num_slots, num_staging, part_bytes] : pools) {
    check(memory != 0 && memory % kBlockBytes == 0, "RamExperts: memory at ", memory);
    buffers.push_back({.memory = pointer<std::byte>(memory),
                       .num_buffers = num_slots + num_staging + num_ahead + num_leaving,
                       .part_bytes = part_bytes});
    slots.push_back(num_slots);
  }
  std::vector<RamLayer> matrices;
  std::vector<ExpertFiles> files;
  Ids pool_of_layer;
  for (const auto& [weights, pool, parts] : layers) {
    check(pool >= 0 && pool < static_cast<int32_t>(pools.size()), "RamExperts: pool ", pool, " of ",
          pools.size());
    matrices.push_back({*weights[0], *weights[1], *weights[2], std::get<2>(pools[pool])});
    pool_of_layer.push_back(pool);
    auto& layer = files.emplace_back(ExpertFiles{.pool = pool, .parts = {}});
    for (int i = 0; i < kNumParts; ++i) {
      const auto& [file, offset, stride, num_bytes, name] = parts[i];
      layer.parts[i] = {file, offset, stride, num_bytes, weights[i]->rows, name};
    }
  }
  const int64_t num_experts = matrices[0].gate.batch;
  auto table = std::make_unique<RamTable>(
      ExpertStore(std::move(reader), std::move(buffers), std::move(files), num_experts),
      pool_of_layer, num_experts, slots,
      RamLimits{.num_ahead = num_ahead, .num_leaving = num_leaving},
      RamNotes{.uses = pointer<int64_t>(uses), .was_away = pointer<uint8_t>(was_away)});
  return std::make_unique<RamExperts>(std::move(table), std::move(matrices), decode_tokens);
}

py::dict counters_of(const RamExperts& experts) {
  const RamCounters& c = experts.table().counters();
  py::dict found;
  found["hits"] = c.hits.load();
  found["misses"] = c.misses.load();
  found["uploads"] = c.uploads.load();
  found["evictions"] = c.evictions.load();
  found["bytes_read"] = c.bytes_read.load();
  found["read_wait_s"] = c.wait_s.load();
  found["prefetched"] = c.prefetched.load();
  found["prefetched_used"] = c.prefetched_used.load();
  found["hinted"] = c.hinted.load();
  found["hinted_right"] = c.hinted_right.load();
  found["promoted"] = c.promoted.load();
  found["returned"] = c.returned.load();
  return found;
}

// (key, error) of the reads that have ended.
std::vector<std::pair<int64_t, std::optional<std::string>>> as_pairs(
    const std::vector<ExpertRead>& reads) {
  std::vector<std::pair<int64_t, std::optional<std::string>>> found;
  for (const auto& [key, error] : reads) {
    found.emplace_back(key, error.empty() ? std::nullopt : std::optional(error));
  }
  return found;
}

// What a layer does, and the reads.
void register_steps(py::class_<RamExperts>& experts) {
  experts
      .def(
          "compute",
          [](RamExperts& self, int64_t layer, Address x, Address ids, Address weights,
             int64_t num_tokens, int64_t top_k, Address out) {
            self.compute({
                .layer = layer,
                .x = pointer<const float>(x),
                .ids = pointer<const int32_t>(ids),
                .weights = pointer<const float>(weights),
                .num_tokens = num_tokens,
                .top_k = top_k,
                .slot_of = nullptr,
                .out = pointer<float>(out),
            });
          },
          py::arg("layer"), py::arg("x"), py::arg("ids"), py::arg("weights"), py::arg("num_tokens"),
          py::arg("top_k"), py::arg("out"), NoGil())
      .def("begin_step", &RamExperts::begin_step)
      .def("take_failure",
           [](RamExperts& self) -> std::optional<std::string> {
             switch (self.take_failure()) {
               case RamExperts::Failure::kNone:
                 return std::nullopt;
               case RamExperts::Failure::kStall:
                 return "stall";
               case RamExperts::Failure::kRead:
                 return "read";
               case RamExperts::Failure::kOther:
                 break;
             }
             return "other";
           })
      .def(
          "access",
          [](RamExperts& self, int64_t layer, Address ids, int64_t num_ids, bool is_prefill) {
            self.table().access(layer,
                                {pointer<const int32_t>(ids), static_cast<std::size_t>(num_ids)},
                                is_prefill);
          },
          py::arg("layer"), py::arg("ids"), py::arg("num_ids"), py::arg("is_prefill"))
      .def(
          "hint",
          [](RamExperts& self, int64_t layer, Keys keys) {
            self.table().hint(layer, std::move(keys));
          },
          py::arg("layer"), py::arg("keys"))
      .def("forget_hints", [](RamExperts& self) { self.table().forget_hints(); })
      .def(
          "request",
          [](RamExperts& self, int64_t key, bool is_urgent) {
            return self.table().request(key, is_urgent);
          },
          py::arg("key"), py::arg("is_urgent"))
      .def(
          "release", [](RamExperts& self, int64_t key) { return self.table().release(key); },
          py::arg("key"))
      .def("poll", [](RamExperts& self) { return as_pairs(self.table().poll()); })
      .def("wait",
           [](RamExperts& self) {
             const std::vector<ExpertRead>* reads;
             {
               const py::gil_scoped_release released;
               reads = &self.table().wait();
             }
             return as_pairs(*reads);
           })
      .def(
          "drain", [](RamExperts& self) { self.table().drain(); }, NoGil())
      .def(
          "is_loaded", [](RamExperts& self, int64_t key) { return self.table().is_loaded(key); },
          py::arg("key"))
      .def(
          "is_in_flight",
          [](RamExperts& self, int64_t key) { return self.table().is_in_flight(key); },
          py::arg("key"))
      .def(
          "num_free", [](RamExperts& self, int64_t layer) { return self.table().num_free(layer); },
          py::arg("layer"))
      .def(
          "addresses_of_layer",
          [](RamExperts& self, int64_t layer) {
            return reinterpret_cast<Address>(self.table().addresses_of_layer(layer));
          },
          py::arg("layer"))
      .def(
          "abandon_when",
          [](RamExperts& self, RamTable::IsUnwanted is_unwanted, double stall_s) {
            self.table().abandon_when(std::move(is_unwanted), stall_s);
          },
          py::arg("is_unwanted"), py::arg("stall_s"));
}

// What happens between steps.
void register_residency(py::class_<RamExperts>& experts) {
  experts
      .def(
          "warm",
          [](RamExperts& self, const Keys& keys, const std::function<void(int64_t)>& progress) {
            return self.table().warm(keys, progress);
          },
          py::arg("keys"), py::arg("progress"), NoGil())
      .def(
          "discard", [](RamExperts& self, int64_t key) { return self.table().discard(key); },
          py::arg("key"))
      .def(
          "offer", [](RamExperts& self, int64_t key) { return as_pair(self.table().offer(key)); },
          py::arg("key"))
      .def(
          "fetch", [](RamExperts& self, int64_t key) { return self.table().fetch(key); },
          py::arg("key"))
      .def(
          "uploaded", [](RamExperts& self, int64_t key) { self.table().uploaded(key); },
          py::arg("key"))
      .def(
          "addresses",
          [](RamExperts& self, int64_t key) -> std::optional<PartAddresses> {
            const auto found = self.table().addresses(key);
            if (!found) return std::nullopt;
            return as_numbers(*found);
          },
          py::arg("key"))
      .def(
          "receive",
          [](RamExperts& self, int64_t key) -> std::optional<std::pair<int64_t, PartAddresses>> {
            const auto found = self.table().receive(key);
            if (!found) return std::nullopt;
            return std::pair(found->buffer, as_numbers(found->addresses));
          },
          py::arg("key"))
      .def(
          "received",
          [](RamExperts& self, int64_t buffer, bool is_good) {
            self.table().received(buffer, is_good);
          },
          py::arg("buffer"), py::arg("is_good"))
      .def(
          "num_leaving_free",
          [](RamExperts& self, int64_t layer) { return self.table().num_leaving_free(layer); },
          py::arg("layer"))
      .def("resident", [](RamExperts& self) { return self.table().resident(); })
      .def("pools",
           [](RamExperts& self) {
             std::vector<std::pair<Address, int64_t>> found;
             for (const BufferPool& pool : self.table().pools()) {
               found.emplace_back(reinterpret_cast<Address>(pool.memory),
                                  pool.num_buffers * pool.buffer_bytes());
             }
             return found;
           })
      .def("check", [](RamExperts& self) { self.table().check_invariants(); })
      .def("counters", &counters_of)
      .def_property_readonly("num_free_buffers",
                             [](RamExperts& self) { return self.table().num_free_buffers(); })
      .def_property_readonly("num_resident", [](RamExperts& self) {
        return self.table().counters().num_resident.load();
      });
}

}  // namespace

void register_ram_experts(py::module_& m) {
  register_layer_lru(m);
  py::class_<RamExperts> experts(m, "RamExperts");
  experts.def(py::init(&make_ram_experts), py::arg("reader"), py::arg("pools"), py::arg("layers"),
              py::arg("num_ahead"), py::arg("num_leaving"), py::arg("decode_tokens"),
              py::arg("uses"), py::arg("was_away"));
  register_steps(experts);
  register_residency(experts);
  py::class_<RamExpertCall, HostCall>(m, "RamExpertCall")
      .def(py::init([](RamExperts& experts, int64_t layer, Address x, Address ids, Address weights,
                       Address out, int64_t max_tokens, int64_t top_k, Address slot_of) {
             return std::make_unique<RamExpertCall>(
                 experts, layer, call_memory(x, ids, weights, out, max_tokens, top_k, slot_of));
           }),
           py::arg("experts"), py::arg("layer"), py::arg("x"), py::arg("ids"), py::arg("weights"),
           py::arg("out"), py::arg("max_tokens"), py::arg("top_k"), py::arg("slot_of"),
           py::keep_alive<1, 2>());
}

}  // namespace hm
