// Rows of weights as bfloat16, in the order of their columns: what amx_gemm-inl.h multiplies.
//
// The two ports of 512-bit instructions are the bound, so work is moved off them: scales are
// broadcast by loads, codes become floats without a conversion, and those of up to five bits are
// looked up (amx_lookups-inl.h).
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

HM_INLINE __m512 wide(__m512 lanes) { return lanes; }
HM_INLINE __m512 wide(__m256 lanes) { return _mm512_castps256_ps512(lanes); }

// A group's weights are code d + offset: the factors of its 8 or 16 lanes. `zero`: where codes, as
// the caller has them, have their zero; d is multiplied with `scale`, too.
template <class Group>
struct Factors {
  alignas(64) float d[16], offset[16];

  HM_INLINE Factors(const typename Group::Block* blocks, float row_scale, Group& group,
                    float zero = Group::kBias, float scale = 1.0f) {
    load_group(group, blocks, row_scale);
    const __m512 lanes = wide(group.d);
    _mm512_store_ps(d, scale == 1.0f ? lanes : _mm512_mul_ps(lanes, _mm512_set1_ps(scale)));
    __m512 zeros = _mm512_set1_ps(-zero);
    if constexpr (Group::kOffset) {
      zeros = wide(group.offset);
    } else {
      if constexpr (Group::kShift != 0) {
        const auto shifts = static_cast<__mmask16>(group.shifts);
        zeros = _mm512_mask_add_ps(zeros, shifts, zeros, _mm512_set1_ps(Group::kShift));
      }
      zeros = _mm512_mul_ps(lanes, zeros);
    }
    _mm512_store_ps(offset, zeros);
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

// Q4_K's and Q5_K's are one vector: eight d, then eight offsets.
template <class Group>
struct KFactors {
  using Block = typename Group::Block;
  alignas(64) float both[16];

  HM_INLINE KFactors(const Block* block, float, Group&) {
    static_assert(offsetof(Block, dmin) == offsetof(Block, d) + 2);
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
template <>
struct Factors<GroupQ4_K> : KFactors<GroupQ4_K> {
  using KFactors::KFactors;
};
template <>
struct Factors<GroupQ5_K> : KFactors<GroupQ5_K> {
  using KFactors::KFactors;
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

// Codes as bytes of a float whose exponent is given: floats without a conversion. Short codes lie
// in -64..63 without their bias, and are byte 2 of 1 + (code + 64) / 128; long ones lie in
// -128..127 and are byte 1 of 2^23 + 256 (code + 128). Numbers of d have few bits, 11 of long codes
// and up to 17 of short ones, so that a zero times d, and then the sum, is exact.
struct ShortCodes {
  static constexpr int kByte = 2, kExponent = 0x3f000000, kZero = 192;
  static constexpr float kScale = 128, kFloatZero = kZero;
};
struct LongCodes {
  static constexpr int kByte = 1, kExponent = 0x4b000000, kZero = 128;
  static constexpr float kScale = 1.0f / 256, kFloatZero = 32768 + kZero;
};

template <class Group, class Codes>
struct BytesOfFloats {
  static_assert(!Group::kOffset);
  // 16 codes from Part * 16 on.
  template <int Part>
  static HM_INLINE __m512 floats(__m512i codes) {
    const __m512i order =
        _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(16 * Part));
    const __m512i to = _mm512_slli_epi32(order, 8 * Codes::kByte);
    return _mm512_castsi512_ps(_mm512_mask_permutexvar_epi8(
        _mm512_set1_epi32(Codes::kExponent), 0x1111111111111111u << Codes::kByte, to, codes));
  }
  template <int P, int Half>
  static HM_INLINE __m512 half(__m512i codes, const Factors<Group>& factors) {
    constexpr int half = 4 * P + Half, lane = Group::Lanes::kLanes == 16 ? half : half / 2;
    return _mm512_fmadd_ps(floats<Half>(codes), _mm512_set1_ps(factors.d[lane]),
                           _mm512_set1_ps(factors.offset[lane]));
  }
  template <int P>
  static HM_INLINE void pair(const Group& group, const typename Group::Block* blocks,
                             const Factors<Group>& factors, uint16_t* row) {
    constexpr int zero = Codes::kZero - (Group::kSigned ? 0 : Group::kBias);
    __m512i codes = group.template codes<P>(blocks);
    if constexpr (zero != 0) {
      codes = _mm512_add_epi8(codes, _mm512_set1_epi8(static_cast<char>(zero)));
    }
    _mm512_store_si512(row + 64 * P,
                       to_bf16(half<P, 0>(codes, factors), half<P, 1>(codes, factors)));
    _mm512_store_si512(row + 64 * P + 32,
                       to_bf16(half<P, 2>(codes, factors), half<P, 3>(codes, factors)));
  }
  static HM_INLINE void row(const typename Group::Block* blocks, float row_scale, uint16_t* row) {
    Group group;
    const Factors<Group> factors(blocks, row_scale, group, Codes::kFloatZero, Codes::kScale);
    pair<0>(group, blocks, factors, row);
    pair<1>(group, blocks, factors, row);
    pair<2>(group, blocks, factors, row);
    pair<3>(group, blocks, factors, row);
  }
};

}  // namespace
}  // namespace hm
