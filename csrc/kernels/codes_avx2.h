// The codes of a pair of blocks in AVX2, as simd_avx2.h has them, and how they are unpacked.
#pragma once

#include "kernels/simd_ymm.h"

namespace hm {
namespace {

struct CodesAvx2 : SimdYmm {
  struct B64 {
    __m256i lo, hi;
  };

  static HM_INLINE B64 load64(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
  }
  static HM_INLINE void store64(void* p, B64 v) {
    _mm256_storeu_si256((__m256i*)p, v.lo);
    _mm256_storeu_si256((__m256i*)p + 1, v.hi);
  }
  static HM_INLINE B64 load32(const void* a, const void* b) {
    return {_mm256_loadu_si256((const __m256i*)a), _mm256_loadu_si256((const __m256i*)b)};
  }
  static HM_INLINE B64 load32_twice(const void* p) { return load32(p, p); }
  // Eight codes a word.
  static HM_INLINE B64 from_words(const uint64_t (&w)[8]) {
    return {_mm256_set_epi64x(w[3], w[2], w[1], w[0]), _mm256_set_epi64x(w[7], w[6], w[5], w[4])};
  }
  // Low nibbles of 16 bytes at a, then their high nibbles, as block 0; of b as block 1.
  static HM_INLINE B64 nibbles16(const void* a, const void* b) {
    return {split_nibbles(a), split_nibbles(b)};
  }
  // Of each 8 of 32 bytes: the low nibbles, then the high ones.
  static HM_INLINE B64 nibbles8(const void* p) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)p), mask = _mm256_set1_epi8(15);
    const __m256i counts = _mm256_set_epi64x(4, 0, 4, 0);
    const __m256i lo = _mm256_permute4x64_epi64(v, 0x50), hi = _mm256_permute4x64_epi64(v, 0xfa);
    return {_mm256_and_si256(_mm256_srlv_epi64(lo, counts), mask),
            _mm256_and_si256(_mm256_srlv_epi64(hi, counts), mask)};
  }
  // Byte i of block 0 (1) is Bit where bit i of the 32 bits at a (b) is set, else 0.
  template <int Bit>
  static HM_INLINE B64 spread_bits(const void* a, const void* b) {
    return {spread<Bit>(a), spread<Bit>(b)};
  }
  // Bytewise (block 0 >> N0, block 1 >> N1) & Mask, where Mask << N0 and Mask << N1 are bytes.
  template <int N0, int N1, int Mask>
  static HM_INLINE B64 bits(B64 v) {
    const __m256i mask = _mm256_set1_epi8(Mask);
    return {_mm256_and_si256(shift_right<N0>(v.lo), mask),
            _mm256_and_si256(shift_right<N1>(v.hi), mask)};
  }
  // Bytewise v << N, where that is a byte.
  template <int N>
  static HM_INLINE B64 shift_left(B64 v) {
    return {_mm256_slli_epi16(v.lo, N), _mm256_slli_epi16(v.hi, N)};
  }
  static HM_INLINE B64 or_(B64 a, B64 b) {
    return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
  }
  static HM_INLINE B64 sub(B64 a, B64 b) {
    return {_mm256_sub_epi8(a.lo, b.lo), _mm256_sub_epi8(a.hi, b.hi)};
  }
  // -v where the mask is 255, v where it is 0.
  static HM_INLINE B64 negate_where(B64 mask, B64 v) {
    return sub({_mm256_xor_si256(v.lo, mask.lo), _mm256_xor_si256(v.hi, mask.hi)}, mask);
  }
  // Of eight bytes at a, and at b: bits 0, 1 of each, bits 4, 5, bits 2, 3, bits 6, 7.
  static HM_INLINE B64 four_pairs(const void* a, const void* b) { return {pairs(a), pairs(b)}; }
  // Bits 0, 1 of the first of 16 bytes, then its bits 2, 3, and so on.
  static HM_INLINE B64 pairs_in_order(const void* p) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    return {pairs_of_eight(bytes), pairs_of_eight(bytes + 8)};
  }
  // Of 16-bit words v without bit 0: v ^ v >> 1.
  static HM_INLINE B64 xor_shifted(B64 v) { return {xor_shifted(v.lo), xor_shifted(v.hi)}; }
  // Bit 0 of each of 32 words.
  static HM_INLINE uint32_t low_bits(B64 v) {
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i bytes =  // of words 0..7, 16..23, 8..15, 24..31
        _mm256_packs_epi16(_mm256_and_si256(v.lo, one), _mm256_and_si256(v.hi, one));
    const __m256i in_order = _mm256_permute4x64_epi64(bytes, 0xd8);
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(in_order, 7)));
  }
  // table[v] for bytes v of 0..15, or table[16 + v] where bit Bit (block 1: Bit + 1) of `plane`,
  // 32 bytes, is set.
  template <int Bit>
  static HM_INLINE B64 lookup_plane(const int8_t* table, B64 v, const void* plane) {
    const __m256i bits = _mm256_loadu_si256((const __m256i*)plane);  // to the signs of bytes
    return {lookup_either(table, v.lo, _mm256_slli_epi16(bits, 7 - Bit)),
            lookup_either(table, v.hi, _mm256_slli_epi16(bits, 6 - Bit))};
  }
  // table[low + 16 high] for bytes `low` of 0..15, `high` of 0..3.
  static HM_INLINE B64 lookup64(const int8_t* table, B64 low, B64 high) {
    return {lookup64(table, low.lo, high.lo), lookup64(table, low.hi, high.hi)};
  }
  // Adds byte i to the weights of lane i: 32 or 16 of them, as there are 2 or 4 lanes.
  template <int Lanes>
  static HM_INLINE B64 add_to_lanes(B64 v, uint64_t bytes) {
    const __m256i four = _mm256_set1_epi32(static_cast<int32_t>(bytes));
    const __m256i first =
        Lanes == 2 ? _mm256_setzero_si256() : _mm256_set_epi64x(kOnes, kOnes, 0, 0);
    const __m256i step = _mm256_set1_epi8(Lanes / 2);
    return {_mm256_add_epi8(v.lo, _mm256_shuffle_epi8(four, first)),
            _mm256_add_epi8(v.hi, _mm256_shuffle_epi8(four, _mm256_add_epi8(first, step)))};
  }
  // The pairs of 32 indices: low bits of 16 as the low nibbles of `nibbles`, then of 16 as the high
  // ones; bit 4 as bits Bit, then Bit + 1, of the 16 bytes at `bits`.
  template <int Bit>
  static HM_INLINE B64 lookup_pairs(const PairTable& table, const void* nibbles, const void* bits) {
    const __m256i index = pair_index<Bit>(nibbles, bits);
    const __m256i a = lookup32(table.codes[0], index), b = lookup32(table.codes[1], index);
    const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b);
    return {_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31)};
  }
  // table[v] for bytes v of 0..15.
  static HM_INLINE B64 lookup(const int8_t* table, B64 v) {
    const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    return {_mm256_shuffle_epi8(t, v.lo), _mm256_shuffle_epi8(t, v.hi)};
  }

  static HM_INLINE B64 add(B64 a, B64 b) {
    return {_mm256_add_epi8(a.lo, b.lo), _mm256_add_epi8(a.hi, b.hi)};
  }
  static HM_INLINE B64 set_bytes(int8_t v) { return {_mm256_set1_epi8(v), _mm256_set1_epi8(v)}; }
  template <int Half>
  static HM_INLINE __m256i half(B64 v) {
    return Half == 0 ? v.lo : v.hi;
  }
  // Eight bytes v for each of 8 blocks whose bit is set, else 0.
  static HM_INLINE B64 of_blocks(uint32_t bits, int8_t v) {
    return {of_four_blocks(bits, v), of_four_blocks(bits >> 4, v)};
  }
  // Pairs of blocks in order -> strided: vector V has entry V, 8 bytes, of each of the 8 blocks.
  static HM_INLINE void stride(B64 (&v)[4]) {
    __m256i low[4], high[4];
    stride_four(v[0].lo, v[0].hi, v[1].lo, v[1].hi, low);
    stride_four(v[2].lo, v[2].hi, v[3].lo, v[3].hi, high);
    for (int i = 0; i < 4; ++i) v[i] = {low[i], high[i]};
  }

 private:
  static HM_INLINE __m256i pairs(const void* p) {
    int64_t eight;
    __builtin_memcpy(&eight, p, sizeof eight);
    const __m256i counts = _mm256_set_epi64x(6, 2, 4, 0);
    return _mm256_and_si256(_mm256_srlv_epi64(_mm256_set1_epi64x(eight), counts),
                            _mm256_set1_epi8(3));
  }
  static HM_INLINE __m256i pairs_of_eight(const uint8_t* p) {
    __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
    v = _mm256_or_si256(v, _mm256_slli_epi32(v, 12));
    return _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi32(v, 6)), _mm256_set1_epi8(3));
  }
  // Index bytes of lookup_pairs.
  template <int Bit>
  static HM_INLINE __m256i pair_index(const void* nibbles, const void* bits) {
    const __m128i low = _mm_loadu_si128((const __m128i*)nibbles);
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)bits));
    const __m256i low_bits =
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(low, 4), low), _mm256_set1_epi8(15));
    const __m256i fifth = _mm256_srlv_epi64(twice, _mm256_set_epi64x(Bit + 1, Bit + 1, Bit, Bit));
    const __m256i bit = _mm256_and_si256(fifth, _mm256_set1_epi8(1));
    return _mm256_or_si256(low_bits, _mm256_slli_epi16(bit, 4));
  }
  static HM_INLINE __m256i xor_shifted(__m256i v) {
    v = _mm256_and_si256(v, _mm256_set1_epi16(-2));
    return _mm256_xor_si256(v, _mm256_srli_epi16(v, 1));
  }
  static HM_INLINE __m256i of_four_blocks(uint32_t bits, int8_t v) {
    const __m256i bit_of = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i found = _mm256_and_si256(_mm256_set1_epi64x(static_cast<int64_t>(bits)), bit_of);
    return _mm256_and_si256(_mm256_cmpeq_epi64(found, bit_of), _mm256_set1_epi8(v));
  }
  static HM_INLINE void stride_four(__m256i a, __m256i b, __m256i c, __m256i d, __m256i (&out)[4]) {
    const __m256i even_ab = _mm256_unpacklo_epi64(a, b), odd_ab = _mm256_unpackhi_epi64(a, b);
    const __m256i even_cd = _mm256_unpacklo_epi64(c, d), odd_cd = _mm256_unpackhi_epi64(c, d);
    out[0] = _mm256_permute2x128_si256(even_ab, even_cd, 0x20);
    out[1] = _mm256_permute2x128_si256(odd_ab, odd_cd, 0x20);
    out[2] = _mm256_permute2x128_si256(even_ab, even_cd, 0x31);
    out[3] = _mm256_permute2x128_si256(odd_ab, odd_cd, 0x31);
  }
  static constexpr int64_t kOnes = 0x0101010101010101;
  // table[v], or table[16 + v] where the sign of `is_upper` is set.
  static HM_INLINE __m256i lookup_either(const int8_t* table, __m256i v, __m256i is_upper) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table + 1));
    return _mm256_blendv_epi8(_mm256_shuffle_epi8(low, v), _mm256_shuffle_epi8(high, v), is_upper);
  }
  static HM_INLINE __m256i lookup64(const int8_t* table, __m256i low, __m256i high) {
    const __m256i is_odd = _mm256_slli_epi16(high, 7);
    return _mm256_blendv_epi8(lookup_either(table, low, is_odd),
                              lookup_either(table + 32, low, is_odd), _mm256_slli_epi16(high, 6));
  }
  // table[v] for bytes v of 0..31.
  static HM_INLINE __m256i lookup32(const int8_t* table, __m256i v) {
    return lookup_either(table, v, _mm256_slli_epi16(v, 3));
  }
  template <int N>
  static HM_INLINE __m256i shift_right(__m256i v) {
    if constexpr (N == 0) return v;
    return _mm256_srli_epi16(v, N);
  }
  static HM_INLINE __m256i split_nibbles(const void* p) {
    const __m128i v = _mm_loadu_si128((const __m128i*)p);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(v, 4), v), _mm256_set1_epi8(15));
  }
  template <int Bit>
  static HM_INLINE __m256i spread(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    const __m256i byte_of = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                              0x0101010101010101, 0x0000000000000000);
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i bits =
        _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(word), byte_of), bit_of);
    return _mm256_and_si256(_mm256_cmpeq_epi8(bits, bit_of), _mm256_set1_epi8(Bit));
  }
};

}  // namespace
}  // namespace hm
