// Dense products with a quantised matrix, and dequantization. GIL-free; any number of threads.
#pragma once

#include <cstdint>

#include "ops/matrix.h"

namespace hm {

// Rows of floats: row t of matrix b starts at data + b * batch_stride + t * token_stride.
template <class T>
struct Rows {
  T* data;
  int64_t batch_stride, token_stride;
};

// out (B, T, N) = x (B, T, K) w (B, N, K)^T, one product per matrix of the stack.
void linear(const Rows<const float>& x, int64_t num_tokens, const Matrix& w,
            const Rows<float>& out);

// out[i] (T, N_i) = x (T, K) w[i] (N_i, K)^T: the bits of linear, as one job where tokens are few.
void linear_pair(const Rows<const float>& x, int64_t num_tokens, const Matrix* const (&w)[2],
                 const Rows<float> (&out)[2]);

// out (B, N, K): every weight as a float.
void dequantize(const Matrix& w, float* out);

// out (T, K): rows `ids` of the first matrix. Throws Error for an id outside 0..N-1.
void gather_rows(const Matrix& w, const int64_t* ids, int64_t num_ids, float* out);

}  // namespace hm
