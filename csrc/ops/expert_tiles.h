// Routed experts by matrix tiles.
#pragma once

#include <span>

#include "base/runtime.h"
#include "ops/expert_ffn.h"
#include "ops/routing.h"

namespace hm {

// Adds the weighted outputs of `batches`, which are some of routing.tiled, to args.out in their
// order.
void add_expert_tiles(const ExpertFfnArgs& args, const Routing& routing,
                      std::span<const Batch> batches, Runtime& runtime);

}  // namespace hm
