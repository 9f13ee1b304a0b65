// Rows of weights as bfloat16, in the order of their columns: what amx_gemm-inl.h multiplies.
//
// The two ports of 512-bit instructions are the bound, so work is moved off them: scales are made
// in scalar registers and broadcast by loads, and 4-bit codes look their values up.
#pragma once

#include <stddef.h>

#include "kernels/gemm-inl.h"
#include "kernels/ik_groups-inl.h"

namespace hm {
namespace {

constexpr int kColumnStep = 32;  // of a tile

HM_INLINE __m512i bf16_bits(__m512bh v) { return (__m512i)v; }

// low and high 16 floats -> 32 bfloat16
HM_INLINE __m512i to_bf16(__m512 low, __m512 high) {
  return bf16_bits(_mm512_cvtne2ps_pbh(high, low));
}

// What was stored is loaded again: a load that broadcasts or widens costs nothing on the port of
// the shuffles, by which compilers would replace it.
template <class T>
HM_INLINE void keep_in_memory(T& array) {
  asm volatile("" : "+m"(array));
}

// A group's weights are (code - bias) d + offset: the factors of its 8 or 16 lanes.
template <class Group>
struct Factors {
  alignas(64) float d[16], offset[16];

  HM_INLINE Factors(const typename Group::Block* blocks, float row_scale, Group& group) {
    using Lanes = typename Group::Lanes;
    load_group(group, blocks, row_scale);
    Lanes::store(d, group.d);
    if constexpr (Group::kOffset) {
      Lanes::store(offset, group.offset);
    } else if constexpr (Group::kShift != 0) {
      for (int lane = 0; lane < Lanes::kLanes; ++lane) {
        const int shift = Group::kShift * static_cast<int>(group.shifts >> lane & 1);
        offset[lane] = d[lane] * static_cast<float>(shift - Group::kBias);
      }
    } else if constexpr (Group::kBias != 0) {
      Lanes::store(offset, Lanes::mul(group.d, Lanes::set(-Group::kBias)));
    } else {
      Lanes::store(offset, Lanes::set(0.0f));
    }
    keep_in_memory(d);
    keep_in_memory(offset);
  }
  template <int Block>
  HM_INLINE __m512 block_d() const {
    return _mm512_set1_ps(d[Block]);
  }
  template <int Block>
  HM_INLINE __m512 block_offset() const {
    return _mm512_set1_ps(offset[Block]);
  }
};

// Q4_K's are one vector: its eight d, then its eight offsets.
template <>
struct Factors<GroupQ4_K> {
  alignas(64) float both[16];

  HM_INLINE Factors(const BlockQ4_K* block, float, GroupQ4_K&) {
    static_assert(offsetof(BlockQ4_K, dmin) == offsetof(BlockQ4_K, d) + 2);
    const auto [scales, mins] = unpack_k_scales(block->scales);
    const __m512 d = _mm512_castps128_ps512(
        _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int32_t>(load_u32(&block->d)))));
    const __m512i order = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    const __m512 eight = _mm512_permutexvar_ps(order, d);
    const __m512 signs = _mm512_mask_sub_ps(eight, 0xff00, _mm512_setzero_ps(), eight);
    const __m128i bytes = _mm_set_epi64x(static_cast<int64_t>(mins), static_cast<int64_t>(scales));
    _mm512_store_ps(both, _mm512_mul_ps(signs, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))));
    keep_in_memory(both);
  }
  template <int Block>
  HM_INLINE __m512 block_d() const {
    return _mm512_set1_ps(both[Block]);
  }
  template <int Block>
  HM_INLINE __m512 block_offset() const {
    return _mm512_set1_ps(both[8 + Block]);
  }
};

// Any format: codes to floats, times d, plus the offset.
template <class Group>
struct Widen {
  static HM_INLINE __m512 to_float(const uint8_t* codes) {
    const __m128i bytes = _mm_load_si128((const __m128i*)codes);
    return _mm512_cvtepi32_ps(Group::kSigned ? _mm512_cvtepi8_epi32(bytes)
                                             : _mm512_cvtepu8_epi32(bytes));
  }

  // Half of a block: a lane, or half of one.
  template <int Half>
  static HM_INLINE __m512 half(const uint8_t* codes, const Factors<Group>& factors) {
    constexpr int lane = Group::Lanes::kLanes == 16 ? Half : Half / 2;
    return _mm512_fmadd_ps(to_float(codes), _mm512_set1_ps(factors.d[lane]),
                           _mm512_set1_ps(factors.offset[lane]));
  }

  template <int P>
  static HM_INLINE void pair(const Group& group, const typename Group::Block* blocks,
                             const Factors<Group>& factors, uint16_t* row) {
    alignas(64) uint8_t codes[64];
    _mm512_store_si512(codes, group.template codes<P>(blocks));
    keep_in_memory(codes);
    _mm512_store_si512(row + 64 * P,
                       to_bf16(half<4 * P>(codes, factors), half<4 * P + 1>(codes + 16, factors)));
    _mm512_store_si512(row + 64 * P + 32, to_bf16(half<4 * P + 2>(codes + 32, factors),
                                                  half<4 * P + 3>(codes + 48, factors)));
  }

  static HM_INLINE void row(const typename Group::Block* blocks, float row_scale, uint16_t* row) {
    Group group;
    const Factors<Group> factors(blocks, row_scale, group);
    pair<0>(group, blocks, factors, row);
    pair<1>(group, blocks, factors, row);
    pair<2>(group, blocks, factors, row);
    pair<3>(group, blocks, factors, row);
  }
};

// 4-bit codes: the 16 values that a block's codes can have are made once, and looked up. The values
// of two blocks are one table; bit 4 of an index chooses the block.
template <class Group, class Nibbles>
struct LookUp {
  template <int P>
  static HM_INLINE void pair(const typename Group::Block* blocks, __m512 values,
                             const Factors<Group>& factors, uint16_t* row) {
    const __m512 first = _mm512_fmadd_ps(values, factors.template block_d<2 * P>(),
                                         factors.template block_offset<2 * P>());
    const __m512 second = _mm512_fmadd_ps(values, factors.template block_d<2 * P + 1>(),
                                          factors.template block_offset<2 * P + 1>());
    const __m512i table = to_bf16(first, second);
    const auto [low, high] = Nibbles::template pair<P>(blocks);
    const __m512i upper = _mm512_or_si512(high, _mm512_set1_epi16(16));
    _mm512_store_si512(row + 64 * P, _mm512_permutexvar_epi16(low, table));
    _mm512_store_si512(row + 64 * P + 32, _mm512_permutexvar_epi16(upper, table));
  }

  static HM_INLINE void row(const typename Group::Block* blocks, float row_scale, uint16_t* row) {
    Group group;
    const Factors<Group> factors(blocks, row_scale, group);
    const __m512 values = Nibbles::values();
    pair<0>(blocks, values, factors, row);
    pair<1>(blocks, values, factors, row);
    pair<2>(blocks, values, factors, row);
    pair<3>(blocks, values, factors, row);
  }
};

HM_INLINE __m512 code_values() {
  return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}

HM_INLINE __m512 listed_codes(const CodeTable<16>& table) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)table.codes)));
}

// A word for each weight of two blocks; its lowest four bits are the code.
struct NibblePair {
  __m512i low, high;
};

// 16 bytes a block: codes 0..15 in the low nibbles, 16..31 in the high ones.
HM_INLINE __m512i sixteen_bytes(const uint8_t* qs) {
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)qs));
  const __m512i counts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  return _mm512_and_si512(_mm512_srlv_epi16(_mm512_cvtepu8_epi16(twice), counts),
                          _mm512_set1_epi16(15));
}

template <class Block>
struct LinearNibbles {
  static HM_INLINE __m512 values() { return code_values(); }
  template <int P>
  static HM_INLINE NibblePair pair(const Block* blocks) {
    return {sixteen_bytes(blocks[2 * P].qs), sixteen_bytes(blocks[2 * P + 1].qs)};
  }
};

struct NibblesIQ4_NL : LinearNibbles<BlockIQ4_NL> {
  static HM_INLINE __m512 values() { return listed_codes(kCodesIQ4); }
};

struct NibblesMXFP4 : LinearNibbles<BlockMXFP4> {
  static HM_INLINE __m512 values() { return listed_codes(kCodesE2M1); }
};

template <class Block>
struct NibblesIQ4 {
  static HM_INLINE __m512 values() { return listed_codes(kCodesIQ4); }
  template <int P>
  static HM_INLINE NibblePair pair(const Block* block) {
    return {sixteen_bytes(block->qs + 32 * P), sixteen_bytes(block->qs + 32 * P + 16)};
  }
};

// 32 bytes for two blocks: the low nibbles are one, the high ones the other.
struct NibblesQ4_K {
  static HM_INLINE __m512 values() { return code_values(); }
  template <int P>
  static HM_INLINE NibblePair pair(const BlockQ4_K* block) {
    const __m512i words =
        _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(block->qs + 32 * P)));
    return {_mm512_and_si512(words, _mm512_set1_epi16(15)), _mm512_srli_epi16(words, 4)};
  }
};

// Weights that are bfloat16 already.
struct GroupBF16 {
  using Block = BlockBF16;
  static constexpr int kBlocks = kSuperWeights;
};

struct CopyBF16 {
  static HM_INLINE void row(const BlockBF16* blocks, float, uint16_t* row) {
    memcpy(row, blocks, kSuperWeights * sizeof *row);
  }
};

template <class Group>
struct Unpack : Widen<Group> {};
template <>
struct Unpack<GroupQ4_0> : LookUp<GroupQ4_0, LinearNibbles<BlockQ4_0>> {};
template <>
struct Unpack<GroupQ4_1> : LookUp<GroupQ4_1, LinearNibbles<BlockQ4_1>> {};
template <>
struct Unpack<GroupQ4_K> : LookUp<GroupQ4_K, NibblesQ4_K> {};
template <>
struct Unpack<GroupIQ4_NL> : LookUp<GroupIQ4_NL, NibblesIQ4_NL> {};
template <>
struct Unpack<GroupIQ4_XS> : LookUp<GroupIQ4_XS, NibblesIQ4<BlockIQ4_XS>> {};
template <>
struct Unpack<GroupIQ4_KS> : LookUp<GroupIQ4_KS, NibblesIQ4<BlockIQ4_KS>> {};
template <>
struct Unpack<GroupMXFP4> : LookUp<GroupMXFP4, NibblesMXFP4> {};
template <>
struct Unpack<GroupBF16> : CopyBF16 {};

}  // namespace
}  // namespace hm
