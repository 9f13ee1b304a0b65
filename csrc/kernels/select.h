// Which kernel table runs.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace hm {

// The tables in this build, best first, and those of them that this machine can run.
std::vector<const KernelTable*> compiled_tables();
std::vector<const KernelTable*> supported_tables();

// The table in use: the best supported one unless another was selected.
const KernelTable& active_table();

// Throws Error if `name` is not supported here.
void select_table(const std::string& name);

// Makes a table active that is in no list: one that wraps another's kernels.
void use_table(const KernelTable& table);

}  // namespace hm
