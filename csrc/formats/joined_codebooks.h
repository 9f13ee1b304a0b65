// Codebooks of the IQ types in the order of indices, or the place in a word, that AVX2 takes.
#pragma once

#include "formats/codebooks.h"

namespace hm {

// kCodebookBiasedIQ1, the entry of index i at 8 (i % 256) + i / 256.
extern const Codebook<uint64_t, 2048> kCodebookLowFirstIQ1;
// Entries in the upper half of words.
extern const Codebook<uint64_t, 256> kCodebookUpperIQ3_XXS;
extern const Codebook<uint64_t, 512> kCodebookUpperIQ3_S;

}  // namespace hm
