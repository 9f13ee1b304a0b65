// Host calls by the addresses that Python gives.
#pragma once

#include "bindings.h"
#include "ops/host_call.h"

namespace hm {

inline HostCallMemory call_memory(Address x, Address ids, Address weights, Address out,
                                  int64_t max_tokens, int64_t top_k, Address slot_of) {
  return {
      .x = pointer<const float>(x),
      .ids = pointer<const int32_t>(ids),
      .weights = pointer<const float>(weights),
      .out = pointer<float>(out),
      .max_tokens = max_tokens,
      .top_k = top_k,
      .slot_of = pointer<const int32_t>(slot_of),
  };
}

}  // namespace hm
