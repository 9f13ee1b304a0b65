// forget: hides a value from the compiler's optimizations.
#pragma once

#include "base/inline.h"

namespace hm {
namespace {

#ifdef __AVX512F__
constexpr int kRegisterBytes = 64;
#else
constexpr int kRegisterBytes = 32;
#endif

// The compiler knows nothing of v after this; free, but for what no register holds.
template <class V>
HM_INLINE void forget(V& v) {
  if constexpr (__is_class(V) || sizeof v > kRegisterBytes) {
    asm volatile("" : "+m"(v));
  } else {
    asm volatile("" : "+v"(v));
  }
}

}  // namespace
}  // namespace hm
