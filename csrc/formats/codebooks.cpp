#include "formats/codebooks.h"

namespace hm {

#include "formats/codebooks_data.inc"

namespace {

// A packed word holds, for each of its 8 or 4 weights, an index (2 or 4 bits) into `values`.
template <class Entry, int N, int M>
constexpr Codebook<Entry, N> expand(const uint16_t (&packed)[N], const int8_t (&values)[M]) {
  constexpr int weights = sizeof(Entry);
  constexpr int bits = 16 / weights;
  Codebook<Entry, N> book{};
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < weights; ++i) {
      const uint8_t value = static_cast<uint8_t>(values[(packed[n] >> (bits * i)) & (M - 1)]);
      book.entry[n] |= static_cast<Entry>(value) << (8 * i);
    }
  }
  return book;
}

// The same weights as words from which byte i % 2 of the word shifted by bits (i / 2) has weight i.
template <int Bits, int N>
constexpr CodeWords<N> spread(const uint16_t (&packed)[N]) {
  CodeWords<N> words{};
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < 16 / Bits; ++i) {
      const int code = packed[n] >> (Bits * i) & ((1 << Bits) - 1);
      words.word[n] = static_cast<uint16_t>(words.word[n] | code << (8 * (i % 2) + Bits * (i / 2)));
    }
  }
  return words;
}

constexpr Codebook<uint8_t, 128> signs_with_parity() {
  Codebook<uint8_t, 128> book{};
  for (int index = 0; index < 128; ++index) {
    int parity = 0;
    for (int bit = 0; bit < 7; ++bit) parity ^= index >> bit & 1;
    book.entry[index] = static_cast<uint8_t>(index | parity << 7);
  }
  return book;
}

constexpr int8_t kTernary[4] = {-1, 0, 1, 0};
constexpr int8_t kBiasedTernary[4] = {7, 15, 23, 0};
constexpr int8_t kIQ2[4] = {8, 25, 43, 0};
constexpr int8_t kIQ3_XXS[8] = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr int8_t kIQ3_S[8] = {1, 3, 5, 7, 9, 11, 13, 15};

}  // namespace

constinit const Codebook<uint64_t, 2048> kCodebookIQ1 = expand<uint64_t>(kPackedIQ1, kTernary);
constinit const Codebook<uint64_t, 2048> kCodebookBiasedIQ1 =
    expand<uint64_t>(kPackedIQ1, kBiasedTernary);
constinit const Codebook<uint64_t, 256> kCodebookIQ2_XXS = expand<uint64_t>(kPackedIQ2_XXS, kIQ2);
constinit const Codebook<uint64_t, 512> kCodebookIQ2_XS = expand<uint64_t>(kPackedIQ2_XS, kIQ2);
constinit const Codebook<uint64_t, 1024> kCodebookIQ2_S = expand<uint64_t>(kPackedIQ2_S, kIQ2);
constinit const Codebook<uint32_t, 256> kCodebookIQ3_XXS =
    expand<uint32_t>(kPackedIQ3_XXS, kIQ3_XXS);
constinit const CodeWords<256> kWordsIQ2_XXS = spread<2>(kPackedIQ2_XXS);
constinit const CodeWords<512> kWordsIQ2_XS = spread<2>(kPackedIQ2_XS);
constinit const CodeWords<256> kWordsIQ3_XXS = spread<4>(kPackedIQ3_XXS);
constinit const CodeWords<512> kWordsIQ3_S = spread<4>(kPackedIQ3_S);
constinit const Codebook<uint8_t, 128> kCodebookSigns = signs_with_parity();
constinit const Codebook<uint32_t, 512> kCodebookIQ3_S = expand<uint32_t>(kPackedIQ3_S, kIQ3_S);

}  // namespace hm
