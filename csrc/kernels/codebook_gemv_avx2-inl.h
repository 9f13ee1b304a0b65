// Groups of the IQ1, IQ2 and IQ3 types for gemv in AVX2, strided: see gemv-inl.h. Entries are
// loaded 8 (or 4) bytes at a time; indices, signs and scales are made by vectors. Products are
// those of codebook_rows_avx2-inl.h.
#pragma once

#include "formats/joined_codebooks.h"
#include "kernels/codebook_groups-inl.h"
#include "kernels/codebook_parts_avx2-inl.h"
#include "kernels/codebook_rows_avx2-inl.h"
#include "kernels/gemv-inl.h"

namespace hm {
namespace {

// 32 bytes -> words.
HM_INLINE Simd::B64 words_of(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p + 1))};
}

// scale (2 s + 1): exact
HM_INLINE __m256 odd_scales8(float scale, __m256i s) {
  const __m256 odd =
      _mm256_fmadd_ps(_mm256_cvtepi32_ps(s), _mm256_set1_ps(2.0f), _mm256_set1_ps(1.0f));
  return _mm256_mul_ps(_mm256_set1_ps(scale), odd);
}

// The same for 16 nibbles, low first.
HM_INLINE Simd::F16 odd_scales16(float scale, const uint8_t* nibbles) {
  const auto eight = [&](const uint8_t* p) {
    const __m256i word = _mm256_set1_epi32(static_cast<int32_t>(load_u32(p)));
    const __m256i s = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    return odd_scales8(scale, _mm256_and_si256(s, _mm256_set1_epi32(15)));
  };
  return {eight(nibbles), eight(nibbles + 4)};
}

// Four entries of eight codes.
HM_INLINE __m256i four_entries(const uint64_t* a, const uint64_t* b, const uint64_t* c,
                               const uint64_t* d) {
  const auto two = [](const uint64_t* first, const uint64_t* second) {
    const __m128d low = _mm_load_sd((const double*)first);
    return _mm_castpd_si128(_mm_loadh_pd(low, (const double*)second));
  };
  return _mm256_set_m128i(two(c, d), two(a, b));
}

// Entries V of half H of the blocks.
template <int V, int H, class Indices>
HM_INLINE __m256i entries_at(const uint64_t* table, const Indices& index) {
  const auto at = [&](int block) { return table + index.template get<V>(4 * H + block); };
  return four_entries(at(0), at(1), at(2), at(3));
}

// The same of entries of four codes, two of each of four blocks, whose indices at(block) gives.
// `upper` has them 32 bits higher: half of the pairs are joined by scalar code, whose loads are
// four a cycle.
template <class At>
HM_INLINE __m256i four_pairs_at(const uint32_t* table, const uint64_t* upper, At at) {
  const auto two_blocks = [&](int b) {
    const Pair i = at(b), j = at(b + 1);
    uint64_t pair = table[i.first] | upper[i.second];
    forget_scalar(pair);  // not moved apart
    __m128i v = _mm_cvtsi64_si128(static_cast<int64_t>(pair));
    v = _mm_insert_epi32(v, static_cast<int>(table[j.first]), 2);
    return _mm_insert_epi32(v, static_cast<int>(table[j.second]), 3);
  };
  return _mm256_set_m128i(two_blocks(2), two_blocks(0));
}
struct StridedIQ2_XXSHalves : SignIndicesOf<BlockIQ2_XXS> {
  static constexpr int kMost = 43;
  HM_INLINE void load(const Block* b) {
    const __m256 low = _mm256_castsi256_ps(load_half(b->qs, 0));
    const __m256 high = _mm256_castsi256_ps(load_half(b->qs, 1));
    const __m256i words = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
    set_signs(words);
    const __m256i in_order = _mm256_permute4x64_epi64(words, 0xd8);
    d = odd_scales8(half_to_float(b->d) * 0.125f, _mm256_srli_epi32(in_order, 28));
  }
  template <int V, int H>
  HM_INLINE __m256i half_codes(const Block* b) const {
    const auto* qs = (const uint8_t*)b->qs + 32 * H + V;
    const auto at = [=](int block) { return kCodebookIQ2_XXS.entry + qs[8 * block]; };
    return four_entries(at(0), at(1), at(2), at(3));
  }
};

struct StridedIQ2_XXS : HalvesOf<StridedIQ2_XXSHalves> {};

struct StridedIQ2_XSHalves : SignsApartOf<BlockIQ2_XS, Simd::PerHalf> {
  static constexpr int kMost = 43;
  HM_INLINE void load(const Block* b) {
    const __m256i low = load_half(b->qs, 0), high = load_half(b->qs, 1);
    sign_bytes = {with_parity(_mm256_srli_epi16(low, 9)), with_parity(_mm256_srli_epi16(high, 9))};
    d = odd_scales16(half_to_float(b->d) * 0.125f, b->scales);
  }
  template <int V, int H>
  HM_INLINE __m256i half_codes(const Block* b) const {
    const uint16_t* qs = b->qs + 16 * H + V;
    const auto at = [=](int block) { return kCodebookIQ2_XS.entry + (qs[4 * block] & 511); };
    return four_entries(at(0), at(1), at(2), at(3));
  }
};

struct StridedIQ2_XS : HalvesOf<StridedIQ2_XSHalves> {};

template <class Indices>
struct StridedIQ2_SOf : SignBytesOf<BlockIQ2_S, Simd::PerHalf> {
  static constexpr int kMost = 43;
  Indices index;

  static HM_INLINE Simd::B64 indices(const Block* b, int) {
    const Simd::B64 low = words_of(b->qs);
    // Bits 2 k of a byte of qh -> bits 8, 9 of word k of its four.
    const auto high = [&](int half) {
      const __m256i bytes =
          _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(static_cast<int>(load_u32(b->qh + 4 * half))));
      const __m256i four =
          shuffle(bytes, _mm256_setr_epi8(-1, 0, -1, 0, -1, 0, -1, 0, -1, 8, -1, 8, -1, 8, -1, 8,
                                          -1, 0, -1, 0, -1, 0, -1, 0, -1, 8, -1, 8, -1, 8, -1, 8));
      const __m256i placed = _mm256_mulhi_epu16(four, _mm256_set1_epi64x(0x0400100040000000));
      const __m256i first = _mm256_blend_epi16(placed, four, 0x11);
      return _mm256_and_si256(first, _mm256_set1_epi16(0x300));
    };
    return Simd::or_(low, {high(0), high(1)});
  }
  HM_INLINE void load_rest(const Block* b) {
    set_signs(b->signs);
    d = odd_scales16(half_to_float(b->d) * 0.125f, b->scales);
  }
  template <int V, int H>
  HM_INLINE __m256i half_codes(const Block*) const {
    return entries_at<V, H>(kCodebookIQ2_S.entry, index);
  }
};

struct StridedIQ2_S : IndexedGroup<StridedIQ2_SOf, 32> {};

struct StridedIQ3_XXSHalves : SignIndicesOf<BlockIQ3_XXS> {
  static constexpr int kMost = 62;
  HM_INLINE void load(const Block* b) {
    const __m256i words = load_half(b->words, 0);
    set_signs(_mm256_permute4x64_epi64(words, 0xd8));
    d = odd_scales8(half_to_float(b->d) * 0.25f, _mm256_srli_epi32(words, 28));
  }
  template <int V, int H>
  HM_INLINE __m256i half_codes(const Block* b) const {
    const uint8_t* qs = b->qs + 32 * H + 2 * V;
    const auto at = [=](int block) {
      uint32_t two = load_u16(qs + 8 * block);
      forget_scalar(two);
      return Pair{static_cast<uint8_t>(two), two >> 8};
    };
    return four_pairs_at(kCodebookIQ3_XXS.entry, kCodebookUpperIQ3_XXS.entry, at);
  }
};

struct StridedIQ3_XXS : HalvesOf<StridedIQ3_XXSHalves> {};

template <class Indices>
struct StridedIQ3_SOf : SignBytesOf<BlockIQ3_S, Simd::PerBlock> {
  static constexpr int kMost = 15;
  Indices index;

  static HM_INLINE Simd::B64 indices(const Block* b, int half) {
    const Simd::B64 high = Simd::spread_bits<1>(b->qh + 4 * half, b->qh + 4 * half);
    // Low and high bytes of 16 words each; unpacking is by halves.
    const __m256i low = _mm256_permute4x64_epi64(load_half(b->qs, half), 0xd8);
    const __m256i upper = _mm256_permute4x64_epi64(high.lo, 0xd8);
    return {_mm256_unpacklo_epi8(low, upper), _mm256_unpackhi_epi8(low, upper)};
  }
  HM_INLINE void load_rest(const Block* b) {
    set_signs(b->signs);
    const __m256i word = _mm256_set1_epi32(static_cast<int32_t>(load_u32(b->scales)));
    const __m256i s = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    d = odd_scales8(half_to_float(b->d), _mm256_and_si256(s, _mm256_set1_epi32(15)));
  }
  template <int V, int H>
  HM_INLINE __m256i half_codes(const Block*) const {
    const auto at = [&](int block) { return index.template two<2 * V>(4 * H + block); };
    return four_pairs_at(kCodebookIQ3_S.entry, kCodebookUpperIQ3_S.entry, at);
  }
};

struct StridedIQ3_S : IndexedGroup<StridedIQ3_SOf, 64> {};

// 16 bytes -> words, times 8: what kCodebookLowFirstIQ1's indices have of qs.
HM_INLINE __m256i low_bytes(const uint8_t* qs, int half) {
  return _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)qs + half)), 3);
}

// Codes are 8 c + 15; the shift of a block, -1 or 1, is that of its lane.
template <class Indices>
struct StridedIQ1_SOf : StridedGroupOf<BlockIQ1_S, Simd::PerBlock> {
  static constexpr int kMost = 25;
  static constexpr int kBias = 16, kShift = 2;
  Indices index;
  __m256i shifts;  // a mask

  // Low byte, then the three bits, 3 k and so on of word k of a block's four, which a product puts
  // lowest: of word 0 the low byte is the high one for this.
  static HM_INLINE Simd::B64 indices(const Block* b, int) {
    const __m256i eight = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)b->qh));
    const auto half = [&](int h) {
      const auto word = [=](int block) {
        const int64_t low = 2 * (4 * h + block), both = low | (low + 1) << 8;
        return 0x0080 | low << 8 | both << 16 | both << 32 | both << 48;
      };
      const __m256i four = shuffle(eight, _mm256_setr_epi64x(word(0), word(1), word(2), word(3)));
      const __m256i placed = _mm256_mulhi_epu16(four, _mm256_set1_epi64x(0x0080040020000100));
      const __m256i high = _mm256_and_si256(placed, _mm256_set1_epi16(7));
      return _mm256_or_si256(low_bytes(b->qs, h), high);
    };
    return {half(0), half(1)};
  }
  HM_INLINE void load_rest(const Block* b) {
    const __m256i words = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)b->qh));
    shifts = _mm256_cmpgt_epi32(words, _mm256_set1_epi32(-1));
    const __m256i s = _mm256_and_si256(_mm256_srli_epi32(words, 12), _mm256_set1_epi32(7));
    d = odd_scales8(half_to_float(b->d) * 0.125f, s);
  }
  template <int V, int H>
  HM_INLINE __m256i half_codes(const Block*) const {
    return entries_at<V, H>(kCodebookLowFirstIQ1.entry, index);
  }
};

struct StridedIQ1_S : IndexedGroup<StridedIQ1_SOf, 32> {
  uint32_t shifts;  // a bit for each lane

  HM_INLINE void load(const Block* b) {
    IndexedGroup::load(b);
    shifts = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(IndexedGroup::shifts)));
  }
};

// Codes are 8 c + 15 and 0 or 2.
template <class Indices>
struct StridedIQ1_MOf : StridedGroupOf<BlockIQ1_M, Simd::PerHalf> {
  static constexpr int kMost = 25;
  static constexpr int kBias = 16;
  Indices index;
  Simd::B64 shifts;

  // Nibbles of qh at the top of words.
  static HM_INLINE Simd::B64 nibbles(const Block* b) {
    const auto eight = [](const uint8_t* qh) {
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)qh));
      return _mm256_or_si256(_mm256_slli_epi16(bytes, 12), _mm256_slli_epi32(bytes, 24));
    };
    return {eight(b->qh), eight(b->qh + 8)};
  }
  static HM_INLINE Simd::B64 indices(const Block* b, int) {
    const Simd::B64 words = nibbles(b);
    const __m256i mask = _mm256_set1_epi16(7);
    return {_mm256_or_si256(low_bytes(b->qs, 0),
                            _mm256_and_si256(_mm256_srli_epi16(words.lo, 12), mask)),
            _mm256_or_si256(low_bytes(b->qs, 1),
                            _mm256_and_si256(_mm256_srli_epi16(words.hi, 12), mask))};
  }
  HM_INLINE void load_rest(const Block* b) {
    const Simd::B64 words = nibbles(b);
    const __m256i two = _mm256_set1_epi8(2);
    shifts = {_mm256_andnot_si256(_mm256_srai_epi16(words.lo, 15), two),
              _mm256_andnot_si256(_mm256_srai_epi16(words.hi, 15), two)};
    uint16_t packed[4];
    memcpy(packed, b->scales, sizeof packed);
    const float scale = half_to_float(iq1_m_scale(packed)) * 0.125f;
    const auto eight = [&](int half) {
      const int a = packed[2 * half], c = packed[2 * half + 1];
      const __m256i words = _mm256_setr_epi32(a, a, a, a, c, c, c, c);
      const __m256i s = _mm256_srlv_epi32(words, _mm256_setr_epi32(0, 3, 6, 9, 0, 3, 6, 9));
      return odd_scales8(scale, _mm256_and_si256(s, _mm256_set1_epi32(7)));
    };
    d = {eight(0), eight(1)};
  }
  template <int V, int H>
  HM_INLINE __m256i half_codes(const Block*) const {
    const __m256i shift = shuffle(Simd::half<H>(shifts), two_bytes(2 * V, 8 + 2 * V));
    return _mm256_add_epi8(entries_at<V, H>(kCodebookLowFirstIQ1.entry, index), shift);
  }
};

struct StridedIQ1_M : IndexedGroup<StridedIQ1_MOf, 32> {};

template <>
void gemv_groups<StridedIQ1_S>(const MatmulArgs& args, int64_t token) {
  gemv_tiles<StridedIQ1_S>(args, token);
}
template <>
void gemv_groups<StridedIQ1_M>(const MatmulArgs& args, int64_t token) {
  gemv_tiles<StridedIQ1_M>(args, token);
}
template <>
void gemv_groups<StridedIQ2_S>(const MatmulArgs& args, int64_t token) {
  gemv_tiles<StridedIQ2_S>(args, token);
}
template <>
void gemv_groups<StridedIQ3_S>(const MatmulArgs& args, int64_t token) {
  gemv_tiles<StridedIQ3_S>(args, token);
}
template <>
void gemv_groups<StridedIQ2_XXS>(const MatmulArgs& args, int64_t token) {
  gemv_tiles<StridedIQ2_XXS>(args, token);
}
template <>
void gemv_groups<StridedIQ2_XS>(const MatmulArgs& args, int64_t token) {
  gemv_tiles<StridedIQ2_XS>(args, token);
}
template <>
void gemv_groups<StridedIQ3_XXS>(const MatmulArgs& args, int64_t token) {
  gemv_tiles<StridedIQ3_XXS>(args, token);
}

}  // namespace
}  // namespace hm
