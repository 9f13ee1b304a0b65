// The one KernelTable of an instruction set, from the Simd vocabulary and the codebook groups that
// were included before this.
#pragma once

#include "formats/ik_dequantize-inl.h"
#include "kernels/attention-inl.h"
#include "kernels/elementwise-inl.h"
#include "kernels/expanded_attention-inl.h"
#include "kernels/float_matmul-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/gemv-inl.h"
#include "kernels/ik_groups-inl.h"
#include "kernels/indexer-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/limits-inl.h"

namespace hm {
namespace {

template <class Group>
void matmul_quantized(const MatmulArgs& args) {
  using Type = typename GemvGroup<Group>::Type;
  if constexpr (Simd::kUnitRows != 0) {
    if (takes_panels(args.num_rows, args.num_tokens)) return gemm_panels<Group>(args);
    if (args.num_tokens > 1) return few_tokens<Type>(args);
  }
  for (int64_t t = 0; t < args.num_tokens; ++t) gemv_groups<Type>(args, t);
}

template <class Group>
constexpr FormatKernels quantized() {
  return {dequantize_row<typename Group::Block>, matmul_quantized<Group>, true, nullptr, 0};
}

template <class Block, class Floats>
constexpr FormatKernels floats() {
  return {dequantize_row<Block>, matmul_float<Floats>, false, nullptr, 0};
}

constexpr KernelTable make_table(const char* name) {
  KernelTable table{};
  table.name = name;
  table.quantize = quantize;
  table.silu_mul = silu_mul;
  table.rms_norm = rms_norm;
  table.weighted_sum = weighted_sum;
  table.greatest = greatest;
  table.costs = Simd::kCosts;
  table.attention = {pack_queries, attend, merge_attention, finish_attention};
  table.score_keys = score_keys;
  table.weigh_values = weigh_values;
  table.round_columns = round_columns;
  table.expand_head = expand_head;
  table.attend_expanded = attend_expanded;
  table.score_index = score_index;
  table.round_to_half = round_to_half;
  table.int8_limit = {int8_limit, kInt8Operations};
  table.float_limit = {float_limit, kFloatOperations};
  table.read_memory = read_memory;
  FormatKernels* formats = table.formats;
  formats[kF32] = floats<BlockF32, FloatsF32>();
  formats[kF16] = floats<BlockF16, FloatsF16>();
  formats[kBF16] = floats<BlockBF16, FloatsBF16>();
  formats[kQ4_0] = quantized<GroupQ4_0>();
  formats[kQ4_1] = quantized<GroupQ4_1>();
  formats[kQ5_0] = quantized<GroupQ5_0>();
  formats[kQ5_1] = quantized<GroupQ5_1>();
  formats[kQ8_0] = quantized<GroupQ8_0>();
  formats[kQ2_K] = quantized<GroupQ2_K>();
  formats[kQ3_K] = quantized<GroupQ3_K>();
  formats[kQ4_K] = quantized<GroupQ4_K>();
  formats[kQ5_K] = quantized<GroupQ5_K>();
  formats[kQ6_K] = quantized<GroupQ6_K>();
  formats[kIQ4_NL] = quantized<GroupIQ4_NL>();
  formats[kIQ4_XS] = quantized<GroupIQ4_XS>();
  formats[kMXFP4] = quantized<GroupMXFP4>();
  formats[kTQ2_0] = quantized<GroupTQ2_0>();
  formats[kTQ1_0] = quantized<GroupTQ1_0>();
  formats[kNVFP4] = quantized<GroupNVFP4>();
  formats[kQ1_0] = quantized<GroupQ1_0>();
  formats[kQ2_0] = quantized<GroupQ2_0>();
  formats[kQ6_0] = quantized<GroupQ6_0>();
  formats[kIQ2_K] = quantized<GroupIQ2_K>();
  formats[kIQ2_KS] = quantized<GroupIQ2_KS>();
  formats[kIQ2_KL] = quantized<GroupIQ2_KL>();
  formats[kIQ3_K] = quantized<GroupIQ3_K>();
  formats[kIQ3_KS] = quantized<GroupIQ3_KS>();
  formats[kIQ4_K] = quantized<GroupIQ4_K>();
  formats[kIQ4_KS] = quantized<GroupIQ4_KS>();
  formats[kIQ4_KSS] = quantized<GroupIQ4_KSS>();
  formats[kIQ5_K] = quantized<GroupIQ5_K>();
  formats[kIQ5_KS] = quantized<GroupIQ5_KS>();
  formats[kIQ6_K] = quantized<GroupIQ6_K>();
  formats[kIQ1_S] = quantized<GroupIQ1_S>();
  formats[kIQ1_M] = quantized<GroupIQ1_M>();
  formats[kIQ2_XXS] = quantized<GroupIQ2_XXS>();
  formats[kIQ2_XS] = quantized<GroupIQ2_XS>();
  formats[kIQ2_S] = quantized<GroupIQ2_S>();
  formats[kIQ3_XXS] = quantized<GroupIQ3_XXS>();
  formats[kIQ3_S] = quantized<GroupIQ3_S>();
  return table;
}

}  // namespace
}  // namespace hm
