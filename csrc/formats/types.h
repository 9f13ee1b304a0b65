// The GGUF tensor types with a CPU kernel: ids, names, sizes. Ids are those of the GGUF format.
#pragma once

#include <stdint.h>

#include "formats/ik_blocks.h"

namespace hm {

enum TypeId : int32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
  kQ2_0 = 42,
  // of ik_llama.cpp
  kQ6_0 = 133,
  kIQ2_K = 137,
  kIQ3_K = 138,
  kIQ4_K = 139,
  kIQ5_K = 140,
  kIQ6_K = 141,
  kIQ4_KS = 144,
  kIQ2_KS = 145,
  kIQ4_KSS = 146,
  kIQ5_KS = 152,
  kIQ3_KS = 156,
  kIQ2_KL = 157,
};
constexpr int kNumTypeIds = 158;  // table size: one more than the largest id

struct TypeInfo {
  TypeId id;
  const char* name;
  int32_t block_weights;
  int32_t block_bytes;
  int32_t row_scale_bytes;  // before the blocks of a row
  int32_t alignment;        // of the first byte, in bytes
};

template <class Block>
consteval TypeInfo type_info(TypeId id, const char* name) {
  return {id, name, Block::kWeights, sizeof(Block), row_scale_bytes<Block>(), alignof(Block)};
}

constexpr TypeInfo kTypes[] = {
    type_info<BlockF32>(kF32, "F32"),
    type_info<BlockF16>(kF16, "F16"),
    type_info<BlockBF16>(kBF16, "BF16"),
    type_info<BlockQ4_0>(kQ4_0, "Q4_0"),
    type_info<BlockQ4_1>(kQ4_1, "Q4_1"),
    type_info<BlockQ5_0>(kQ5_0, "Q5_0"),
    type_info<BlockQ5_1>(kQ5_1, "Q5_1"),
    type_info<BlockQ8_0>(kQ8_0, "Q8_0"),
    type_info<BlockQ2_K>(kQ2_K, "Q2_K"),
    type_info<BlockQ3_K>(kQ3_K, "Q3_K"),
    type_info<BlockQ4_K>(kQ4_K, "Q4_K"),
    type_info<BlockQ5_K>(kQ5_K, "Q5_K"),
    type_info<BlockQ6_K>(kQ6_K, "Q6_K"),
    type_info<BlockIQ1_S>(kIQ1_S, "IQ1_S"),
    type_info<BlockIQ1_M>(kIQ1_M, "IQ1_M"),
    type_info<BlockIQ2_XXS>(kIQ2_XXS, "IQ2_XXS"),
    type_info<BlockIQ2_XS>(kIQ2_XS, "IQ2_XS"),
    type_info<BlockIQ2_S>(kIQ2_S, "IQ2_S"),
    type_info<BlockIQ3_XXS>(kIQ3_XXS, "IQ3_XXS"),
    type_info<BlockIQ3_S>(kIQ3_S, "IQ3_S"),
    type_info<BlockIQ4_NL>(kIQ4_NL, "IQ4_NL"),
    type_info<BlockIQ4_XS>(kIQ4_XS, "IQ4_XS"),
    type_info<BlockTQ1_0>(kTQ1_0, "TQ1_0"),
    type_info<BlockTQ2_0>(kTQ2_0, "TQ2_0"),
    type_info<BlockMXFP4>(kMXFP4, "MXFP4"),
    type_info<BlockNVFP4>(kNVFP4, "NVFP4"),
    type_info<BlockQ1_0>(kQ1_0, "Q1_0"),
    type_info<BlockQ2_0>(kQ2_0, "Q2_0"),
    type_info<BlockQ6_0>(kQ6_0, "Q6_0"),
    type_info<BlockIQ2_K>(kIQ2_K, "IQ2_K"),
    type_info<BlockIQ2_KS>(kIQ2_KS, "IQ2_KS"),
    type_info<BlockIQ2_KL>(kIQ2_KL, "IQ2_KL"),
    type_info<BlockIQ3_K>(kIQ3_K, "IQ3_K"),
    type_info<BlockIQ3_KS>(kIQ3_KS, "IQ3_KS"),
    type_info<BlockIQ4_K>(kIQ4_K, "IQ4_K"),
    type_info<BlockIQ4_KS>(kIQ4_KS, "IQ4_KS"),
    type_info<BlockIQ4_KSS>(kIQ4_KSS, "IQ4_KSS"),
    type_info<BlockIQ5_K>(kIQ5_K, "IQ5_K"),
    type_info<BlockIQ5_KS>(kIQ5_KS, "IQ5_KS"),
    type_info<BlockIQ6_K>(kIQ6_K, "IQ6_K"),
};

// Bytes of a row of whole blocks.
constexpr int64_t row_bytes(const TypeInfo& type, int64_t cols) {
  return type.row_scale_bytes + cols / type.block_weights * type.block_bytes;
}

// Null for an id without a CPU kernel.
constexpr const TypeInfo* find_type(int32_t id) {
  for (const TypeInfo& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

}  // namespace hm
