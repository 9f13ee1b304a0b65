// Gemv of one token by two rows at a time, in the form of codebook_gemv_vbmi-inl.h.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"
#include "kernels/extra_kernels.h"
#include "kernels/gemv-inl.h"
#include "kernels/two_rows_few-inl.h"

namespace hm {
namespace {

// Activations of a group in the order of codes, for each vector: four of each block, for both rows.
constexpr int kVectors = 8, kGroupBytes = kVectors * 64;

inline void order_activations(const int8_t* x, int8_t* out) {
  __m512i in[4];
  for (int i = 0; i < 4; ++i) in[i] = _mm512_loadu_si512(x + 64 * i);
  const __m512i from_four =
      _mm512_set_epi32(24, 16, 8, 0, 24, 16, 8, 0, 24, 16, 8, 0, 24, 16, 8, 0);
  for (int v = 0; v < kVectors; ++v) {
    const __m512i order = _mm512_add_epi32(from_four, _mm512_set1_epi32(v));
    const __m512i low = _mm512_permutex2var_epi32(in[0], order, in[1]);
    const __m512i high = _mm512_permutex2var_epi32(in[2], order, in[3]);
    _mm512_store_si512(out + 64 * v, _mm512_mask_blend_epi32(0xf0f0, low, high));
  }
}

// Their sums: of each entry, for both rows.
inline void sum_entries(const int8_t* ordered, __m512i (&sums)[4]) {
  const __m512i ones = _mm512_set1_epi8(1);
  for (int e = 0; e < 4; ++e) {
    const __m512i low = Simd::dot_unsigned(ones, _mm512_load_si512(ordered + 128 * e));
    sums[e] = _mm512_dpbusd_epi32(low, ones, _mm512_load_si512(ordered + 128 * e + 64));
  }
}

template <class Rows>
struct TwoRowSums {
  static constexpr int kGroupBytesAndSums = kGroupBytes + 64 * Rows::kSums;
  __m512 lanes[Rows::kParts];

  template <int E>
  static HM_INLINE void dot_entry(const Rows& rows, const int8_t* x, __m512i (&dots)[2]) {
    constexpr int low = Rows::kParts == 1 ? 0 : E / 2, high = Rows::kParts == 1 ? 1 : E / 2;
    const __m512i codes_low = Rows::template codes<E>(rows.low);
    const __m512i codes_high = Rows::template codes<E>(rows.high);
    const __m512i x_low = rows.template with_signs<E, 0>(_mm512_load_si512(x + 128 * E));
    const __m512i x_high = rows.template with_signs<E, 1>(_mm512_load_si512(x + 128 * E + 64));
    dots[low] = _mm512_dpbusd_epi32(dots[low], codes_low, x_low);
    dots[high] = _mm512_dpbusd_epi32(dots[high], codes_high, x_high);
  }

  HM_INLINE void add(const Rows& rows, const int8_t* x, const float* scales) {
    const auto* sums = (const __m512i*)(x + kGroupBytes);
    __m512i dots[2];
    rows.start(sums, dots);
    dot_entry<0>(rows, x, dots);
    dot_entry<1>(rows, x, dots);
    dot_entry<2>(rows, x, dots);
    dot_entry<3>(rows, x, dots);
    if constexpr (Rows::kParts == 1) dots[0] = _mm512_add_epi32(dots[0], dots[1]);
    rows.shift(sums, dots);
    const __m512 d = _mm512_broadcast_f32x8(_mm256_loadu_ps(scales));
    for (int part = 0; part < Rows::kParts; ++part) {
      lanes[part] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[part]), _mm512_mul_ps(rows.d[part], d),
                                    lanes[part]);
    }
  }

  // The sum of row R.
  template <int R>
  HM_INLINE float reduce() const {
    if constexpr (Rows::kParts == 1) {
      return Simd::PerBlock::reduce(_mm512_extractf32x8_ps(lanes[0], R));
    } else {
      const __m512i order =
          _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
      const __m512i lanes_of_row = _mm512_add_epi32(order, _mm512_set1_epi32(8 * R));
      return Simd::reduce(_mm512_permutex2var_ps(lanes[0], lanes_of_row, lanes[1]));
    }
  }
};

// What fetch_ahead does, for two rows at once, and nearer: a group takes less time than L2 needs.
class TwoRowsFetch {
 public:
  HM_INLINE explicit TwoRowsFetch(const MatmulArgs& args)
      : args_(args),
        end_(args.weights + args.num_rows * args.row_bytes),
        ahead_(args.weights + kFetchBytes / args.row_bytes * 2 * args.row_bytes +
               kFetchBytes % args.row_bytes),
        rest_(args.row_bytes - kFetchBytes % args.row_bytes) {}

  template <int64_t Bytes>
  HM_INLINE void step() {
    fetch<Bytes>(ahead_);
    fetch<Bytes>(ahead_ + args_.row_bytes);
    ahead_ += Bytes;
    rest_ -= Bytes;
    if (rest_ <= 0) {
      ahead_ += args_.row_bytes;
      rest_ += args_.row_bytes;
    }
  }

 private:
  template <int64_t Bytes>
  HM_INLINE void fetch(const uint8_t* ahead) const {
    if (ahead >= end_) ahead = args_.next + (ahead - end_);
    for (int64_t i = 0; i < Bytes; i += 64) _mm_prefetch((const char*)(ahead + i), _MM_HINT_T0);
  }

  const MatmulArgs& args_;
  const uint8_t *end_, *ahead_;
  int64_t rest_;  // bytes of a row from ahead_ on
};

// One token; blocks of 256 weights, so that a row is whole groups. The last of an odd number of
// rows goes with itself.
template <class Rows>
void gemv_two_rows(const MatmulArgs& args) {
  using Block = typename Rows::Block;
  using Sums = TwoRowSums<Rows>;
  const ActivationRow x = activation_row(args.x[0], args.cols);
  const int64_t num_groups = args.cols / kSuperWeights;
  int8_t* ordered = static_cast<int8_t*>(args.scratch);
  for (int64_t g = 0; g < num_groups; ++g) {
    int8_t* out = ordered + g * Sums::kGroupBytesAndSums;
    order_activations(x.q + g * kSuperWeights, out);
    if constexpr (Rows::kSums != 0) {
      __m512i entries[4];
      sum_entries(out, entries);
      Rows::prepare(entries, (__m512i*)(out + kGroupBytes));
    }
  }
  TwoRowsFetch fetch(args);
  for (int64_t r = 0; r < args.num_rows; r += 2) {
    const bool has_second = r + 1 < args.num_rows;
    const auto* a = (const Block*)(args.weights + r * args.row_bytes);
    const auto* b = (const Block*)(args.weights + (r + has_second) * args.row_bytes);
    Sums sums;
    for (__m512& lanes : sums.lanes) lanes = _mm512_setzero_ps();
    Rows rows;  // of the next group while this one is multiplied: look-ups take long
    rows.load(a, b);
    for (int64_t g = 0; g < num_groups; ++g) {
      fetch.template step<sizeof(Block)>();
      const int64_t after = g + 1 < num_groups ? g + 1 : g;
      Rows next;
      next.load(a + after, b + after);
      sums.add(rows, ordered + g * Sums::kGroupBytesAndSums, x.d + 8 * g);
      rows = next;
    }
    args.out[r] = sums.template reduce<0>();
    if (has_second) args.out[r + 1] = sums.template reduce<1>();
  }
}

// Many tokens take the panels of AVX-512: there, unpacking is not what takes the time.
template <class Rows, int Type>
void matmul_two_rows(const MatmulArgs& args) {
  if (args.num_tokens > kFewTokens) return kAvx512.formats[Type].matmul(args);
  if (args.num_tokens > 1) return few_tokens_by<TwoRowsUnit<Rows>>(args);
  gemv_two_rows<Rows>(args);
}

constexpr ExtraKernels two_rows_kernels() {
  ExtraKernels kernels{};
  kernels.matmul[kIQ1_S] = matmul_two_rows<TwoRowsIQ1_S, kIQ1_S>;
  kernels.matmul[kIQ1_M] = matmul_two_rows<TwoRowsIQ1_M, kIQ1_M>;
  kernels.matmul[kIQ2_XXS] = matmul_two_rows<TwoRowsIQ2_XXS, kIQ2_XXS>;
  kernels.matmul[kIQ2_XS] = matmul_two_rows<TwoRowsIQ2_XS, kIQ2_XS>;
  kernels.matmul[kIQ2_S] = matmul_two_rows<TwoRowsIQ2_S, kIQ2_S>;
  return kernels;
}

}  // namespace
}  // namespace hm
