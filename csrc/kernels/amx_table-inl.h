// The AVX-512 table with the AMX kernels: gemm, and attention of prompts.
#pragma once

#include "kernels/amx_attention-inl.h"
#include "kernels/table-inl.h"

namespace hm {
namespace {

template <class Group>
constexpr void add_tiles(FormatKernels& format) {
  format.matmul_tiles = matmul_tiles<Group>;
  format.tile_parts = kTileParts<Group>;
}

// Of every type that has blocks, or is bfloat16.
constexpr void add_tile_formats(KernelTable& table) {
  FormatKernels* formats = table.formats;
  add_tiles<GroupBF16>(formats[kBF16]);
  add_tiles<GroupQ4_0>(formats[kQ4_0]);
  add_tiles<GroupQ4_1>(formats[kQ4_1]);
  add_tiles<GroupQ5_0>(formats[kQ5_0]);
  add_tiles<GroupQ5_1>(formats[kQ5_1]);
  add_tiles<GroupQ8_0>(formats[kQ8_0]);
  add_tiles<GroupQ2_K>(formats[kQ2_K]);
  add_tiles<GroupQ3_K>(formats[kQ3_K]);
  add_tiles<GroupQ4_K>(formats[kQ4_K]);
  add_tiles<GroupQ5_K>(formats[kQ5_K]);
  add_tiles<GroupQ6_K>(formats[kQ6_K]);
  add_tiles<GroupIQ4_NL>(formats[kIQ4_NL]);
  add_tiles<GroupIQ4_XS>(formats[kIQ4_XS]);
  add_tiles<GroupMXFP4>(formats[kMXFP4]);
  add_tiles<GroupTQ2_0>(formats[kTQ2_0]);
  add_tiles<GroupTQ1_0>(formats[kTQ1_0]);
  add_tiles<GroupNVFP4>(formats[kNVFP4]);
  add_tiles<GroupQ1_0>(formats[kQ1_0]);
  add_tiles<GroupQ2_0>(formats[kQ2_0]);
  add_tiles<GroupQ6_0>(formats[kQ6_0]);
  add_tiles<GroupIQ2_K>(formats[kIQ2_K]);
  add_tiles<GroupIQ2_KS>(formats[kIQ2_KS]);
  add_tiles<GroupIQ2_KL>(formats[kIQ2_KL]);
  add_tiles<GroupIQ3_K>(formats[kIQ3_K]);
  add_tiles<GroupIQ3_KS>(formats[kIQ3_KS]);
  add_tiles<GroupIQ4_K>(formats[kIQ4_K]);
  add_tiles<GroupIQ4_KS>(formats[kIQ4_KS]);
  add_tiles<GroupIQ4_KSS>(formats[kIQ4_KSS]);
  add_tiles<GroupIQ5_K>(formats[kIQ5_K]);
  add_tiles<GroupIQ5_KS>(formats[kIQ5_KS]);
  add_tiles<GroupIQ6_K>(formats[kIQ6_K]);
  add_tiles<GroupIQ1_S>(formats[kIQ1_S]);
  add_tiles<GroupIQ1_M>(formats[kIQ1_M]);
  add_tiles<GroupIQ2_XXS>(formats[kIQ2_XXS]);
  add_tiles<GroupIQ2_XS>(formats[kIQ2_XS]);
  add_tiles<GroupIQ2_S>(formats[kIQ2_S]);
  add_tiles<GroupIQ3_XXS>(formats[kIQ3_XXS]);
  add_tiles<GroupIQ3_S>(formats[kIQ3_S]);
}

constexpr KernelTable make_tile_table(const char* name) {
  KernelTable table = make_table(name);
  table.costs.matrix_unpack = 40;
  table.costs.matrix_dot = 11;
  table.tiles = {pack_tokens, pack_swiglu, finish_tiles};
  table.tile_attention = {pack_query_tiles, attend_tiles, merge_tiles, finish_query_tiles};
  table.tile_int8_limit = {tile_limit<true>, int64_t{4} * 2 * 16 * 16 * 64};
  table.tile_bf16_limit = {tile_limit<false>, int64_t{4} * 2 * 16 * 16 * 32};
  add_tile_formats(table);
  return table;
}

}  // namespace
}  // namespace hm
