// Attention and products by AMX tiles on a CPU that has AVX-512 only: tiles are arrays, and
// roundings to bfloat16 integer arithmetic. Built and loaded by test_amx_emulated.py.
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

thread_local float tiles[8][16][16];

void tile_load(int tile, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r) {
    std::memcpy(tiles[tile][r], static_cast<const char*>(from) + r * stride, 64);
  }
}

void tile_store(int tile, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) {
    std::memcpy(static_cast<char*>(to) + r * stride, tiles[tile][r], 64);
  }
}

// Products of two columns after the other.
void tile_multiply(int to, int a, int b) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  for (int m = 0; m < 16; ++m) {
    __m512 sum = _mm512_loadu_ps(tiles[to][m]);
    for (int k = 0; k < 16; ++k) {
      const __m512i x = _mm512_castps_si512(_mm512_set1_ps(tiles[a][m][k]));
      const __m512i y = _mm512_castps_si512(_mm512_loadu_ps(tiles[b][k]));
      const auto floats = [](__m512i bits) { return _mm512_castsi512_ps(bits); };
      sum = _mm512_add_ps(
          sum, _mm512_mul_ps(floats(_mm512_slli_epi32(x, 16)), floats(_mm512_slli_epi32(y, 16))));
      sum = _mm512_add_ps(sum, _mm512_mul_ps(floats(_mm512_and_si512(x, upper)),
                                             floats(_mm512_and_si512(y, upper))));
    }
    _mm512_storeu_ps(tiles[to][m], sum);
  }
}

__m256i to_words(__m512 x) {
  const __m512i bits = _mm512_castps_si512(x), odd = _mm512_srli_epi32(bits, 16);
  const __m512i tie = _mm512_and_si512(odd, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(tie, _mm512_set1_epi32(0x7fff)));
  const __m512i nan = _mm512_or_si512(odd, _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(_mm512_srli_epi32(rounded, 16), is_nan, nan));
}

__m512bh to_words(__m512 high, __m512 low) {
  const __m512i words = _mm512_castsi256_si512(to_words(low));
  return (__m512bh)_mm512_inserti64x4(words, to_words(high), 1);
}

}  // namespace

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadd tile_load
#define _tile_stored tile_store
#define _tile_zero(tile) std::memset(tiles[tile], 0, sizeof tiles[tile])
#define _tile_dpbf16ps tile_multiply
#define _tile_dpbusd tile_multiply
#define _tile_loadconfig(config)
#define _tile_release()
#define _mm512_cvtneps_pbh(x) ((__m256bh)to_words(x))
#define _mm512_cvtne2ps_pbh(high, low) to_words(high, low)

#include "kernels/simd_avx512.h"

#include "kernels/codebook_loads_amx-inl.h"

#include "kernels/codebook_groups_avx512-inl.h"

#include "kernels/rounding_avx512-inl.h"

#include "kernels/few_tokens-inl.h"

#include "kernels/attention-inl.h"

#include "kernels/elementwise-inl.h"

#include "kernels/amx_table-inl.h"

#include "base/runtime.h"
#include "kernels/select.h"
#include "ops/attention.h"
#include "ops/expert_ffn.h"
#include "ops/linear.h"

namespace hm {

const KernelTable& active_table() {
  static const KernelTable table = [] {
    KernelTable kernels{};
    kernels.attention = {pack_queries, attend, merge_attention, finish_attention};
    kernels.tile_attention = {pack_query_tiles, attend_tiles, merge_tiles, finish_query_tiles};
    kernels.tiles = {pack_tokens, pack_swiglu, finish_tiles};
    kernels.costs = {1, 1, 1, 1, 0.1, 0.1};  // tiles from 16 tokens on
    kernels.quantize = quantize;
    kernels.weighted_sum = weighted_sum;
    add_tile_formats(kernels);
    for (auto& format : kernels.formats) format.quantized = true;
    return kernels;
  }();
  return table;
}

}  // namespace hm

// As ops::latent_attention, of one sequence whose first token here is at position `start`; rows of
// rope queries are contiguous.
extern "C" __attribute__((visibility("default"))) void emulated_attention(
    const float* q_latent, const float* q_rope, int64_t num_tokens, int64_t num_heads,
    int64_t latent_dim, int64_t rope_dim, float scale, uint8_t* pages, int is_half,
    int64_t num_pages, const int32_t* table, int64_t num_entries, int64_t start, float* out) {
  const hm::SequenceSpan span = {num_tokens, start, 0};
  hm::latent_attention(
      {.q_latent = q_latent,
       .q_rope = q_rope,
       .token_stride = num_heads * rope_dim,
       .head_stride = rope_dim,
       .num_tokens = num_tokens,
       .num_heads = num_heads,
       .latent_dim = latent_dim,
       .rope_dim = rope_dim,
       .scale = scale,
       .out = out},
      {pages, is_half ? hm::kKvF16 : hm::kKvBF16, num_pages, latent_dim + rope_dim},
      {&span, 1, table, num_entries});
}

extern "C" __attribute__((visibility("default"))) void emulated_threads(int64_t count) {
  hm::set_threads({std::vector<std::vector<int>>(count)});
}

static hm::ExpertMatrix matrix(int32_t type, const uint8_t* data, int64_t rows, int64_t cols) {
  const hm::TypeInfo& info = *hm::find_type(type);
  return {{data, rows * hm::row_bytes(info, cols), type, 1, rows, cols}};
}

// As ops::linear and ops::dense_ffn, of types with tiles; at least 16 tokens.
extern "C" __attribute__((visibility("default"))) void emulated_linear(
    const float* x, int64_t num_tokens, int32_t type, const uint8_t* w, int64_t num_rows,
    int64_t cols, float* out) {
  hm::linear({x, 0, cols}, num_tokens, matrix(type, w, num_rows, cols), {out, 0, num_rows});
}

extern "C" __attribute__((visibility("default"))) void emulated_ffn(
    const float* x, int64_t num_tokens, int64_t hidden, int64_t inter, int32_t gate_type,
    const uint8_t* gate, int32_t up_type, const uint8_t* up, int32_t down_type, const uint8_t* down,
    float* out) {
  hm::expert_ffn({.x = x,
                  .ids = nullptr,
                  .weights = nullptr,
                  .num_tokens = num_tokens,
                  .top_k = 1,
                  .gate = matrix(gate_type, gate, inter, hidden),
                  .up = matrix(up_type, up, inter, hidden),
                  .down = matrix(down_type, down, hidden, inter),
                  .base = nullptr,
                  .out = out});
}

// As ops::expert_ffn, by so many threads on each of some nodes; experts of Q8_0.
extern "C" __attribute__((visibility("default"))) void emulated_experts(
    int64_t num_nodes, int64_t num_threads, const float* x, const int32_t* ids,
    const float* weights, int64_t num_tokens, int64_t top_k, int64_t num_experts, int64_t hidden,
    int64_t inter, const uint8_t* gate, const uint8_t* up, const uint8_t* down, float* out) {
  hm::set_threads(hm::ThreadPlan(num_nodes, hm::ThreadPlan::value_type(num_threads)));
  const auto stack = [&](const uint8_t* data, int64_t rows, int64_t cols) -> hm::ExpertMatrix {
    const int64_t bytes = num_experts * rows * hm::row_bytes(*hm::find_type(hm::kQ8_0), cols);
    return {{data, bytes, hm::kQ8_0, num_experts, rows, cols}};
  };
  hm::expert_ffn({.x = x,
                  .ids = ids,
                  .weights = weights,
                  .num_tokens = num_tokens,
                  .top_k = top_k,
                  .gate = stack(gate, inter, hidden),
                  .up = stack(up, inter, hidden),
                  .down = stack(down, hidden, inter),
                  .base = nullptr,
                  .out = out});
  hm::set_threads({{{}}});
}
