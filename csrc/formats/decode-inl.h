// Scalar decoding, one function per format, bit for bit the float32 arithmetic of gguf.quants
// (gguf-py, MIT licence): the same products in the same order, never contracted to an FMA.
// Compiled once per instruction set; the includer has defined `half_to_float` in hm::(anonymous).
#pragma once

#include <string.h>

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

// Bytes v of 0..63, eight in a word, as the signed bytes v - 32.
inline uint64_t minus_32(uint64_t bytes) {
  constexpr uint64_t sixth = 0x2020202020202020;
  const uint64_t flipped = bytes ^ sixth, negative = flipped & sixth;
  return flipped | negative << 1 | negative << 2;
}

// The sixteen 6-bit scales of Q3_K less 32, as signed bytes; see BlockQ3_K.
struct Q3Scales {
  uint64_t low, high;
};

inline Q3Scales unpack_q3_scales(const uint8_t* packed) {
  const uint32_t a = load_u32(packed), b = load_u32(packed + 4), c = load_u32(packed + 8);
  return {minus_32(join_words((a & 0x0f0f0f0f) | ((c << 4) & 0x30303030),
                              (b & 0x0f0f0f0f) | ((c << 2) & 0x30303030))),
          minus_32(join_words(((a >> 4) & 0x0f0f0f0f) | (c & 0x30303030),
                              ((b >> 4) & 0x0f0f0f0f) | ((c >> 2) & 0x30303030)))};
}

// The eight 6-bit scales of IQ4_XS less 32, as signed bytes; see BlockIQ4_XS.
inline uint64_t unpack_iq4_scales(const uint8_t* nibbles, uint32_t pairs) {
  uint64_t low = load_u32(nibbles), high = pairs;
  low = (low | low << 16) & 0x0000ffff0000ffff;
  low = (low | low << 8) & 0x00ff00ff00ff00ff;
  low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f;
  high = (high | high << 24) & 0x000000ff000000ff;
  high = (high | high << 12) & 0x000f000f000f000f;
  high = (high | high << 6) & 0x0303030303030303;
  return minus_32(low | high << 4);
}

inline void decode(const BlockF32& b, float* y) { *y = b.w; }

inline void decode(const BlockF16& b, float* y) { *y = half_to_float(b.w); }

inline void decode(const BlockBF16& b, float* y) {
  *y = bits_to_float(static_cast<uint32_t>(b.w) << 16);
}

inline void decode(const BlockQ4_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>((b.qs[i] & 15) - 8);
    y[i + 16] = d * static_cast<float>((b.qs[i] >> 4) - 8);
  }
}

inline void decode(const BlockQ4_1& b, float* y) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(b.qs[i] & 15) + m;
    y[i + 16] = d * static_cast<float>(b.qs[i] >> 4) + m;
  }
}

inline void decode(const BlockQ5_0& b, float* y) {
  const float d = half_to_float(b.d);
  const uint32_t qh = load_u32(b.qh);
  for (int i = 0; i < 16; ++i) {
    const int low = (b.qs[i] & 15) | (((qh >> i) & 1) << 4);
    const int high = (b.qs[i] >> 4) | (((qh >> (i + 16)) & 1) << 4);
    y[i] = d * static_cast<float>(low - 16);
    y[i + 16] = d * static_cast<float>(high - 16);
  }
}

inline void decode(const BlockQ5_1& b, float* y) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  const uint32_t qh = load_u32(b.qh);
  for (int i = 0; i < 16; ++i) {
    const int low = (b.qs[i] & 15) | (((qh >> i) & 1) << 4);
    const int high = (b.qs[i] >> 4) | (((qh >> (i + 16)) & 1) << 4);
    y[i] = d * static_cast<float>(low) + m;
    y[i + 16] = d * static_cast<float>(high) + m;
  }
}

inline void decode(const BlockQ8_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(b.qs[i]) * d;
}

inline void decode(const BlockQ2_K& b, float* y) {
  const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
  for (int g = 0; g < 16; ++g) {
    const float dl = d * static_cast<float>(b.scales[g] & 15);
    const float ml = dmin * static_cast<float>(b.scales[g] >> 4);
    const uint8_t* qs = b.qs + 32 * (g / 8) + 16 * (g % 2);
    const int shift = 2 * (g % 8 / 2);
    for (int i = 0; i < 16; ++i) {
      y[16 * g + i] = dl * static_cast<float>((qs[i] >> shift) & 3) - ml;
    }
  }
}

inline void decode(const BlockQ3_K& b, float* y) {
  const float d = half_to_float(b.d);
  const Q3Scales scales = unpack_q3_scales(b.scales);
  for (int g = 0; g < 16; ++g) {
    const int scale = byte_of(g < 8 ? scales.low : scales.high, g % 8);
    const float dl = d * static_cast<float>(static_cast<int8_t>(scale));
    const uint8_t* qs = b.qs + 32 * (g / 8) + 16 * (g % 2);
    const uint8_t* hmask = b.hmask + 16 * (g % 2);
    const int shift = 2 * (g % 8 / 2), bit = g / 2;
    for (int i = 0; i < 16; ++i) {
      const int q = ((qs[i] >> shift) & 3) | (((hmask[i] >> bit) & 1) << 2);
      y[16 * g + i] = dl * static_cast<float>(q - 4);
    }
  }
}

inline void decode(const BlockQ4_K& b, float* y) {
  const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
  const auto [scales, mins] = unpack_k_scales(b.scales);
  for (int g = 0; g < 8; ++g) {
    const float dl = d * static_cast<float>(byte_of(scales, g));
    const float ml = dmin * static_cast<float>(byte_of(mins, g));
    const uint8_t* qs = b.qs + 32 * (g / 2);
    const int shift = 4 * (g % 2);
    for (int i = 0; i < 32; ++i) {
      y[32 * g + i] = dl * static_cast<float>((qs[i] >> shift) & 15) - ml;
    }
  }
}

inline void decode(const BlockQ5_K& b, float* y) {
  const float d = half_to_float(b.d), dmin = half_to_float(b.dmin);
  const auto [scales, mins] = unpack_k_scales(b.scales);
  for (int g = 0; g < 8; ++g) {
    const float dl = d * static_cast<float>(byte_of(scales, g));
    const float ml = dmin * static_cast<float>(byte_of(mins, g));
    const uint8_t* qs = b.qs + 32 * (g / 2);
    const int shift = 4 * (g % 2);
    for (int i = 0; i < 32; ++i) {
      const int q = ((qs[i] >> shift) & 15) | (((b.qh[i] >> g) & 1) << 4);
      y[32 * g + i] = dl * static_cast<float>(q) - ml;
    }
  }
}

inline void decode(const BlockQ6_K& b, float* y) {
  const float d = half_to_float(b.d);
  for (int g = 0; g < 16; ++g) {
    const float dl = d * static_cast<float>(b.scales[g]);
    const uint8_t* ql = b.ql + 64 * (g / 8) + 16 * (g % 4);
    const uint8_t* qh = b.qh + 32 * (g / 8) + 16 * (g % 2);
    const int low_shift = 4 * (g % 8 / 4), high_shift = 2 * (g % 8 / 2);
    for (int i = 0; i < 16; ++i) {
      const int q = ((ql[i] >> low_shift) & 15) | (((qh[i] >> high_shift) & 3) << 4);
      y[16 * g + i] = dl * static_cast<float>(q - 32);
    }
  }
}

// N codebook weights with their signs: bit i of `signs` flips the sign bit of weight i.
template <int N, class Entry>
inline void decode_entry(float scale, Entry entry, uint32_t signs, float* y) {
  uint8_t bytes[N];
  memcpy(bytes, &entry, N);
  for (int i = 0; i < N; ++i) {
    y[i] = bits_to_float(float_to_bits(scale * static_cast<float>(bytes[i])) ^ ((signs >> i) & 1)
                                                                                   << 31);
  }
}

inline void decode(const BlockIQ2_XXS& b, float* y) {
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    const uint32_t indices = load_u32(b.qs + 4 * g), word = load_u32(b.qs + 4 * g + 2);
    const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.25f;
    for (int k = 0; k < 4; ++k) {
      const uint64_t entry = kCodebookIQ2_XXS.entry[(indices >> (8 * k)) & 0xff];
      decode_entry<8>(scale, entry, expand_signs(word >> (7 * k)), y + 32 * g + 8 * k);
    }
  }
}

inline void decode(const BlockIQ2_XS& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k) {
    const int s = (b.scales[k / 4] >> (4 * (k / 2 % 2))) & 15;
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    decode_entry<8>(scale, kCodebookIQ2_XS.entry[b.qs[k] & 511], expand_signs(b.qs[k] >> 9),
                    y + 8 * k);
  }
}

inline void decode(const BlockIQ2_S& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k) {
    const int s = (b.scales[k / 4] >> (4 * (k / 2 % 2))) & 15;
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    const int index = b.qs[k] | (((b.qh[k / 4] >> (2 * (k % 4))) & 3) << 8);
    decode_entry<8>(scale, kCodebookIQ2_S.entry[index], b.signs[k], y + 8 * k);
  }
}

inline void decode(const BlockIQ3_XXS& b, float* y) {
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    const uint32_t word = load_u32(b.words + 4 * g);
    const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.5f;
    for (int k = 0; k < 4; ++k) {
      const uint32_t signs = expand_signs(word >> (7 * k));
      const uint8_t* qs = b.qs + 8 * g + 2 * k;
      decode_entry<4>(scale, kCodebookIQ3_XXS.entry[qs[0]], signs, y + 32 * g + 8 * k);
      decode_entry<4>(scale, kCodebookIQ3_XXS.entry[qs[1]], signs >> 4, y + 32 * g + 8 * k + 4);
    }
  }
}

inline void decode(const BlockIQ3_S& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 64; ++k) {
    const int s = (b.scales[k / 16] >> (4 * (k / 8 % 2))) & 15;
    const float scale = d * static_cast<float>(1 + 2 * s);
    const int index = b.qs[k] | (((b.qh[k / 8] >> (k % 8)) & 1) << 8);
    decode_entry<4>(scale, kCodebookIQ3_S.entry[index], b.signs[k / 2] >> (4 * (k % 2)), y + 4 * k);
  }
}

// 8 ternary weights, shifted by `delta`.
inline void decode_ternary(float scale, uint64_t entry, float delta, float* y) {
  int8_t values[8];
  memcpy(values, &entry, sizeof values);
  for (int i = 0; i < 8; ++i) y[i] = scale * (static_cast<float>(values[i]) + delta);
}

inline void decode(const BlockIQ1_S& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k) {
    const int qh = b.qh[k / 4];
    const float scale = d * static_cast<float>(2 * ((qh >> 12) & 7) + 1);
    const int index = b.qs[k] | (((qh >> (3 * (k % 4))) & 7) << 8);
    decode_ternary(scale, kCodebookIQ1.entry[index], qh & 0x8000 ? -0.125f : 0.125f, y + 8 * k);
  }
}

// The binary16 scale spread over the top nibbles of IQ1_M's four scale words.
inline uint16_t iq1_m_scale(const uint16_t* words) {
  return static_cast<uint16_t>(words[0] >> 12 | (words[1] >> 12) << 4 | (words[2] >> 12) << 8 |
                               (words[3] >> 12) << 12);
}

inline void decode(const BlockIQ1_M& b, float* y) {
  uint16_t words[4];
  memcpy(words, b.scales, sizeof words);
  const float d = half_to_float(iq1_m_scale(words));
  for (int k = 0; k < 32; ++k) {
    const int s = (words[k / 8] >> (3 * (k / 2 % 4))) & 7;
    const float scale = d * static_cast<float>(2 * s + 1);
    const int qh = b.qh[k / 2] >> (4 * (k % 2));
    const int index = b.qs[k] | ((qh & 7) << 8);
    decode_ternary(scale, kCodebookIQ1.entry[index], qh & 8 ? -0.125f : 0.125f, y + 8 * k);
  }
}

// 2n values at nibbles of n bytes, low nibbles first.
inline void decode_values(float d, const int8_t* values, const uint8_t* qs, int n, float* y) {
  for (int i = 0; i < n; ++i) {
    y[i] = d * static_cast<float>(values[qs[i] & 15]);
    y[i + n] = d * static_cast<float>(values[qs[i] >> 4]);
  }
}

inline void decode(const BlockIQ4_NL& b, float* y) {
  decode_values(half_to_float(b.d), kValuesIQ4, b.qs, 16, y);
}

inline void decode(const BlockIQ4_XS& b, float* y) {
  const float d = half_to_float(b.d);
  const uint64_t scales = unpack_iq4_scales(b.scales_l, b.scales_h);
  for (int g = 0; g < 8; ++g) {
    const float dl = d * static_cast<float>(static_cast<int8_t>(byte_of(scales, g)));
    decode_values(dl, kValuesIQ4, b.qs + 16 * g, 16, y + 32 * g);
  }
}

// n base-3 digits, one of each byte: digit = byte * 3^place, wrapped to a byte, * 3 >> 8.
inline void unpack_digits(const uint8_t* bytes, int n, uint8_t power, uint8_t* digits) {
  for (int i = 0; i < n; ++i) {
    const uint8_t wrapped = static_cast<uint8_t>(bytes[i] * power);
    digits[i] = static_cast<uint8_t>((wrapped * 3) >> 8);
  }
}

inline void unpack_digits(const BlockTQ1_0& b, uint8_t* digits) {
  constexpr uint8_t powers[5] = {1, 3, 9, 27, 81};
  for (int p = 0; p < 5; ++p) {
    unpack_digits(b.qs, 32, powers[p], digits + 32 * p);
    unpack_digits(b.qs + 32, 16, powers[p], digits + 160 + 16 * p);
    if (p < 4) unpack_digits(b.qh, 4, powers[p], digits + 240 + 4 * p);
  }
}

inline void decode(const BlockTQ1_0& b, float* y) {
  const float d = half_to_float(b.d);
  uint8_t digits[kSuperWeights];
  unpack_digits(b, digits);
  for (int i = 0; i < kSuperWeights; ++i) y[i] = d * static_cast<float>(digits[i] - 1);
}

inline void decode(const BlockTQ2_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    for (int i = 0; i < 32; ++i) {
      const int q = (b.qs[32 * (g / 4) + i] >> (2 * (g % 4))) & 3;
      y[32 * g + i] = d * static_cast<float>(q - 1);
    }
  }
}

inline void decode(const BlockMXFP4& b, float* y) {
  decode_values(e8m0_half(b.e), kValuesE2M1, b.qs, 16, y);
}

inline void decode(const BlockNVFP4& b, float* y) {
  for (int g = 0; g < 4; ++g) {
    decode_values(ue4m3_half(b.d[g]), kValuesE2M1, b.qs + 8 * g, 8, y + 16 * g);
  }
}

// One row, or any run of whole blocks.
template <class Block>
void decode_row(const void* blocks, int64_t weights, float* out) {
  const Block* block = static_cast<const Block*>(blocks);
  for (int64_t i = 0; i < weights / Block::kWeights; ++i)
    decode(block[i], out + i * Block::kWeights);
}

}  // namespace
}  // namespace hm
