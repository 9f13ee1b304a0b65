#include "kernels/simd_scalar.h"

#include "kernels/codebook_groups-inl.h"

#include "kernels/table-inl.h"

namespace hm {

constinit const KernelTable kScalar = make_table("scalar");

}  // namespace hm
