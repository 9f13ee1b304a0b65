#include "kernels/simd_avx_vnni.h"

#include "kernels/codebook_groups-inl.h"

#include "kernels/codebook_gemv_avx2-inl.h"

#include "kernels/codebook_gemv-inl.h"

#include "kernels/ternary_digits_avx2-inl.h"

#include "kernels/ternary_gemv-inl.h"

#include "kernels/rounding_avx2-inl.h"

#include "kernels/few_tokens-inl.h"

#include "kernels/codebook_few_avx2-inl.h"

#include "kernels/table-inl.h"

namespace hm {

constinit const KernelTable kAvxVnni = make_table("avx_vnni");

}  // namespace hm
