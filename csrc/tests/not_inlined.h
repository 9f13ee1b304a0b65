// Included before all else by tests that compile kernels without optimization: each function stands
// once instead of at all its calls, which compiles in a fifth of the time, and one that is not in
// the unnamed namespace becomes a weak symbol, which test_isa_objects.py looks for.
#pragma once

#include "base/inline.h"

#undef HM_INLINE
#define HM_INLINE inline
