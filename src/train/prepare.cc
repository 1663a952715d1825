#include "train/prepare.h"

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "media/frame_sink.h"
#include "media/image.h"
#include "train/clips.h"
#include "train/degrade/degrade.h"
#include "train/pictures.h"

namespace ultraflash {
namespace {

// u8 [frames, height, width, 3]
Status write_video(const TrainContext& context, const at::Tensor& pictures,
                   const std::filesystem::path& path) {
  SinkOptions options;
  options.path = path.string();
  UF_ASSIGN(const std::unique_ptr<FrameSink> sink,
            open_sink(options, {pictures.size(2), pictures.size(1),
                                context.recipe.frames_per_second, /*fps_den=*/1}));
  const at::Tensor x = pictures.contiguous();
  for (int64_t frame = 0; frame < x.size(0); ++frame) {
    UF_TRY(sink->write(
        RgbFrame::contiguous(x.select(0, frame).const_data_ptr<uint8_t>(), x.size(2), x.size(1))));
  }
  return sink->finish();
}

// As the reader of files makes them smaller.
Result<at::Tensor> smaller(const at::Tensor& pictures, int64_t height, int64_t width) {
  const at::Tensor result = at::empty({pictures.size(0), height, width, 3}, at::kByte);
  for (int64_t frame = 0; frame < pictures.size(0); ++frame) {
    UF_ASSIGN(const RgbImage image,
              resize(RgbFrame::contiguous(pictures.select(0, frame).const_data_ptr<uint8_t>(),
                                          pictures.size(2), pictures.size(1)),
                     width, height));
    std::copy(image.pixels.begin(), image.pixels.end(),
              result.select(0, frame).mutable_data_ptr<uint8_t>());
  }
  return result;
}

Status write_captions(const TrainContext& context, const TrainingClips& clips, int64_t index,
                      bool full, const std::filesystem::path& path) {
  std::vector<std::string> captions;
  for (int64_t variant = 0; variant < context.config.bank.captions; ++variant) {
    std::string caption = clips.caption(index, variant, full);
    if (std::find(captions.begin(), captions.end(), caption) == captions.end()) {
      captions.push_back(std::move(caption));
    }
  }
  std::ofstream stream(path, std::ios::binary);
  stream << nlohmann::json{{"caption", captions}}.dump(2) << '\n';
  stream.flush();
  if (!stream) return make_status(StatusCode::kIo, "{}: writing failed", path.string());
  return {};
}

}  // namespace

Status prepare_clips(const TrainContext& context, int64_t count, const std::filesystem::path& out) {
  const TrainConfig& config = context.config;
  const at::NoGradGuard no_grad;
  const std::vector<int64_t>& scales = config.cascade.scales;
  const int64_t scale = *std::max_element(scales.begin(), scales.end());
  for (const bool unseen : {false, true}) {
    UF_ASSIGN(const std::unique_ptr<TrainingClips> clips, TrainingClips::open(context, unseen));
    if (clips->encoded()) {
      return make_status(StatusCode::kInvalidArgument, "data.source {} has no pictures to prepare",
                         config.data.source);
    }
    const std::filesystem::path folder = out / (unseen ? "held-out" : "training");
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) {
      return make_status(StatusCode::kIo, "{}: cannot be made: {}", folder.string(),
                         error.message());
    }
    ClipWindow window;
    window.scale = scale;
    window.frames = pictures_of(
        context.recipe, unseen ? std::max(config.cascade.eval_frames, config.bank.latent_frames)
                               : config.bank.latent_frames);
    window.width = context.width() * scale;
    window.height = context.height() * scale;
    const at::Tensor large = at::empty({window.frames, window.height, window.width, 3}, at::kByte);
    const int64_t all = unseen ? config.cascade.eval_clips : count;
    for (int64_t index = 0; index < all; ++index) {
      const std::string name = fmt::format("{:05}", index);
      clips->render(index, window, large.mutable_data_ptr<uint8_t>());
      UF_TRY(write_video(context, large, folder / (name + ".y4m")));
      UF_TRY(write_captions(context, *clips, index, unseen, folder / (name + ".json")));
      for (const int64_t s : scales) {
        if (unseen) break;  // evaluation starts from clean small clips
        at::Tensor pictures = large;
        if (s != scale) {
          UF_ASSIGN(pictures, smaller(large, context.height() * s, context.width() * s));
        }
        const at::Tensor small =
            degrade::damaged_clip(context, pictures.to(context.device).to(at::kFloat).div_(255.0),
                                  context.height(), context.width(), index);
        UF_TRY(write_video(context, to_bytes(small), folder / fmt::format("{}.{}x.y4m", name, s)));
      }
      if ((index + 1) % 16 == 0 || index + 1 == all) {
        context.log.info(fmt::format("{}: {} of {} clips", folder.string(), index + 1, all));
      }
    }
  }
  return {};
}

}  // namespace ultraflash
