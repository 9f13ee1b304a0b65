// Rounding of activations, SwiGLU and the weighted sum: plain loops that the compiler vectorises
// with the flags of the including file. Only correctly rounded operations in a fixed order, so that
// every instruction set gives the same bits.
#pragma once

#include <string.h>

#include "base/inline.h"
#include "formats/dequantize-inl.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

// One block of 32: q, its scale, its sum and the sums of its two halves.
HM_INLINE void quantize_block(const float* x, int8_t* q, float* d, int32_t* sum,
                              int32_t* half_sums) {
  int32_t max_bits = 0;  // as integers, |NaN| > infinity > finite magnitudes
  for (int i = 0; i < kActivationBlock; ++i) {
    const int32_t magnitude = static_cast<int32_t>(float_to_bits(x[i]) & 0x7fffffff);
    max_bits = magnitude > max_bits ? magnitude : max_bits;
  }
  const float max = bits_to_float(max_bits);
  if (max_bits >= kInfinityBits || max < kLeastAbsmax) {
    memset(q, 0, kActivationBlock);
    *d = max_bits >= kInfinityBits ? __builtin_nanf("") : 0.0f;
    *sum = half_sums[0] = half_sums[1] = 0;
    return;
  }
  *d = max / 127.0f;
  const float inverse = 127.0f / max;
  for (int i = 0; i < kActivationBlock; ++i) {
    q[i] = static_cast<int8_t>(float_to_bits(x[i] * inverse + kRounder));
  }
  for (int h = 0; h < 2; ++h) {
    half_sums[h] = 0;
    for (int i = 0; i < 16; ++i) half_sums[h] += q[16 * h + i];
  }
  *sum = half_sums[0] + half_sums[1];
}

// Where a block of 32 codes begins in strided order; each next 8 of them are 64 bytes on.
HM_INLINE int64_t strided_place(int64_t i) { return i / 256 * 256 + i % 256 / 4; }

HM_INLINE void stride_block(const int8_t* q, int8_t* strided) {
  for (int v = 0; v < 4; ++v) memcpy(strided + 64 * v, q + 8 * v, 8);
}

template <class Vectors>
constexpr bool rounds_groups = requires { &Vectors::round_group; };

// A group of 256: the same bits.
template <class Vectors = Simd>
HM_INLINE void quantize_group(const float* x, int8_t* q, int8_t* strided, float* d, int32_t* sums,
                              int32_t* half_sums) {
  typename Vectors::B64 codes[4];
  typename Vectors::Dot dots[4];
  Vectors::round_group(x, codes, d);
  for (int v = 0; v < 4; ++v) {
    dots[v] = Vectors::dot_unsigned(Vectors::set_bytes(1), codes[v]);
    Vectors::store64(q + 64 * v, codes[v]);
  }
  Vectors::PerBlock::store_int(sums, Vectors::PerBlock::sums(dots[0], dots[1], dots[2], dots[3]));
  Vectors::PerHalf::store_int(half_sums,
                              Vectors::PerHalf::sums(dots[0], dots[1], dots[2], dots[3]));
  Vectors::stride(codes);
  for (int v = 0; v < 4; ++v) Vectors::store64(strided + 64 * v, codes[v]);
}

void quantize(const float* x, int64_t first, int64_t n, int64_t cols, void* row) {
  const int64_t padded = padded_weights(cols), rest = padded - cols, groups = padded / 256;
  int8_t* q = static_cast<int8_t*>(row);
  int8_t* strided = q + padded;
  float* d = (float*)(strided + padded);
  int32_t* sums = (int32_t*)(d + padded / 32);
  int32_t* half_sums = sums + padded / 32;
  int8_t* lane_q = (int8_t*)(half_sums + padded / 16);
  float* lane_d = (float*)(lane_q + padded);
  int32_t* lane_sums = (int32_t*)(lane_d + padded / 32);
  int32_t* lane_half_sums = lane_sums + padded / 32;
  const auto copy_to_lane = [=](int64_t i) {
    const int64_t lane = i % 256 / 32, to = lane * groups + i / 256;
    memcpy(lane_q + 32 * to, q + i, 32);
    lane_d[to] = d[i / 32];
    lane_sums[to] = sums[i / 32];
    lane_half_sums[lane * groups + to] = half_sums[i / 16];
    lane_half_sums[(lane + 1) * groups + to] = half_sums[i / 16 + 1];
  };
  int64_t i = first;
  if constexpr (rounds_groups<Simd>) {
    for (; i % kSuperWeights == 0 && i + kSuperWeights <= first + n; i += kSuperWeights) {
      quantize_group(x + (i - first), q + i, strided + i, d + i / 32, sums + i / 32,
                     half_sums + i / 16);
      for (int64_t b = 0; b < kSuperWeights; b += kActivationBlock) copy_to_lane(i + b);
    }
  }
  for (; i < first + n; i += kActivationBlock) {
    quantize_block(x + (i - first), q + i, d + i / 32, sums + i / 32, half_sums + i / 16);
    stride_block(q + i, strided + strided_place(i));
    copy_to_lane(i);
  }
  if (first + n == cols) {
    memset(q + cols, 0, rest);
    memset(d + cols / 32, 0, rest / 8);
    memset(sums + cols / 32, 0, rest / 8);
    memset(half_sums + cols / 16, 0, rest / 4);
    for (i = cols; i < padded; i += kActivationBlock) {
      stride_block(q + i, strided + strided_place(i));
      copy_to_lane(i);
    }
  }
}

// e^x for x in [-88, 88], to about 2 ulp: 2^n e^r, |r| <= ln2 / 2, and the Taylor polynomial of
// degree 7 (its remainder is below 2^-27). NaN stays NaN through the caller's numerator.
HM_INLINE float exp_bounded(float x) {
  constexpr float rounder = 0x1.8p23f;
  constexpr float log2e = 0x1.715476p+0f;
  constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;  // high * n is exact
  const float shifted = x * log2e + rounder;
  const float n = shifted - rounder;
  const float r = (x - n * ln2_high) - n * ln2_low;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const uint32_t scale_bits = (float_to_bits(shifted) << 23) + 0x3f800000;
  return p * bits_to_float(scale_bits);
}

void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = gate[i] < -87.0f ? -87.0f : gate[i];  // silu(-87) is -1e-36; NaN stays
    const float bounded = g > 87.0f ? 87.0f : g;
    out[i] = g / (1.0f + exp_bounded(-bounded)) * up[i];
  }
}

// x += residual (where there is one); out = x / sqrt(mean(x^2) + eps) * weight. The squares are
// added in 16 lanes, then by a tree.
void rms_norm(float* x, const float* residual, const float* weight, int64_t n, float eps,
              float* out) {
  if (residual != nullptr) {
    for (int64_t i = 0; i < n; ++i) x[i] += residual[i];
  }
  constexpr int lanes = 16;
  float sums[lanes] = {};
  const int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) sums[lane] += x[i + lane] * x[i + lane];
  }
  for (int64_t i = whole; i < n; ++i) sums[i - whole] += x[i] * x[i];
  for (int width = lanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) sums[lane] += sums[lane + width];
  }
  const float scale = 1.0f / __builtin_sqrtf(sums[0] / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void weighted_sum(const float* const* rows, const float* weights, int64_t num_rows, int64_t n,
                  float* out) {
  memset(out, 0, n * sizeof(float));
  for (int64_t j = 0; j < num_rows; ++j) {
    const float weight = weights[j];
    const float* row = rows[j];
    for (int64_t i = 0; i < n; ++i) out[i] += weight * row[i];
  }
}

float greatest(const float* x, int64_t n) {
  constexpr int lanes = 64;
  float most[lanes];
  int32_t magnitude[lanes] = {};  // as integers, |NaN| > infinity > finite magnitudes
  for (float& v : most) v = x[0];
  const auto add = [&](int64_t i, int lane) {
    const auto bits = static_cast<int32_t>(float_to_bits(x[i]) & 0x7fffffff);
    magnitude[lane] = bits > magnitude[lane] ? bits : magnitude[lane];
    most[lane] = x[i] > most[lane] ? x[i] : most[lane];
  };
  const int64_t whole = n / lanes * lanes;
  for (int64_t i = 0; i < whole; i += lanes) {
    for (int lane = 0; lane < lanes; ++lane) add(i + lane, lane);
  }
  for (int64_t i = whole; i < n; ++i) add(i, 0);
  for (int lane = 1; lane < lanes; ++lane) {
    magnitude[0] = magnitude[lane] > magnitude[0] ? magnitude[lane] : magnitude[0];
    most[0] = most[lane] > most[0] ? most[lane] : most[0];
  }
  return magnitude[0] < 0x7f800000 ? most[0] : __builtin_nanf("");
}

}  // namespace
}  // namespace hm
