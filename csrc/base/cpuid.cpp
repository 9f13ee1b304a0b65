#include "base/cpuid.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hm {
namespace {

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf cpuid(uint32_t leaf, uint32_t subleaf) {
  Leaf r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

constexpr bool bit(uint32_t word, int n) { return (word >> n) & 1; }

// Which register states the OS saves: XCR0. Only to be read where CPUID says OSXSAVE.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

constexpr uint64_t kYmmStates = 0x6;                // SSE, AVX
constexpr uint64_t kZmmStates = kYmmStates | 0xe0;  // mask registers, upper halves, zmm16..31
constexpr uint64_t kTileStates = 0x60000;           // tile configuration, tile data

bool request_tiles() {
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}

}  // namespace

CpuFeatures detect_cpu() {
  CpuFeatures cpu;
  const Leaf basic = cpuid(1, 0);
  if (!bit(basic.ecx, 27)) return cpu;  // OSXSAVE
  const uint64_t states = saved_states();
  const auto saved = [states](uint64_t mask) { return (states & mask) == mask; };
  const Leaf extended = cpuid(7, 0);
  const bool fma = bit(basic.ecx, 12), avx = bit(basic.ecx, 28), f16c = bit(basic.ecx, 29);
  cpu.avx2 = saved(kYmmStates) && fma && avx && f16c && bit(extended.ebx, 5);
  const Leaf more = cpuid(7, 1);
  cpu.avx_vnni = cpu.avx2 && bit(more.eax, 4);
  const bool f = bit(extended.ebx, 16), dq = bit(extended.ebx, 17), bw = bit(extended.ebx, 30);
  const bool vl = bit(extended.ebx, 31), vnni = bit(extended.ecx, 11);
  cpu.avx512 = cpu.avx2 && saved(kZmmStates) && f && dq && bw && vl && vnni && bit(extended.ebx, 8);
  const bool vbmi = bit(extended.ecx, 1), vector_bf16 = bit(more.eax, 5);
  cpu.avx512_vbmi = cpu.avx512 && vbmi;
  const bool tile = bit(extended.edx, 24), int8 = bit(extended.edx, 25),
             bf16 = bit(extended.edx, 22);
  cpu.amx = cpu.avx512 && vbmi && vector_bf16 && saved(kTileStates) && tile && int8 && bf16 &&
            request_tiles();
  return cpu;
}

}  // namespace hm

#else

namespace hm {

CpuFeatures detect_cpu() { return {}; }

}  // namespace hm

#endif
