// The kernels. Arrays cross as addresses: ops.py has checked shape, element type and layout, and
// what a wrong number could make the kernels read or write out of bounds is checked again below.
#include "bindings.h"
#include "ops/attention.h"
#include "ops/expert_ffn.h"
#include "ops/linear.h"

namespace py = pybind11;

namespace hm {
namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

using Address = uintptr_t;

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
      [](Address x, int64_t num_tokens, const Matrix& w, Address out) {
        linear(pointer<float>(x), num_tokens, w, pointer<float>(out));
      },
      py::arg("x"), py::arg("num_tokens"), py::arg("w"), py::arg("out"), no_gil);

  m.def(
      "expert_ffn",
      [](Address x, Address ids, Address weights, int64_t num_tokens, int64_t top_k,
         const Matrix& gate, const Matrix& up, const Matrix& down, Address out) {
        expert_ffn({
            .x = pointer<float>(x),
            .ids = pointer<int32_t>(ids),
            .weights = pointer<float>(weights),
            .num_tokens = num_tokens,
            .top_k = top_k,
            .gate = gate,
            .up = up,
            .down = down,
            .out = pointer<float>(out),
        });
      },
      py::arg("x"), py::arg("ids"), py::arg("weights"), py::arg("num_tokens"), py::arg("top_k"),
      py::arg("gate"), py::arg("up"), py::arg("down"), py::arg("out"), no_gil);

  m.def(
      "latent_attention",
      [](Address latent_queries, Address rope_queries, Address latents, int64_t num_tokens,
         int64_t num_heads, int64_t latent_dim, int64_t rope_dim, int64_t start, float scale,
         Address out) {
        latent_attention({
            .latent_queries = pointer<float>(latent_queries),
            .rope_queries = pointer<float>(rope_queries),
            .latents = pointer<float>(latents),
            .num_tokens = num_tokens,
            .num_heads = num_heads,
            .latent_dim = latent_dim,
            .rope_dim = rope_dim,
            .start = start,
            .scale = scale,
            .out = pointer<float>(out),
        });
      },
      py::arg("latent_queries"), py::arg("rope_queries"), py::arg("latents"), py::arg("num_tokens"),
      py::arg("num_heads"), py::arg("latent_dim"), py::arg("rope_dim"), py::arg("start"),
      py::arg("scale"), py::arg("out"), no_gil);

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
