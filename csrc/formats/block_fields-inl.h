// Fields of quantised blocks: unaligned loads, packed scales, small floats.
#pragma once

#include <string.h>

#ifdef __BMI2__
#include <immintrin.h>
#endif

#include "formats/blocks.h"
#include "formats/codebooks.h"

namespace hm {
namespace {

inline uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline uint32_t load_u32(const void* p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline uint64_t load_u64(const void* p) {
  uint64_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

inline float bits_to_float(uint32_t bits) {
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

inline uint32_t float_to_bits(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}

// Eight sign bits of a 7-bit sign index; higher bits of `index` are ignored.
inline uint32_t expand_signs(uint32_t index) { return kCodebookSigns.entry[index & 127]; }

inline float e8m0_half(uint8_t e) {
  return bits_to_float(e < 2 ? 0x00200000u << e : (e - 1u) << 23);
}

// Half of an unsigned E4M3 number; 0x7f is its NaN, which the format reads as zero.
inline float ue4m3_half(uint8_t x) {
  if (x == 0 || x == 0x7f) return 0.0f;
  const int exponent = (x >> 3) & 15;
  const float mantissa = static_cast<float>(x & 7);
  if (exponent == 0) return mantissa * 0x1p-10f;
  const float power = bits_to_float(static_cast<uint32_t>(exponent - 8 + 127) << 23);
  return (1.0f + mantissa / 8.0f) * power;
}

// Eight bytes each, the first lowest: kept in registers, since a vector load of bytes that were
// just written one by one has to wait for all of these writes.
struct KScales {
  uint64_t scales, mins;
};

inline int byte_of(uint64_t bytes, int i) { return static_cast<uint8_t>(bytes >> (8 * i)); }

inline uint64_t join_words(uint32_t low, uint32_t high) {
  return low | static_cast<uint64_t>(high) << 32;
}

// The 6-bit scales and mins of Q4_K and Q5_K; see BlockQ4_K.
inline KScales unpack_k_scales(const uint8_t* packed) {
  const uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
  return {join_words(a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | ((a >> 2) & 0x30303030)),
          join_words(b & 0x3f3f3f3f, ((c >> 4) & 0x0f0f0f0f) | ((b >> 2) & 0x30303030))};
}

constexpr uint64_t kEachByte = 0x0101010101010101;

// Bytes v of 0..127, eight in a word, as the signed bytes v - N.
template <int N>
inline uint64_t minus(uint64_t bytes) {
  return (bytes + (128 - N) * kEachByte) ^ 128 * kEachByte;
}

// Fields to bytes, the lowest first: eight nibbles, eight pairs of bits, eight bits; and back from
// bytes to their bits 0. Before Zen 3, pdep takes hundreds of cycles: AVX-512 has it fast.
#ifdef __BMI2__
inline uint64_t spread_nibbles(uint32_t v) { return _pdep_u64(v, 15 * kEachByte); }
inline uint64_t spread_pairs(uint32_t v) { return _pdep_u64(v, 3 * kEachByte); }
inline uint64_t spread_bits(uint32_t v) { return _pdep_u64(v, kEachByte); }
inline uint32_t gather_bits(uint64_t v) { return static_cast<uint32_t>(_pext_u64(v, kEachByte)); }
#else
inline uint64_t spread_nibbles(uint32_t nibbles) {
  uint64_t v = nibbles;
  v = (v | v << 16) & 0x0000ffff0000ffff;
  v = (v | v << 8) & 0x00ff00ff00ff00ff;
  return (v | v << 4) & 15 * kEachByte;
}

inline uint64_t spread_pairs(uint32_t pairs) {
  uint64_t v = pairs;
  v = (v | v << 24) & 0x000000ff000000ff;
  v = (v | v << 12) & 0x000f000f000f000f;
  return (v | v << 6) & 3 * kEachByte;
}

inline uint64_t spread_bits(uint32_t bits) {
  const uint64_t placed = (bits & 255) * kEachByte & 0x8040201008040201;
  return (placed + 127 * kEachByte) >> 7 & kEachByte;
}

inline uint32_t gather_bits(uint64_t bytes) {
  return static_cast<uint32_t>((bytes & kEachByte) * 0x0102040810204080 >> 56);
}
#endif

// The sixteen 6-bit scales of Q3_K less 32, as signed bytes; see BlockQ3_K.
struct Q3Scales {
  uint64_t low, high;
};

inline Q3Scales unpack_q3_scales(const uint8_t* packed) {
  const uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
  return {minus<32>(join_words((a & 0x0f0f0f0f) | ((c << 4) & 0x30303030),
                               (b & 0x0f0f0f0f) | ((c << 2) & 0x30303030))),
          minus<32>(join_words(((a >> 4) & 0x0f0f0f0f) | (c & 0x30303030),
                               ((b >> 4) & 0x0f0f0f0f) | ((c >> 2) & 0x30303030)))};
}

// The eight 6-bit scales of IQ4_XS less 32, as signed bytes; see BlockIQ4_XS.
inline uint64_t unpack_iq4_scales(const uint8_t* nibbles, uint32_t pairs) {
  return minus<32>(spread_nibbles(load_u32(nibbles)) | spread_pairs(pairs) << 4);
}

}  // namespace
}  // namespace hm
