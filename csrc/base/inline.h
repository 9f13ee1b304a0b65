// HM_INLINE: a function that must vanish into its caller, so that an instruction set's code never
// becomes a symbol of its own.
#pragma once

#define HM_INLINE inline __attribute__((always_inline))
