// Gemv of one token by two rows at a time, IQ1 by four, in the form of codebook_gemv_vbmi-inl.h.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"
#include "kernels/extra_kernels.h"
#include "kernels/gemv-inl.h"
#include "kernels/two_rows_few-inl.h"
#include "kernels/two_rows_iq1-inl.h"
#include "kernels/two_rows_iq3-inl.h"

namespace hm {
namespace {

// Activations of a group in the order of codes, for each vector: four of each block, for both rows.
// By field: those four are of the block's entries the first, the second, ...
constexpr int kVectors = 8, kGroupBytes = kVectors * 64;

template <bool ByField>
inline void order_activations(const int8_t* x, int8_t* out) {
  __m512i in[4];
  for (int i = 0; i < 4; ++i) in[i] = _mm512_loadu_si512(x + 64 * i);
  if constexpr (ByField) {
    alignas(64) static constexpr auto order = [] {
      struct {
        uint8_t byte[64];
      } v{};
      for (int i = 0; i < 64; ++i) {
        v.byte[i] = static_cast<uint8_t>((i & 32) + 8 * (i & 3) + (i >> 2 & 7));
      }
      return v;
    }();
    for (__m512i& v : in) v = _mm512_permutexvar_epi8(_mm512_load_si512(order.byte), v);
  }
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

// Sums of V pairs of rows over groups.
template <class Pair, int V>
struct PairSums {
  using Block = typename Pair::Block;
  static constexpr int kRows = 2 * V, kParts = Pair::kParts;
  static constexpr int kPreparedBytes = kGroupBytes + 64 * Pair::kSums;

  // What is loaded of a group.
  struct Rows {
    Pair pairs[V];
    HM_INLINE void load(const Block* const (&blocks)[kRows]) { load_pairs<V>(blocks, pairs); }
  };

  __m512 lanes[V][kParts];

  // Group g of the activations as `add` takes it.
  static void prepare(const ActivationRow& x, int64_t g, int8_t* out) {
    order_activations<Pair::kByField>(x.q + g * kSuperWeights, out);
    if constexpr (Pair::kSums != 0) {
      __m512i entries[4];
      sum_entries(out, entries);
      Pair::prepare(entries, (__m512i*)(out + kGroupBytes));
    }
  }

  // Adds a group's products, and loads the next one.
  HM_INLINE void add(const Rows& rows, Rows& after, const Block* const (&next)[kRows],
                     const int8_t* x, const float* scales) {
    const auto* sums = (const __m512i*)(x + kGroupBytes);
    __m512i dots[V][2];
    for (int v = 0; v < V; ++v) rows.pairs[v].start(sums, dots[v]);
    const Products products{rows, x, dots};
    if constexpr (V > 1) {
      load_pairs<V>(next, after.pairs, products);
    } else {
      after.load(next);
      products.run_all();
    }
    const __m512 d = _mm512_broadcast_f32x8(_mm256_loadu_ps(scales));
    for (int v = 0; v < V; ++v) {
      rows.pairs[v].shift(sums, dots[v]);
      for (int part = 0; part < kParts; ++part) {
        lanes[v][part] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[v][part]),
                                         _mm512_mul_ps(rows.pairs[v].d[part], d), lanes[v][part]);
      }
    }
  }

  HM_INLINE void reduce(float (&out)[kRows]) const {
    for (int v = 0; v < V; ++v) {
      out[2 * v] = reduce_row<0>(lanes[v]);
      out[2 * v + 1] = reduce_row<1>(lanes[v]);
    }
  }

 private:
  // In eight steps: the first and the last codes of an entry, in turn. By field: of a field, the
  // highest first, whose sums are worth four of the next one's.
  struct Products {
    const Rows& rows;
    const int8_t* x;
    __m512i (&dots)[V][2];

    template <int Step>
    HM_INLINE void run() const {
      constexpr int half = Step % 2, entry = Step / 2, field = 3 - entry;
      constexpr int to = kParts == 1 ? half : entry / 2;
      __m512i in = _mm512_load_si512(x + 64 * (Pair::kByField ? 4 * half + field : Step));
      if constexpr (V > 1) forget(in);  // one load for all
      for (int v = 0; v < V; ++v) {
        const Pair& pair = rows.pairs[v];
        const __m512i plane = half ? pair.high : pair.low;
        __m512i& dot = dots[v][to];
        if constexpr (Pair::kByField) {
          const __m512i mask = _mm512_set1_epi8(static_cast<char>(3 << 2 * field));
          if constexpr (entry != 0) dot = _mm512_srai_epi32(dot, 2);
          dot = _mm512_dpbusd_epi32(dot, _mm512_and_si512(plane, mask), in);
        } else {
          const __m512i signed_in = pair.template with_signs<entry, half>(in);
          dot = _mm512_dpbusd_epi32(dot, Pair::template codes<entry>(plane), signed_in);
        }
      }
    }
    HM_INLINE void run_all() const {
      run<0>();
      run<1>();
      run<2>();
      run<3>();
      run<4>();
      run<5>();
      run<6>();
      run<7>();
    }
  };

  template <int R>
  static HM_INLINE float reduce_row(const __m512 (&lanes)[kParts]) {
    if constexpr (kParts == 1) {
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
  static constexpr int kRows = 2;
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

  HM_INLINE void add(const Rows& rows, Rows& after, const Block* const (&next)[2], const int8_t* x,
                     const float*) {
    after.load(next);
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

// What fetch_ahead does, for R rows at once, nearer and earlier: a group takes less time than L2
// needs, and a row's 2048 bytes less than memory.
template <int R>
class RowsFetch {
 public:
  HM_INLINE explicit RowsFetch(const MatmulArgs& args)
      : args_(args),
        end_(args.weights + args.num_rows * args.row_bytes),
        ahead_(args.weights + kBytes / args.row_bytes * R * args.row_bytes +
               kBytes % args.row_bytes),
        rest_(args.row_bytes - kBytes % args.row_bytes) {}

  template <int64_t Bytes>
  HM_INLINE void step() {
    for (int r = 0; r < R; ++r) fetch<Bytes>(ahead_ + r * args_.row_bytes);
    ahead_ += Bytes;
    rest_ -= Bytes;
    if (rest_ <= 0) {
      ahead_ += (R - 1) * args_.row_bytes;
      rest_ += args_.row_bytes;
    }
  }

 private:
  static constexpr int64_t kBytes = 16384 / R;  // of each row

  template <int64_t Bytes>
  HM_INLINE void fetch(const uint8_t* ahead) const {
    if (ahead >= end_) ahead = args_.next + (ahead - end_);
    for (int64_t i = 0; i < Bytes; i += 64) _mm_prefetch((const char*)(ahead + i), _MM_HINT_T0);
  }

  const MatmulArgs& args_;
  const uint8_t *end_, *ahead_;
  int64_t rest_;  // bytes of a row from ahead_ on
};

// One token; blocks of 256 weights, so that a row is whole groups. The next group, that of the next
// rows, too, is loaded while one is multiplied: look-ups take long. Beyond the last row it again.
template <class Sums>
void gemv_rows(const MatmulArgs& args) {
  using Block = typename Sums::Block;
  constexpr int together = Sums::kRows;
  const ActivationRow x = activation_row(args.x[0], args.cols);
  const int64_t num_groups = args.cols / kSuperWeights;
  int8_t* prepared = static_cast<int8_t*>(args.scratch);
  for (int64_t g = 0; g < num_groups; ++g) {
    Sums::prepare(x, g, prepared + g * Sums::kPreparedBytes);
  }
  const auto block = [&](int64_t row) {
    return (const Block*)(args.weights +
                          (row < args.num_rows ? row : args.num_rows - 1) * args.row_bytes);
  };
  const Block* blocks[together];
#pragma GCC unroll 4
  for (int i = 0; i < together; ++i) blocks[i] = block(i);
  RowsFetch<together> fetch(args);
  typename Sums::Rows rows;
  rows.load(blocks);
  for (int64_t row = 0; row < args.num_rows; row += together) {
    Sums sums{};
    for (int64_t g = 0; g < num_groups; ++g) {
      fetch.template step<sizeof(Block)>();
      const bool is_last = g == num_groups - 1;
#pragma GCC unroll 4
      for (int i = 0; i < together; ++i) {
        blocks[i] = is_last ? block(row + together + i) : blocks[i] + 1;
      }
      typename Sums::Rows next;
      sums.add(rows, next, blocks, prepared + g * Sums::kPreparedBytes, x.d + 8 * g);
      rows = next;
    }
    float results[together];
    sums.reduce(results);
#pragma GCC unroll 4
    for (int i = 0; i < together; ++i) {
      if (row + i < args.num_rows) args.out[row + i] = results[i];
    }
  }
}

// Many tokens take the panels of AVX-512: there, unpacking is not what takes the time.
template <class Rows, int V, int Type>
void matmul_pairs(const MatmulArgs& args) {
  if (args.num_tokens > kFewTokens) return kAvx512.formats[Type].matmul(args);
  if (args.num_tokens > 1) return few_tokens_by<TwoRowsUnit<Rows>>(args);
  gemv_rows<PairSums<Rows, V>>(args);
}

template <class Rows, int Type>
void matmul_iq3(const MatmulArgs& args) {
  if (args.num_tokens > kFewTokens) return kAvx512.formats[Type].matmul(args);
  if (args.num_tokens > 1) return few_tokens_iq3<Rows>(args);
  gemv_rows<TwoRowSumsIQ3<Rows>>(args);
}

constexpr ExtraKernels two_rows_kernels() {
  ExtraKernels kernels{};
  kernels.matmul[kIQ1_S] = matmul_pairs<TwoRowsIQ1_S, 2, kIQ1_S>;
  kernels.matmul[kIQ1_M] = matmul_pairs<TwoRowsIQ1_M, 2, kIQ1_M>;
  kernels.matmul[kIQ2_XXS] = matmul_pairs<TwoRowsIQ2_XXS, 1, kIQ2_XXS>;
  kernels.matmul[kIQ2_XS] = matmul_pairs<TwoRowsIQ2_XS, 1, kIQ2_XS>;
  kernels.matmul[kIQ2_S] = matmul_pairs<TwoRowsIQ2_S, 1, kIQ2_S>;
  kernels.matmul[kIQ3_XXS] = matmul_iq3<TwoRowsIQ3_XXS, kIQ3_XXS>;
  kernels.matmul[kIQ3_S] = matmul_iq3<TwoRowsIQ3_S, kIQ3_S>;
  return kernels;
}

}  // namespace
}  // namespace hm
