// What this CPU, and the operating system on it, can run.
#pragma once

namespace hm {

struct CpuFeatures {
  bool avx2 = false;      // AVX2, FMA, F16C, with the OS saving ymm
  bool avx_vnni = false;  // the same, and VNNI of ymm without AVX-512's registers
  bool avx512 = false;    // F, BW, VL, DQ, VNNI, and BMI2, with the OS saving zmm
  bool avx512_vbmi = false;
  bool amx =
      false;  // tile, int8, bf16, with the OS saving tiles and Linux's permission to use them
};

// Asks the kernel for the AMX tiles where there are any: permission is per process, and once given
// enlarges the signal frame of every thread.
CpuFeatures detect_cpu();

}  // namespace hm
