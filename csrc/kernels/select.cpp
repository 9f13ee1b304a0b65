#include "kernels/select.h"

#include <atomic>

#include "base/check.h"
#include "base/cpuid.h"
#include "kernels/extra_kernels.h"

namespace hm {
namespace {

#ifdef HM_HAVE_AVX512_VBMI
KernelTable with(const KernelTable& table, const ExtraKernels& extra) {
  KernelTable result = table;
  for (int type = 0; type < kNumTypeIds; ++type) {
    if (extra.matmul[type]) result.formats[type].matmul = extra.matmul[type];
  }
  return result;
}
#endif

// The table of a choice on this CPU.
const KernelTable* completed(const KernelTable* table, [[maybe_unused]] const CpuFeatures& cpu) {
#ifdef HM_HAVE_AVX512_VBMI
  static const KernelTable avx512_vbmi = with(kAvx512, kAvx512Vbmi);
  if (table == &kAvx512 && cpu.avx512_vbmi) return &avx512_vbmi;
#endif
  return table;
}

// An entry of the priority list: which table, and whether a machine can run it.
struct Choice {
  const KernelTable* table;
  bool (*runs_on)(const CpuFeatures& cpu);
};

// First supported wins. setup.py defines HM_HAVE_* for the objects that it links.
constexpr Choice kChoices[] = {
#ifdef HM_HAVE_AMX
    {&kAmx, [](const CpuFeatures& cpu) { return cpu.amx; }},
#endif
#ifdef HM_HAVE_AVX512
    {&kAvx512, [](const CpuFeatures& cpu) { return cpu.avx512; }},
#endif
#ifdef HM_HAVE_AVX_VNNI
    {&kAvxVnni, [](const CpuFeatures& cpu) { return cpu.avx_vnni; }},
#endif
#ifdef HM_HAVE_AVX2
    {&kAvx2, [](const CpuFeatures& cpu) { return cpu.avx2; }},
#endif
    {&kScalar, [](const CpuFeatures&) { return true; }},
};

std::atomic<const KernelTable*>& selected() {
  static std::atomic<const KernelTable*> table{supported_tables().front()};
  return table;
}

}  // namespace

std::vector<const KernelTable*> compiled_tables() {
  std::vector<const KernelTable*> tables;
  for (const Choice& choice : kChoices) tables.push_back(choice.table);
  return tables;
}

std::vector<const KernelTable*> supported_tables() {
  static const CpuFeatures cpu = detect_cpu();
  std::vector<const KernelTable*> tables;
  for (const Choice& choice : kChoices) {
    if (choice.runs_on(cpu)) tables.push_back(completed(choice.table, cpu));
  }
  return tables;
}

const KernelTable& active_table() { return *selected().load(std::memory_order_relaxed); }

void use_table(const KernelTable& table) { selected().store(&table, std::memory_order_relaxed); }

void select_table(const std::string& name) {
  std::string names;
  for (const KernelTable* table : supported_tables()) {
    if (name == table->name) return selected().store(table, std::memory_order_relaxed);
    names += names.empty() ? "" : ", ";
    names += table->name;
  }
  check(false, "instruction set ", name, " cannot run here (supported: ", names, ")");
}

}  // namespace hm
