// Signs and indices of the IQ types for codebook_gemv_avx2-inl.h.
#pragma once

#include "kernels/groups-inl.h"

namespace hm {
namespace {

template <class Block, class Lanes>
struct StridedGroupOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = false;
};

// In every half: eight times byte `a`, then eight times byte `b`.
HM_INLINE __m256i two_bytes(int64_t a, int64_t b) {
  const auto each = static_cast<int64_t>(kEachByte);
  return _mm256_set_epi64x(b * each, a * each, b * each, a * each);
}

HM_INLINE __m256i shuffle(__m256i v, __m256i order) { return _mm256_shuffle_epi8(v, order); }

// -1 where a byte has its bit, else 1.
HM_INLINE __m256i signs_of_bits(__m256i bytes, __m256i bit_of) {
  const __m256i found = _mm256_and_si256(bytes, bit_of);
  return _mm256_or_si256(_mm256_cmpeq_epi8(found, bit_of), _mm256_set1_epi8(1));
}

HM_INLINE __m256i load_half(const void* p, int half) {
  return _mm256_loadu_si256((const __m256i*)p + half);
}

// Indices of two entries that follow each other in their block.
struct Pair {
  uint32_t first, second;
};

// The compiler knows nothing of v after this: it neither splits a load nor joins it with others.
template <class Word>
HM_INLINE void forget_scalar(Word& v) {
  asm("" : "+r"(v));
}

// A group whose codes, and signs, are made by halves H of its blocks.
template <class Group>
struct HalvesOf : Group {
  template <int V>
  HM_INLINE Simd::B64 codes(const typename Group::Block* b) const {
    return {this->template half_codes<V, 0>(b), this->template half_codes<V, 1>(b)};
  }
  template <int V>
  HM_INLINE Simd::Signs signs() const {
    return {this->template half_signs<V, 0>(), this->template half_signs<V, 1>()};
  }
};

// Signs of entries as bytes of bits, spread so that each takes two instructions: of a block's four
// entries four bytes of twice the bits, then four of the bits, bit 0 set in all. Shifted to the
// left by 6, 4, 2 and 0, words of both have the bits in order at the tops of their bytes, and none
// is 0.
struct SpreadSigns {
  Simd::B64 bytes;

  // `bits`: blocks 0 1 4 5 2 3 6 7.
  HM_INLINE void set(__m256i bits) {
    const __m256i one = _mm256_set1_epi8(1);
    const __m256i even = _mm256_or_si256(_mm256_add_epi8(bits, bits), one);
    const __m256i odd = _mm256_or_si256(bits, one);
    bytes = {_mm256_unpacklo_epi32(even, odd), _mm256_unpackhi_epi32(even, odd)};
  }
  template <int V, int H>
  HM_INLINE __m256i of_entry() const {
    constexpr int64_t pair = V | (4 + V) << 8, eight = 0x0808;
    constexpr int64_t each = 0x0001000100010001;
    const __m256i order =
        _mm256_set_epi64x((pair + eight) * each, pair * each, (pair + eight) * each, pair * each);
    return _mm256_mullo_epi16(shuffle(Simd::half<H>(bytes), order),
                              _mm256_set1_epi64x(0x0001000400100040));
  }
};

// A group with a byte of signs for each entry V: byte V of a block's 32 bits.
template <class Block, class Lanes>
struct SignBytesOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = true;
  SpreadSigns spread;

  HM_INLINE void set_signs(const uint8_t* bytes) {
    spread.set(_mm256_permute4x64_epi64(load_half(bytes, 0), 0xd8));
  }
  template <int V, int H>
  HM_INLINE __m256i half_signs() const {
    return spread.of_entry<V, H>();
  }
};

// A group whose signs are apart: byte 2 V of the 64 bits of a block are those of its entry V.
template <class Block, class Lanes>
struct SignsApartOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = true;
  Simd::B64 sign_bytes;

  template <int V, int H>
  HM_INLINE __m256i half_signs() const {
    const __m256i bytes = shuffle(Simd::half<H>(sign_bytes), two_bytes(2 * V, 8 + 2 * V));
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    return signs_of_bits(bytes, bit_of);
  }
};

// Bytes of 0..127, and their parity as bit 7.
HM_INLINE __m256i with_parity(__m256i indices) {
  const __m256i parities = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m256i folded = _mm256_and_si256(_mm256_xor_si256(indices, _mm256_srli_epi16(indices, 4)),
                                          _mm256_set1_epi8(15));
  return _mm256_or_si256(indices, shuffle(parities, folded));
}

// A group whose signs are four indices of 7 bits in the lower 28 bits of a block.
template <class Block>
struct SignIndicesOf : GroupOf<Block, Simd::PerBlock> {
  static constexpr bool kSignsApart = true;
  SpreadSigns spread;

  // `words`: blocks 0 1 4 5 2 3 6 7.
  HM_INLINE void set_signs(__m256i words) {
    const __m256i two = _mm256_blend_epi16(words, _mm256_slli_epi32(words, 2), 0xaa);
    const __m256i upper = _mm256_and_si256(two, _mm256_set1_epi16(0x3f80));
    const __m256i both = _mm256_and_si256(two, _mm256_set1_epi16(0x3fff));
    spread.set(with_parity(_mm256_add_epi16(both, upper)));
  }
  template <int V, int H>
  HM_INLINE __m256i half_signs() const {
    return spread.of_entry<V, H>();
  }
};

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

// Indices of a group's entries, words in order. Of a group at once they are kept in registers;
// those made some groups ahead in memory, where a load takes each of them apart.
template <int N>
struct IndicesInRegisters {
  uint64_t words[N / 4];

  HM_INLINE void set(int part, Simd::B64 v) { to_scalars(v, words + 8 * part); }
  template <int I>
  HM_INLINE uint16_t get(int block) const {
    constexpr int block_words = N / 32;
    return static_cast<uint16_t>(words[block_words * block + I / 4] >> 16 * (I % 4));
  }
  template <int I>
  HM_INLINE Pair two(int block) const {
    return {get<I>(block), get<I + 1>(block)};
  }
};

template <int N>
struct IndicesInMemory {
  const uint16_t* words;

  template <int I>
  HM_INLINE uint16_t get(int block) const {
    return words[N / 8 * block + I];
  }
  template <int I>
  HM_INLINE Pair two(int block) const {
    uint32_t word = load_u32(words + N / 8 * block + I);
    forget_scalar(word);
    return {static_cast<uint16_t>(word), word >> 16};
  }
};

HM_INLINE void store_indices(uint16_t* out, int part, Simd::B64 v) {
  _mm256_store_si256((__m256i*)(out + 32 * part), v.lo);
  _mm256_store_si256((__m256i*)(out + 32 * part) + 1, v.hi);
}

// A group of Base<Indices>, which gemv loads with indices that it had made ahead.
template <template <class> class Base, int N>
struct IndexedGroup : HalvesOf<Base<IndicesInRegisters<N>>> {
  using Block = typename Base<IndicesInRegisters<N>>::Block;
  struct Ahead : Base<IndicesInMemory<N>> {
    static constexpr int kIndices = N;
    static HM_INLINE void make_indices(const Block* b, uint16_t* out) {
      for (int part = 0; part < N / 32; ++part) store_indices(out, part, Ahead::indices(b, part));
    }
    HM_INLINE void load(const Block* b, const uint16_t* made) {
      this->load_rest(b);
      this->index.words = made;
    }
  };

  HM_INLINE void load(const Block* b) {
    for (int part = 0; part < N / 32; ++part) this->index.set(part, this->indices(b, part));
    this->load_rest(b);
  }
};

}  // namespace
}  // namespace hm
