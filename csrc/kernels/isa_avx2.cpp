#include "kernels/simd_avx2.h"

namespace hm {
namespace {

using Simd = SimdAvx2;

}  // namespace
}  // namespace hm

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

constinit const KernelTable kAvx2 = make_table("avx2");

}  // namespace hm
