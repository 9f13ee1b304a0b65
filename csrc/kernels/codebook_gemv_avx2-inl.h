// Groups of the IQ1, IQ2 and IQ3 types for gemv in AVX2, strided: see gemv-inl.h. Entries are
// loaded 8 (or 4) bytes at a time; indices, signs and scales are made by vectors.
#pragma once

#include "kernels/codebook_groups-inl.h"
#include "kernels/gemv-inl.h"

namespace hm {
namespace {

// In every half: eight times byte `a`, then eight times byte `b`.
HM_INLINE __m256i two_bytes(int64_t a, int64_t b) {
  const auto each = static_cast<int64_t>(kEachByte);
  return _mm256_set_epi64x(b * each, a * each, b * each, a * each);
}

HM_INLINE __m256i shuffle(__m256i v, __m256i order) { return _mm256_shuffle_epi8(v, order); }

template <class Block, class Lanes>
struct StridedGroupOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = false;
};

// A group whose signs are apart: byte SignBytes * V of the 64 bits of a block are those of its
// entry V.
template <class Block, class Lanes, int SignBytes>
struct SignsApartOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = true;
  Simd::B64 sign_bytes;

  template <int V>
  HM_INLINE Simd::Signs signs() const {
    return {expand<V>(sign_bytes.lo), expand<V>(sign_bytes.hi)};
  }

 private:
  template <int V>
  static HM_INLINE __m256i expand(__m256i bytes) {
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i bits =
        _mm256_and_si256(shuffle(bytes, two_bytes(SignBytes * V, 8 + SignBytes * V)), bit_of);
    return _mm256_or_si256(_mm256_cmpeq_epi8(bits, bit_of), _mm256_set1_epi8(1));
  }
};

HM_INLINE __m256i load_half(const void* p, int half) {
  return _mm256_loadu_si256((const __m256i*)p + half);
}

// Four bytes a block of 32 -> 64 bits a block.
HM_INLINE Simd::B64 bytes_apart(const uint8_t* p) {
  return {_mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu32_epi64(_mm_loadu_si128((const __m128i*)p + 1))};
}

// 32 bytes -> words.
HM_INLINE Simd::B64 words_of(const uint8_t* p) {
  return {_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p)),
          _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p + 1))};
}

// Words of 0..127, and their parity as bit 7.
HM_INLINE __m256i with_parity(__m256i indices) {
  const __m256i parities = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m256i folded = _mm256_and_si256(_mm256_xor_si256(indices, _mm256_srli_epi16(indices, 4)),
                                          _mm256_set1_epi16(15));
  return _mm256_or_si256(indices, shuffle(parities, folded));
}

// Words of s (4) | sign index (7) x 4, as 64 bits each -> four words with parity.
HM_INLINE __m256i sign_words(__m256i words) {
  const __m256i pairs = _mm256_or_si256(
      _mm256_and_si256(words, _mm256_set1_epi64x(0x3fff)),
      _mm256_and_si256(_mm256_slli_epi64(words, 18), _mm256_set1_epi64x(0x3fff00000000)));
  return with_parity(
      _mm256_or_si256(_mm256_and_si256(pairs, _mm256_set1_epi32(0x7f)),
                      _mm256_and_si256(_mm256_slli_epi32(pairs, 9), _mm256_set1_epi32(0x7f0000))));
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

// Entries of four words: in scalar registers, since what was just stored takes a load long.
HM_INLINE void to_scalars(__m256i v, uint64_t* out) {
  out[0] = static_cast<uint64_t>(_mm256_extract_epi64(v, 0));
  out[1] = static_cast<uint64_t>(_mm256_extract_epi64(v, 1));
  out[2] = static_cast<uint64_t>(_mm256_extract_epi64(v, 2));
  out[3] = static_cast<uint64_t>(_mm256_extract_epi64(v, 3));
}

HM_INLINE void to_scalars(Simd::B64 v, uint64_t* out) {
  to_scalars(v.lo, out);
  to_scalars(v.hi, out + 4);
}

// Entries V of the blocks, by word V of each block's 64 bits.
template <int V, int Mask = 0xffff>
HM_INLINE Simd::B64 entries_at(const uint64_t* table, const uint64_t (&index)[8]) {
  const auto at = [&](int block) { return table + (index[block] >> 16 * V & Mask); };
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

struct StridedIQ2_XXS : SignsApartOf<BlockIQ2_XXS, Simd::PerBlock, 2> {
  HM_INLINE void load(const Block* b) {
    const __m256i low = _mm256_srli_epi64(load_half(b->qs, 0), 32);
    const __m256i high = _mm256_srli_epi64(load_half(b->qs, 1), 32);
    sign_bytes = {sign_words(low), sign_words(high)};
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    const __m256i s =
        _mm256_srli_epi32(_mm256_permute2x128_si256(_mm256_permutevar8x32_epi32(low, order),
                                                    _mm256_permutevar8x32_epi32(high, order), 0x20),
                          28);
    d = odd_scales8(half_to_float(b->d) * 0.125f, s);
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const auto* qs = (const uint8_t*)b->qs + V;
    const auto at = [&](int block) { return kCodebookIQ2_XXS.entry + qs[8 * block]; };
    return {four_entries(at(0), at(1), at(2), at(3)), four_entries(at(4), at(5), at(6), at(7))};
  }
};

struct StridedIQ2_XS : SignsApartOf<BlockIQ2_XS, Simd::PerHalf, 2> {
  uint64_t index[8];

  HM_INLINE void load(const Block* b) {
    const __m256i low = load_half(b->qs, 0), high = load_half(b->qs, 1);
    memcpy(index, b->qs, sizeof index);
    sign_bytes = {with_parity(_mm256_srli_epi16(low, 9)), with_parity(_mm256_srli_epi16(high, 9))};
    d = odd_scales16(half_to_float(b->d) * 0.125f, b->scales);
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return entries_at<V, 511>(kCodebookIQ2_XS.entry, index);
  }
};

struct StridedIQ2_S : SignsApartOf<BlockIQ2_S, Simd::PerHalf, 1> {
  uint64_t index[8];

  HM_INLINE void load(const Block* b) {
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
    to_scalars(Simd::or_(low, {high(0), high(1)}), index);
    sign_bytes = bytes_apart(b->signs);
    d = odd_scales16(half_to_float(b->d) * 0.125f, b->scales);
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return entries_at<V>(kCodebookIQ2_S.entry, index);
  }
};

struct StridedIQ3_XXS : SignsApartOf<BlockIQ3_XXS, Simd::PerBlock, 2> {
  HM_INLINE void load(const Block* b) {
    const Simd::B64 words = bytes_apart(b->words);
    sign_bytes = {sign_words(words.lo), sign_words(words.hi)};
    d = odd_scales8(half_to_float(b->d) * 0.25f, _mm256_srli_epi32(load_half(b->words, 0), 28));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    const auto half = [&](const uint8_t* qs) {
      return pairs_at(kCodebookIQ3_XXS.entry, [&](int block, int n) { return qs[8 * block + n]; });
    };
    return {half(b->qs + 2 * V), half(b->qs + 32 + 2 * V)};
  }
};

struct StridedIQ3_S : SignsApartOf<BlockIQ3_S, Simd::PerBlock, 1> {
  uint64_t index[16];

  HM_INLINE void load(const Block* b) {
    for (int h = 0; h < 2; ++h) {
      const Simd::B64 high = Simd::spread_bits<1>(b->qh + 4 * h, b->qh + 4 * h);
      const __m256i low = load_half(b->qs, h);
      // Low and high bytes of 16 words each; unpacking is by halves.
      const __m256i a = _mm256_permute4x64_epi64(low, 0xd8);
      const __m256i c = _mm256_permute4x64_epi64(high.lo, 0xd8);
      to_scalars({_mm256_unpacklo_epi8(a, c), _mm256_unpackhi_epi8(a, c)}, index + 8 * h);
    }
    sign_bytes = bytes_apart(b->signs);
    const __m256i word = _mm256_set1_epi32(static_cast<int32_t>(load_u32(b->scales)));
    const __m256i s = _mm256_srlv_epi32(word, _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    d = odd_scales8(half_to_float(b->d), _mm256_and_si256(s, _mm256_set1_epi32(15)));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    const auto half = [&](const uint64_t* words) {
      return pairs_at(kCodebookIQ3_S.entry, [&](int block, int n) {
        return static_cast<uint16_t>(words[2 * block + V / 2] >> 16 * (V % 2 * 2 + n));
      });
    };
    return {half(index), half(index + 8)};
  }
};

// Codes are 8 c + 15; the shift of a block, -1 or 1, is that of its bit.
struct StridedIQ1_S : StridedGroupOf<BlockIQ1_S, Simd::PerBlock> {
  static constexpr int kBias = 16, kShift = 2;
  uint64_t index[8];
  uint32_t shifts;

  HM_INLINE void load(const Block* b) {
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
    to_scalars(Simd::or_(low, {high(eight), high(_mm_srli_si128(eight, 8))}), index);
    shifts = ~static_cast<uint32_t>(_mm_movemask_epi8(_mm_packs_epi16(eight, eight))) & 255;
    const __m256i s = _mm256_srli_epi32(_mm256_cvtepu16_epi32(eight), 12);
    d = odd_scales8(half_to_float(b->d) * 0.125f, _mm256_and_si256(s, _mm256_set1_epi32(7)));
  }
  template <int V>
  HM_INLINE Simd::B64 codes(const Block*) const {
    return entries_at<V>(kCodebookBiasedIQ1.entry, index);
  }
};

// Codes are 8 c + 15 and 0 or 2.
struct StridedIQ1_M : StridedGroupOf<BlockIQ1_M, Simd::PerHalf> {
  static constexpr int kBias = 16;
  uint64_t index[8];
  Simd::B64 shifts;

  HM_INLINE void load(const Block* b) {
    const Simd::B64 low = words_of(b->qs);
    const auto nibble_words = [&](const uint8_t* qh) {
      const __m256i bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)qh));
      return _mm256_or_si256(_mm256_slli_epi16(bytes, 12), _mm256_slli_epi32(bytes, 24));
    };
    const __m256i first = nibble_words(b->qh), second = nibble_words(b->qh + 8);
    const __m256i mask = _mm256_set1_epi16(0x700), two = _mm256_set1_epi8(2);
    to_scalars(Simd::or_(low, {_mm256_and_si256(_mm256_srli_epi16(first, 4), mask),
                               _mm256_and_si256(_mm256_srli_epi16(second, 4), mask)}),
               index);
    shifts = {_mm256_andnot_si256(_mm256_srai_epi16(first, 15), two),
              _mm256_andnot_si256(_mm256_srai_epi16(second, 15), two)};
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

}  // namespace
}  // namespace hm
