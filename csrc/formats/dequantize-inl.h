// Scalar dequantization, one function per format, bit for bit the float32 arithmetic of gguf.quants
// (gguf-py, MIT licence): the same products in the same order, never contracted to an FMA.
// Compiled once per instruction set; the includer has defined `half_to_float` in hm::(anonymous).
// Rows, and the types of ik_llama.cpp: ik_dequantize-inl.h.
#pragma once

#include <string.h>

#include "formats/block_fields-inl.h"
#include "formats/blocks.h"
#include "formats/codebooks.h"

namespace hm {
namespace {

inline void dequantize(const BlockF32& b, float* y) { *y = b.w; }

inline void dequantize(const BlockF16& b, float* y) { *y = half_to_float(b.w); }

inline void dequantize(const BlockBF16& b, float* y) {
  *y = bits_to_float(static_cast<uint32_t>(b.w) << 16);
}

inline void dequantize(const BlockQ4_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>((b.qs[i] & 15) - 8);
    y[i + 16] = d * static_cast<float>((b.qs[i] >> 4) - 8);
  }
}

inline void dequantize(const BlockQ4_1& b, float* y) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  for (int i = 0; i < 16; ++i) {
    y[i] = d * static_cast<float>(b.qs[i] & 15) + m;
    y[i + 16] = d * static_cast<float>(b.qs[i] >> 4) + m;
  }
}

inline void dequantize(const BlockQ5_0& b, float* y) {
  const float d = half_to_float(b.d);
  const uint32_t qh = load_u32(b.qh);
  for (int i = 0; i < 16; ++i) {
    const int low = (b.qs[i] & 15) | (((qh >> i) & 1) << 4);
    const int high = (b.qs[i] >> 4) | (((qh >> (i + 16)) & 1) << 4);
    y[i] = d * static_cast<float>(low - 16);
    y[i + 16] = d * static_cast<float>(high - 16);
  }
}

inline void dequantize(const BlockQ5_1& b, float* y) {
  const float d = half_to_float(b.d), m = half_to_float(b.m);
  const uint32_t qh = load_u32(b.qh);
  for (int i = 0; i < 16; ++i) {
    const int low = (b.qs[i] & 15) | (((qh >> i) & 1) << 4);
    const int high = (b.qs[i] >> 4) | (((qh >> (i + 16)) & 1) << 4);
    y[i] = d * static_cast<float>(low) + m;
    y[i + 16] = d * static_cast<float>(high) + m;
  }
}

inline void dequantize(const BlockQ8_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 32; ++i) y[i] = static_cast<float>(b.qs[i]) * d;
}

inline void dequantize(const BlockQ2_K& b, float* y) {
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

inline void dequantize(const BlockQ3_K& b, float* y) {
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

inline void dequantize(const BlockQ4_K& b, float* y) {
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

inline void dequantize(const BlockQ5_K& b, float* y) {
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

inline void dequantize(const BlockQ6_K& b, float* y) {
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
inline void dequantize_entry(float scale, Entry entry, uint32_t signs, float* y) {
  uint8_t bytes[N];
  memcpy(bytes, &entry, N);
  for (int i = 0; i < N; ++i) {
    y[i] = bits_to_float(float_to_bits(scale * static_cast<float>(bytes[i])) ^ ((signs >> i) & 1)
                                                                                   << 31);
  }
}

inline void dequantize(const BlockIQ2_XXS& b, float* y) {
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    const uint32_t indices = load_u32(b.qs + 4 * g), word = load_u32(b.qs + 4 * g + 2);
    const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.25f;
    for (int k = 0; k < 4; ++k) {
      const uint64_t entry = kCodebookIQ2_XXS.entry[(indices >> (8 * k)) & 0xff];
      dequantize_entry<8>(scale, entry, expand_signs(word >> (7 * k)), y + 32 * g + 8 * k);
    }
  }
}

inline void dequantize(const BlockIQ2_XS& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k) {
    const int s = (b.scales[k / 4] >> (4 * (k / 2 % 2))) & 15;
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    dequantize_entry<8>(scale, kCodebookIQ2_XS.entry[b.qs[k] & 511], expand_signs(b.qs[k] >> 9),
                        y + 8 * k);
  }
}

inline void dequantize(const BlockIQ2_S& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k) {
    const int s = (b.scales[k / 4] >> (4 * (k / 2 % 2))) & 15;
    const float scale = d * (0.5f + static_cast<float>(s)) * 0.25f;
    const int index = b.qs[k] | (((b.qh[k / 4] >> (2 * (k % 4))) & 3) << 8);
    dequantize_entry<8>(scale, kCodebookIQ2_S.entry[index], b.signs[k], y + 8 * k);
  }
}

inline void dequantize(const BlockIQ3_XXS& b, float* y) {
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    const uint32_t word = load_u32(b.words + 4 * g);
    const float scale = d * (0.5f + static_cast<float>(word >> 28)) * 0.5f;
    for (int k = 0; k < 4; ++k) {
      const uint32_t signs = expand_signs(word >> (7 * k));
      const uint8_t* qs = b.qs + 8 * g + 2 * k;
      dequantize_entry<4>(scale, kCodebookIQ3_XXS.entry[qs[0]], signs, y + 32 * g + 8 * k);
      dequantize_entry<4>(scale, kCodebookIQ3_XXS.entry[qs[1]], signs >> 4, y + 32 * g + 8 * k + 4);
    }
  }
}

inline void dequantize(const BlockIQ3_S& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 64; ++k) {
    const int s = (b.scales[k / 16] >> (4 * (k / 8 % 2))) & 15;
    const float scale = d * static_cast<float>(1 + 2 * s);
    const int index = b.qs[k] | (((b.qh[k / 8] >> (k % 8)) & 1) << 8);
    dequantize_entry<4>(scale, kCodebookIQ3_S.entry[index], b.signs[k / 2] >> (4 * (k % 2)),
                        y + 4 * k);
  }
}

// 8 ternary weights, shifted by `delta`.
inline void dequantize_ternary(float scale, uint64_t entry, float delta, float* y) {
  int8_t values[8];
  memcpy(values, &entry, sizeof values);
  for (int i = 0; i < 8; ++i) y[i] = scale * (static_cast<float>(values[i]) + delta);
}

inline void dequantize(const BlockIQ1_S& b, float* y) {
  const float d = half_to_float(b.d);
  for (int k = 0; k < 32; ++k) {
    const int qh = b.qh[k / 4];
    const float scale = d * static_cast<float>(2 * ((qh >> 12) & 7) + 1);
    const int index = b.qs[k] | (((qh >> (3 * (k % 4))) & 7) << 8);
    dequantize_ternary(scale, kCodebookIQ1.entry[index], qh & 0x8000 ? -0.125f : 0.125f, y + 8 * k);
  }
}

// The binary16 scale spread over the top nibbles of IQ1_M's four scale words.
inline uint16_t iq1_m_scale(const uint16_t* words) {
  return static_cast<uint16_t>(words[0] >> 12 | (words[1] >> 12) << 4 | (words[2] >> 12) << 8 |
                               (words[3] >> 12) << 12);
}

inline void dequantize(const BlockIQ1_M& b, float* y) {
  uint16_t words[4];
  memcpy(words, b.scales, sizeof words);
  const float d = half_to_float(iq1_m_scale(words));
  for (int k = 0; k < 32; ++k) {
    const int s = (words[k / 8] >> (3 * (k / 2 % 4))) & 7;
    const float scale = d * static_cast<float>(2 * s + 1);
    const int qh = b.qh[k / 2] >> (4 * (k % 2));
    const int index = b.qs[k] | ((qh & 7) << 8);
    dequantize_ternary(scale, kCodebookIQ1.entry[index], qh & 8 ? -0.125f : 0.125f, y + 8 * k);
  }
}

// 2n values at nibbles of n bytes, low nibbles first.
inline void dequantize_values(float d, const int8_t* values, const uint8_t* qs, int n, float* y) {
  for (int i = 0; i < n; ++i) {
    y[i] = d * static_cast<float>(values[qs[i] & 15]);
    y[i + n] = d * static_cast<float>(values[qs[i] >> 4]);
  }
}

inline void dequantize(const BlockIQ4_NL& b, float* y) {
  dequantize_values(half_to_float(b.d), kValuesIQ4, b.qs, 16, y);
}

inline void dequantize(const BlockIQ4_XS& b, float* y) {
  const float d = half_to_float(b.d);
  const uint64_t scales = unpack_iq4_scales(b.scales_l, b.scales_h);
  for (int g = 0; g < 8; ++g) {
    const float dl = d * static_cast<float>(static_cast<int8_t>(byte_of(scales, g)));
    dequantize_values(dl, kValuesIQ4, b.qs + 16 * g, 16, y + 32 * g);
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

inline void dequantize(const BlockTQ1_0& b, float* y) {
  const float d = half_to_float(b.d);
  uint8_t digits[kSuperWeights];
  unpack_digits(b, digits);
  for (int i = 0; i < kSuperWeights; ++i) y[i] = d * static_cast<float>(digits[i] - 1);
}

inline void dequantize(const BlockTQ2_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int g = 0; g < 8; ++g) {
    for (int i = 0; i < 32; ++i) {
      const int q = (b.qs[32 * (g / 4) + i] >> (2 * (g % 4))) & 3;
      y[32 * g + i] = d * static_cast<float>(q - 1);
    }
  }
}

inline void dequantize(const BlockMXFP4& b, float* y) {
  dequantize_values(e8m0_half(b.e), kValuesE2M1, b.qs, 16, y);
}

inline void dequantize(const BlockNVFP4& b, float* y) {
  for (int g = 0; g < 4; ++g) {
    dequantize_values(ue4m3_half(b.d[g]), kValuesE2M1, b.qs + 8 * g, 8, y + 16 * g);
  }
}

inline void dequantize(const BlockQ1_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 128; ++i) y[i] = (b.qs[i / 8] >> (i % 8)) & 1 ? d : -d;
}

inline void dequantize(const BlockQ2_0& b, float* y) {
  const float d = half_to_float(b.d);
  for (int i = 0; i < 64; ++i) {
    y[i] = d * static_cast<float>(((b.qs[i / 4] >> (2 * (i % 4))) & 3) - 1);
  }
}

}  // namespace
}  // namespace hm
