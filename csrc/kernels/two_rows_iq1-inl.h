// IQ1 in the form of codebook_gemv_vbmi-inl.h. Two pairs of rows share the loaded parts of the
// codebook, and are multiplied between the look-ups of the next group.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"

namespace hm {
namespace {

// Codes are 8 (c + 1), and what they have too much of, less the shift of 1 or -1, is 7 or 9 times
// x.
template <class Block, int Parts>
struct TwoRowsIQ1Of : TwoRowsOf<Block, Parts> {
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
  static constexpr bool kByField = true;
  __m512i words;

  static void prepare(const __m512i (&entries)[4], __m512i* sums) {
    const __m512i block = _mm512_add_epi32(_mm512_add_epi32(entries[0], entries[1]),
                                           _mm512_add_epi32(entries[2], entries[3]));
    sums[0] = times_minus_7(block);
    sums[1] = _mm512_slli_epi32(block, 1);
  }
  HM_INLINE Indices load_rest(const Block* a, const Block* b) {
    words = _mm512_cvtepi16_epi32(join16(a->qh, b->qh));  // signs are those of shifts
    d[0] = odd_scales<3>(row_scales(a->d, b->d), _mm512_srli_epi32(words, 12));
    return {join32(a->qs, b->qs), take_fields<-4, 3>(words)};
  }
  HM_INLINE void shift(const __m512i* sums, __m512i (&dots)[2]) const {
    const __m512i eight_times = _mm512_slli_epi32(_mm512_add_epi32(dots[0], dots[1]), 3);
    const __m512i dot = _mm512_add_epi32(eight_times, sums[0]);
    dots[0] = _mm512_mask_sub_epi32(dot, _mm512_movepi32_mask(words), dot, sums[1]);
  }
  template <int E, int Half>
  HM_INLINE __m512i biased(__m512i codes) const {
    const auto is_positive = static_cast<__mmask16>(~_mm512_movepi32_mask(words));
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
  HM_INLINE Indices load_rest(const Block* a, const Block* b) {
    words = _mm512_cvtepu16_epi32(join16(a->qh, b->qh));
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
    return {join32(a->qs, b->qs), take_fields<-4, 4>(words)};
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

}  // namespace
}  // namespace hm
