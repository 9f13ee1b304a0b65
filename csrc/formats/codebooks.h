// Codebooks of the IQ types, packed and expanded to one byte per weight. Data: codebooks.cpp.
#pragma once

#include <stdint.h>

namespace hm {

// Entry: 8 (uint64_t) or 4 (uint32_t) weights of a codebook index, byte i for weight i.
template <class Entry, int N>
struct Codebook {
  Entry entry[N];
};

extern const Codebook<uint64_t, 2048> kCodebookIQ1;        // signed bytes -1, 0, 1
extern const Codebook<uint64_t, 2048> kCodebookBiasedIQ1;  // the same c as 8 c + 15
extern const Codebook<uint64_t, 256> kCodebookIQ2_XXS;
extern const Codebook<uint64_t, 512> kCodebookIQ2_XS;
extern const Codebook<uint64_t, 1024> kCodebookIQ2_S;
extern const Codebook<uint32_t, 256> kCodebookIQ3_XXS;
extern const Codebook<uint32_t, 512> kCodebookIQ3_S;

// Four weights in 16 bits, the index of each value in the order of size; aligned to 64.
extern const uint16_t kPackedIQ3_XXS[256];
extern const uint16_t kPackedIQ3_S[512];

// Eight weights of 2 bits, or four of 4, in a word: byte i % 2 of the word shifted by 2 (4) times
// i / 2 has that of weight i in its lowest bits, as its value's index in the order of size.
template <int N>
struct CodeWords {
  alignas(64) uint16_t word[N];
};

extern const CodeWords<256> kWordsIQ2_XXS;
extern const CodeWords<512> kWordsIQ2_XS;
extern const CodeWords<256> kWordsIQ3_XXS;
extern const CodeWords<512> kWordsIQ3_S;

// A 7-bit sign index as eight sign bits: the eighth is the parity of the seven.
extern const Codebook<uint8_t, 128> kCodebookSigns;

constexpr int8_t kValuesIQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
// Twice the sixteen E2M1 numbers, of MXFP4 and NVFP4.
constexpr int8_t kValuesE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

}  // namespace hm
