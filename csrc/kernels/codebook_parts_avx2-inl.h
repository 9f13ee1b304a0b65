// Signs and indices of the IQ types for codebook_gemv_avx2-inl.h.
#pragma once

#include "kernels/groups-inl.h"

namespace hm {
namespace {

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

// A group with a byte of signs for each entry V: byte V of a block's 32 bits, and shifted by one in
// the upper half of 64 bits.
template <class Block, class Lanes>
struct SignBytesOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = true;
  Simd::B64 sign_bytes;

  HM_INLINE void set_signs(const uint8_t* bytes) {
    const __m256i words = _mm256_permute4x64_epi64(load_half(bytes, 0), 0xd8);
    const __m256i shifted = _mm256_srli_epi32(words, 1);
    sign_bytes = {_mm256_unpacklo_epi32(words, shifted), _mm256_unpackhi_epi32(words, shifted)};
  }
  template <int V>
  HM_INLINE Simd::Signs signs() const {
    return {expand<V>(sign_bytes.lo), expand<V>(sign_bytes.hi)};
  }

 private:
  // A byte and the shifted one, four times: bits 2 i of both go to the top in word i.
  template <int V>
  static HM_INLINE __m256i expand(__m256i bytes) {
    constexpr int64_t pair = V | (4 + V) << 8, eight = 0x0808;
    constexpr int64_t each = 0x0001000100010001;
    const __m256i order =
        _mm256_set_epi64x((pair + eight) * each, pair * each, (pair + eight) * each, pair * each);
    const __m256i top =
        _mm256_mullo_epi16(shuffle(bytes, order), _mm256_set1_epi64x(0x0002000800200080));
    return _mm256_or_si256(top, _mm256_set1_epi8(1));
  }
};

// A group whose signs are apart: byte 2 V of the 64 bits of a block are those of its entry V.
template <class Block, class Lanes>
struct SignsApartOf : GroupOf<Block, Lanes> {
  static constexpr bool kSignsApart = true;
  Simd::B64 sign_bytes;

  template <int V>
  HM_INLINE Simd::Signs signs() const {
    const __m256i order = two_bytes(2 * V, 8 + 2 * V);
    const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    return {signs_of_bits(shuffle(sign_bytes.lo, order), bit_of),
            signs_of_bits(shuffle(sign_bytes.hi, order), bit_of)};
  }
};

// Words of 0..127, and their parity as bit 7.
HM_INLINE __m256i with_parity(__m256i indices) {
  const __m256i parities = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
  const __m256i folded = _mm256_and_si256(_mm256_xor_si256(indices, _mm256_srli_epi16(indices, 4)),
                                          _mm256_set1_epi16(15));
  return _mm256_or_si256(indices, shuffle(parities, folded));
}

// A group whose signs are four indices of 7 bits in the lower 28 bits of a block, in place, with
// the parity of index V as bit 7 V of the upper half of 64 bits.
template <class Block>
struct SignIndicesOf : GroupOf<Block, Simd::PerBlock> {
  static constexpr bool kSignsApart = true;
  Simd::B64 sign_bits;

  // `words`: blocks 0 1 4 5 2 3 6 7.
  HM_INLINE void set_signs(__m256i words) {
    const auto fold = [](__m256i v, __m256i w, int bits) {
      return _mm256_xor_si256(v, _mm256_srli_epi32(w, bits));
    };
    const __m256i pairs = fold(words, words, 1);
    const __m256i parities = fold(fold(fold(pairs, pairs, 2), pairs, 4), words, 6);
    sign_bits = {_mm256_unpacklo_epi32(words, parities), _mm256_unpackhi_epi32(words, parities)};
  }
  template <int V>
  HM_INLINE Simd::Signs signs() const {
    return {expand<V>(sign_bits.lo), expand<V>(sign_bits.hi)};
  }

 private:
  // Weights 0 to 6 of an entry have its index's bits, in the first byte, 7 its parity.
  template <int V>
  static HM_INLINE __m256i expand(__m256i bits) {
    constexpr int64_t order = 0x0400000000000000;
    const __m256i byte_of = _mm256_broadcastsi128_si256(
        _mm_set_epi64x(order + 8 * static_cast<int64_t>(kEachByte), order));
    const __m256i bit_of = _mm256_set1_epi64x(0x0140201008040201);
    if constexpr (V != 0) bits = _mm256_srli_epi32(bits, 7 * V);
    return signs_of_bits(shuffle(bits, byte_of), bit_of);
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
};

template <int N>
struct IndicesInMemory {
  const uint16_t* words;

  template <int I>
  HM_INLINE uint16_t get(int block) const {
    return words[N / 8 * block + I];
  }
};

HM_INLINE void store_indices(uint16_t* out, int part, Simd::B64 v) {
  _mm256_store_si256((__m256i*)(out + 32 * part), v.lo);
  _mm256_store_si256((__m256i*)(out + 32 * part) + 1, v.hi);
}

// A group of Base<Indices>, which gemv loads with indices that it had made ahead.
template <template <class> class Base, int N>
struct IndexedGroup : Base<IndicesInRegisters<N>> {
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
