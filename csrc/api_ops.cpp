// The kernels. Arrays cross as addresses: ops.py has checked shape, element type and layout, and
// what a wrong number could make the kernels read or write out of bounds is checked again below.
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "bindings.h"
#include "ops/attention.h"
#include "ops/expert_ffn.h"
#include "ops/linear.h"
#include "ops/token_ops.h"
#include "ops/touch_rows.h"

namespace py = pybind11;

namespace hm {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Address = uintptr_t;

LatentType latent_type(const std::string& name) {
  constexpr const char* names[kNumLatentTypes] = {"f32", "f16", "bf16", "int8"};
  for (int32_t i = 0; i < kNumLatentTypes; ++i) {
    if (name == names[i]) return static_cast<LatentType>(i);
  }
  throw Error("latents: type " + name + ", expected f32, f16, bf16 or int8");
}

LatentPages latent_pages(uint8_t* data, int64_t num_bytes, const std::string& type,
                         int64_t num_pages, int64_t dim) {
  constexpr int64_t most = int64_t{1} << 24;  // no product overflows
  check(num_pages >= 0 && num_pages <= most && dim >= 1 && dim <= most, "latents: ", num_pages,
        " pages of rows of ", dim, " is not usable");
  const LatentPages pages{data, latent_type(type), num_pages, dim};
  check(num_pages * pages.page_bytes() == num_bytes, "latents: ", num_bytes, " bytes, expected ",
        num_pages, " pages of ", pages.page_bytes());
  return pages;
}

}  // namespace

void register_ops(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;

  py::class_<Matrix>(m, "Matrix")
      .def(py::init([](Address data, int64_t num_bytes, int32_t type, int64_t batch, int64_t rows,
                       int64_t cols) {
             return Matrix(pointer<void>(data), num_bytes, type, batch, rows, cols);
           }),
           py::arg("data"), py::arg("num_bytes"), py::arg("type"), py::arg("batch"),
           py::arg("rows"), py::arg("cols"));

  m.def(
      "linear",
      [](Address x, int64_t x_batch_stride, int64_t x_token_stride, int64_t num_tokens,
         const Matrix& w, Address out, int64_t out_batch_stride, int64_t out_token_stride) {
        linear({pointer<float>(x), x_batch_stride, x_token_stride}, num_tokens, w,
               {pointer<float>(out), out_batch_stride, out_token_stride});
      },
      py::arg("x"), py::arg("x_batch_stride"), py::arg("x_token_stride"), py::arg("num_tokens"),
      py::arg("w"), py::arg("out"), py::arg("out_batch_stride"), py::arg("out_token_stride"),
      no_gil);

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
      py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("base"), py::arg("out"), no_gil);

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
          no_gil)
      .def(
          "compute",
          [](ExpertPass& pass, const std::vector<int32_t>& experts) { pass.compute(experts); },
          py::arg("experts"), no_gil)
      .def("finish", &ExpertPass::finish, no_gil);

  py::class_<LatentPages>(m, "LatentPages")
      .def(py::init([](Address data, int64_t num_bytes, const std::string& type, int64_t num_pages,
                       int64_t dim) {
             return latent_pages(pointer<uint8_t>(data), num_bytes, type, num_pages, dim);
           }),
           py::arg("data"), py::arg("num_bytes"), py::arg("type"), py::arg("num_pages"),
           py::arg("dim"));
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.def(
      "latent_row_bytes",
      [](const std::string& type, int64_t dim) { return latent_row_bytes(latent_type(type), dim); },
      py::arg("type"), py::arg("dim"));

  m.def(
      "latent_attention",
      [](Address latent_queries, Address rope_queries, int64_t token_stride, int64_t head_stride,
         int64_t num_tokens, int64_t num_heads, int64_t latent_dim, int64_t rope_dim, float scale,
         const LatentPages& pages, Address spans, int64_t num_spans, Address tables,
         int64_t num_entries, Address out) {
        latent_attention(
            {
                .latent_queries = pointer<float>(latent_queries),
                .rope_queries = pointer<float>(rope_queries),
                .token_stride = token_stride,
                .head_stride = head_stride,
                .num_tokens = num_tokens,
                .num_heads = num_heads,
                .latent_dim = latent_dim,
                .rope_dim = rope_dim,
                .scale = scale,
                .out = pointer<float>(out),
            },
            pages,
            {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries});
      },
      py::arg("latent_queries"), py::arg("rope_queries"), py::arg("token_stride"),
      py::arg("head_stride"), py::arg("num_tokens"), py::arg("num_heads"), py::arg("latent_dim"),
      py::arg("rope_dim"), py::arg("scale"), py::arg("pages"), py::arg("spans"),
      py::arg("num_spans"), py::arg("tables"), py::arg("num_entries"), py::arg("out"), no_gil);

  m.def(
      "store_latents",
      [](Address rows, int64_t num_tokens, const LatentPages& pages, Address spans,
         int64_t num_spans, Address tables, int64_t num_entries) {
        store_latents(
            pointer<float>(rows), num_tokens, pages,
            {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries});
      },
      py::arg("rows"), py::arg("num_tokens"), py::arg("pages"), py::arg("spans"),
      py::arg("num_spans"), py::arg("tables"), py::arg("num_entries"), no_gil);

  m.def(
      "rms_norm",
      [](Address x, int64_t x_stride, Address delta, Address weight, int64_t num_tokens, int64_t n,
         float eps, Address out, int64_t out_stride) {
        rms_norm({
            .x = pointer<float>(x),
            .x_stride = x_stride,
            .delta = pointer<float>(delta),
            .weight = pointer<float>(weight),
            .num_tokens = num_tokens,
            .n = n,
            .eps = eps,
            .out = pointer<float>(out),
            .out_stride = out_stride,
        });
      },
      py::arg("x"), py::arg("x_stride"), py::arg("delta"), py::arg("weight"), py::arg("num_tokens"),
      py::arg("n"), py::arg("eps"), py::arg("out"), py::arg("out_stride"), no_gil);

  m.def(
      "rotate",
      [](Address x, int64_t num_tokens, int64_t num_heads, int64_t token_stride,
         int64_t head_stride, int64_t num_pairs, Address turns) {
        rotate({pointer<float>(x), num_tokens, num_heads, token_stride, head_stride, num_pairs,
                pointer<float>(turns)});
      },
      py::arg("x"), py::arg("num_tokens"), py::arg("num_heads"), py::arg("token_stride"),
      py::arg("head_stride"), py::arg("num_pairs"), py::arg("turns"), no_gil);

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
      py::arg("is_normalized"), py::arg("scale"), py::arg("ids"), py::arg("weights"), no_gil);

  m.def(
      "touch_rows",
      [](Address data, int64_t num_matrices, int64_t rows, int64_t row_bytes) {
        touch_rows(pointer<const uint8_t>(data), num_matrices, rows, row_bytes);
      },
      py::arg("data"), py::arg("num_matrices"), py::arg("rows"), py::arg("row_bytes"), no_gil);

  m.def(
      "dequantize", [](const Matrix& w, Address out) { dequantize(w, pointer<float>(out)); },
      py::arg("w"), py::arg("out"), no_gil);

  m.def(
      "gather_rows",
      [](const Matrix& w, Address ids, int64_t num_ids, Address out) {
        gather_rows(w, pointer<int64_t>(ids), num_ids, pointer<float>(out));
      },
      py::arg("w"), py::arg("ids"), py::arg("num_ids"), py::arg("out"), no_gil);
}

}  // namespace hm
