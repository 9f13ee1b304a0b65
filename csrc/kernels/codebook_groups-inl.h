// Groups of the IQ1, IQ2 and IQ3 types without AVX-512: see groups-inl.h for the form that they are
// brought to.
//
// A codebook entry is 8 (or 4) magnitudes, looked up by scalar code; signs come as a bit per
// weight.
#pragma once

#include "kernels/groups-inl.h"

namespace hm {
namespace {

// Codes of two blocks with their signs, a bit per weight.
HM_INLINE Simd::B64 signed_codes(const uint64_t (&words)[8], const void* signs_a,
                                 const void* signs_b) {
  return Simd::negate_where(Simd::spread_bits<255>(signs_a, signs_b), Simd::from_words(words));
}

// The 32 signs behind four 7-bit sign indices.
HM_INLINE uint32_t expand_four_signs(uint32_t indices) {
  return expand_signs(indices) | expand_signs(indices >> 7) << 8 |
         expand_signs(indices >> 14) << 16 | expand_signs(indices >> 21) << 24;
}

// out[g] = 2 s[g] + 1 for 2n nibbles s, low first.
HM_INLINE void odd_scales(const uint8_t* nibbles, int n, int8_t* out) {
  for (int i = 0; i < n; ++i) {
    out[2 * i] = static_cast<int8_t>(2 * (nibbles[i] & 15) + 1);
    out[2 * i + 1] = static_cast<int8_t>(2 * (nibbles[i] >> 4) + 1);
  }
}

struct GroupIQ2_XXS : SignedGroupOf<BlockIQ2_XXS> {
  HM_INLINE void load(const Block* b) {
    int8_t scales[8];
    for (int g = 0; g < 8; ++g) {
      scales[g] = static_cast<int8_t>(2 * (load_u32(b->qs + 4 * g + 2) >> 28) + 1);
    }
    d = Lanes::mul(Lanes::set(half_to_float(b->d) * 0.125f), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    uint64_t words[8];
    uint32_t signs[2];
    for (int h = 0; h < 2; ++h) {
      const uint16_t* qs = b->qs + 8 * P + 4 * h;
      const uint32_t indices = load_u32(qs);
      for (int k = 0; k < 4; ++k) {
        words[4 * h + k] = kCodebookIQ2_XXS.entry[(indices >> (8 * k)) & 0xff];
      }
      signs[h] = expand_four_signs(load_u32(qs + 2));
    }
    return signed_codes(words, &signs[0], &signs[1]);
  }
};

struct GroupIQ2_XS : SignedGroupOf<BlockIQ2_XS, Simd::PerHalf> {
  HM_INLINE void load(const Block* b) {
    int8_t scales[16];
    odd_scales(b->scales, 8, scales);
    d = Lanes::mul(Lanes::set(half_to_float(b->d) * 0.125f), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    uint64_t words[8];
    uint32_t signs[2] = {0, 0};
    for (int k = 0; k < 8; ++k) {
      const uint32_t q = b->qs[8 * P + k];
      words[k] = kCodebookIQ2_XS.entry[q & 511];
      signs[k / 4] |= expand_signs(q >> 9) << (8 * (k % 4));
    }
    return signed_codes(words, &signs[0], &signs[1]);
  }
};

struct GroupIQ2_S : SignedGroupOf<BlockIQ2_S, Simd::PerHalf> {
  HM_INLINE void load(const Block* b) {
    int8_t scales[16];
    odd_scales(b->scales, 8, scales);
    d = Lanes::mul(Lanes::set(half_to_float(b->d) * 0.125f), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    uint64_t words[8];
    for (int k = 0; k < 8; ++k) {
      const int high = (b->qh[2 * P + k / 4] >> (2 * (k % 4))) & 3;
      words[k] = kCodebookIQ2_S.entry[b->qs[8 * P + k] | high << 8];
    }
    return signed_codes(words, b->signs + 8 * P, b->signs + 8 * P + 4);
  }
};

struct GroupIQ3_XXS : SignedGroupOf<BlockIQ3_XXS> {
  HM_INLINE void load(const Block* b) {
    int8_t scales[8];
    for (int g = 0; g < 8; ++g) {
      scales[g] = static_cast<int8_t>(2 * (load_u32(b->words + 4 * g) >> 28) + 1);
    }
    d = Lanes::mul(Lanes::set(half_to_float(b->d) * 0.25f), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    uint64_t words[8];
    const uint8_t* qs = b->qs + 16 * P;
    for (int k = 0; k < 8; ++k) {
      const uint64_t low = kCodebookIQ3_XXS.entry[qs[2 * k]];
      words[k] = low | static_cast<uint64_t>(kCodebookIQ3_XXS.entry[qs[2 * k + 1]]) << 32;
    }
    const uint32_t signs[2] = {expand_four_signs(load_u32(b->words + 8 * P)),
                               expand_four_signs(load_u32(b->words + 8 * P + 4))};
    return signed_codes(words, &signs[0], &signs[1]);
  }
};

struct GroupIQ3_S : SignedGroupOf<BlockIQ3_S> {
  HM_INLINE void load(const Block* b) {
    int8_t scales[8];
    odd_scales(b->scales, 4, scales);
    d = Lanes::mul(Lanes::set(half_to_float(b->d)), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    uint64_t words[8];
    const uint8_t* qs = b->qs + 16 * P;
    for (int k = 0; k < 8; ++k) {
      const int high = b->qh[2 * P + k / 4] >> (2 * (k % 4));
      const uint64_t low = kCodebookIQ3_S.entry[qs[2 * k] | (high & 1) << 8];
      const uint64_t next = kCodebookIQ3_S.entry[qs[2 * k + 1] | (high & 2) << 7];
      words[k] = low | next << 32;
    }
    return signed_codes(words, b->signs + 8 * P, b->signs + 8 * P + 4);
  }
};

// The shift of 1/8 makes the codes 8 c + 1 and 8 c - 1.
HM_INLINE uint64_t eight_times_plus_one(uint64_t entry) {
  return ((entry << 3) & (0xf8 * kEachByte)) | kEachByte;
}

struct GroupIQ1_S : SignedGroupOf<BlockIQ1_S> {
  HM_INLINE void load(const Block* b) {
    int8_t scales[8];
    for (int g = 0; g < 8; ++g) {
      scales[g] = static_cast<int8_t>(2 * ((b->qh[g] >> 12) & 7) + 1);
    }
    d = Lanes::mul(Lanes::set(half_to_float(b->d) * 0.125f), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    uint64_t words[8], minus[8];
    for (int k = 0; k < 8; ++k) {
      const int qh = b->qh[2 * P + k / 4];
      const int high = (qh >> (3 * (k % 4))) & 7;
      words[k] = eight_times_plus_one(kCodebookIQ1.entry[b->qs[8 * P + k] | high << 8]);
      minus[k] = (qh >> 15) * (2 * kEachByte);
    }
    return Simd::sub(Simd::from_words(words), Simd::from_words(minus));
  }
};

struct GroupIQ1_M : SignedGroupOf<BlockIQ1_M, Simd::PerHalf> {
  HM_INLINE void load(const Block* b) {
    uint16_t words[4];
    memcpy(words, b->scales, sizeof words);
    int8_t scales[16];
    for (int g = 0; g < 16; ++g) {
      scales[g] = static_cast<int8_t>(2 * ((words[g / 4] >> (3 * (g % 4))) & 7) + 1);
    }
    d = Lanes::mul(Lanes::set(half_to_float(iq1_m_scale(words)) * 0.125f), Lanes::from_s8(scales));
  }
  template <int P>
  HM_INLINE Simd::B64 codes(const Block* b) const {
    uint64_t words[8], minus[8];
    for (int k = 0; k < 8; ++k) {
      const int qh = b->qh[4 * P + k / 2] >> (4 * (k % 2));
      words[k] = eight_times_plus_one(kCodebookIQ1.entry[b->qs[8 * P + k] | (qh & 7) << 8]);
      minus[k] = ((qh >> 3) & 1) * (2 * kEachByte);
    }
    return Simd::sub(Simd::from_words(words), Simd::from_words(minus));
  }
};

}  // namespace
}  // namespace hm
