// Groups of the IQ1, IQ2 and IQ3 types for gemv in AVX2, strided: see gemv-inl.h. Entries are
// loaded 8 (or 4) bytes at a time; indices, signs and scales are made by vectors.
#pragma once

#include "kernels/codebook_groups-inl.h"
#include "kernels/codebook_parts_avx2-inl.h"
#include "kernels/gemv-inl.h"

namespace hm {
namespace {

template <class Block, class Lanes>
struct StridedGroupOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = false;
};

// 32 bytes -> words.
HM_INLINE Simd::B64 words_of(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p + 1))};
}

// scale (2 s + 1)
HM_INLINE __m256 odd_scales8(float scale, __m256i s) {
  const __m256i odd = _mm256_add_epi32(_mm256_add_epi32(s, s), _mm256_set1_epi32(1));
  return _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_cvtepi32_ps(odd));
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

// Entries V of the blocks.
template <int V, class Indices>
HM_INLINE Simd::B64 entries_at(const uint64_t* table, const Indices& index) {
  const auto at = [&](int block) { return table + index.template get<V>(block); };
  return {four_entries(at(0), at(1), at(2), at(3)), four_entries(at(4), at(5), at(6), at(7))};
}

// The same of entries of four codes: 2 V and 2 V + 1 of four blocks. `at` gives an entry's index.
template <class At>
HM_INLINE __m256i pairs_at(const uint32_t* table, At at) {
  const auto two_blocks = [&](int b) {
    const auto entry = [&](int block, int n) { return static_cast<int>(table[at(block, n)]); };
    return _mm_setr_epi32(entry(b, 0), entry(b, 1), entry(b + 1, 0), entry(b + 1, 1));
  };
  return _mm256_set_m128i(two_blocks(2), two_blocks(0));
}

struct StridedIQ2_XXS : SignIndicesOf<BlockIQ2_XXS> {
  HM_INLINE void load(const Block* b) {
    const __m256 low = _mm256_castsi256_ps(load_half(b->qs, 0));
    const __m256 high = _mm256_castsi256_ps(load_half(b->qs, 1));
    const __m256i words = _mm256_castps_si256(_mm256_shuffle_ps(low, high, 0xdd));
    set_signs(words);
    const __m256i in_order = _mm256_permute4x64_epi64(words, 0xd8);
    d = odd_scales8(half_to_float(b->d) * 0.125f, _mm256_srli_epi32(in_order, 28));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const auto* qs = (const uint8_t*)b->qs + V;
    const auto at = [&](int block) { return kCodebookIQ2_XXS.entry + qs[8 * block]; };
    return {four_entries(at(0), at(1), at(2), at(3)), four_entries(at(4), at(5), at(6), at(7))};
  }
};

struct StridedIQ2_XS : SignsApartOf<BlockIQ2_XS, Simd::PerHalf> {
  HM_INLINE void load(const Block* b) {
    const __m256i low = load_half(b->qs, 0), high = load_half(b->qs, 1);
    sign_bytes = {with_parity(_mm256_srli_epi16(low, 9)), with_parity(_mm256_srli_epi16(high, 9))};
    d = odd_scales16(half_to_float(b->d) * 0.125f, b->scales);
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const auto at = [&](int block) { return kCodebookIQ2_XS.entry + (b->qs[4 * block + V] & 511); };
    return {four_entries(at(0), at(1), at(2), at(3)), four_entries(at(4), at(5), at(6), at(7))};
  }
};

template <class Indices>
struct StridedIQ2_SOf : SignBytesOf<BlockIQ2_S, Simd::PerHalf> {
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
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return entries_at<V>(kCodebookIQ2_S.entry, index);
  }
};

struct StridedIQ2_S : IndexedGroup<StridedIQ2_SOf, 32> {};

struct StridedIQ3_XXS : SignIndicesOf<BlockIQ3_XXS> {
  HM_INLINE void load(const Block* b) {
    const __m256i words = load_half(b->words, 0);
    set_signs(_mm256_permute4x64_epi64(words, 0xd8));
    d = odd_scales8(half_to_float(b->d) * 0.25f, _mm256_srli_epi32(words, 28));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const auto half = [&](const uint8_t* qs) {
      return pairs_at(kCodebookIQ3_XXS.entry, [&](int block, int n) { return qs[8 * block + n]; });
    };
    return {half(b->qs + 2 * V), half(b->qs + 32 + 2 * V)};
  }
};

template <class Indices>
struct StridedIQ3_SOf : SignBytesOf<BlockIQ3_S, Simd::PerBlock> {
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
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    const auto half = [&](int first) {
      return pairs_at(kCodebookIQ3_S.entry, [&](int block, int n) {
        return n == 0 ? index.template get<2 * V>(first + block)
                      : index.template get<2 * V + 1>(first + block);
      });
    };
    return {half(0), half(4)};
  }
};

struct StridedIQ3_S : IndexedGroup<StridedIQ3_SOf, 64> {};

// Codes are 8 c + 15; the shift of a block, -1 or 1, is that of its lane.
template <class Indices>
struct StridedIQ1_SOf : StridedGroupOf<BlockIQ1_S, Simd::PerBlock> {
  static constexpr int kBias = 16, kShift = 2;
  Indices index;
  __m256i shifts;  // a mask

  static HM_INLINE Simd::B64 indices(const Block* b, int) {
    const __m128i eight = _mm_loadu_si128((const __m128i*)b->qh);
    const Simd::B64 low = words_of(b->qs);
    // Bits 3 k of word k of a word's four -> bits 8, 9, 10.
    const auto high = [&](__m128i words) {
      const __m256i four =
          shuffle(_mm256_cvtepu16_epi64(words),
                  _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 8, 9, 8, 9, 8, 9, 8, 9, 0, 1, 0, 1, 0, 1,
                                   0, 1, 8, 9, 8, 9, 8, 9, 8, 9));
      const __m256i low_two = _mm256_mullo_epi16(four, _mm256_set1_epi64x(0x0000000400200100));
      const __m256i last = _mm256_srli_epi16(four, 1);
      return _mm256_and_si256(_mm256_blend_epi16(low_two, last, 0x88), _mm256_set1_epi16(0x700));
    };
    return Simd::or_(low, {high(eight), high(_mm_srli_si128(eight, 8))});
  }
  HM_INLINE void load_rest(const Block* b) {
    const __m256i words = _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i*)b->qh));
    shifts = _mm256_cmpgt_epi32(words, _mm256_set1_epi32(-1));
    const __m256i s = _mm256_and_si256(_mm256_srli_epi32(words, 12), _mm256_set1_epi32(7));
    d = odd_scales8(half_to_float(b->d) * 0.125f, s);
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return entries_at<V>(kCodebookBiasedIQ1.entry, index);
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
    const __m256i mask = _mm256_set1_epi16(0x700);
    return Simd::or_(words_of(b->qs), {_mm256_and_si256(_mm256_srli_epi16(words.lo, 4), mask),
                                       _mm256_and_si256(_mm256_srli_epi16(words.hi, 4), mask)});
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
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    const Simd::B64 entries = entries_at<V>(kCodebookBiasedIQ1.entry, index);
    const __m256i order = two_bytes(2 * V, 8 + 2 * V);
    return {_mm256_add_epi8(entries.lo, shuffle(shifts.lo, order)),
            _mm256_add_epi8(entries.hi, shuffle(shifts.hi, order))};
  }
};

struct StridedIQ1_M : IndexedGroup<StridedIQ1_MOf, 32> {};

// One token by indices made ahead: what was just stored takes a load long. Rows are whole groups,
// and follow each other.
template <class Group>
void gemv_ahead(const MatmulArgs& args, int64_t token) {
  using Block = typename Group::Block;
  constexpr int ahead = 4, slots = 8;
  alignas(64) uint16_t indices[slots][Group::kIndices];
  const ActivationRow x = activation_row(args.x[token], args.cols);
  const int64_t num_groups = args.cols / kSuperWeights;
  const auto* blocks = (const Block*)args.weights;
  const Block* last = blocks + args.num_rows * num_groups - 1;
  const auto make = [&](const Block* b, int64_t slot) {
    Group::make_indices(b < last ? b : last, indices[slot % slots]);
  };
  for (int i = 0; i < ahead; ++i) make(blocks + i, i);
  int64_t slot = 0;
  for (int64_t r = 0; r < args.num_rows; ++r) {
    GroupSums<Group> sums;
    for (int64_t g = 0; g < num_groups; ++g, ++blocks, ++slot) {
      fetch_ahead<sizeof(Block)>(args, blocks);
      make(blocks + ahead, slot + ahead);
      Group group;
      group.load(blocks, indices[slot % slots]);
      sums.add_group(group, blocks, x, g * kSuperWeights);
    }
    args.out[token * args.out_stride + r] = Group::Lanes::reduce(sums.lanes);
  }
}

template <>
void gemv_groups<StridedIQ1_S>(const MatmulArgs& args, int64_t token) {
  gemv_ahead<StridedIQ1_S::Ahead>(args, token);
}
template <>
void gemv_groups<StridedIQ1_M>(const MatmulArgs& args, int64_t token) {
  gemv_ahead<StridedIQ1_M::Ahead>(args, token);
}
template <>
void gemv_groups<StridedIQ2_S>(const MatmulArgs& args, int64_t token) {
  gemv_ahead<StridedIQ2_S::Ahead>(args, token);
}
template <>
void gemv_groups<StridedIQ3_S>(const MatmulArgs& args, int64_t token) {
  gemv_ahead<StridedIQ3_S::Ahead>(args, token);
}

}  // namespace
}  // namespace hm
