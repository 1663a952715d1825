// What the machine has.
#pragma once

#include <cstdint>

namespace ultraflash {

/// Memory that this process may use in all: the machine's, or its control group's limit if smaller.
uint64_t host_memory_bytes();

}  // namespace ultraflash
