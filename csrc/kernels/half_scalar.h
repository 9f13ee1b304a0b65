// Binary16 numbers in plain C++.
#pragma once

#include <stdint.h>
#include <string.h>

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

inline uint16_t float_to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000) {  // NaN, made quiet
    half = 0x7e00 | (magnitude >> 13 & 0x3ff);
  } else if (magnitude == 0x7f800000) {
    half = 0x7c00;
  } else if (magnitude >= 0x477ff000) {  // 65520 would be rounded to infinity
    half = 0x7bff;
  } else if (magnitude >= 0x38800000) {
    half = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  } else {  // subnormal: beside 0.5, the last bit of a float is worth 2^-24
    const float sum = (x < 0 ? -x : x) + 0.5f;
    memcpy(&half, &sum, sizeof half);
    half -= 0x3f000000;
  }
  return static_cast<uint16_t>(sign | half);
}

}  // namespace
}  // namespace hm
