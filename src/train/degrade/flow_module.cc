#include "train/degrade/flow_module.h"

#include <cstring>
#include <opencv2/core.hpp>
#include <opencv2/video/tracking.hpp>

extern "C" __attribute__((visibility("default"))) int ultraflash_dense_flow(
    const uint8_t* from, const uint8_t* to, int height, int width, float* flow, char* message,
    size_t message_bytes) {
  try {
    // The search is divided among threads in stripes that see their own results alone.
    cv::setNumThreads(1);
    const auto picture = [&](const uint8_t* pixels) {
      return cv::Mat(height, width, CV_8UC1, const_cast<uint8_t*>(pixels));  // read only
    };
    const cv::Ptr<cv::DISOpticalFlow> search =
        cv::DISOpticalFlow::create(cv::DISOpticalFlow::PRESET_MEDIUM);
    search->setFinestScale(0);
    cv::Mat result;
    search->calc(picture(from), picture(to), result);
    result.copyTo(cv::Mat(height, width, CV_32FC2, flow));
    return 0;
  } catch (const std::exception& error) {
    std::strncpy(message, error.what(), message_bytes - 1);
    message[message_bytes - 1] = 0;
    return 1;
  }
}
