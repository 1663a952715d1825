// CRC-32 as zip archives use it (IEEE 802.3, reflected polynomial 0xEDB88320).
#pragma once

#include <cstdint>

#include "core/bytes.h"

namespace ultraflash {

/// The CRC of `bytes`, or of `bytes` appended to what `previous` is the CRC of. About 1 GB/s.
uint32_t crc32(ByteSpan bytes, uint32_t previous = 0);

}  // namespace ultraflash
