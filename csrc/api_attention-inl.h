// Paged KV cache, and attention over it.
#pragma once

#include <string>

#include "base/check.h"
#include "bindings.h"
#include "ops/attention.h"
#include "ops/expanded_attention.h"
#include "ops/indexer.h"
#include "ops/kv_pages.h"

namespace py = pybind11;

namespace hm {
namespace {

KvType kv_type(const std::string& name) {
  constexpr const char* names[kNumKvTypes] = {"f32", "f16", "bf16", "int8"};
  for (int32_t i = 0; i < kNumKvTypes; ++i) {
    if (name == names[i]) return static_cast<KvType>(i);
  }
  throw Error("KV cache: type " + name + ", expected f32, f16, bf16 or int8");
}

KvPages kv_pages(uint8_t* data, int64_t num_bytes, const std::string& type, int64_t num_pages,
                 int64_t dim) {
  constexpr int64_t most = int64_t{1} << 24;  // no product overflows
  check(num_pages >= 0 && num_pages <= most && dim >= 1 && dim <= most, "KV cache: ", num_pages,
        " pages of rows of ", dim, " is not usable");
  const KvPages pages{data, kv_type(type), num_pages, dim};
  check(num_pages * pages.page_bytes() == num_bytes, "KV cache: ", num_bytes, " bytes, expected ",
        num_pages, " pages of ", pages.page_bytes());
  return pages;
}

void register_pages(py::module_& m) {
  py::class_<KvPages>(m, "KvPages")
      .def(py::init([](Address data, int64_t num_bytes, const std::string& type, int64_t num_pages,
                       int64_t dim) {
             return kv_pages(pointer<uint8_t>(data), num_bytes, type, num_pages, dim);
           }),
           py::arg("data"), py::arg("num_bytes"), py::arg("type"), py::arg("num_pages"),
           py::arg("dim"));
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.def(
      "kv_row_bytes",
      [](const std::string& type, int64_t dim) { return kv_row_bytes(kv_type(type), dim); },
      py::arg("type"), py::arg("dim"));
}

void register_latent_attention(py::module_& m) {
  m.def(
      "latent_attention",
      [](Address q_latent, Address q_rope, int64_t token_stride, int64_t head_stride,
         int64_t num_tokens, int64_t num_heads, int64_t latent_dim, int64_t rope_dim, float scale,
         Address selected, int64_t top_k, const KvPages& pages, Address spans, int64_t num_spans,
         Address tables, int64_t num_entries, Address out) {
        latent_attention(
            {
                .q_latent = pointer<float>(q_latent),
                .q_rope = pointer<float>(q_rope),
                .token_stride = token_stride,
                .head_stride = head_stride,
                .num_tokens = num_tokens,
                .num_heads = num_heads,
                .latent_dim = latent_dim,
                .rope_dim = rope_dim,
                .scale = scale,
                .selected = pointer<int32_t>(selected),
                .top_k = top_k,
                .out = pointer<float>(out),
            },
            pages,
            {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries});
      },
      py::arg("q_latent"), py::arg("q_rope"), py::arg("token_stride"), py::arg("head_stride"),
      py::arg("num_tokens"), py::arg("num_heads"), py::arg("latent_dim"), py::arg("rope_dim"),
      py::arg("scale"), py::arg("selected"), py::arg("top_k"), py::arg("pages"), py::arg("spans"),
      py::arg("num_spans"), py::arg("tables"), py::arg("num_entries"), py::arg("out"), NoGil());

  m.def(
      "expanded_attention",
      [](Address q_nope, int64_t nope_head_stride, int64_t nope_token_stride, Address q_rope,
         int64_t rope_head_stride, int64_t rope_token_stride, int64_t num_tokens, int64_t rope_dim,
         const Matrix& k_b, const Matrix& v_b, float scale, const KvPages& pages, Address spans,
         int64_t num_spans, Address tables, int64_t num_entries, Address out,
         int64_t out_head_stride, int64_t out_token_stride) {
        expanded_attention(
            {
                .q_nope = {pointer<float>(q_nope), nope_head_stride, nope_token_stride},
                .q_rope = {pointer<float>(q_rope), rope_head_stride, rope_token_stride},
                .k_b = k_b,
                .v_b = v_b,
                .num_tokens = num_tokens,
                .rope_dim = rope_dim,
                .scale = scale,
                .out = {pointer<float>(out), out_head_stride, out_token_stride},
            },
            pages,
            {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries});
      },
      py::arg("q_nope"), py::arg("nope_head_stride"), py::arg("nope_token_stride"),
      py::arg("q_rope"), py::arg("rope_head_stride"), py::arg("rope_token_stride"),
      py::arg("num_tokens"), py::arg("rope_dim"), py::arg("k_b"), py::arg("v_b"), py::arg("scale"),
      py::arg("pages"), py::arg("spans"), py::arg("num_spans"), py::arg("tables"),
      py::arg("num_entries"), py::arg("out"), py::arg("out_head_stride"),
      py::arg("out_token_stride"), NoGil());

  m.def(
      "select_positions",
      [](Address queries, Address weights, int64_t num_tokens, int64_t num_heads, int64_t dim,
         int64_t top_k, const KvPages& pages, Address spans, int64_t num_spans, Address tables,
         int64_t num_entries, Address selected) {
        select_positions(
            {
                .queries = pointer<float>(queries),
                .weights = pointer<float>(weights),
                .num_tokens = num_tokens,
                .num_heads = num_heads,
                .dim = dim,
                .top_k = top_k,
                .selected = pointer<int32_t>(selected),
            },
            pages,
            {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries});
      },
      py::arg("queries"), py::arg("weights"), py::arg("num_tokens"), py::arg("num_heads"),
      py::arg("dim"), py::arg("top_k"), py::arg("pages"), py::arg("spans"), py::arg("num_spans"),
      py::arg("tables"), py::arg("num_entries"), py::arg("selected"), NoGil());

  m.def(
      "store_kv",
      [](Address rows, int64_t num_tokens, const KvPages& pages, Address spans, int64_t num_spans,
         Address tables, int64_t num_entries) {
        store_kv(pointer<float>(rows), num_tokens, pages,
                 {pointer<SequenceSpan>(spans), num_spans, pointer<int32_t>(tables), num_entries});
      },
      py::arg("rows"), py::arg("num_tokens"), py::arg("pages"), py::arg("spans"),
      py::arg("num_spans"), py::arg("tables"), py::arg("num_entries"), NoGil());
}

}  // namespace

void register_attention(py::module_& m) {
  register_pages(m);
  register_latent_attention(m);
}

}  // namespace hm
