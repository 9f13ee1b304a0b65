// Codes of up to five bits as bfloat16 weights: the values that codes can have are made once for
// some lanes of a group, and looked up, 32 words by one permutation of a vector.
#pragma once

#include "kernels/amx_unpack-inl.h"

namespace hm {
namespace {

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

// 32 bytes as words.
HM_INLINE __m512i load_words(const uint8_t* p) {
  return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
}

// Words shifted left by Count, or right where it is negative.
template <int Count>
HM_INLINE __m512i shift_words(__m512i v) {
  if constexpr (Count == 0) return v;
  return Count > 0 ? _mm512_slli_epi16(v, Count) : _mm512_srli_epi16(v, -Count);
}

// (v & mask) | w
HM_INLINE __m512i masked_or(__m512i v, int mask, __m512i w) {
  return _mm512_ternarylogic_epi64(v, _mm512_set1_epi16(static_cast<int16_t>(mask)), w, 0xea);
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
    const __m512i words = load_words(block->qs + 32 * P);
    return {_mm512_and_si512(words, _mm512_set1_epi16(15)), _mm512_srli_epi16(words, 4)};
  }
};

// Two-bit codes (groups-inl.h): 8 lanes share a table. Word 8 c + l is code c's value in lane l.
template <class Group>
struct LookUpTwoBits {
  static constexpr bool kHalves = Group::Lanes::kLanes == 16;

  static HM_INLINE __m512i table(const float* d, const float* offset, const float (&values)[4]) {
    const __m512 scales = _mm512_broadcast_f32x8(_mm256_load_ps(d));
    const __m512 offsets = _mm512_broadcast_f32x8(_mm256_load_ps(offset));
    const auto two = [&](int i) {
      const __m512 v =
          _mm512_insertf32x8(_mm512_set1_ps(values[i]), _mm256_set1_ps(values[i + 1]), 1);
      return _mm512_fmadd_ps(v, scales, offsets);
    };
    return to_bf16(two(0), two(2));
  }
  // Block B of the group, from the words of its 32 bytes.
  template <int B>
  static HM_INLINE void block(__m512i words, __m512i table, uint16_t* row) {
    constexpr int lane = kHalves ? 2 * B % 8 : B;
    const __m512i lanes = _mm512_inserti64x4(_mm512_set1_epi16(lane),
                                             _mm256_set1_epi16(kHalves ? lane + 1 : lane), 1);
    const __m512i index = masked_or(shift_words<3 - 2 * (B % 4)>(words), 0x18, lanes);
    _mm512_store_si512(row + 32 * B, _mm512_permutexvar_epi16(index, table));
  }
  template <int Half>
  static HM_INLINE void half(const uint8_t* qs, __m512i table, uint16_t* row) {
    const __m512i words = load_words(qs + 32 * Half);
    block<4 * Half>(words, table, row);
    block<4 * Half + 1>(words, table, row);
    block<4 * Half + 2>(words, table, row);
    block<4 * Half + 3>(words, table, row);
  }
  static HM_INLINE void row(const typename Group::Block* block, float row_scale, uint16_t* row) {
    Group group;
    const Factors<Group> factors(block, row_scale, group);
    float values[4] = {0, 1, 2, 3};
    if constexpr (row_scale_bytes<typename Group::Block>() != 0 || Group::kShift != 0) {
      for (int i = 0; i < 4; ++i) values[i] = kCodesIQ2K.codes[i];
    }
    const __m512i first = table(factors.d, factors.offset, values);
    half<0>(block->qs, first, row);
    half<1>(block->qs, kHalves ? table(factors.d + 8, factors.offset + 8, values) : first, row);
  }
};

// Q3_K's codes have a third bit, and 4 lanes share a table: word 4 c + l.
struct LookUpQ3_K {
  static HM_INLINE __m512i table(const float* d, const float* offset) {
    const __m512 scales = _mm512_broadcast_f32x4(_mm_load_ps(d));
    const __m512 offsets = _mm512_broadcast_f32x4(_mm_load_ps(offset));
    return to_bf16(_mm512_fmadd_ps(_mm512_setr_ps(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
                                   scales, offsets),
                   _mm512_fmadd_ps(_mm512_setr_ps(4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7),
                                   scales, offsets));
  }
  template <int B>
  static HM_INLINE void block(__m512i words, __m512i high, __m512i table, uint16_t* row) {
    constexpr int lane = 2 * B % 4;
    const __m512i lanes =
        _mm512_inserti64x4(_mm512_set1_epi16(lane), _mm256_set1_epi16(lane + 1), 1);
    const __m512i low = masked_or(shift_words<2 - 2 * (B % 4)>(words), 0x0c, lanes);
    const __m512i index = masked_or(shift_words<4 - B>(high), 0x10, low);
    _mm512_store_si512(row + 32 * B, _mm512_permutexvar_epi16(index, table));
  }
  template <int Half>
  static HM_INLINE void half(const BlockQ3_K* b, __m512i high, const Factors<GroupQ3_K>& factors,
                             uint16_t* row) {
    const __m512i words = load_words(b->qs + 32 * Half);
    const __m512i first = table(factors.d + 8 * Half, factors.offset + 8 * Half);
    block<4 * Half>(words, high, first, row);
    block<4 * Half + 1>(words, high, first, row);
    const __m512i second = table(factors.d + 8 * Half + 4, factors.offset + 8 * Half + 4);
    block<4 * Half + 2>(words, high, second, row);
    block<4 * Half + 3>(words, high, second, row);
  }
  static HM_INLINE void row(const BlockQ3_K* block, float row_scale, uint16_t* row) {
    GroupQ3_K group;
    const Factors<GroupQ3_K> factors(block, row_scale, group);
    const __m512i high = load_words(block->hmask);
    half<0>(block, high, factors, row);
    half<1>(block, high, factors, row);
  }
};

// Five-bit codes: a table for each block.
template <class Group, class Fifths>
struct LookUpFiveBits {
  template <int B>
  static HM_INLINE void block(__m512i index, const Factors<Group>& factors, uint16_t* row) {
    const __m512 d = factors.template block_d<B>(), offset = factors.template block_offset<B>();
    const __m512 upper = _mm512_add_ps(code_values(), _mm512_set1_ps(16));
    const __m512i table =
        to_bf16(_mm512_fmadd_ps(code_values(), d, offset), _mm512_fmadd_ps(upper, d, offset));
    _mm512_store_si512(row + 32 * B, _mm512_permutexvar_epi16(index, table));
  }
  template <int P>
  static HM_INLINE void pair(const typename Group::Block* blocks, const Fifths& fifths,
                             const Factors<Group>& factors, uint16_t* row) {
    const auto [low, high] = fifths.template pair<P>(blocks);
    block<2 * P>(low, factors, row);
    block<2 * P + 1>(high, factors, row);
  }
  static HM_INLINE void row(const typename Group::Block* blocks, float row_scale, uint16_t* row) {
    Group group;
    const Factors<Group> factors(blocks, row_scale, group);
    const Fifths fifths(blocks);
    pair<0>(blocks, fifths, factors, row);
    pair<1>(blocks, fifths, factors, row);
    pair<2>(blocks, fifths, factors, row);
    pair<3>(blocks, fifths, factors, row);
  }
};

// Indices whose lowest five bits are a code. Here bit j of 32 bytes belongs to block j.
struct FifthsQ5_K {
  __m512i plane;

  explicit FifthsQ5_K(const BlockQ5_K* block) : plane(load_words(block->qh)) {}
  template <int B>
  HM_INLINE __m512i index(__m512i nibbles) const {
    return _mm512_ternarylogic_epi64(_mm512_set1_epi16(15), nibbles, shift_words<4 - B>(plane),
                                     0xca);  // bits of the mask from nibbles, others from the plane
  }
  template <int P>
  HM_INLINE NibblePair pair(const BlockQ5_K* block) const {
    const __m512i words = load_words(block->qs + 32 * P);
    return {index<2 * P>(words), index<2 * P + 1>(_mm512_srli_epi16(words, 4))};
  }
};

// Each block has its 32 bits.
template <class Block>
struct Fifths {
  explicit Fifths(const Block*) {}
  static HM_INLINE __m512i index(const Block& b) {
    const __m512i nibbles = sixteen_bytes(b.qs);
    return _mm512_mask_add_epi16(nibbles, _cvtu32_mask32(load_u32(b.qh)), nibbles,
                                 _mm512_set1_epi16(16));
  }
  template <int P>
  HM_INLINE NibblePair pair(const Block* blocks) const {
    return {index(blocks[2 * P]), index(blocks[2 * P + 1])};
  }
};

}  // namespace
}  // namespace hm
