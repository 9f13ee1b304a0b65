// Which groups gemv takes of the types with a codebook; codebook_gemv_{avx2,avx512}-inl.h, one of
// which is included before this file, have them.
#pragma once

namespace hm {
namespace {

template <>
struct GemvGroup<GroupIQ1_S> {
  using Type = StridedIQ1_S;
};
template <>
struct GemvGroup<GroupIQ1_M> {
  using Type = StridedIQ1_M;
};
template <>
struct GemvGroup<GroupIQ2_XXS> {
  using Type = StridedIQ2_XXS;
};
template <>
struct GemvGroup<GroupIQ2_XS> {
  using Type = StridedIQ2_XS;
};
template <>
struct GemvGroup<GroupIQ2_S> {
  using Type = StridedIQ2_S;
};
template <>
struct GemvGroup<GroupIQ3_XXS> {
  using Type = StridedIQ3_XXS;
};
template <>
struct GemvGroup<GroupIQ3_S> {
  using Type = StridedIQ3_S;
};

}  // namespace
}  // namespace hm
