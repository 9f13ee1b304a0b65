#include "kernels/simd_avx512.h"

#include "kernels/two_rows_gemv-inl.h"

namespace hm {

constinit const ExtraKernels kAvx512Vbmi = two_rows_kernels();

}  // namespace hm
