// The halves of a decoder layer, all layers, and a whole step as one call each.
#pragma once

#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "base/check.h"
#include "bindings.h"
#include "ops/fused_layer.h"
#include "ops/fused_step.h"

namespace py = pybind11;

namespace hm {
namespace {

// A null pointer, where an optional matrix is None.
std::optional<Matrix> optional(const Matrix* w) {
  return w == nullptr ? std::nullopt : std::optional<Matrix>(*w);
}

void register_fused_attention(py::module_& m) {
  py::class_<FusedAttention>(m, "FusedAttention")
      .def(py::init([](Address norm, float eps, const Matrix* q_a, Address q_a_norm,
                       const Matrix& q_b, const Matrix& kv_a, Address kv_a_norm, const Matrix& k_b,
                       const Matrix& v_b, const Matrix& out, float scale) {
             return std::make_unique<FusedAttention>(FusedAttention::Weights{
                 .norm = {pointer<const float>(norm), eps},
                 .q_a = optional(q_a),
                 .q_a_norm = pointer<const float>(q_a_norm),
                 .q_b = q_b,
                 .kv_a = kv_a,
                 .kv_a_norm = pointer<const float>(kv_a_norm),
                 .k_b = k_b,
                 .v_b = v_b,
                 .out = out,
                 .scale = scale,
             });
           }),
           py::arg("norm"), py::arg("eps"), py::arg("q_a"), py::arg("q_a_norm"), py::arg("q_b"),
           py::arg("kv_a"), py::arg("kv_a_norm"), py::arg("k_b"), py::arg("v_b"), py::arg("out"),
           py::arg("scale"))
      .def(
          "forward",
          [](const FusedAttention& layer, Address x, Address residual, int64_t num_tokens,
             const KvPages& pages, Address spans, int64_t num_spans, Address tables,
             int64_t num_entries, Address cos_sin, Address out) {
            layer.forward(
                {pointer<float>(x), pointer<const float>(residual), num_tokens,
                 pointer<float>(out)},
                pages,
                {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries},
                pointer<const float>(cos_sin));
          },
          py::arg("x"), py::arg("residual"), py::arg("num_tokens"), py::arg("pages"),
          py::arg("spans"), py::arg("num_spans"), py::arg("tables"), py::arg("num_entries"),
          py::arg("cos_sin"), py::arg("out"), NoGil());
}

void register_fused_ffn(py::module_& m) {
  py::class_<FusedFfn::Swiglu>(m, "Swiglu")
      .def(py::init([](const Matrix& gate, const Matrix& up, const Matrix& down) {
             return FusedFfn::Swiglu{gate, up, down};
           }),
           py::arg("gate"), py::arg("up"), py::arg("down"));
  py::class_<FusedFfn::Routed>(m, "RoutedSwiglu")
      .def(py::init([](const Matrix& router, Address bias, int64_t top_k, int64_t num_groups,
                       int64_t num_groups_used, bool is_sigmoid, bool is_normalized, float scale,
                       const FusedFfn::Swiglu& experts) {
             return FusedFfn::Routed{
                 .router = router,
                 .bias = pointer<const float>(bias),
                 .top_k = top_k,
                 .num_groups = num_groups,
                 .num_groups_used = num_groups_used,
                 .is_sigmoid = is_sigmoid,
                 .is_normalized = is_normalized,
                 .scale = scale,
                 .experts = experts,
             };
           }),
           py::arg("router"), py::arg("bias"), py::arg("top_k"), py::arg("num_groups"),
           py::arg("num_groups_used"), py::arg("is_sigmoid"), py::arg("is_normalized"),
           py::arg("scale"), py::arg("experts"));
  py::class_<FusedFfn>(m, "FusedFfn")
      .def(py::init([](Address norm, float eps, const std::optional<FusedFfn::Routed>& routed,
                       const std::optional<FusedFfn::Swiglu>& dense) {
             return std::make_unique<FusedFfn>(RmsNorm{pointer<const float>(norm), eps}, routed,
                                               dense);
           }),
           py::arg("norm"), py::arg("eps"), py::arg("routed"), py::arg("dense"))
      .def(
          "forward",
          [](const FusedFfn& layer, Address x, Address residual, int64_t num_tokens, Address ids,
             Address weights, Address out) {
            layer.forward({pointer<float>(x), pointer<const float>(residual), num_tokens,
                           pointer<float>(out)},
                          pointer<int32_t>(ids), pointer<float>(weights));
          },
          py::arg("x"), py::arg("residual"), py::arg("num_tokens"), py::arg("ids"),
          py::arg("weights"), py::arg("out"), NoGil());
}

struct LayerPages {
  std::vector<KvPages> of_layer;
};

void register_fused_layers(py::module_& m) {
  py::class_<LayerPages>(m, "LayerPages")
      .def(py::init([](const std::vector<const KvPages*>& pages) {
             LayerPages copies;
             for (const KvPages* of_layer : pages) {
               check(of_layer != nullptr, "layers' pages: one is missing");
               copies.of_layer.push_back(*of_layer);
             }
             return copies;
           }),
           py::arg("pages"));
  py::class_<FusedLayers>(m, "FusedLayers")
      .def(py::init([](const std::vector<const FusedAttention*>& attention,
                       const std::vector<const FusedFfn*>& ffn) {
             check(attention.size() == ffn.size(), "fused layers: ", attention.size(),
                   " of attention, ", ffn.size(), " networks");
             std::vector<FusedLayers::Layer> layers;
             for (std::size_t i = 0; i < ffn.size(); ++i) layers.push_back({attention[i], ffn[i]});
             return std::make_unique<FusedLayers>(std::move(layers));
           }),
           py::arg("attention"), py::arg("ffn"))
      .def(
          "forward",
          [](const FusedLayers& layers, const LayerPages& pages, Address x, int64_t num_tokens,
             Address spans, int64_t num_spans, Address tables, int64_t num_entries, Address cos_sin,
             Address ids, Address weights) {
            layers.forward(
                pages.of_layer, pointer<float>(x), num_tokens,
                {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries},
                pointer<const float>(cos_sin), pointer<int32_t>(ids), pointer<float>(weights));
          },
          py::arg("pages"), py::arg("x"), py::arg("num_tokens"), py::arg("spans"),
          py::arg("num_spans"), py::arg("tables"), py::arg("num_entries"), py::arg("cos_sin"),
          py::arg("ids"), py::arg("weights"), NoGil());
}

void register_fused_step(py::module_& m) {
  py::class_<FusedStep>(m, "FusedStep")
      .def(py::init([](const Matrix& embedding, const FusedLayers& layers, Address norm, float eps,
                       const Matrix& head) {
             return std::make_unique<FusedStep>(embedding, layers,
                                                RmsNorm{pointer<const float>(norm), eps}, head);
           }),
           py::arg("embedding"), py::arg("layers"), py::arg("norm"), py::arg("eps"),
           py::arg("head"), py::keep_alive<1, 3>())
      .def(
          "forward",
          [](const FusedStep& step, Address ids, int64_t num_tokens, Address spans,
             int64_t num_spans, Address tables, int64_t num_entries, const LayerPages& pages,
             Address rotations, int64_t num_rotations, Address states, Address logits,
             Address best) {
            step.forward({
                .ids = pointer<const int64_t>(ids),
                .num_tokens = num_tokens,
                .batch = {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables),
                          num_entries},
                .pages = pages.of_layer,
                .rotations = pointer<const float>(rotations),
                .num_rotations = num_rotations,
                .states = pointer<float>(states),
                .logits = pointer<float>(logits),
                .best = pointer<int32_t>(best),
            });
          },
          py::arg("ids"), py::arg("num_tokens"), py::arg("spans"), py::arg("num_spans"),
          py::arg("tables"), py::arg("num_entries"), py::arg("pages"), py::arg("rotations"),
          py::arg("num_rotations"), py::arg("states"), py::arg("logits"), py::arg("best"), NoGil());
}

}  // namespace

void register_fused_layer(py::module_& m) {
  register_fused_attention(m);
  register_fused_ffn(m);
  register_fused_layers(m);
  register_fused_step(m);
}

}  // namespace hm
