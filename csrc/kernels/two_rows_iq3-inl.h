// IQ3 in AVX-512 VBMI: the 64 entries of a group of one row, of four codes each, are looked up at
// once; two rows share a loaded part of the codebook.
//
// An entry is two bytes: its first two codes and its last two, each with room for its sign,
//
//   bits  0..2 code   3 sign   4 next sign   5..7 next code
//
// so that a permute makes signed codes of it, plus a bias. Codes to multiply are number k of all
// entries; activations lie in that order, and a lane has the products of half a block.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"

namespace hm {
namespace {

constexpr int kSignedBiasIQ3 = 64;

// Codes of magnitudes `values` by a byte's lower six bits: of an entry's first code, and by what
// lies four bits higher, of the next one.
struct SignedCodes {
  alignas(64) uint8_t first[64], next[64];

  consteval explicit SignedCodes(const int8_t (&values)[8]) : first{}, next{} {
    for (int i = 0; i < 64; ++i) {
      const int a = values[i & 7], b = values[i >> 1 & 7];
      first[i] = static_cast<uint8_t>(kSignedBiasIQ3 + ((i & 8) ? -a : a));
      next[i] = static_cast<uint8_t>(kSignedBiasIQ3 + ((i & 1) ? -b : b));
    }
  }
};

// Activations of a group: number k of each four, k = 0..3.
inline void order_by_code(const int8_t* x, int8_t* out) {
  for (int i = 0; i < 4; ++i) {
    const __m512i entries = _mm512_loadu_si512(x + 64 * i);
    for (int k = 0; k < 4; ++k) {
      const __m128i codes = _mm512_cvtepi32_epi8(_mm512_srli_epi32(entries, 8 * k));
      _mm_store_si128((__m128i*)(out + 64 * k + 16 * i), codes);
    }
  }
}

// Bits 4 i + Start of 64, i = 0..15, as byte i's bit 0, of each pair of equal 64-bit words.
template <int Start>
HM_INLINE __m512i take_nibbles(__m512i pairs) {
  alignas(16) static constexpr auto starts = [] {
    struct {
      uint8_t byte[16];
    } v{};
    for (int i = 0; i < 16; ++i) v.byte[i] = static_cast<uint8_t>((4 * i + Start) & 63);
    return v;
  }();
  const __m512i control = _mm512_broadcast_i32x4(_mm_load_si128((const __m128i*)starts.byte));
  return _mm512_multishift_epi64_epi8(control, pairs);
}

// Blocks of two rows as lanes 0 1 of the first, of the second, 2 3 of the first, ..., which is how
// sums of neighbours come.
template <class Block_, const auto& Book, const SignedCodes& Values>
struct TwoRowsIQ3Of {
  using Block = Block_;
  __m512i pairs[2][2];
  __m512 d;

  // `index`: of each row. `signs`: of each row, a bit for each weight; each 64-bit word twice.
  HM_INLINE void look_up(const Indices (&index)[2], const UpperBits (&bits)[2],
                         const __m512i (&signs)[2]) {
    __m512i low[2], high[2];
    look_up_bytes<sizeof Book.low>(Book.low, index, bits, low);
    look_up_bytes<sizeof Book.high>(Book.high, index, bits, high);
    for (int r = 0; r < 2; ++r) {
      pairs[r][0] = with_signs(low[r], take_nibbles<-3>(signs[r]));
      pairs[r][1] = with_signs(high[r], take_nibbles<-1>(signs[r]));
    }
  }

  // Code K of all entries of row R.
  template <int K>
  HM_INLINE __m512i codes(int r) const {
    const __m512i pair = pairs[r][K / 2];
    if constexpr (K % 2 == 0) {
      return _mm512_permutexvar_epi8(pair, _mm512_load_si512(Values.first));
    } else {
      return _mm512_permutexvar_epi8(_mm512_srli_epi16(pair, 4), _mm512_load_si512(Values.next));
    }
  }

 private:
  static HM_INLINE __m512i with_signs(__m512i pair, __m512i signs) {
    return _mm512_ternarylogic_epi32(pair, signs, _mm512_set1_epi8(0x18), 0xf8);  // a | b & c
  }
};

// Binary16 numbers of two rows, in the order of TwoRowsIQ3Of.
HM_INLINE __m512 neighbour_scales(uint32_t first, uint32_t second) {
  const __m128i both = _mm_cvtsi32_si128(static_cast<int>(first | second << 16));
  const __m128 four = _mm_cvtph_ps(_mm_unpacklo_epi16(both, both));
  return _mm512_broadcast_f32x4(four);
}

// 64-bit words of 32 bytes each of two rows, in turn.
HM_INLINE __m512i in_turn(const void* a, const void* b) {
  return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), join32(a, b));
}

inline constexpr int8_t kMagnitudesIQ3_XXS[8] = {4, 12, 20, 28, 36, 44, 52, 62};
inline constexpr int8_t kMagnitudesIQ3_S[8] = {1, 3, 5, 7, 9, 11, 13, 15};
inline constexpr SignedCodes kSignedIQ3_XXS{kMagnitudesIQ3_XXS};
inline constexpr SignedCodes kSignedIQ3_S{kMagnitudesIQ3_S};

struct TwoRowsIQ3_XXS : TwoRowsIQ3Of<BlockIQ3_XXS, kCodebookPairsIQ3_XXS, kSignedIQ3_XXS> {
  HM_INLINE void load(const Block* const (&b)[2]) {
    const __m512i words = in_turn(b[0]->words, b[1]->words);
    const __m512i bytes = Table128<1>(kCodebookSigns.entry).at(take_fields<0, 7>(words));
    const __m512i signs[] = {_mm512_unpacklo_epi64(bytes, bytes),
                             _mm512_unpackhi_epi64(bytes, bytes)};
    d = odd_scales<4, 2>(neighbour_scales(b[0]->d, b[1]->d), _mm512_srli_epi32(words, 28));
    const Indices index[] = {{_mm512_loadu_si512(b[0]->qs), {}},
                             {_mm512_loadu_si512(b[1]->qs), {}}};
    look_up(index, {UpperBits(index[0].low), UpperBits(index[1].low)}, signs);
  }
};

struct TwoRowsIQ3_S : TwoRowsIQ3Of<BlockIQ3_S, kCodebookPairsIQ3_S, kSignedIQ3_S> {
  HM_INLINE void load(const Block* const (&b)[2]) {
    const __m512i twice = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
    __m512i signs[2];
    Indices index[2];
    UpperBits bits[2];
    for (int r = 0; r < 2; ++r) {
      signs[r] = _mm512_permutexvar_epi64(twice, _mm512_castsi256_si512(load_ymm(b[r]->signs)));
      index[r].low = _mm512_loadu_si512(b[r]->qs);
      bits[r] = UpperBits(index[r].low);
      bits[r].bit8 = _cvtu64_mask64(load_u64(b[r]->qh));
    }
    // Nibbles of a row's 32 bits.
    const __m128i scales = _mm_set1_epi64x(static_cast<int64_t>(
        load_u32(b[0]->scales) | static_cast<uint64_t>(load_u32(b[1]->scales)) << 32));
    const __m128i starts =
        _mm_setr_epi8(0, 4, 32, 36, 8, 12, 40, 44, 16, 20, 48, 52, 24, 28, 56, 60);
    const __m512i s = _mm512_cvtepu8_epi32(_mm_multishift_epi64_epi8(starts, scales));
    d = odd_scales<4, 0>(neighbour_scales(b[0]->d, b[1]->d), s);
    look_up(index, bits, signs);
  }
};

}  // namespace
}  // namespace hm
