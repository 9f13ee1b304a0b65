// Scalar dequantization of the types of ik_llama.cpp, bit for bit its own; and of rows of any type.
#pragma once

#include "formats/dequantize-inl.h"
#include "formats/ik_blocks.h"

namespace hm {
namespace {

// Of each group a signed byte, its scale, the first lowest, and a bit, its shift.
template <int Groups>
struct GroupScales {
  uint64_t scales[Groups / 8];
  uint32_t shifts;

  static constexpr int kGroupWeights = kSuperWeights / Groups;
  int scale(int g) const { return static_cast<int8_t>(byte_of(scales[g / 8], g % 8)); }
  int shift(int g) const { return static_cast<int>(shifts >> g & 1); }
};

inline uint64_t eight_nibbles(const uint8_t* p) { return spread_nibbles(load_u32(p)); }

inline GroupScales<16> group_scales(const BlockIQ2_K& b) {
  return {{minus<8>(eight_nibbles(b.scales)), minus<8>(eight_nibbles(b.scales + 4))}, b.shifts};
}

inline GroupScales<16> group_scales(const BlockIQ3_K& b) {
  // -v is v ^ 255, plus 1: of an odd v = 2s + 1 that carries nothing.
  const auto odd = [&](int half) {
    const uint64_t sign = spread_bits(static_cast<uint8_t>(b.signs >> (8 * half)));
    return ((2 * eight_nibbles(b.scales + 4 * half) | kEachByte) ^ 255 * sign) + sign;
  };
  return {{odd(0), odd(1)}, b.shifts};
}

// Of IQ4_K and IQ5_K.
template <class Block>
inline GroupScales<16> six_bit_scales(const Block& b) {
  const uint32_t high = load_u32(b.scales_h);
  return {
      {unpack_iq4_scales(b.scales_l, high & 0xffff), unpack_iq4_scales(b.scales_l + 4, high >> 16)},
      b.shifts};
}
inline GroupScales<16> group_scales(const BlockIQ4_K& b) { return six_bit_scales(b); }
inline GroupScales<16> group_scales(const BlockIQ5_K& b) { return six_bit_scales(b); }

inline GroupScales<16> group_scales(const BlockIQ6_K& b) {
  return {{load_u64(b.scales), load_u64(b.scales + 8)}, b.shifts};
}

inline GroupScales<8> group_scales(const BlockIQ2_KS& b) {
  return {{minus<16>(eight_nibbles(b.scales) | spread_bits(b.bits[1]) << 4)}, b.bits[0]};
}

// Four bytes -> their low nibbles, then their high ones.
inline uint64_t halves_of_nibbles(const uint8_t* p) {
  const uint32_t v = load_u32(p);
  return join_words(v & 0x0f0f0f0f, (v >> 4) & 0x0f0f0f0f);
}

inline GroupScales<8> group_scales(const BlockIQ2_KL& b) {
  const uint64_t high = spread_pairs(load_u16(b.scales_h));
  return {{minus<32>(halves_of_nibbles(b.scales_l) | high << 4)}, 0};
}

inline GroupScales<8> group_scales(const BlockIQ3_KS& b) {
  return {{minus<16>(halves_of_nibbles(b.scales) | spread_bits(b.bits[0]) << 4)}, b.bits[1]};
}

// Bytes s, bit 0 the shift: the others less 127. Since that bit is 0 there, | 1 adds one.
inline GroupScales<8> byte_scales(uint64_t bytes) {
  return {{((bytes & ~kEachByte) ^ 128 * kEachByte) | kEachByte}, gather_bits(bytes)};
}
inline GroupScales<8> group_scales(const BlockIQ4_KS& b) { return byte_scales(load_u64(b.scales)); }
inline GroupScales<8> group_scales(const BlockIQ5_KS& b) { return byte_scales(load_u64(b.scales)); }

// Codes of weight i in the layouts of Q2_K, of a bit plane, of Q4_0 in groups of 32, and of Q4_K.
inline int two_bits(const uint8_t* qs, int i) {
  return (qs[32 * (i / 128) + i % 32] >> (2 * (i / 32 % 4))) & 3;
}
inline int plane_bit(const uint8_t* qh, int i) { return (qh[i % 32] >> (i / 32)) & 1; }
inline int nibble_of_16(const uint8_t* qs, int i) {
  return (qs[16 * (i / 32) + i % 16] >> (4 * (i / 16 % 2))) & 15;
}
inline int nibble_of_32(const uint8_t* qs, int i) {
  return (qs[32 * (i / 64) + i % 32] >> (4 * (i / 32 % 2))) & 15;
}

// d * scale * (values[code(i)] + shift)
template <class Scales, class Code>
inline void dequantize_shifted(float d, const Scales& scales, const int8_t* values, int shift,
                               Code code, float* y) {
  for (int i = 0; i < kSuperWeights; ++i) {
    const int g = i / Scales::kGroupWeights;
    const float scale = d * static_cast<float>(scales.scale(g));
    y[i] = scale * static_cast<float>(values[code(i)] + shift * scales.shift(g));
  }
}

inline void dequantize(const BlockQ6_0& b, float* y) {
  const float d = half_to_float(b.d);
  constexpr int places[4] = {0, 4, 2, 6};
  for (int i = 0; i < 32; ++i) {
    const int low = (b.qs[i % 16] >> (4 * (i / 16))) & 15;
    const int high = (b.qh[i % 8] >> places[i / 8]) & 3;
    y[i] = d * static_cast<float>((low | high << 4) - 32);
  }
}

inline void dequantize(const BlockIQ2_K& b, float* y) {
  const auto code = [&](int i) { return two_bits(b.qs, i); };
  dequantize_shifted(half_to_float(b.d), group_scales(b), kValuesIQ2K, kShiftIQ2K, code, y);
}

inline void dequantize(const BlockIQ2_KS& b, float row, float* y) {
  const auto code = [&](int i) { return two_bits(b.qs, i); };
  dequantize_shifted(row, group_scales(b), kValuesIQ2K, kShiftIQ2K, code, y);
}

inline void dequantize(const BlockIQ2_KL& b, float row, float* y) {
  const auto scales = group_scales(b);
  for (int g = 0; g < 8; ++g) {
    const float scale = row * static_cast<float>(scales.scale(g));
    for (int i = 0; i < 16; ++i) {
      const int low = (b.qs[16 * (g / 2) + i] >> (4 * (g % 2))) & 15;
      const int index = low | ((b.qh[i] >> g) & 1) << 4;
      for (int k = 0; k < 2; ++k) {
        y[32 * g + 2 * i + k] = scale * static_cast<float>(kPairsIQ2KL[k][index]);
      }
    }
  }
}

inline void dequantize(const BlockIQ3_K& b, float* y) {
  const auto code = [&](int i) { return two_bits(b.qs, i) | plane_bit(b.qh, i) << 2; };
  dequantize_shifted(half_to_float(b.d), group_scales(b), kValuesIQ3K, kShiftIQ3K, code, y);
}

inline void dequantize(const BlockIQ3_KS& b, float row, float* y) {
  const auto code = [&](int i) { return two_bits(b.qs, i) | plane_bit(b.qh, i) << 2; };
  dequantize_shifted(row, group_scales(b), kValuesIQ3K, kShiftIQ3K, code, y);
}

inline void dequantize(const BlockIQ4_K& b, float* y) {
  const auto code = [&](int i) { return nibble_of_16(b.qs, i); };
  dequantize_shifted(half_to_float(b.d), group_scales(b), kValuesIQ4, kShiftIQ4K, code, y);
}

inline void dequantize(const BlockIQ4_KS& b, float row, float* y) {
  const auto code = [&](int i) { return nibble_of_16(b.qs, i); };
  dequantize_shifted(row, group_scales(b), kValuesIQ4, kShiftIQ4K, code, y);
}

// The scale bytes of IQ4_KSS: bit 0 of each word.
inline uint64_t scale_bits(const BlockIQ4_KSS& b) {
  uint64_t bits = 0;
  for (int i = 0; i < 64; ++i) bits |= static_cast<uint64_t>(b.words[2 * i] & 1) << i;
  return bits;
}

inline void dequantize(const BlockIQ4_KSS& b, float row, float* y) {
  uint8_t qs[128];
  for (int i = 0; i < 64; ++i) {
    const uint32_t word = load_u16(b.words + 2 * i) & 0xfffe, codes = word ^ word >> 1;
    qs[2 * i] = static_cast<uint8_t>(codes);
    qs[2 * i + 1] = static_cast<uint8_t>(codes >> 8);
  }
  const auto code = [&](int i) { return nibble_of_16(qs, i); };
  dequantize_shifted(row, byte_scales(scale_bits(b)), kValuesIQ4, kShiftIQ4K, code, y);
}

inline void dequantize(const BlockIQ5_K& b, float* y) {
  const auto code = [&](int i) { return nibble_of_32(b.qs, i) | plane_bit(b.qh, i) << 4; };
  dequantize_shifted(half_to_float(b.d), group_scales(b), kValuesIQ5K, kShiftIQ5K, code, y);
}

inline void dequantize(const BlockIQ5_KS& b, float row, float* y) {
  const auto code = [&](int i) { return nibble_of_32(b.qs, i) | plane_bit(b.qh, i) << 4; };
  dequantize_shifted(row, group_scales(b), kValuesIQ5K, kShiftIQ5K, code, y);
}

inline void dequantize(const BlockIQ6_K& b, float* y) {
  const auto code = [&](int i) { return nibble_of_32(b.qs, i) | two_bits(b.qh, i) << 4; };
  dequantize_shifted(half_to_float(b.d), group_scales(b), kValuesIQ6K, kShiftIQ6K, code, y);
}

// A row: its scale (1 if the type has none), then its blocks.
template <class Block>
struct Row {
  float scale = 1.0f;
  const Block* blocks;

  explicit Row(const void* row)
      : blocks((const Block*)(static_cast<const uint8_t*>(row) + row_scale_bytes<Block>())) {
    if constexpr (requires { typename Block::RowScale; }) {
      typename Block::RowScale bits;
      memcpy(&bits, row, sizeof bits);
      if constexpr (sizeof bits == sizeof scale) {
        scale = bits;
      } else {
        scale = half_to_float(bits);
      }
    }
  }
};

template <class Block>
void dequantize_row(const void* data, int64_t weights, float* out) {
  const Row<Block> row(data);
  for (int64_t i = 0; i < weights / Block::kWeights; ++i) {
    float* y = out + i * Block::kWeights;
    if constexpr (row_scale_bytes<Block>() != 0) {
      dequantize(row.blocks[i], row.scale, y);
    } else {
      dequantize(row.blocks[i], y);
    }
  }
}

}  // namespace
}  // namespace hm
