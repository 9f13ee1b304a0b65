// Quantised matrices: products, dequantization, and bringing them into memory.
#pragma once

#include "bindings.h"
#include "ops/linear.h"
#include "ops/touch_rows.h"

namespace py = pybind11;

namespace hm {

void register_linear(py::module_& m) {
  py::class_<Matrix>(m, "Matrix")
      .def(py::init([](Address data, int64_t num_bytes, int32_t type, int64_t batch, int64_t rows,
                       int64_t cols, int64_t stride, Address scales) {
             return Matrix(pointer<void>(data), num_bytes, type, batch, rows, cols, stride,
                           pointer<const float>(scales));
           }),
           py::arg("data"), py::arg("num_bytes"), py::arg("type"), py::arg("batch"),
           py::arg("rows"), py::arg("cols"), py::arg("stride") = 0, py::arg("scales") = 0);

  m.def(
      "linear",
      [](Address x, int64_t x_batch_stride, int64_t x_token_stride, int64_t num_tokens,
         const Matrix& w, Address out, int64_t out_batch_stride, int64_t out_token_stride) {
        linear({pointer<float>(x), x_batch_stride, x_token_stride}, num_tokens, w,
               {pointer<float>(out), out_batch_stride, out_token_stride});
      },
      py::arg("x"), py::arg("x_batch_stride"), py::arg("x_token_stride"), py::arg("num_tokens"),
      py::arg("w"), py::arg("out"), py::arg("out_batch_stride"), py::arg("out_token_stride"),
      NoGil());

  m.def(
      "touch_rows",
      [](Address data, int64_t num_matrices, int64_t rows, int64_t row_bytes) {
        touch_rows(pointer<const uint8_t>(data), num_matrices, rows, row_bytes);
      },
      py::arg("data"), py::arg("num_matrices"), py::arg("rows"), py::arg("row_bytes"), NoGil());

  m.def(
      "claim_rows",
      [](Address data, int64_t num_matrices, int64_t rows, int64_t row_bytes) {
        claim_rows(pointer<std::byte>(data), num_matrices, rows, row_bytes);
      },
      py::arg("data"), py::arg("num_matrices"), py::arg("rows"), py::arg("row_bytes"), NoGil());

  m.def(
      "dequantize", [](const Matrix& w, Address out) { dequantize(w, pointer<float>(out)); },
      py::arg("w"), py::arg("out"), NoGil());

  m.def(
      "gather_rows",
      [](const Matrix& w, Address ids, int64_t num_ids, Address out) {
        gather_rows(w, pointer<int64_t>(ids), num_ids, pointer<float>(out));
      },
      py::arg("w"), py::arg("ids"), py::arg("num_ids"), py::arg("out"), NoGil());
}

}  // namespace hm
