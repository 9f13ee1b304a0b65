// Products of the IQ1, IQ2 and IQ3 types with few tokens in AVX2: up to four by the tiles of
// codebook_rows_avx2-inl.h, more by few_tokens-inl.h.
#pragma once

#include "kernels/codebook_gemv_avx2-inl.h"
#include "kernels/few_tokens-inl.h"

namespace hm {
namespace {

template <class Type>
void few_tokens_by_tiles(const MatmulArgs& args) {
  if (args.num_tokens > 4 || !takes_tiles<Type>(args)) {
    return few_tokens_by<MultiplyFew<Unit<Type>>>(args);
  }
  if (args.num_tokens == 4) {
    multiply_tokens<Type, 4>(args, 0);
  } else if (args.num_tokens == 3) {
    multiply_tokens<Type, 3>(args, 0);
  } else {
    multiply_tokens<Type, 2>(args, 0);
  }
}

template <>
void few_tokens<StridedIQ1_S>(const MatmulArgs& args) {
  few_tokens_by_tiles<StridedIQ1_S>(args);
}
template <>
void few_tokens<StridedIQ1_M>(const MatmulArgs& args) {
  few_tokens_by_tiles<StridedIQ1_M>(args);
}
template <>
void few_tokens<StridedIQ2_XXS>(const MatmulArgs& args) {
  few_tokens_by_tiles<StridedIQ2_XXS>(args);
}
template <>
void few_tokens<StridedIQ2_XS>(const MatmulArgs& args) {
  few_tokens_by_tiles<StridedIQ2_XS>(args);
}
template <>
void few_tokens<StridedIQ2_S>(const MatmulArgs& args) {
  few_tokens_by_tiles<StridedIQ2_S>(args);
}
template <>
void few_tokens<StridedIQ3_XXS>(const MatmulArgs& args) {
  few_tokens_by_tiles<StridedIQ3_XXS>(args);
}
template <>
void few_tokens<StridedIQ3_S>(const MatmulArgs& args) {
  few_tokens_by_tiles<StridedIQ3_S>(args);
}

}  // namespace
}  // namespace hm
