// Gemv of one token by two rows at a time, in the form of codebook_gemv_vbmi-inl.h.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"
#include "kernels/extra_kernels.h"
#include "kernels/gemv-inl.h"
#include "kernels/two_rows_few-inl.h"
#include "kernels/two_rows_iq3-inl.h"

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

// Sums of two rows over groups.
template <class Rows_>
struct TwoRowSums {
  using Rows = Rows_;
  using Block = typename Rows::Block;
  static constexpr int kPreparedBytes = kGroupBytes + 64 * Rows::kSums;

  __m512 lanes[Rows::kParts];

  // Group g of the activations as `add` takes it.
  static void prepare(const ActivationRow& x, int64_t g, int8_t* out) {
    order_activations(x.q + g * kSuperWeights, out);
    if constexpr (Rows::kSums != 0) {
      __m512i entries[4];
      sum_entries(out, entries);
      Rows::prepare(entries, (__m512i*)(out + kGroupBytes));
    }
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

  HM_INLINE void reduce(float (&out)[2]) const {
    out[0] = reduce_row<0>();
    out[1] = reduce_row<1>();
  }

 private:
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

  template <int R>
  HM_INLINE float reduce_row() const {
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

// The same of IQ3.
template <class Rows_>
struct TwoRowSumsIQ3 {
  using Rows = Rows_;
  using Block = typename Rows::Block;
  static constexpr int kPreparedBytes = 6 * 64;  // codes 0..3 of all entries, sums, scales

  __m512 lanes[1];

  static void prepare(const ActivationRow& x, int64_t g, int8_t* out) {
    order_by_code(x.q + g * kSuperWeights, out);
    const __m512i sums = _mm512_loadu_si512(x.half_sums + 16 * g);
    _mm512_store_si512(out + 256, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-kSignedBiasIQ3)));
    const __m512i order = _mm512_set_epi32(7, 6, 7, 6, 5, 4, 5, 4, 3, 2, 3, 2, 1, 0, 1, 0);
    const __m512 scales = _mm512_castps256_ps512(_mm256_loadu_ps(x.d + 8 * g));
    _mm512_store_ps(out + 320, _mm512_permutexvar_ps(order, scales));
  }

  HM_INLINE void add(const Rows& rows, const int8_t* x, const float*) {
    __m512i dots[2];
    for (int r = 0; r < 2; ++r) dots[r] = _mm512_load_si512(x + 256);
    dot_codes<0>(rows, x, dots);
    dot_codes<1>(rows, x, dots);
    dot_codes<2>(rows, x, dots);
    dot_codes<3>(rows, x, dots);
    const __m512 d = _mm512_mul_ps(rows.d, _mm512_load_ps(x + 320));
    const __m512i sums = Simd::Panel::add_runs(dots[0], dots[1]);
    lanes[0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), d, lanes[0]);
  }

  HM_INLINE void reduce(float (&out)[2]) const { Simd::PerBlock::reduce_unit(lanes, out); }

 private:
  template <int K>
  static HM_INLINE void dot_codes(const Rows& rows, const int8_t* x, __m512i (&dots)[2]) {
    for (int r = 0; r < 2; ++r) {
      dots[r] =
          _mm512_dpbusd_epi32(dots[r], rows.template codes<K>(r), _mm512_load_si512(x + 64 * K));
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
template <class Sums>
void gemv_two_rows(const MatmulArgs& args) {
  using Block = typename Sums::Block;
  const ActivationRow x = activation_row(args.x[0], args.cols);
  const int64_t num_groups = args.cols / kSuperWeights;
  int8_t* prepared = static_cast<int8_t*>(args.scratch);
  for (int64_t g = 0; g < num_groups; ++g) {
    Sums::prepare(x, g, prepared + g * Sums::kPreparedBytes);
  }
  TwoRowsFetch fetch(args);
  for (int64_t r = 0; r < args.num_rows; r += 2) {
    const bool has_second = r + 1 < args.num_rows;
    const auto* a = (const Block*)(args.weights + r * args.row_bytes);
    const auto* b = (const Block*)(args.weights + (r + has_second) * args.row_bytes);
    Sums sums{};
    typename Sums::Rows rows;  // of the next group while this one is multiplied: look-ups take long
    rows.load({a, b});
    for (int64_t g = 0; g < num_groups; ++g) {
      fetch.template step<sizeof(Block)>();
      const int64_t after = g + 1 < num_groups ? g + 1 : g;
      typename Sums::Rows next;
      next.load({a + after, b + after});
      sums.add(rows, prepared + g * Sums::kPreparedBytes, x.d + 8 * g);
      rows = next;
    }
    float results[2];
    sums.reduce(results);
    args.out[r] = results[0];
    if (has_second) args.out[r + 1] = results[1];
  }
}

// Many tokens take the panels of AVX-512: there, unpacking is not what takes the time.
template <class Rows, int Type>
void matmul_two_rows(const MatmulArgs& args) {
  if (args.num_tokens > kFewTokens) return kAvx512.formats[Type].matmul(args);
  if (args.num_tokens > 1) return few_tokens_by<TwoRowsUnit<Rows>>(args);
  gemv_two_rows<TwoRowSums<Rows>>(args);
}

template <class Rows, int Type>
void matmul_iq3(const MatmulArgs& args) {
  if (args.num_tokens > 1) return kAvx512.formats[Type].matmul(args);
  gemv_two_rows<TwoRowSumsIQ3<Rows>>(args);
}

constexpr ExtraKernels two_rows_kernels() {
  ExtraKernels kernels{};
  kernels.matmul[kIQ1_S] = matmul_two_rows<TwoRowsIQ1_S, kIQ1_S>;
  kernels.matmul[kIQ1_M] = matmul_two_rows<TwoRowsIQ1_M, kIQ1_M>;
  kernels.matmul[kIQ2_XXS] = matmul_two_rows<TwoRowsIQ2_XXS, kIQ2_XXS>;
  kernels.matmul[kIQ2_XS] = matmul_two_rows<TwoRowsIQ2_XS, kIQ2_XS>;
  kernels.matmul[kIQ2_S] = matmul_two_rows<TwoRowsIQ2_S, kIQ2_S>;
  kernels.matmul[kIQ3_XXS] = matmul_iq3<TwoRowsIQ3_XXS, kIQ3_XXS>;
  kernels.matmul[kIQ3_S] = matmul_iq3<TwoRowsIQ3_S, kIQ3_S>;
  return kernels;
}

}  // namespace
}  // namespace hm
