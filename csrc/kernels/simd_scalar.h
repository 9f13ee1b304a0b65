// The SIMD vocabulary in plain C++, for any CPU: see simd_avx2.h for what each operation means.
// Same order of additions; a product and its sum round separately, for want of a hardware FMA.
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/inline.h"

namespace hm {
namespace {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  uint32_t bits;
  float v;
  if (magnitude >= 0x7c00) {  // infinity, NaN (made quiet, as the hardware does)
    bits = 0x7f800000 | (magnitude & 0x3ff) << 13 | (magnitude > 0x7c00 ? 0x400000 : 0);
  } else if (magnitude >= 0x400) {
    bits = (magnitude << 13) + ((127 - 15) << 23);
  } else {  // subnormal: an exact multiple of 2^-24
    v = static_cast<float>(magnitude) * 0x1p-24f;
    memcpy(&bits, &v, sizeof bits);
  }
  bits |= sign;
  memcpy(&v, &bits, sizeof v);
  return v;
}

struct Simd {
  static constexpr int kTileTokens = 1;

  struct F8 {
    float v[8];
  };
  struct F16 {
    float v[16];
  };
  struct B64 {
    uint8_t v[64];
  };
  struct I16 {
    int16_t v[16];
  };
  using Scales = F8;
  using Multipliers = I16;

  // F8
  static HM_INLINE F8 set8(float x) {
    F8 r;
    for (float& e : r.v) e = x;
    return r;
  }
  static HM_INLINE F8 load8(const float* p) {
    F8 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static HM_INLINE F8 mul(const F8& a, const F8& b) {
    F8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = a.v[i] * b.v[i];
    return r;
  }
  static HM_INLINE F8 fma(const F8& a, const F8& b, const F8& c) {
    F8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = c.v[i] + a.v[i] * b.v[i];
    return r;
  }
  static HM_INLINE F8 from_u8(const uint8_t* p) {
    F8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = p[i];
    return r;
  }
  static HM_INLINE F8 from_s8(const int8_t* p) {
    F8 r;
    for (int i = 0; i < 8; ++i) r.v[i] = p[i];
    return r;
  }
  static HM_INLINE F8 gather_half(const void* p, int stride) {
    F8 r;
    for (int i = 0; i < 8; ++i) {
      uint16_t half;
      memcpy(&half, static_cast<const uint8_t*>(p) + i * stride, sizeof half);
      r.v[i] = half_to_float(half);
    }
    return r;
  }

  // F16
  static HM_INLINE F16 zero() { return {}; }
  static HM_INLINE F16 load(const float* p) {
    F16 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static HM_INLINE F16 load_half(const uint16_t* p) {
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = half_to_float(p[i]);
    return r;
  }
  static HM_INLINE F16 load_bf16(const uint16_t* p) {
    F16 r;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
      memcpy(&r.v[i], &bits, sizeof bits);
    }
    return r;
  }
  static HM_INLINE F16 fma(const F16& a, const F16& b, const F16& c) {
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = c.v[i] + a.v[i] * b.v[i];
    return r;
  }
  static HM_INLINE float reduce(const F16& a, const F8& extra) {
    float s[8];
    for (int i = 0; i < 8; ++i) s[i] = (a.v[i] + a.v[i + 8]) + extra.v[i];
    for (int n = 4; n > 0; n /= 2) {
      for (int i = 0; i < n; ++i) s[i] += s[i + n];
    }
    return s[0];
  }

  static HM_INLINE Scales scales(const F8& v) { return v; }
  template <int P>
  static HM_INLINE F16 scale(const Scales& s) {
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = s.v[2 * P + i / 8];
    return r;
  }

  // I16
  static HM_INLINE I16 ones() {
    I16 r;
    for (int16_t& e : r.v) e = 1;
    return r;
  }
  static HM_INLINE I16 from_s8x16(const int8_t* p) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i];
    return r;
  }
  static HM_INLINE I16 low_nibbles(const uint8_t* p) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i] & 15;
    return r;
  }
  static HM_INLINE I16 high_nibbles(const uint8_t* p) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i] >> 4;
    return r;
  }
  static HM_INLINE I16 twice_u8(const uint8_t* p) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i / 2];
    return r;
  }
  static HM_INLINE F8 pair_sums(const I16& a, const int16_t* b) {
    F8 r;
    for (int i = 0; i < 8; ++i) {
      r.v[i] = static_cast<float>(a.v[2 * i] * b[2 * i] + a.v[2 * i + 1] * b[2 * i + 1]);
    }
    return r;
  }
  static HM_INLINE Multipliers multipliers(const I16& v) { return v; }

  // B64
  static HM_INLINE B64 load64(const void* p) {
    B64 r;
    memcpy(r.v, p, 64);
    return r;
  }
  static HM_INLINE B64 load32(const void* a, const void* b) {
    B64 r;
    memcpy(r.v, a, 32);
    memcpy(r.v + 32, b, 32);
    return r;
  }
  static HM_INLINE B64 load32_twice(const void* p) { return load32(p, p); }
  static HM_INLINE B64 from_words(const uint64_t (&w)[8]) { return load64(w); }
  static HM_INLINE B64 nibbles16(const void* a, const void* b) {
    B64 r;
    for (int h = 0; h < 2; ++h) {
      const uint8_t* p = static_cast<const uint8_t*>(h ? b : a);
      for (int i = 0; i < 16; ++i) {
        r.v[32 * h + i] = p[i] & 15;
        r.v[32 * h + 16 + i] = p[i] >> 4;
      }
    }
    return r;
  }
  template <int Bit>
  static HM_INLINE B64 spread_bits(const void* a, const void* b) {
    B64 r;
    for (int h = 0; h < 2; ++h) {
      const uint8_t* p = static_cast<const uint8_t*>(h ? b : a);
      for (int i = 0; i < 32; ++i) r.v[32 * h + i] = (p[i / 8] >> (i % 8)) & 1 ? Bit : 0;
    }
    return r;
  }
  template <int N0, int N1, int Mask>
  static HM_INLINE B64 bits(const B64& v) {
    B64 r;
    for (int i = 0; i < 32; ++i) {
      r.v[i] = (v.v[i] >> N0) & Mask;
      r.v[i + 32] = (v.v[i + 32] >> N1) & Mask;
    }
    return r;
  }
  template <int N>
  static HM_INLINE B64 shift_left(const B64& v) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(v.v[i] << N);
    return r;
  }
  static HM_INLINE B64 or_(const B64& a, const B64& b) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] | b.v[i];
    return r;
  }
  static HM_INLINE B64 sub(const B64& a, const B64& b) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] - b.v[i];
    return r;
  }
  static HM_INLINE B64 negate_where(const B64& mask, const B64& v) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = (v.v[i] ^ mask.v[i]) - mask.v[i];
    return r;
  }
  static HM_INLINE B64 lookup(const int8_t* table, const B64& v) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(table[v.v[i]]);
    return r;
  }

  static HM_INLINE F16 dot_unsigned(const B64& w, const B64& x) {
    F16 r;
    for (int l = 0; l < 16; ++l) {
      int sum = 0;
      for (int i = 4 * l; i < 4 * l + 4; ++i) sum += w.v[i] * static_cast<int8_t>(x.v[i]);
      r.v[l] = static_cast<float>(sum);
    }
    return r;
  }
  static HM_INLINE F16 dot_signed(const B64& w, const B64& x) {
    F16 r;
    for (int l = 0; l < 16; ++l) {
      int sum = 0;
      for (int i = 4 * l; i < 4 * l + 4; ++i) {
        sum += static_cast<int8_t>(w.v[i]) * static_cast<int8_t>(x.v[i]);
      }
      r.v[l] = static_cast<float>(sum);
    }
    return r;
  }
  template <int P>
  static HM_INLINE F16 dot_multiplied(const B64& w, const B64& x, const Multipliers& m) {
    return times<P>(dot_unsigned(w, x), m);
  }
  template <int P>
  static HM_INLINE F16 dot_signed_multiplied(const B64& w, const B64& x, const Multipliers& m) {
    return times<P>(dot_signed(w, x), m);
  }

 private:
  // Both factors are integers below 2^24, and so is the product: exact.
  template <int P>
  static HM_INLINE F16 times(const F16& sums, const Multipliers& m) {
    F16 r;
    for (int l = 0; l < 16; ++l) r.v[l] = sums.v[l] * m.v[4 * P + l / 4];
    return r;
  }
};

}  // namespace
}  // namespace hm
