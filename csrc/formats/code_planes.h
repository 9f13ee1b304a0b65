// Codebooks of the IQ types, apart in bytes: for permutes that look up bytes.
#pragma once

#include <stdint.h>

namespace hm {

// Eight weights of 2 bits, apart: of the first four, and of the last four. In a byte: the first,
// third, second, fourth.
template <int N>
struct CodePlanes {
  alignas(64) uint8_t low[N], high[N];
};

extern const CodePlanes<256> kCodebookPlanesIQ2_XXS;
extern const CodePlanes<512> kCodebookPlanesIQ2_XS;
extern const CodePlanes<1024> kCodebookPlanesIQ2_S;

// Of IQ3: the first two weights of an entry, and the last two, as bits 0..2 and 5..7.
extern const CodePlanes<256> kCodebookPairsIQ3_XXS;
extern const CodePlanes<512> kCodebookPairsIQ3_S;

// The same of IQ1. Its entries are sorted, so their last four weights are 81 values that follow
// each other, at most three in 16 entries: of entry n, those of high[first[n / 16] + steps], where
// steps is how many of above[0][n / 16] and above[1][n / 16] are less than n % 256.
struct SortedCodePlanes {
  alignas(64) uint8_t low[2048], high[128], first[128], above[2][128];
};

extern const SortedCodePlanes kCodebookPlanesIQ1;

}  // namespace hm
