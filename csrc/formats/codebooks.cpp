#include "formats/codebooks.h"

#include "formats/code_planes.h"
#include "formats/joined_codebooks.h"

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

template <int N>
constexpr CodePlanes<N> planes(const uint16_t (&packed)[N]) {
  CodePlanes<N> book{};
  const auto plane = [](int codes) {
    return static_cast<uint8_t>((codes & 0xc3) | (codes & 0x30) >> 2 | (codes & 0x0c) << 2);
  };
  for (int n = 0; n < N; ++n) {
    book.low[n] = plane(packed[n]);
    book.high[n] = plane(packed[n] >> 8);
  }
  return book;
}

template <int N>
constexpr CodePlanes<N> pair_planes(const uint16_t (&packed)[N]) {
  CodePlanes<N> book{};
  const auto pair = [](int codes) {
    return static_cast<uint8_t>((codes & 7) | (codes & 0x70) << 1);
  };
  for (int n = 0; n < N; ++n) {
    book.low[n] = pair(packed[n]);
    book.high[n] = pair(packed[n] >> 8);
  }
  return book;
}

consteval SortedCodePlanes sorted_planes(const uint16_t (&packed)[2048]) {
  SortedCodePlanes book{};
  uint8_t rank = 0;
  for (int n = 0, steps = 0; n < 2048; ++n) {
    const int sixteen = n / 16, high = packed[n] >> 8;
    book.low[n] = static_cast<uint8_t>(packed[n]);
    const bool is_next = n > 0 && high != packed[n - 1] >> 8;
    if (is_next) ++rank;
    book.high[rank] = static_cast<uint8_t>(high);
    if (n % 16 == 0) {
      steps = 0;
      book.first[sixteen] = rank;
      book.above[0][sixteen] = book.above[1][sixteen] = static_cast<uint8_t>(n % 256 + 15);
    } else if (is_next) {
      book.above[steps++][sixteen] = static_cast<uint8_t>(n % 256 - 1);
    }
  }
  return book;
}

constexpr Codebook<uint64_t, 2048> low_first(const Codebook<uint64_t, 2048>& book) {
  Codebook<uint64_t, 2048> result{};
  for (int n = 0; n < 2048; ++n) result.entry[8 * (n % 256) + n / 256] = book.entry[n];
  return result;
}

template <int N>
constexpr Codebook<uint64_t, N> in_upper_halves(const Codebook<uint32_t, N>& book) {
  Codebook<uint64_t, N> result{};
  for (int n = 0; n < N; ++n) result.entry[n] = static_cast<uint64_t>(book.entry[n]) << 32;
  return result;
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
constinit const Codebook<uint64_t, 2048> kCodebookLowFirstIQ1 =
    low_first(expand<uint64_t>(kPackedIQ1, kBiasedTernary));
constinit const Codebook<uint64_t, 256> kCodebookUpperIQ3_XXS =
    in_upper_halves(expand<uint32_t>(kPackedIQ3_XXS, kIQ3_XXS));
constinit const Codebook<uint64_t, 512> kCodebookUpperIQ3_S =
    in_upper_halves(expand<uint32_t>(kPackedIQ3_S, kIQ3_S));
constinit const Codebook<uint64_t, 256> kCodebookIQ2_XXS = expand<uint64_t>(kPackedIQ2_XXS, kIQ2);
constinit const Codebook<uint64_t, 512> kCodebookIQ2_XS = expand<uint64_t>(kPackedIQ2_XS, kIQ2);
constinit const Codebook<uint64_t, 1024> kCodebookIQ2_S = expand<uint64_t>(kPackedIQ2_S, kIQ2);
constinit const Codebook<uint32_t, 256> kCodebookIQ3_XXS =
    expand<uint32_t>(kPackedIQ3_XXS, kIQ3_XXS);
constinit const CodeWords<256> kWordsIQ2_XXS = spread<2>(kPackedIQ2_XXS);
constinit const CodeWords<512> kWordsIQ2_XS = spread<2>(kPackedIQ2_XS);
constinit const CodeWords<256> kWordsIQ3_XXS = spread<4>(kPackedIQ3_XXS);
constinit const CodeWords<512> kWordsIQ3_S = spread<4>(kPackedIQ3_S);
constinit const CodePlanes<256> kCodebookPlanesIQ2_XXS = planes(kPackedIQ2_XXS);
constinit const CodePlanes<512> kCodebookPlanesIQ2_XS = planes(kPackedIQ2_XS);
constinit const CodePlanes<1024> kCodebookPlanesIQ2_S = planes(kPackedIQ2_S);
constinit const CodePlanes<256> kCodebookPairsIQ3_XXS = pair_planes(kPackedIQ3_XXS);
constinit const CodePlanes<512> kCodebookPairsIQ3_S = pair_planes(kPackedIQ3_S);
constinit const SortedCodePlanes kCodebookPlanesIQ1 = sorted_planes(kPackedIQ1);
constinit const Codebook<uint8_t, 128> kCodebookSigns = signs_with_parity();
constinit const Codebook<uint32_t, 512> kCodebookIQ3_S = expand<uint32_t>(kPackedIQ3_S, kIQ3_S);

}  // namespace hm
