// A loop over a large count on all processors, for work that is done once while loading.
#pragma once

#include <cstdint>
#include <functional>

namespace ultraflash {

/// Calls `work(begin, end)` for the parts of [0, count), each `grain` long but for the last, on as
/// many threads as the machine has. The parts do not depend on the number of threads; they run at
/// the same time and in no particular order. Returns when all are done; an exception of a part is
/// thrown here.
void parallel_chunks(int64_t count, int64_t grain,
                     const std::function<void(int64_t begin, int64_t end)>& work);

}  // namespace ultraflash
