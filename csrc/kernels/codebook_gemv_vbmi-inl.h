// One token's products with the IQ1 and IQ2 types in AVX-512 VBMI, whose byte permutes reach 128
// entries: two rows at a time, so that 64 indices are looked up at once. IQ3: two_rows_iq3-inl.h.
//
// A row's group of 256 weights is 8 blocks of 32, a block 4 entries of 8. Whatever belongs to an
// entry is byte E of a block's 32 bits: its index, the first four of its codes (2 bits each), the
// last four, its signs. So a vector has a group of both rows: blocks 0..7 of the first, then of the
// second. Codes to multiply are four of each block, and activations lie in that order, for each
// entry those with its first four and those with its last: all products add up in a lane for each
// block. The additions of floats, and so the bits, are those of gemv-inl.h.
#pragma once

#include "base/forget.h"
#include "formats/code_planes.h"
#include "kernels/gemv-inl.h"

namespace hm {
namespace {

// 8-bit fields of multishift: four of each 32 bits, at `start` and `step` on. A field wraps around
// in 64 bits.
consteval int64_t fields(int start, int step) {
  uint64_t starts = 0;
  for (int i = 0; i < 8; ++i) {
    const int at = i / 4 * 32 + start + i % 4 * step;
    starts |= static_cast<uint64_t>(at & 63) << (8 * i);
  }
  return static_cast<int64_t>(starts);
}

template <int Start, int Step>
HM_INLINE __m512i take_fields(__m512i v) {
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(fields(Start, Step)), v);
}

HM_INLINE __m256i load_ymm(const void* p) { return _mm256_loadu_si256((const __m256i*)p); }

HM_INLINE __m512i join32(const void* a, const void* b) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(load_ymm(a)), load_ymm(b), 1);
}

HM_INLINE __m256i join16(const void* a, const void* b) {
  return _mm256_set_m128i(_mm_loadu_si128((const __m128i*)b), _mm_loadu_si128((const __m128i*)a));
}

HM_INLINE __m128i join8(const void* a, const void* b) {
  return _mm_set_epi64x(static_cast<int64_t>(load_u64(b)), static_cast<int64_t>(load_u64(a)));
}

// table[index % 128]
HM_INLINE __m512i permute128(const uint8_t* table, __m512i index) {
  return _mm512_permutex2var_epi8(_mm512_load_si512(table), index, _mm512_load_si512(table + 64));
}

// Which of 64 indices have bit 7, and which of their upper parts bits 4, 5, 6.
struct UpperBits {
  __mmask64 bit7, no_bit7, bit8, bit9, bit10;

  UpperBits() = default;
  HM_INLINE explicit UpperBits(__m512i index) : bit7(_mm512_movepi8_mask(index)), no_bit7(~bit7) {}
  HM_INLINE UpperBits(__m512i index, __m512i upper) : UpperBits(index) {
    const auto has = [&](char bit) { return _mm512_test_epi8_mask(upper, _mm512_set1_epi8(bit)); };
    bit8 = has(0x10);
    bit9 = has(0x20);
    bit10 = has(0x40);
  }
};

// table[index] for N entries, of V vectors of indices, which share a loaded part of the table: a
// core loads two registers a cycle, and permutes as many. What a masked permute leaves out is still
// the index.
template <int N, int V>
HM_INLINE void look_up_bytes(const uint8_t* table, const __m512i (&index)[V],
                             const UpperBits (&bits)[V], __m512i (&out)[V]) {
  if constexpr (N == 256) {
    __m512i t[4];
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm512_load_si512(table + 64 * i);
      if constexpr (V > 1) forget(t[i]);
    }
    for (int v = 0; v < V; ++v) {
      const __m512i low = _mm512_mask2_permutex2var_epi8(t[0], index[v], bits[v].no_bit7, t[1]);
      out[v] = _mm512_mask2_permutex2var_epi8(t[2], low, bits[v].bit7, t[3]);
    }
  } else {
    __m512i upper[V];
    look_up_bytes<N / 2>(table, index, bits, out);
    look_up_bytes<N / 2>(table + N / 2, index, bits, upper);
    for (int v = 0; v < V; ++v) {
      const UpperBits& b = bits[v];
      const __mmask64 mask = N == 512 ? b.bit8 : N == 1024 ? b.bit9 : b.bit10;
      out[v] = _mm512_mask_blend_epi8(mask, out[v], upper[v]);
    }
  }
}

template <int N>
HM_INLINE __m512i look_up_bytes(const uint8_t* table, __m512i index, const UpperBits& bits) {
  const __m512i indices[] = {index};
  const UpperBits bits_of[] = {bits};
  __m512i out[1];
  look_up_bytes<N>(table, indices, bits_of, out);
  return out[0];
}

// Binary16 numbers of two rows, each in 8 lanes.
HM_INLINE __m512 row_scales(uint32_t first, uint32_t second) {
  const __m128 both = _mm_cvtph_ps(_mm_cvtsi32_si128(static_cast<int>(first | second << 16)));
  const __m512i row_of = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
  return _mm512_permutexvar_ps(row_of, _mm512_castps128_ps512(both));
}

// scale (2 s + 1) / 2^Shift for s in the lower three (Bits = 3) or four bits.
template <int Bits, int Shift = 3>
HM_INLINE __m512 odd_scales(__m512 scale, __m512i s) {
  constexpr auto odd = [](int i) {
    return static_cast<float>(2 * (i % (1 << Bits)) + 1) / (1 << Shift);
  };
  const __m512 table =
      _mm512_setr_ps(odd(0), odd(1), odd(2), odd(3), odd(4), odd(5), odd(6), odd(7), odd(8), odd(9),
                     odd(10), odd(11), odd(12), odd(13), odd(14), odd(15));
  return _mm512_mul_ps(scale, _mm512_permutexvar_ps(s, table));
}

// Two rows of a group. Parts: scales of a block.
template <class Block_, int Parts>
struct TwoRowsOf {
  using Block = Block_;
  static constexpr int kParts = Parts;
  static constexpr int kSums = 0;  // vectors of sums of activations that it takes
  __m512i low, high;               // codes
  __m512 d[Parts];

  // Those sums, from sums of the activations of each entry.
  static void prepare(const __m512i (&)[4], __m512i*) {}
  HM_INLINE void start(const __m512i*, __m512i (&dots)[2]) const {
    dots[0] = dots[1] = _mm512_setzero_si512();
  }
  HM_INLINE void shift(const __m512i*, __m512i (&)[2]) const {}
};

// IQ1: codes are 8 (c + 1), and what they have too much of, less the shift of 1 or -1, is 7 or 9
// times x.
template <class Block, int Parts>
struct TwoRowsIQ1Of : TwoRowsOf<Block, Parts> {
  // `upper`: in bits 4..6, bits 8..10 of the indices.
  HM_INLINE void look_up(__m512i index, __m512i upper) {
    const SortedCodePlanes& book = kCodebookPlanesIQ1;
    this->low = look_up_bytes<2048>(book.low, index, UpperBits(index, upper));
    const __m512i sixteen = _mm512_ternarylogic_epi32(  // bits 4..10
        _mm512_srli_epi16(index, 4), upper, _mm512_set1_epi8(15), 0xe4);
    __m512i rank = permute128(book.first, sixteen);
    for (const auto& above : book.above) {
      const __mmask64 is_above = _mm512_cmpgt_epu8_mask(index, permute128(above, sixteen));
      rank = _mm512_mask_add_epi8(rank, is_above, rank, _mm512_set1_epi8(1));
    }
    this->high = permute128(book.high, rank);
  }
  template <int E>
  static HM_INLINE __m512i codes(__m512i plane) {
    const __m512i bytes = take_fields<8 * E - 3, 2>(plane);
    return _mm512_and_si512(bytes, _mm512_set1_epi8(0x18));
  }
  template <int E, int Half>
  HM_INLINE __m512i with_signs(__m512i x) const {
    return x;
  }
  static constexpr int kBias = 9;  // of what `biased` returns
};

HM_INLINE __m512i times_minus_7(__m512i v) { return _mm512_sub_epi32(v, _mm512_slli_epi32(v, 3)); }

struct TwoRowsIQ1_S : TwoRowsIQ1Of<BlockIQ1_S, 1> {
  static constexpr int kSums = 2;
  __mmask16 is_negative;

  static void prepare(const __m512i (&entries)[4], __m512i* sums) {
    const __m512i block = _mm512_add_epi32(_mm512_add_epi32(entries[0], entries[1]),
                                           _mm512_add_epi32(entries[2], entries[3]));
    sums[0] = times_minus_7(block);
    sums[1] = _mm512_slli_epi32(block, 1);
  }
  HM_INLINE void load(const Block* const (&rows)[2]) {
    const Block *a = rows[0], *b = rows[1];
    const __m256i qh = join16(a->qh, b->qh);
    const __m512i words = _mm512_cvtepu16_epi32(qh);
    look_up(join32(a->qs, b->qs), take_fields<-4, 3>(words));
    is_negative = _mm256_movepi16_mask(qh);
    d[0] = odd_scales<3>(row_scales(a->d, b->d), _mm512_srli_epi32(words, 12));
  }
  HM_INLINE void start(const __m512i* sums, __m512i (&dots)[2]) const {
    dots[0] = sums[0];
    dots[1] = _mm512_setzero_si512();
  }
  HM_INLINE void shift(const __m512i* sums, __m512i (&dots)[2]) const {
    dots[0] = _mm512_mask_sub_epi32(dots[0], is_negative, dots[0], sums[1]);
  }
  template <int E, int Half>
  HM_INLINE __m512i biased(__m512i codes) const {
    const auto is_positive = static_cast<__mmask16>(~is_negative);
    return _mm512_add_epi8(codes, _mm512_maskz_set1_epi32(is_positive, 0x02020202));
  }
};

struct TwoRowsIQ1_M : TwoRowsIQ1Of<BlockIQ1_M, 2> {
  static constexpr int kSums = 6;
  __m512i words;

  static void prepare(const __m512i (&entries)[4], __m512i* sums) {
    sums[0] = times_minus_7(_mm512_add_epi32(entries[0], entries[1]));
    sums[1] = times_minus_7(_mm512_add_epi32(entries[2], entries[3]));
    for (int e = 0; e < 4; ++e) sums[2 + e] = _mm512_slli_epi32(entries[e], 1);
  }
  HM_INLINE void load(const Block* const (&rows)[2]) {
    const Block *a = rows[0], *b = rows[1];
    words = _mm512_cvtepu16_epi32(join16(a->qh, b->qh));
    look_up(join32(a->qs, b->qs), take_fields<-4, 4>(words));
    const uint64_t first = load_u64(a->scales), second = load_u64(b->scales);
    const auto scale = [](uint64_t packed) {
      return static_cast<uint32_t>(_pext_u64(packed, 0xf000f000f000f000));
    };
    const __m512 scales = row_scales(scale(first), scale(second));
    const __m128i both = join8(a->scales, b->scales);
    const auto part = [&](int64_t starts) {  // 3 bits of each block
      const __m128i s = _mm_multishift_epi64_epi8(_mm_set1_epi64x(starts), both);
      return odd_scales<3>(scales, _mm512_cvtepu8_epi32(s));
    };
    d[0] = part(0x3630262016100600);
    d[1] = part(0x3933292319130903);
  }
  HM_INLINE void start(const __m512i* sums, __m512i (&dots)[2]) const {
    dots[0] = sums[0];
    dots[1] = sums[1];
  }
  HM_INLINE void shift(const __m512i* sums, __m512i (&dots)[2]) const {
    for (int e = 0; e < 4; ++e) {
      const __mmask16 is_negative = _mm512_test_epi32_mask(words, _mm512_set1_epi32(8 << 4 * e));
      dots[e / 2] = _mm512_mask_sub_epi32(dots[e / 2], is_negative, dots[e / 2], sums[2 + e]);
    }
  }
  template <int E, int Half>
  HM_INLINE __m512i biased(__m512i codes) const {
    const __mmask16 is_positive = _mm512_testn_epi32_mask(words, _mm512_set1_epi32(8 << 4 * E));
    return _mm512_add_epi8(codes, _mm512_maskz_set1_epi32(is_positive, 0x02020202));
  }
};

// IQ2: codes are magnitudes, and signs, a byte an entry, go to the activations.
template <class Block, int Parts>
struct TwoRowsIQ2Of : TwoRowsOf<Block, Parts> {
  __m512i signs;

  template <int N>
  HM_INLINE void look_up(const CodePlanes<N>& book, __m512i index, __m512i upper) {
    const UpperBits bits(index, upper);
    this->low = look_up_bytes<N>(book.low, index, bits);
    this->high = look_up_bytes<N>(book.high, index, bits);
  }
  HM_INLINE void look_up_signs(__m512i index) { signs = permute128(kCodebookSigns.entry, index); }
  // Two scales a block: nibbles of 8 bytes.
  HM_INLINE void set_scales(const Block* a, const Block* b) {
    const __m512 scales = row_scales(a->d, b->d);
    const __m512i nibbles = _mm512_cvtepu8_epi32(join8(a->scales, b->scales));
    this->d[0] = odd_scales<4>(scales, nibbles);
    this->d[1] = odd_scales<4>(scales, _mm512_srli_epi32(nibbles, 4));
  }
  template <int E>
  static HM_INLINE __m512i codes(__m512i plane) {
    const __m512i values = _mm512_set1_epi32(8 | 25 << 8 | 43 << 16);
    const __m512i bytes = take_fields<8 * E, 2>(plane);
    return _mm512_permutexvar_epi8(bytes, values);
  }
  static constexpr int kBias = 64;
  template <int E, int Half>
  HM_INLINE __m512i biased(__m512i codes) const {
    const __m512i signed_codes = with_signs<E, Half>(codes);
    return _mm512_add_epi8(signed_codes, _mm512_set1_epi8(kBias));
  }
  template <int E, int Half>
  HM_INLINE __m512i with_signs(__m512i x) const {
    const __m512i order = _mm512_broadcast_i32x4(
        _mm_set_epi32(0x0c0c0c0c + 0x01010101 * E, 0x08080808 + 0x01010101 * E,
                      0x04040404 + 0x01010101 * E, 0x01010101 * E));
    const __m512i bit_of = _mm512_set1_epi32(0x08040201 << 4 * Half);
    return Simd::with_signs(x, _mm512_test_epi8_mask(_mm512_shuffle_epi8(signs, order), bit_of));
  }
};

struct TwoRowsIQ2_XXS : TwoRowsIQ2Of<BlockIQ2_XXS, 1> {
  HM_INLINE void load(const Block* const (&rows)[2]) {
    const Block *a = rows[0], *b = rows[1];
    const __m512i first = _mm512_loadu_si512(a->qs), second = _mm512_loadu_si512(b->qs);
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    look_up(kCodebookPlanesIQ2_XXS, _mm512_permutex2var_epi32(first, even, second), first);
    const __m512i rest = _mm512_permutex2var_epi32(first, odd, second);
    look_up_signs(take_fields<0, 7>(rest));
    d[0] = odd_scales<4>(row_scales(a->d, b->d), _mm512_srli_epi32(rest, 28));
  }
};

// Bytes First, First + 2, ... of two vectors.
template <int First>
HM_INLINE __m512i bytes_of_words(__m512i first, __m512i second) {
  alignas(64) static constexpr auto order = [] {
    struct {
      uint8_t byte[64];
    } v{};
    for (int i = 0; i < 64; ++i) v.byte[i] = static_cast<uint8_t>(2 * i + First);
    return v;
  }();
  return _mm512_permutex2var_epi8(first, _mm512_load_si512(order.byte), second);
}

struct TwoRowsIQ2_XS : TwoRowsIQ2Of<BlockIQ2_XS, 2> {
  HM_INLINE void load(const Block* const (&rows)[2]) {
    const Block *a = rows[0], *b = rows[1];
    const __m512i first = _mm512_loadu_si512(a->qs), second = _mm512_loadu_si512(b->qs);
    const __m512i upper = bytes_of_words<1>(first, second);  // bit 8, and an index of signs
    look_up(kCodebookPlanesIQ2_XS, bytes_of_words<0>(first, second), _mm512_slli_epi16(upper, 4));
    look_up_signs(_mm512_srli_epi16(upper, 1));
    set_scales(a, b);
  }
};

struct TwoRowsIQ2_S : TwoRowsIQ2Of<BlockIQ2_S, 2> {
  HM_INLINE void load(const Block* const (&rows)[2]) {
    const Block *a = rows[0], *b = rows[1];
    const __m512i qh = _mm512_cvtepu8_epi32(join8(a->qh, b->qh));
    look_up(kCodebookPlanesIQ2_S, join32(a->qs, b->qs), take_fields<-4, 2>(qh));
    signs = join32(a->signs, b->signs);
    set_scales(a, b);
  }
};

}  // namespace
}  // namespace hm
