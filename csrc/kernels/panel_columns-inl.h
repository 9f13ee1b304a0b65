// Unpacking of many rows at once into a panel (gemm-inl.h), for the types that most files consist
// of: packed words are transposed first, so that rows lie in lanes, and then become codes. There
// are half as many words as codes or fewer, and a scale takes as long for all rows as for one
// otherwise. The same codes and the same products of scales as in groups-inl.h.
#pragma once

#include <stddef.h>

#include "kernels/groups-inl.h"

namespace hm {
namespace {

constexpr int kUnitBytes = 32, kUnitWords = 8;

// The groups of as many rows as a register has lanes.
template <class Rows>
struct RowGroups {
  static constexpr int kHeldUnits = Rows::kLanes / kUnitWords;  // in one register
  const uint8_t* first;
  int64_t row_bytes;

  const uint8_t* row(int r) const { return first + r * row_bytes; }

  // Calls use(unit, words) for each unit of 32 bytes; place(unit) is where it begins.
  template <int Units, class Place, class Use>
  HM_INLINE void units(const Place& place, const Use& use) const {
#pragma GCC unroll 8  // so that places are constants
    for (int u = 0; u < Units; u += kHeldUnits) {
      typename Rows::Int words[Rows::kLanes];
      Rows::transpose(
          [&](int r) { return Rows::load_units(row(r) + place(u), row(r) + place(u + 1)); }, words);
      for (int held = 0; held < kHeldUnits; ++held) use(u + held, words + kUnitWords * held);
    }
  }

  // Four words of each row.
  HM_INLINE void words(int64_t place, typename Rows::Int (&out)[4]) const {
    Rows::transpose_four([&](int r) { return row(r) + place; }, out);
  }

  // A binary16 number of each row.
  HM_INLINE typename Rows::Float half_numbers(int64_t place) const {
    return Rows::from_half([&](int r) { return *(const int16_t*)(row(r) + place); });
  }
};

// Low or high nibbles of words.
template <class Rows, int Shift>
HM_INLINE typename Rows::Int nibbles(typename Rows::Int words) {
  return Rows::template bits_of<Shift, 0x0f0f0f0f>(words);
}

// Byte I of words.
template <class Rows, int I>
HM_INLINE typename Rows::Float byte_of(typename Rows::Int words) {
  return Rows::to_float(Rows::template bits_of<8 * I, 0xff>(words));
}

// Columns<Group>::unpack(rows, to) calls to.codes(word, codes) for each of 64 words of codes, and
// to.d(lane, numbers), to.offset(lane, numbers).
template <class Group>
struct Columns {
  static constexpr bool kKnown = false;
};

// What Q4_K and Q5_K begin with: d, dmin, and scales and minima of six bits in 12 bytes.
template <class R, class To>
HM_INLINE void unpack_k_columns(const RowGroups<R>& rows, const To& to) {
  using Int = typename R::Int;
  using Float = typename R::Float;
  Int words[4];
  rows.words(0, words);
  const Int sign = R::set_int(INT32_MIN);
  const Float d = R::template from_half_words<0>(words[0]);
  const Float min = R::template from_half_words<16>(R::xor_(words[0], sign));
  const Int high_d = R::or_(nibbles<R, 0>(words[3]), R::template bits_of<2, 0x30303030>(words[1]));
  const Int high_min =
      R::or_(nibbles<R, 4>(words[3]), R::template bits_of<2, 0x30303030>(words[2]));
  const auto numbers = [&](int lane, Int scales, Int minima) {
    const auto one = [&](int i, Float scale, Float minimum) {
      to.d(lane + i, R::mul(d, scale));
      to.offset(lane + i, R::mul(min, minimum));
    };
    one(0, byte_of<R, 0>(scales), byte_of<R, 0>(minima));
    one(1, byte_of<R, 1>(scales), byte_of<R, 1>(minima));
    one(2, byte_of<R, 2>(scales), byte_of<R, 2>(minima));
    one(3, byte_of<R, 3>(scales), byte_of<R, 3>(minima));
  };
  numbers(0, R::template bits_of<0, 0x3f3f3f3f>(words[1]),
          R::template bits_of<0, 0x3f3f3f3f>(words[2]));
  numbers(4, high_d, high_min);
}

template <>
struct Columns<GroupQ4_K> {
  static constexpr bool kKnown = true;

  template <class R, class To>
  static HM_INLINE void unpack(const RowGroups<R>& rows, const To& to) {
    using Int = typename R::Int;
    unpack_k_columns(rows, to);
    const auto place = [](int unit) { return offsetof(BlockQ4_K, qs) + kUnitBytes * unit; };
    rows.template units<4>(place, [&](int unit, const Int* words) {
      for (int w = 0; w < kUnitWords; ++w) {
        to.codes(2 * kUnitWords * unit + w, nibbles<R, 0>(words[w]));
        to.codes(2 * kUnitWords * unit + kUnitWords + w, nibbles<R, 4>(words[w]));
      }
    });
  }
};

template <>
struct Columns<GroupQ6_K> {
  static constexpr bool kKnown = true;

  template <class R, class To>
  static HM_INLINE void unpack(const RowGroups<R>& rows, const To& to) {
    using Int = typename R::Int;
    const typename R::Float d = rows.half_numbers(offsetof(BlockQ6_K, d));
    Int scales[4];
    rows.words(offsetof(BlockQ6_K, scales), scales);
    for (int i = 0; i < 4; ++i) {
      to.d(4 * i, R::mul(d, R::to_float(R::template signed_byte<0>(scales[i]))));
      to.d(4 * i + 1, R::mul(d, R::to_float(R::template signed_byte<1>(scales[i]))));
      to.d(4 * i + 2, R::mul(d, R::to_float(R::template signed_byte<2>(scales[i]))));
      to.d(4 * i + 3, R::mul(d, R::to_float(R::template signed_byte<3>(scales[i]))));
    }
    Int high[2 * kUnitWords];
    rows.template units<2>([](int unit) { return offsetof(BlockQ6_K, qh) + kUnitBytes * unit; },
                           [&](int unit, const Int* words) {
                             for (int w = 0; w < kUnitWords; ++w)
                               high[kUnitWords * unit + w] = words[w];
                           });
    rows.template units<4>(
        [](int unit) { return offsetof(BlockQ6_K, ql) + kUnitBytes * unit; },
        [&](int unit, const Int* words) {
          const Int* h = high + unit / 2 * kUnitWords;
          const int first = unit / 2 * 32 + unit % 2 * kUnitWords;
          for (int w = 0; w < kUnitWords; ++w) {
            const Int bits = unit % 2 == 0 ? h[w] : R::template bits_of<2, -1>(h[w]);
            to.codes(first + w,
                     R::or_(nibbles<R, 0>(words[w]), R::template bits_of<-4, 0x30303030>(bits)));
            to.codes(first + 16 + w,
                     R::or_(nibbles<R, 4>(words[w]), R::template bits_of<0, 0x30303030>(bits)));
          }
        });
  }
};

template <>
struct Columns<GroupQ8_0> {
  static constexpr bool kKnown = true;

  template <class R, class To>
  static HM_INLINE void unpack(const RowGroups<R>& rows, const To& to) {
    using Int = typename R::Int;
    const Int bias = R::set_int(Simd::kSignedBias * 0x01010101u);
    for (int b = 0; b < 8; ++b) to.d(b, rows.half_numbers(b * sizeof(BlockQ8_0)));
    const auto place = [](int unit) { return sizeof(BlockQ8_0) * unit + offsetof(BlockQ8_0, qs); };
    rows.template units<8>(place, [&](int unit, const Int* words) {
      for (int w = 0; w < kUnitWords; ++w) {
        to.codes(kUnitWords * unit + w, R::xor_(words[w], bias));
      }
    });
  }
};

template <>
struct Columns<GroupQ4_0> {
  static constexpr bool kKnown = true;

  template <class R, class To>
  static HM_INLINE void unpack(const RowGroups<R>& rows, const To& to) {
    using Int = typename R::Int;
    for (int b = 0; b < 8; ++b) to.d(b, rows.half_numbers(b * sizeof(BlockQ4_0)));
    constexpr int held = R::kLanes / 4;  // blocks
#pragma GCC unroll 4
    for (int b = 0; b < 8; b += held) {
      Int words[R::kLanes];
      R::transpose(
          [&](int r) {
            const BlockQ4_0* blocks = (const BlockQ4_0*)rows.row(r) + b;
            return R::load_quarters([=](int i) { return blocks[i].qs; });
          },
          words);
#pragma GCC unroll 16
      for (int i = 0; i < R::kLanes; ++i) {
        to.codes(8 * (b + i / 4) + i % 4, nibbles<R, 0>(words[i]));
        to.codes(8 * (b + i / 4) + 4 + i % 4, nibbles<R, 4>(words[i]));
      }
    }
  }
};

}  // namespace
}  // namespace hm
