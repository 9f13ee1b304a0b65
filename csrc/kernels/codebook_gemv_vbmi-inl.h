// The IQ2 types in AVX-512 VBMI, whose byte permutes reach 128 entries: two rows at a time, so that
// 64 indices are looked up at once. IQ1, IQ3: two_rows_iq{1,3}-inl.h. Products with their codes:
// two_rows_few-inl.h.
//
// A row's group of 256 weights is 8 blocks of 32, a block 4 entries of 8. Whatever belongs to an
// entry is byte E of a block's 32 bits: its index, the first four of its codes (2 bits each), the
// last four, its signs. So a vector has a group of both rows: blocks 0..7 of the first, then of the
// second. Codes to multiply are eight vectors, number S of each entry, and activations lie in that
// order: all products add up in a lane for each block. Where half a block has a scale, what is of
// an entry's first and last four codes is interleaved before, so that a lane has half a block; the
// first four vectors then have the halves 0..3 and 8..11 of each row, the last four the others. The
// additions of floats, and so the bits, are those of gemv-inl.h.
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

// Of entries: the lower 8 bits of their indices, and in bits 4..6 what is above these.
struct Indices {
  __m512i low, upper = {};
};

// 128 entries, in registers where several vectors of indices are looked up: a core loads two
// registers a cycle, and permutes as many.
template <int Vectors>
struct Table128 {
  __m512i low, high;

  HM_INLINE explicit Table128(const uint8_t* table) : low(load(table)), high(load(table + 64)) {}
  // Entry index % 128.
  HM_INLINE __m512i at(__m512i index) const { return _mm512_permutex2var_epi8(low, index, high); }
  // The same where the mask is set, else the index.
  HM_INLINE __m512i at(__m512i index, __mmask64 mask) const {
    return _mm512_mask2_permutex2var_epi8(low, index, mask, high);
  }

 private:
  static HM_INLINE __m512i load(const uint8_t* p) {
    __m512i v = _mm512_load_si512(p);
    if constexpr (Vectors > 1) forget(v);
    return v;
  }
};

// Which of 64 indices have bits 7, 8, 9, 10. The last two are found where they are needed: there
// are seven mask registers.
struct UpperBits {
  __mmask64 bit7, no_bit7, bit8;
  __m512i upper;

  UpperBits() = default;
  HM_INLINE explicit UpperBits(__m512i low) : bit7(_mm512_movepi8_mask(low)), no_bit7(~bit7) {}
  HM_INLINE explicit UpperBits(const Indices& index) : UpperBits(index.low) {
    upper = index.upper;
    bit8 = test(upper, 0x10);
  }
  HM_INLINE __mmask64 bit(int n) const {
    if (n == 8) return bit8;
    __m512i v = upper;
    forget(v);
    return test(v, n == 9 ? 0x20 : 0x40);
  }

 private:
  static HM_INLINE __mmask64 test(__m512i v, char bit) {
    return _mm512_test_epi8_mask(v, _mm512_set1_epi8(bit));
  }
};

// Nothing to do meanwhile.
struct Idle {
  template <int Step>
  HM_INLINE void run() const {}
};

// table[index] for N entries from First on, of V vectors of indices. Meanwhile, after each 256
// entries, a step of other work: permutes in a row only fill the queues of their two ports.
template <int N, int V, int First = 0, class Meanwhile = Idle>
HM_INLINE void look_up_bytes(const uint8_t* table, const Indices (&index)[V],
                             const UpperBits (&bits)[V], __m512i (&out)[V],
                             const Meanwhile& meanwhile = {}) {
  if constexpr (N == 256) {
    const Table128<V> lower(table + First), upper(table + First + 128);
    for (int v = 0; v < V; ++v) {
      out[v] = upper.at(lower.at(index[v].low, bits[v].no_bit7), bits[v].bit7);
    }
    meanwhile.template run<First / 256>();
  } else {
    __m512i upper[V];
    look_up_bytes<N / 2, V, First>(table, index, bits, out, meanwhile);
    look_up_bytes<N / 2, V, First + N / 2>(table, index, bits, upper, meanwhile);
    for (int v = 0; v < V; ++v) {
      const __mmask64 mask = bits[v].bit(N == 512 ? 8 : N == 1024 ? 9 : 10);
      out[v] = _mm512_mask_blend_epi8(mask, out[v], upper[v]);
    }
  }
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

// Two rows of a group: what is loaded while the group before is multiplied. Scales come afterwards,
// `scales(a, b, d)`, as registers are few. Parts: scales of a block.
template <class Block_, int Parts>
struct TwoRowsOf {
  using Block = Block_;
  static constexpr int kParts = Parts;
  __m512i low, high;  // codes

  // Bytes of codes 4 i + f, f = 0..3, of what the part has.
  HM_INLINE void planes(__m512i (&out)[2]) const {
    out[0] = Parts == 1 ? low : _mm512_unpacklo_epi8(low, high);
    out[1] = Parts == 1 ? high : _mm512_unpackhi_epi8(low, high);
  }
};

// Scales of two parts: numbers of Bits bits from bit 0, 1, ... of `starts` on.
template <int Bits>
HM_INLINE void part_scales(__m512 scales, __m128i packed, const int64_t (&starts)[2],
                           __m512 (&d)[2]) {
  for (int part = 0; part < 2; ++part) {
    const __m128i s = _mm_multishift_epi64_epi8(_mm_set1_epi64x(starts[part]), packed);
    d[part] = odd_scales<Bits>(scales, _mm512_cvtepu8_epi32(s));
  }
}

// Loads V pairs of rows.
template <int V, class Rows, class Meanwhile = Idle>
HM_INLINE void load_pairs(const typename Rows::Block* const (&rows)[2 * V], Rows (&pairs)[V],
                          const Meanwhile& meanwhile = {}) {
  Indices index[V];
  for (int v = 0; v < V; ++v) index[v] = pairs[v].load_rest(rows[2 * v], rows[2 * v + 1]);
  Rows::look_up(index, pairs, meanwhile);
}

constexpr int kSignedBiasIQ2 = 64;

// Signed codes of magnitudes by a byte's lower six bits: bits 0..1 code, 2 sign, 3 next sign, 4..5
// next code.
struct SignedCodesIQ2 {
  alignas(64) uint8_t first[64], next[64];

  consteval SignedCodesIQ2() : first{}, next{} {
    constexpr int magnitudes[4] = {8, 25, 43, 0};
    for (int i = 0; i < 64; ++i) {
      const int a = magnitudes[i & 3], b = magnitudes[i >> 4];
      first[i] = static_cast<uint8_t>(kSignedBiasIQ2 + ((i & 4) ? -a : a));
      next[i] = static_cast<uint8_t>(kSignedBiasIQ2 + ((i & 8) ? -b : b));
    }
  }
};
inline constexpr SignedCodesIQ2 kSignedIQ2;

// Codes of two rows as they are multiplied, from pairs in the form of SignedCodesIQ2.
struct CodesIQ2 {
  __m512i pairs[4];

  template <int S>
  HM_INLINE __m512i codes() const {
    const uint8_t* values = S % 2 == 0 ? kSignedIQ2.first : kSignedIQ2.next;
    return _mm512_permutexvar_epi8(pairs[S / 2], _mm512_load_si512(values));
  }
};

// IQ2: codes are magnitudes, in a byte the first, third, second, fourth one; signs are a byte of
// an entry.
template <class Block, int Parts, const auto& Book>
struct TwoRowsIQ2Of : TwoRowsOf<Block, Parts> {
  using Codes = CodesIQ2;
  static constexpr int kBias = kSignedBiasIQ2;
  __m512i signs;

  template <class Rows, int V>
  static HM_INLINE void look_up(const Indices (&index)[V], Rows (&pairs)[V], const Idle&) {
    UpperBits bits[V];
    for (int v = 0; v < V; ++v) bits[v] = UpperBits(index[v]);
    __m512i low[V], high[V];
    look_up_bytes<sizeof Book.low>(Book.low, index, bits, low);
    look_up_bytes<sizeof Book.high>(Book.high, index, bits, high);
    for (int v = 0; v < V; ++v) {
      pairs[v].low = low[v];
      pairs[v].high = high[v];
    }
  }
  HM_INLINE void look_up_signs(__m512i index) {
    signs = Table128<1>(kCodebookSigns.entry).at(index);
  }
  // Two scales a block: nibbles of 8 bytes.
  HM_INLINE void scales(const Block* a, const Block* b, __m512 (&d)[2]) const {
    part_scales<4>(row_scales(a->d, b->d), join8(a->scales, b->scales),
                   {0x2c2824200c080400, 0x3c3834301c181410}, d);
  }
  HM_INLINE Codes codes() const {
    __m512i planes[2];
    this->planes(planes);
    const __m512i upper = _mm512_srli_epi16(signs, 4);
    if constexpr (Parts == 1) {
      const __m512i third = _mm512_srli_epi16(signs, 2), first = _mm512_slli_epi16(signs, 2);
      return {{with_signs(planes[0], first), with_signs(after(planes[0]), signs),
               with_signs(planes[1], third), with_signs(after(planes[1]), upper)}};
    } else {
      const __m512i s[2] = {_mm512_unpacklo_epi8(signs, upper), _mm512_unpackhi_epi8(signs, upper)};
      return {
          {with_signs(planes[0], _mm512_slli_epi16(s[0], 2)), with_signs(after(planes[0]), s[0]),
           with_signs(planes[1], _mm512_slli_epi16(s[1], 2)), with_signs(after(planes[1]), s[1])}};
    }
  }

 private:
  // The third and fourth codes where the first two are.
  static HM_INLINE __m512i after(__m512i plane) { return _mm512_srli_epi16(plane, 2); }
  static HM_INLINE __m512i with_signs(__m512i plane, __m512i signs) {
    return _mm512_ternarylogic_epi32(plane, signs, _mm512_set1_epi8(0x0c), 0xd8);  // c ? b : a
  }
};

struct TwoRowsIQ2_XXS : TwoRowsIQ2Of<BlockIQ2_XXS, 1, kCodebookPlanesIQ2_XXS> {
  __m512i rest;

  HM_INLINE Indices load_rest(const Block* a, const Block* b) {
    const __m512i first = _mm512_loadu_si512(a->qs), second = _mm512_loadu_si512(b->qs);
    const __m512i even =
        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
    rest = _mm512_permutex2var_epi32(first, odd, second);
    look_up_signs(take_fields<0, 7>(rest));
    return {_mm512_permutex2var_epi32(first, even, second)};
  }
  HM_INLINE void scales(const Block* a, const Block* b, __m512 (&d)[1]) const {
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

struct TwoRowsIQ2_XS : TwoRowsIQ2Of<BlockIQ2_XS, 2, kCodebookPlanesIQ2_XS> {
  HM_INLINE Indices load_rest(const Block* a, const Block* b) {
    const __m512i first = _mm512_loadu_si512(a->qs), second = _mm512_loadu_si512(b->qs);
    const __m512i upper = bytes_of_words<1>(first, second);  // bit 8, and an index of signs
    look_up_signs(_mm512_srli_epi16(upper, 1));
    return {bytes_of_words<0>(first, second), _mm512_slli_epi16(upper, 4)};
  }
};

struct TwoRowsIQ2_S : TwoRowsIQ2Of<BlockIQ2_S, 2, kCodebookPlanesIQ2_S> {
  HM_INLINE Indices load_rest(const Block* a, const Block* b) {
    const __m512i qh = _mm512_cvtepu8_epi32(join8(a->qh, b->qh));
    signs = join32(a->signs, b->signs);
    return {join32(a->qs, b->qs), take_fields<-4, 2>(qh)};
  }
};

}  // namespace
}  // namespace hm
