#include "kernels/simd_avx512.h"

#include "kernels/codebook_loads_amx-inl.h"

#include "kernels/codebook_groups_avx512-inl.h"

#include "kernels/ternary_digits_avx512-inl.h"

#include "kernels/ternary_gemv-inl.h"

#include "kernels/rounding_avx512-inl.h"

#include "kernels/few_tokens-inl.h"

#include "kernels/table-inl.h"

#include "kernels/amx_table-inl.h"

namespace hm {

constinit const KernelTable kAmx = make_tile_table("amx");

}  // namespace hm
