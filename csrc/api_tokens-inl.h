// Per-token operations: norm, rotary embedding, routing.
#pragma once

#include "bindings.h"
#include "ops/token_ops.h"

namespace py = pybind11;

namespace hm {

void register_tokens(py::module_& m) {
  m.def(
      "rms_norm",
      [](Address x, int64_t x_stride, Address residual, Address weight, int64_t num_tokens,
         int64_t n, float eps, Address out, int64_t out_stride) {
        rms_norm({
            .x = pointer<float>(x),
            .x_stride = x_stride,
            .residual = pointer<float>(residual),
            .weight = pointer<float>(weight),
            .num_tokens = num_tokens,
            .n = n,
            .eps = eps,
            .out = pointer<float>(out),
            .out_stride = out_stride,
        });
      },
      py::arg("x"), py::arg("x_stride"), py::arg("residual"), py::arg("weight"),
      py::arg("num_tokens"), py::arg("n"), py::arg("eps"), py::arg("out"), py::arg("out_stride"),
      NoGil());

  m.def(
      "rotate",
      [](Address x, int64_t num_tokens, int64_t num_heads, int64_t token_stride,
         int64_t head_stride, int64_t num_pairs, Address cos_sin) {
        rotate({pointer<float>(x), num_tokens, num_heads, token_stride, head_stride, num_pairs,
                pointer<float>(cos_sin)});
      },
      py::arg("x"), py::arg("num_tokens"), py::arg("num_heads"), py::arg("token_stride"),
      py::arg("head_stride"), py::arg("num_pairs"), py::arg("cos_sin"), NoGil());

  m.def(
      "route",
      [](Address logits, Address bias, int64_t num_tokens, int64_t num_experts, int64_t top_k,
         int64_t num_groups, int64_t num_groups_used, bool is_sigmoid, bool is_normalized,
         float scale, Address ids, Address weights) {
        route({
            .logits = pointer<float>(logits),
            .bias = pointer<float>(bias),
            .num_tokens = num_tokens,
            .num_experts = num_experts,
            .top_k = top_k,
            .num_groups = num_groups,
            .num_groups_used = num_groups_used,
            .is_sigmoid = is_sigmoid,
            .is_normalized = is_normalized,
            .scale = scale,
            .ids = pointer<int32_t>(ids),
            .weights = pointer<float>(weights),
        });
      },
      py::arg("logits"), py::arg("bias"), py::arg("num_tokens"), py::arg("num_experts"),
      py::arg("top_k"), py::arg("num_groups"), py::arg("num_groups_used"), py::arg("is_sigmoid"),
      py::arg("is_normalized"), py::arg("scale"), py::arg("ids"), py::arg("weights"), NoGil());
}

}  // namespace hm
