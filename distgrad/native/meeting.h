// How the ranks of a host wait for one another.
#pragma once

#include <cstdint>

#include "shared_memory.h"
#include "status_page.h"

namespace distgrad {

// Returns when every rank has come to this meeting: `number` is 1 for the first one in this memory, and wraps around.
// What a rank wrote before a meeting, all ranks see behind it.
void meet(SharedMemory& memory, int rank, std::uint32_t number, StatusPage& page);

}  // namespace distgrad
