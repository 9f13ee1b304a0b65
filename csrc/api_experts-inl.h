// Routed experts: one call, or a pass whose experts come one by one.
#pragma once

#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings.h"
#include "ops/expert_ffn.h"

namespace py = pybind11;

namespace hm {
namespace {

void register_expert_ffn(py::module_& m) {
  m.def(
      "expert_ffn",
      [](Address x, Address ids, Address weights, int64_t num_tokens, int64_t top_k,
         const Matrix& gate, const Matrix& up, const Matrix& down, Address base, Address out) {
        expert_ffn({
            .x = pointer<float>(x),
            .ids = pointer<int32_t>(ids),
            .weights = pointer<float>(weights),
            .num_tokens = num_tokens,
            .top_k = top_k,
            .gate = {gate},
            .up = {up},
            .down = {down},
            .base = pointer<float>(base),
            .out = pointer<float>(out),
        });
      },
      py::arg("x"), py::arg("ids"), py::arg("weights"), py::arg("num_tokens"), py::arg("top_k"),
      py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("base"), py::arg("out"), NoGil());
}

void register_expert_pass(py::module_& m) {
  py::class_<ExpertPass>(m, "ExpertPass")
      .def(py::init())
      .def(
          "begin",
          [](ExpertPass& pass, Address x, Address ids, Address weights, int64_t num_tokens,
             int64_t top_k, const Matrix& gate, const Matrix& up, const Matrix& down,
             Address addresses, Address out) {
            const auto* at = pointer<const uint8_t* const>(addresses);
            check(ids != 0 && at != nullptr, "ExpertPass: no ids or no addresses");
            auto order = pass.begin({
                .x = pointer<float>(x),
                .ids = pointer<int32_t>(ids),
                .weights = pointer<float>(weights),
                .num_tokens = num_tokens,
                .top_k = top_k,
                .gate = {gate, at},
                .up = {up, at + gate.batch},
                .down = {down, at + 2 * gate.batch},
                .base = nullptr,
                .out = pointer<float>(out),
            });
            return std::pair(std::move(order.experts), order.num_free);
          },
          py::arg("x"), py::arg("ids"), py::arg("weights"), py::arg("num_tokens"), py::arg("top_k"),
          py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("addresses"), py::arg("out"),
          NoGil())
      .def(
          "compute",
          [](ExpertPass& pass, const std::vector<int32_t>& experts) { pass.compute(experts); },
          py::arg("experts"), NoGil())
      .def("finish", &ExpertPass::finish, NoGil());
}

}  // namespace

void register_experts(py::module_& m) {
  register_expert_ffn(m);
  register_expert_pass(m);
}

}  // namespace hm
