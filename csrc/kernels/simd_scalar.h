// The SIMD vocabulary in plain C++, for any CPU: see simd_avx2.h for what each operation means.
// Same order of additions; a product and its sum round separately, for want of a hardware FMA.
#pragma once

#include <stdint.h>
#include <string.h>

#include "base/inline.h"
#include "formats/block_fields-inl.h"
#include "kernels/code_tables.h"
#include "kernels/half_scalar.h"
#include "kernels/kernel_table.h"

namespace hm {
namespace {

struct Simd {
  static constexpr int kUnitRows = 0;  // none
  static constexpr int kFloatRows = 1, kFloatTokens = 1, kFloatRowsOfOneToken = 1;
  static constexpr bool kFetchesRuns = false;
  static constexpr MatmulCosts kCosts = {0, 1, 0, 1};
  static constexpr int kSignedBias = 0;

  struct F16 {
    float v[16];
  };
  struct B64 {
    uint8_t v[64];
  };
  struct Dot {
    int32_t v[16];
  };

  // F16
  static HM_INLINE F16 zero() { return {}; }
  static HM_INLINE F16 load(const float* p) {
    F16 r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static HM_INLINE void store(float* p, const F16& a) { memcpy(p, a.v, sizeof a.v); }
  // Eight floats.
  static HM_INLINE void round_to_half(const float* x, uint16_t* out) {
    for (int i = 0; i < 8; ++i) out[i] = float_to_half(x[i]);
  }
  static HM_INLINE F16 load_half(const uint16_t* p) {
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = half_to_float(p[i]);
    return r;
  }
  static HM_INLINE F16 load_bf16(const uint16_t* p) {
    F16 r;
    for (int i = 0; i < 16; ++i) {
      const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
      memcpy(&r.v[i], &bits, sizeof bits);
    }
    return r;
  }
  static HM_INLINE F16 fma(const F16& a, const F16& b, const F16& c) {
    F16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = c.v[i] + a.v[i] * b.v[i];
    return r;
  }
  static HM_INLINE float reduce(const F16& a) { return PerHalf::reduce(PerHalf::load(a.v)); }

  // B64
  static HM_INLINE B64 load64(const void* p) {
    B64 r;
    memcpy(r.v, p, 64);
    return r;
  }
  static HM_INLINE void store64(void* p, const B64& v) { memcpy(p, v.v, 64); }
  static HM_INLINE B64 load32(const void* a, const void* b) {
    B64 r;
    memcpy(r.v, a, 32);
    memcpy(r.v + 32, b, 32);
    return r;
  }
  static HM_INLINE B64 load32_twice(const void* p) { return load32(p, p); }
  static HM_INLINE B64 from_words(const uint64_t (&w)[8]) { return load64(w); }
  static HM_INLINE B64 nibbles16(const void* a, const void* b) {
    B64 r;
    for (int h = 0; h < 2; ++h) {
      const uint8_t* p = static_cast<const uint8_t*>(h ? b : a);
      for (int i = 0; i < 16; ++i) {
        r.v[32 * h + i] = p[i] & 15;
        r.v[32 * h + 16 + i] = p[i] >> 4;
      }
    }
    return r;
  }
  static HM_INLINE B64 nibbles8(const void* p) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = bytes[i / 16 * 8 + i % 8] >> (i % 16 / 8 * 4) & 15;
    return r;
  }
  template <int Bit>
  static HM_INLINE B64 spread_bits(const void* a, const void* b) {
    B64 r;
    for (int h = 0; h < 2; ++h) {
      const uint8_t* p = static_cast<const uint8_t*>(h ? b : a);
      for (int i = 0; i < 32; ++i) r.v[32 * h + i] = (p[i / 8] >> (i % 8)) & 1 ? Bit : 0;
    }
    return r;
  }
  template <int N0, int N1, int Mask>
  static HM_INLINE B64 bits(const B64& v) {
    B64 r;
    for (int i = 0; i < 32; ++i) {
      r.v[i] = (v.v[i] >> N0) & Mask;
      r.v[i + 32] = (v.v[i + 32] >> N1) & Mask;
    }
    return r;
  }
  template <int N>
  static HM_INLINE B64 shift_left(const B64& v) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(v.v[i] << N);
    return r;
  }
  static HM_INLINE B64 or_(const B64& a, const B64& b) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] | b.v[i];
    return r;
  }
  static HM_INLINE B64 sub(const B64& a, const B64& b) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = a.v[i] - b.v[i];
    return r;
  }
  static HM_INLINE B64 negate_where(const B64& mask, const B64& v) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = (v.v[i] ^ mask.v[i]) - mask.v[i];
    return r;
  }
  static HM_INLINE B64 four_pairs(const void* a, const void* b) {
    constexpr int places[4] = {0, 4, 2, 6};
    B64 r;
    for (int i = 0; i < 64; ++i) {
      const uint8_t* p = static_cast<const uint8_t*>(i < 32 ? a : b);
      r.v[i] = p[i % 8] >> places[i / 8 % 4] & 3;
    }
    return r;
  }
  static HM_INLINE B64 pairs_in_order(const void* p) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<const uint8_t*>(p)[i / 4] >> i % 4 * 2 & 3;
    return r;
  }
  static HM_INLINE B64 xor_shifted(const B64& v) {
    B64 r;
    for (int i = 0; i < 64; i += 2) {
      const int word = (v.v[i] | v.v[i + 1] << 8) & 0xfffe, codes = word ^ word >> 1;
      r.v[i] = static_cast<uint8_t>(codes);
      r.v[i + 1] = static_cast<uint8_t>(codes >> 8);
    }
    return r;
  }
  static HM_INLINE uint32_t low_bits(const B64& v) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(v.v[2 * i] & 1) << i;
    return bits;
  }
  template <int Bit>
  static HM_INLINE B64 lookup_plane(const int8_t* table, const B64& v, const void* plane) {
    B64 r;
    for (int i = 0; i < 64; ++i) {
      const int is_upper = static_cast<const uint8_t*>(plane)[i % 32] >> (Bit + i / 32) & 1;
      r.v[i] = static_cast<uint8_t>(table[16 * is_upper + v.v[i]]);
    }
    return r;
  }
  static HM_INLINE B64 lookup64(const int8_t* table, const B64& low, const B64& high) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(table[low.v[i] | high.v[i] << 4]);
    return r;
  }
  template <int Lanes>
  static HM_INLINE B64 add_to_lanes(const B64& v, uint64_t bytes) {
    B64 r;
    for (int i = 0; i < 64; ++i) {
      r.v[i] = static_cast<uint8_t>(v.v[i] + (bytes >> (8 * (i / (64 / Lanes)))));
    }
    return r;
  }
  template <int Bit>
  static HM_INLINE B64 lookup_pairs(const PairTable& table, const void* nibbles, const void* bits) {
    B64 r;
    for (int i = 0; i < 32; ++i) {
      const int low = static_cast<const uint8_t*>(nibbles)[i % 16] >> i / 16 * 4 & 15;
      const int high = static_cast<const uint8_t*>(bits)[i % 16] >> (Bit + i / 16) & 1;
      for (int k = 0; k < 2; ++k) {
        r.v[2 * i + k] = static_cast<uint8_t>(table.codes[k][low | high << 4]);
      }
    }
    return r;
  }
  static HM_INLINE B64 lookup(const int8_t* table, const B64& v) {
    B64 r;
    for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>(table[v.v[i]]);
    return r;
  }

  static HM_INLINE B64 plus_bias(const B64& v) { return v; }

  static HM_INLINE Dot dot_unsigned(const B64& w, const B64& x) {
    Dot r = {};
    for (int i = 0; i < 64; ++i) r.v[i / 4] += w.v[i] * static_cast<int8_t>(x.v[i]);
    return r;
  }
  static HM_INLINE Dot dot_signed(const B64& w, const B64& x) {
    Dot r = {};
    for (int i = 0; i < 64; ++i) {
      r.v[i / 4] += static_cast<int8_t>(w.v[i]) * static_cast<int8_t>(x.v[i]);
    }
    return r;
  }

  template <int Lanes>
  struct Per {
    static constexpr int kLanes = Lanes;
    struct Float {
      float v[Lanes];
    };
    struct Int {
      int32_t v[Lanes];
    };
    static HM_INLINE Float set(float x) {
      Float r;
      for (float& e : r.v) e = x;
      return r;
    }
    static HM_INLINE Float load(const float* p) {
      Float r;
      memcpy(r.v, p, sizeof r.v);
      return r;
    }
    static HM_INLINE void store(float* p, const Float& v) { memcpy(p, v.v, sizeof v.v); }
    static HM_INLINE Float mul(const Float& a, const Float& b) {
      Float r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = a.v[i] * b.v[i];
      return r;
    }
    static HM_INLINE Float keep(const Float& v, const Float& bits) {
      Float r;
      uint32_t words[Lanes], kept[Lanes];
      memcpy(words, v.v, sizeof words);
      memcpy(kept, bits.v, sizeof kept);
      for (int i = 0; i < Lanes; ++i) words[i] &= kept[i];
      memcpy(r.v, words, sizeof words);
      return r;
    }
    static HM_INLINE Float fma(const Float& a, const Float& b, const Float& c) {
      Float r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = c.v[i] + a.v[i] * b.v[i];
      return r;
    }
    static HM_INLINE Float from_u8(uint64_t bytes) { return from_integers((const uint8_t*)&bytes); }
    static HM_INLINE Float from_s8(uint64_t bytes) { return from_integers((const int8_t*)&bytes); }
    static HM_INLINE Float from_s8(uint64_t low, uint64_t high) {
      const uint64_t bytes[2] = {low, high};
      return from_integers((const int8_t*)bytes);
    }
    static HM_INLINE Float from_s8(const int8_t* p) { return from_integers(p); }
    static HM_INLINE Float from_s8(const uint64_t (&bytes)[Lanes / 8]) {
      return from_integers((const int8_t*)bytes);
    }
    static HM_INLINE Float low_nibbles(const uint8_t* p) {
      Float r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = static_cast<float>(p[i] & 15);
      return r;
    }
    static HM_INLINE Float high_nibbles(const uint8_t* p) {
      Float r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = static_cast<float>(p[i] >> 4);
      return r;
    }
    template <int Each = 1>
    static HM_INLINE Float gather_half(const void* p, int stride) {
      Float r;
      for (int i = 0; i < Lanes; ++i) {
        uint16_t half;
        memcpy(&half, static_cast<const uint8_t*>(p) + i / Each * stride, sizeof half);
        r.v[i] = half_to_float(half);
      }
      return r;
    }
    static HM_INLINE Float gather_e8m0_half(const uint8_t* p, int stride) {
      Float r;
      for (int i = 0; i < Lanes; ++i) {
        const uint32_t e = p[i * stride], bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
        memcpy(&r.v[i], &bits, sizeof bits);
      }
      return r;
    }
    static HM_INLINE Float gather_e4m3_half(const uint8_t* p, int stride) {
      Float r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = ue4m3_half(p[i / 4 * stride + i % 4]);
      return r;
    }
    static HM_INLINE Float activation_scales(const float* d) {
      Float r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = d[i * 8 / Lanes];
      return r;
    }
    static HM_INLINE Float to_float(const Int& v) { return from_integers(v.v); }
    static HM_INLINE Int load_int(const int32_t* p) {
      Int r;
      memcpy(r.v, p, sizeof r.v);
      return r;
    }
    template <int N>
    static HM_INLINE Int times(const Int& v) {
      Int r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = N * v.v[i];
      return r;
    }
    static HM_INLINE Int add_where(uint32_t bits, const Int& v, const Int& w) {
      Int r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = v.v[i] + (bits >> i & 1 ? w.v[i] : 0);
      return r;
    }
    template <int Shift>
    static HM_INLINE Int sub_shifted(const Int& v, const Int& w) {
      Int r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = v.v[i] - w.v[i] * (1 << Shift);
      return r;
    }
    static HM_INLINE Int sums(const Dot& a, const Dot& b, const Dot& c, const Dot& d) {
      Int r = {};
      for (int i = 0; i < 16; ++i) {
        const int lane = i * Lanes / 64, pair = Lanes / 4;
        r.v[lane] += a.v[i];
        r.v[lane + pair] += b.v[i];
        r.v[lane + 2 * pair] += c.v[i];
        r.v[lane + 3 * pair] += d.v[i];
      }
      return r;
    }
    static HM_INLINE float reduce(const Float& v) {
      float s[Lanes];
      memcpy(s, v.v, sizeof s);
      for (int n = Lanes / 2; n > 0; n /= 2) {
        for (int i = 0; i < n; ++i) s[i] += s[i + n];
      }
      return s[0];
    }

   private:
    template <class Number>
    static HM_INLINE Float from_integers(const Number* p) {
      Float r;
      for (int i = 0; i < Lanes; ++i) r.v[i] = static_cast<float>(p[i]);
      return r;
    }
  };
  using PerBlock = Per<8>;
  using PerHalf = Per<16>;

  struct Panel : Per<8> {
    static constexpr int kTokens = 1;
    static HM_INLINE Int set_int(int32_t x) {
      Int r;
      for (int32_t& e : r.v) e = x;
      return r;
    }
    static HM_INLINE Int load_codes(const uint8_t* p) {
      Int r;
      memcpy(r.v, p, sizeof r.v);
      return r;
    }
    static HM_INLINE void fetch(const uint8_t*) {}
    static HM_INLINE void fetch_near(const uint8_t*) {}
    static HM_INLINE void store_codes(uint8_t* p, const Int& v) { memcpy(p, v.v, sizeof v.v); }
    static HM_INLINE Float add(const Float& a, const Float& b) {
      Float r;
      for (int i = 0; i < kLanes; ++i) r.v[i] = a.v[i] + b.v[i];
      return r;
    }
    static constexpr int run_length(int) { return kSuperWeights; }
    static HM_INLINE Int begin_run(const Int& sum) { return sum; }
    static HM_INLINE Int end_run(const Int&, const Int& run) { return run; }
    template <bool IsSigned>
    static HM_INLINE Int dot(const Int& sum, const Int& w, const Int& x) {
      uint8_t codes[4 * kLanes];
      int8_t four[4];
      memcpy(codes, w.v, sizeof codes);
      memcpy(four, x.v, sizeof four);
      Int r = sum;
      for (int i = 0; i < 4 * kLanes; ++i) {
        r.v[i / 4] += (IsSigned ? static_cast<int8_t>(codes[i]) : codes[i]) * four[i % 4];
      }
      return r;
    }
    static HM_INLINE Int dot_pairs(const Int& sum, const Int& w, const Int& x) {
      Int r;
      for (int i = 0; i < kLanes; ++i) {
        const int32_t low = static_cast<int16_t>(w.v[i]) * static_cast<int16_t>(x.v[i]);
        const int32_t high = (w.v[i] >> 16) * (x.v[i] >> 16);
        r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(sum.v[i]) + low + high);
      }
      return r;
    }
    static HM_INLINE void transpose(const uint8_t* rows, int64_t stride, Int (&out)[kLanes]) {
      for (int r = 0; r < kLanes; ++r) {
        for (int c = 0; c < kLanes; ++c) memcpy(&out[c].v[r], rows + r * stride + 4 * c, 4);
      }
    }
  };
};

}  // namespace
}  // namespace hm
