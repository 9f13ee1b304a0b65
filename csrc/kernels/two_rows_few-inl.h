// Products of 1 to 8 tokens with rows in the form of codebook_gemv_vbmi-inl.h and of
// two_rows_iq3-inl.h: codes are looked up once, and multiplied with all tokens. A lane has a block
// of the first or of the second row, or half of one, so that a token takes eight products and one
// conversion, or two, for both rows.
#pragma once

#include "kernels/codebook_gemv_vbmi-inl.h"
#include "kernels/few_tokens-inl.h"
#include "kernels/two_rows_iq3-inl.h"

namespace hm {
namespace {

// A group of a token's activations as pairs of rows take them: in the order of codes, the same for
// both rows; what their bias gives too much, negative; and their scales.
template <int Parts>
struct PairActivations {
  alignas(64) int8_t q[8][64];
  int32_t minus_bias[Parts][16];
  float scales[Parts][16];
};

// Of 64 weights: bytes that belong to one 32-bit lane of codes next to each other.
template <int Parts>
HM_INLINE __m512i bytes_of_lanes(__m512i x) {
  alignas(64) static constexpr auto order = [] {
    struct {
      uint8_t byte[64];
    } v{};
    for (int i = 0; i < 64; ++i) {
      v.byte[i] = static_cast<uint8_t>(Parts == 1 ? (i & 32) + 8 * (i & 3) + (i >> 2 & 7)
                                                  : (i & 48) + 4 * (i & 3) + (i >> 2 & 3));
    }
    return v;
  }();
  return _mm512_permutexvar_epi8(_mm512_load_si512(order.byte), x);
}

template <int Bias>
HM_INLINE void order_pair(const ActivationRow& x, int64_t g, PairActivations<1>& out) {
  __m512i in[4];
  for (int i = 0; i < 4; ++i) {
    in[i] = bytes_of_lanes<1>(_mm512_loadu_si512(x.q + g * kSuperWeights + 64 * i));
  }
  const __m512i blocks = _mm512_set_epi32(24, 16, 8, 0, 24, 16, 8, 0, 24, 16, 8, 0, 24, 16, 8, 0);
  for (int s = 0; s < 8; ++s) {
    const __m512i order = _mm512_add_epi32(blocks, _mm512_set1_epi32(s));
    const __m512i low = _mm512_permutex2var_epi32(in[0], order, in[1]);
    const __m512i high = _mm512_permutex2var_epi32(in[2], order, in[3]);
    _mm512_store_si512(out.q[s], _mm512_mask_blend_epi32(0xf0f0, low, high));
  }
  const __m512i sums = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)x.sums + g));
  _mm512_store_si512(out.minus_bias[0], _mm512_mullo_epi32(sums, _mm512_set1_epi32(-Bias)));
  _mm512_store_ps(out.scales[0], _mm512_broadcast_f32x8(_mm256_loadu_ps(x.d + 8 * g)));
}

template <int Bias>
HM_INLINE void order_pair(const ActivationRow& x, int64_t g, PairActivations<2>& out) {
  const __m512i words = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
  const __m512i halves = _mm512_set_epi32(11, 10, 9, 8, 3, 2, 1, 0, 11, 10, 9, 8, 3, 2, 1, 0);
  const __m512i sums = _mm512_loadu_si512(x.half_sums + 16 * g);
  const __m512 scales = _mm512_castps256_ps512(_mm256_loadu_ps(x.d + 8 * g));
  for (int part = 0; part < 2; ++part) {
    const int8_t* q = x.q + g * kSuperWeights + 64 * part;
    const __m512i low = bytes_of_lanes<2>(_mm512_loadu_si512(q));
    const __m512i high = bytes_of_lanes<2>(_mm512_loadu_si512(q + 128));
    for (int f = 0; f < 4; ++f) {
      const __m512i order = _mm512_add_epi32(words, _mm512_set1_epi32(f));
      _mm512_store_si512(out.q[4 * part + f], _mm512_permutex2var_epi32(low, order, high));
    }
    const __m512i half = _mm512_add_epi32(halves, _mm512_set1_epi32(4 * part));
    const __m512i of_part = _mm512_permutexvar_epi32(half, sums);
    _mm512_store_si512(out.minus_bias[part], _mm512_mullo_epi32(of_part, _mm512_set1_epi32(-Bias)));
    _mm512_store_ps(out.scales[part], _mm512_permutexvar_ps(_mm512_srli_epi32(half, 1), scales));
  }
}

// A row's sum of its lanes, of the first or second of a pair.
template <int R, int Parts>
HM_INLINE float reduce_row(const __m512 (&lanes)[Parts]) {
  if constexpr (Parts == 1) {
    return Simd::PerBlock::reduce(_mm512_extractf32x8_ps(lanes[0], R));
  } else {
    const __m512i order = _mm512_set_epi64(11, 10, 3, 2, 9, 8, 1, 0);
    const __m512i of_row = _mm512_add_epi64(order, _mm512_set1_epi64(4 * R));
    return Simd::reduce(_mm512_castpd_ps(
        _mm512_permutex2var_pd(_mm512_castps_pd(lanes[0]), of_row, _mm512_castps_pd(lanes[1]))));
  }
}

// Groups whose activations, of N tokens, stay in the L1 cache beside weights: as many in each
// chunk.
template <class Activations, int N>
inline int64_t even_chunk(int64_t groups) {
  constexpr int64_t bytes = (N == 1 ? 32 : 16) * 1024;
  constexpr int64_t most = bytes / (N * static_cast<int64_t>(sizeof(Activations)));
  const int64_t chunks = (groups + most - 1) / most;
  return (groups + chunks - 1) / chunks;
}

// Groups of N tokens, for a unit of pairs of rows; beyond the last token it again.
template <class U, int N>
class PairTokens {
 public:
  using Activations = PairActivations<U::kParts>;
  static_assert(N * sizeof(Activations) <= matmul_scratch_bytes(kSuperWeights, N));
  static int64_t chunk(int64_t groups) { return even_chunk<Activations, N>(groups); }

  PairTokens(const MatmulArgs& args, int64_t first_token, int64_t count)
      : groups_(static_cast<Activations*>(args.scratch)) {
    for (int t = 0; t < N; ++t) {
      const int64_t token = first_token + (t < count ? t : count - 1);
      const ActivationRow x = activation_row(args.x[token], args.cols);
      for (int64_t g = 0; g < args.cols / kSuperWeights; ++g) {
        order_pair<U::kBias>(x, g, groups_[g * N + t]);
      }
    }
  }

  // Loads the next group meanwhile.
  HM_INLINE void add(const U& unit, const typename U::Block* const (&blocks)[U::kRows], int64_t g,
                     __m512 (&lanes)[U::kRegisters][N], U& after,
                     const typename U::Block* const (&next)[U::kRows]) const {
    const Activations* x = groups_ + g * N;
    Products products(unit, x);
    if constexpr (U::kPairs > 1) {
      load_pairs<U::kPairs>(next, after.pairs, products);
    } else {
      load_pairs<U::kPairs>(next, after.pairs);
      products.run_all();
    }
    for (int v = 0; v < U::kPairs; ++v) {
      __m512 d[U::kParts];
      unit.pairs[v].scales(blocks[2 * v], blocks[2 * v + 1], d);
      for (int part = 0; part < U::kParts; ++part) {
        const int c = v * U::kParts + part;
        for (int t = 0; t < N; ++t) {
          const __m512 scales = _mm512_mul_ps(d[part], _mm512_load_ps(x[t].scales[part]));
          const __m512 sums = _mm512_cvtepi32_ps(products.dots[c][t]);
          lanes[c][t] = _mm512_fmadd_ps(sums, scales, lanes[c][t]);
        }
      }
    }
  }

 private:
  // Sums of products, in eight steps of a vector of codes each.
  struct Products {
    const Activations* x;
    typename U::Rows::Codes codes[U::kPairs];
    mutable __m512i dots[U::kRegisters][N];

    HM_INLINE Products(const U& unit, const Activations* x) : x(x) {
      for (int v = 0; v < U::kPairs; ++v) codes[v] = unit.pairs[v].codes();
      for (int c = 0; c < U::kRegisters; ++c) {
        for (int t = 0; t < N; ++t) {
          dots[c][t] = _mm512_load_si512(x[t].minus_bias[c % U::kParts]);
        }
      }
    }
    template <int S>
    HM_INLINE void run() const {
      __m512i w[U::kPairs];
      for (int v = 0; v < U::kPairs; ++v) w[v] = codes[v].template codes<S>();
      for (int t = 0; t < N; ++t) {
        __m512i in = _mm512_load_si512(x[t].q[S]);
        if constexpr (U::kPairs > 1) forget(in);  // one load for all
        for (int v = 0; v < U::kPairs; ++v) {
          __m512i& dot = dots[v * U::kParts + (U::kParts == 1 ? 0 : S / 4)][t];
          dot = _mm512_dpbusd_epi32(dot, w[v], in);
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

  Activations* groups_;  // (groups, N)
};

// V pairs of rows.
template <class Rows_, int V>
struct PairsUnit {
  using Rows = Rows_;
  using Block = typename Rows::Block;
  static constexpr int kPairs = V, kRows = 2 * V;
  static constexpr int kParts = Rows::kParts, kRegisters = V * kParts;
  static constexpr int kBias = Rows::kBias;
  template <int N>
  using Tokens = PairTokens<PairsUnit, N>;

  Rows pairs[V];

  HM_INLINE void load(const Block* const (&blocks)[kRows]) { load_pairs<V>(blocks, pairs); }

  static HM_INLINE void reduce(const __m512 (&sums)[kRegisters], float (&out)[kRows]) {
    for (int v = 0; v < V; ++v) {
      __m512 of_pair[kParts];
      for (int part = 0; part < kParts; ++part) of_pair[part] = sums[v * kParts + part];
      out[2 * v] = reduce_row<0>(of_pair);
      out[2 * v + 1] = reduce_row<1>(of_pair);
    }
  }
};

// A group of a token's activations for IQ3: see two_rows_iq3-inl.h.
struct CodeActivations {
  alignas(64) int8_t q[4][64];
  int32_t minus_bias[16];  // of half a block, for both rows
  float scales[16];
};

inline void order_by_code(const ActivationRow& x, int64_t g, CodeActivations& out) {
  order_by_code(x.q + g * kSuperWeights, out.q[0]);
  const __m512i sums = _mm512_loadu_si512(x.half_sums + 16 * g);
  _mm512_store_si512(out.minus_bias, _mm512_mullo_epi32(sums, _mm512_set1_epi32(-kSignedBiasIQ3)));
  const __m512i order = _mm512_set_epi32(7, 6, 7, 6, 5, 4, 5, 4, 3, 2, 3, 2, 1, 0, 1, 0);
  const __m512 scales = _mm512_castps256_ps512(_mm256_loadu_ps(x.d + 8 * g));
  _mm512_store_ps(out.scales, _mm512_permutexvar_ps(order, scales));
}

template <class U, int N>
class TokensIQ3 {
 public:
  static int64_t chunk(int64_t groups) { return even_chunk<CodeActivations, N>(groups); }

  TokensIQ3(const MatmulArgs& args, int64_t first_token, int64_t count)
      : groups_(static_cast<CodeActivations*>(args.scratch)) {
    for (int t = 0; t < N; ++t) {
      const int64_t token = first_token + (t < count ? t : count - 1);
      const ActivationRow x = activation_row(args.x[token], args.cols);
      for (int64_t g = 0; g < args.cols / kSuperWeights; ++g) {
        order_by_code(x, g, groups_[g * N + t]);
      }
    }
  }

  // Loads the next group meanwhile.
  HM_INLINE void add(const U& unit, const typename U::Block* const (&)[2], int64_t g,
                     __m512 (&lanes)[1][N], U& after,
                     const typename U::Block* const (&next)[2]) const {
    const CodeActivations* x = groups_ + g * N;
    after.rows.load(next);
    __m512i dots[2][N];
    for (auto& row : dots) {
      for (int t = 0; t < N; ++t) row[t] = _mm512_load_si512(x[t].minus_bias);
    }
    multiply<0>(unit, x, dots);
    multiply<1>(unit, x, dots);
    multiply<2>(unit, x, dots);
    multiply<3>(unit, x, dots);
    for (int t = 0; t < N; ++t) {
      const __m512i sums = Simd::Panel::add_runs(dots[0][t], dots[1][t]);
      const __m512 d = _mm512_mul_ps(unit.rows.d, _mm512_load_ps(x[t].scales));
      lanes[0][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums), d, lanes[0][t]);
    }
  }

 private:
  template <int K>
  static HM_INLINE void multiply(const U& unit, const CodeActivations* x, __m512i (&dots)[2][N]) {
    for (int r = 0; r < 2; ++r) {
      const __m512i codes = unit.rows.template codes<K>(r);
      for (int t = 0; t < N; ++t) {
        dots[r][t] = _mm512_dpbusd_epi32(dots[r][t], codes, _mm512_load_si512(x[t].q[K]));
      }
    }
  }

  CodeActivations* groups_;  // (groups, N)
};

template <class Rows>
struct UnitIQ3 {
  using Block = typename Rows::Block;
  static constexpr int kRows = 2, kRegisters = 1;
  template <int N>
  using Tokens = TokensIQ3<UnitIQ3, N>;

  Rows rows;

  HM_INLINE void load(const Block* const (&blocks)[kRows]) { rows.load(blocks); }
  static HM_INLINE void reduce(const __m512 (&sums)[1], float (&out)[kRows]) {
    Simd::PerBlock::reduce_unit(sums, out);
  }
};

}  // namespace
}  // namespace hm
