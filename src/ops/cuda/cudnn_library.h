// Whether cuDNN can be opened. See cudnn_library.cc.
#pragma once

namespace ultraflash::cuda {

bool cudnn_is_there();

}  // namespace ultraflash::cuda
