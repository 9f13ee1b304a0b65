// IQ1 in the form of codebook_gemv_vbmi-inl.h. Two pairs of rows share the loaded parts of the
// codebook, and are multiplied between the look-ups of the next group.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"

namespace hm {
namespace {

// Codes of two rows as they are multiplied: 8 (c + 1), and 2 more where the shift is 1 and not -1.
struct CodesIQ1 {
  __m512i planes[2], shifts[2];  // the latter of each four vectors

  template <int S>
  HM_INLINE __m512i codes() const {
    constexpr int left = 3 - S % 4 * 2;
    const __m512i plane = planes[S / 4];
    const __m512i shifted =
        left > 0 ? _mm512_slli_epi16(plane, left & 3) : _mm512_srli_epi16(plane, -left & 3);
    return _mm512_ternarylogic_epi32(shifted, shifts[S / 4], _mm512_set1_epi8(0x18),
                                     0xec);  // a & c | b
  }
};

template <class Block, int Parts>
struct TwoRowsIQ1Of : TwoRowsOf<Block, Parts> {
  using Codes = CodesIQ1;

  // Of V pairs of rows, whose other parts are loaded.
  template <class Rows, int V, class Meanwhile>
  static HM_INLINE void look_up(const Indices (&index)[V], Rows (&pairs)[V],
                                const Meanwhile& meanwhile) {
    const SortedCodePlanes& book = kCodebookPlanesIQ1;
    UpperBits bits[V];
    for (int v = 0; v < V; ++v) bits[v] = UpperBits(index[v]);
    __m512i low[V], sixteen[V], rank[V];
    look_up_bytes<2048>(book.low, index, bits, low, meanwhile);
    const Table128<V> first(book.first);
    for (int v = 0; v < V; ++v) {
      pairs[v].low = low[v];
      sixteen[v] = _mm512_ternarylogic_epi32(  // bits 4..10
          _mm512_srli_epi16(index[v].low, 4), index[v].upper, _mm512_set1_epi8(15), 0xe4);
      rank[v] = first.at(sixteen[v]);
    }
    for (const auto& limits : book.above) {
      const Table128<V> limit(limits);
      for (int v = 0; v < V; ++v) {
        const __mmask64 is_above = _mm512_cmpgt_epu8_mask(index[v].low, limit.at(sixteen[v]));
        rank[v] = _mm512_mask_add_epi8(rank[v], is_above, rank[v], _mm512_set1_epi8(1));
      }
    }
    const Table128<V> high(book.high);
    for (int v = 0; v < V; ++v) pairs[v].high = high.at(rank[v]);
  }
  static constexpr int kBias = 9;  // of Codes
};

struct TwoRowsIQ1_S : TwoRowsIQ1Of<BlockIQ1_S, 1> {
  __m512i words;

  HM_INLINE Indices load_rest(const Block* a, const Block* b) {
    words = _mm512_cvtepi16_epi32(join16(a->qh, b->qh));  // signs are those of shifts
    return {join32(a->qs, b->qs), take_fields<-4, 3>(words)};
  }
  HM_INLINE void scales(const Block* a, const Block* b, __m512 (&d)[1]) const {
    d[0] = odd_scales<3>(row_scales(a->d, b->d), _mm512_srli_epi32(words, 12));
  }
  HM_INLINE Codes codes() const {
    const auto is_positive = static_cast<__mmask16>(~_mm512_movepi32_mask(words));
    const __m512i shift = _mm512_maskz_set1_epi32(is_positive, 0x02020202);
    return {{low, high}, {shift, shift}};
  }
};

struct TwoRowsIQ1_M : TwoRowsIQ1Of<BlockIQ1_M, 2> {
  __m512i words;

  HM_INLINE Indices load_rest(const Block* a, const Block* b) {
    words = _mm512_cvtepu16_epi32(join16(a->qh, b->qh));
    return {join32(a->qs, b->qs), take_fields<-4, 4>(words)};
  }
  HM_INLINE void scales(const Block* a, const Block* b, __m512 (&d)[2]) const {
    const uint64_t first = load_u64(a->scales), second = load_u64(b->scales);
    const auto scale = [](uint64_t packed) {
      return static_cast<uint32_t>(_pext_u64(packed, 0xf000f000f000f000));
    };
    part_scales<3>(row_scales(scale(first), scale(second)), join8(a->scales, b->scales),
                   {0x2926232009060300, 0x3936333019161310}, d);
  }
  HM_INLINE Codes codes() const {
    const __m512i signs = take_fields<2, 4>(words);  // of each entry
    const __m512i shift = _mm512_andnot_si512(signs, _mm512_set1_epi8(2));
    Codes result{{}, {_mm512_unpacklo_epi8(shift, shift), _mm512_unpackhi_epi8(shift, shift)}};
    planes(result.planes);
    return result;
  }
};

}  // namespace
}  // namespace hm
