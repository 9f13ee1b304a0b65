// How each type's weights are unpacked for AMX tiles.
#pragma once

#include "kernels/amx_lookups-inl.h"

namespace hm {
namespace {

// Weights that are bfloat16 already.
struct GroupBF16 {
  using Block = BlockBF16;
  static constexpr int kBlocks = kSuperWeights;
};

struct CopyBF16 {
  static HM_INLINE void row(const BlockBF16* blocks, float, uint16_t* row) {
    memcpy(row, blocks, kSuperWeights * sizeof *row);
  }
};

template <class Group, class... Groups>
constexpr bool kIsOneOf = (__is_same(Group, Groups) || ...);

// Types whose codes and scales ShortCodes takes.
template <class Group>
constexpr bool kIsShort =
    kIsOneOf<Group, GroupQ6_K, GroupQ6_0, GroupNVFP4, GroupQ1_0, GroupQ2_0, GroupTQ1_0, GroupIQ1_S,
             GroupIQ1_M, GroupIQ2_XXS, GroupIQ2_XS, GroupIQ2_S, GroupIQ3_XXS, GroupIQ3_S,
             GroupIQ2_KL, GroupIQ3_K, GroupIQ3_KS>;

template <class Group>
struct Unpack : Widen<Group> {};
template <class Group>
  requires kIsShort<Group>
struct Unpack<Group> : BytesOfFloats<Group, ShortCodes> {};
template <>
struct Unpack<GroupQ8_0> : BytesOfFloats<GroupQ8_0, LongCodes> {};

template <>
struct Unpack<GroupQ2_K> : LookUpTwoBits<GroupQ2_K> {};
template <>
struct Unpack<GroupTQ2_0> : LookUpTwoBits<GroupTQ2_0> {};
template <>
struct Unpack<GroupIQ2_K> : LookUpTwoBits<GroupIQ2_K> {};
template <>
struct Unpack<GroupIQ2_KS> : LookUpTwoBits<GroupIQ2_KS> {};
template <>
struct Unpack<GroupQ3_K> : LookUpQ3_K {};
template <>
struct Unpack<GroupQ5_K> : LookUpFiveBits<GroupQ5_K, FifthsQ5_K> {};
template <>
struct Unpack<GroupQ5_0> : LookUpFiveBits<GroupQ5_0, Fifths<BlockQ5_0>> {};
template <>
struct Unpack<GroupQ5_1> : LookUpFiveBits<GroupQ5_1, Fifths<BlockQ5_1>> {};
template <>
struct Unpack<GroupQ4_0> : LookUp<GroupQ4_0, LinearNibbles<BlockQ4_0>> {};
template <>
struct Unpack<GroupQ4_1> : LookUp<GroupQ4_1, LinearNibbles<BlockQ4_1>> {};
template <>
struct Unpack<GroupQ4_K> : LookUp<GroupQ4_K, NibblesQ4_K> {};
template <>
struct Unpack<GroupIQ4_NL> : LookUp<GroupIQ4_NL, NibblesIQ4_NL> {};
template <>
struct Unpack<GroupIQ4_XS> : LookUp<GroupIQ4_XS, NibblesIQ4<BlockIQ4_XS>> {};
template <>
struct Unpack<GroupIQ4_KS> : LookUp<GroupIQ4_KS, NibblesIQ4<BlockIQ4_KS>> {};
template <>
struct Unpack<GroupMXFP4> : LookUp<GroupMXFP4, NibblesMXFP4> {};
template <>
struct Unpack<GroupBF16> : CopyBF16 {};

}  // namespace
}  // namespace hm
