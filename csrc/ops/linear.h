// Dense products with a quantised matrix, and dequantization. GIL-free; any number of threads.
#pragma once

#include <cstdint>
#include <functional>

#include "ops/matrix.h"
#include "ops/task_split.h"

namespace hm {

// Rows of floats: row t of matrix b starts at data + b * batch_stride + t * token_stride.
template <class T>
struct Rows {
  T* data;
  int64_t batch_stride, token_stride;
};

// What the threads of a product do besides, so that no thread does it alone while the others wait.
// Each may be empty. None may lock the runtime.
struct SideWork {
  // Some rows of a matrix and some tokens.
  using Part = MatrixTasks::Task;

  // Tasks that every part of the product needs: where rows are given, they may write these.
  int64_t num_first = 0;
  std::function<void(int64_t task)> first = {};
  std::function<void()> once = {};                           // in any order with the product
  std::function<void(const Part&)> before = {}, after = {};  // a part of the product, by its thread
  int64_t row_step = 1;  // parts begin at multiples of this power of two, at most kPanelRows
};

// out (B, T, N) = x (B, T, K) w (B, N, K)^T, one product per matrix of the stack.
void linear(const Rows<const float>& x, int64_t num_tokens, const Matrix& w, const Rows<float>& out,
            const SideWork& work = {});

// True if a product takes rows of both alike: rounded to int8, or floats.
bool are_alike(const Matrix& a, const Matrix& b);

// True if so many tokens are rounded to int8 for a product with w.
bool takes_rounded(const Matrix& w, int64_t num_tokens);

// The same of one matrix and rows as it takes them: rounded (kernels.quantize), or floats.
void linear_of(const void* const* rows, int64_t num_tokens, const Matrix& w, const Rows<float>& out,
               const SideWork& work = {});

// out[i] (T, N_i) = x (T, K) w[i] (N_i, K)^T: the bits of linear, as one job where tokens are few.
void linear_pair(const Rows<const float>& x, int64_t num_tokens, const Matrix* const (&w)[2],
                 const Rows<float> (&out)[2]);

// The same as one job, of rows as both take them: rounded, or floats.
void linear_pair_of(const void* const* rows, int64_t num_tokens, const Matrix* const (&w)[2],
                    const Rows<float> (&out)[2], const SideWork& work);

// out (B, N, K): every weight as a float.
void dequantize(const Matrix& w, float* out);

// out (T, K): rows `ids` of the first matrix. Throws Error for an id outside 0..N-1.
void gather_rows(const Matrix& w, const int64_t* ids, int64_t num_ids, float* out);

}  // namespace hm
