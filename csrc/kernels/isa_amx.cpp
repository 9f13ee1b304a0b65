// The AVX-512 kernels under AMX's name; see README.md for what the tiles will take over.
#include "kernels/simd_avx512.h"

#include "kernels/codebook_groups_avx512-inl.h"

#include "kernels/table-inl.h"

namespace hm {

constinit const KernelTable kAmx = make_table("amx");

}  // namespace hm
