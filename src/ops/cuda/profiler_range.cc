#include "ops/profiler_range.h"

#include <nvtx3/nvToolsExt.h>

namespace ultraflash {

ProfilerRange::ProfilerRange(const char* name) { nvtxRangePushA(name); }
ProfilerRange::~ProfilerRange() { nvtxRangePop(); }

}  // namespace ultraflash
