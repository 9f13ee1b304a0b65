#pragma once

#include <cstdint>

namespace hm {

// Brings memory into the caches next to this core, without waiting for it.
inline void fetch(const void* memory, int64_t bytes) {
  constexpr int64_t line = 64;
  const auto* p = static_cast<const char*>(memory);
  for (int64_t i = 0; i < bytes; i += line) __builtin_prefetch(p + i);
}

}  // namespace hm
