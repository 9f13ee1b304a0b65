// What an object exports that completes an instruction set where a CPU has more than it needs.
#pragma once

#include "kernels/kernel_table.h"

namespace hm {

// Products that replace the table's; null pointers where it keeps its own.
struct ExtraKernels {
  void (*matmul[kNumTypeIds])(const MatmulArgs& args);
};

extern const ExtraKernels kAvx512Vbmi;

}  // namespace hm
