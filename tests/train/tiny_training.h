// A recipe and configs small enough to train in a test: 64x48 pictures, a few thousand parameters.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>

#include "train/train.h"

namespace ultraflash::testing {

/// A folder that goes away with the test.
class TrainingFolder {
 public:
  explicit TrainingFolder(const std::string& name)
      : path_(std::filesystem::temp_directory_path() / ("ultraflash-train-test-" + name)) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
    write("recipe.json", R"({
      "name": "tiny", "summary": "for tests", "frames_per_second": 16, "default_scale": 1,
      "shipped_models": "pocket",
      "text": {"encoder": {"vocab_size": 1000, "dim": 32, "dim_attn": 32, "dim_ffn": 48,
                           "num_heads": 2, "num_layers": 1},
               "checkpoint": {"files": ["text_encoder.safetensors"]},
               "tokenizer_files": ["spiece.model"]},
      "generator": {
        "network": {"dim": 48, "ffn_dim": 64, "num_layers": 2, "num_heads": 2, "in_dim": 16,
                    "out_dim": 16, "freq_dim": 16, "text_dim": 32, "text_len": 32},
        "checkpoint": {"files": ["generator.safetensors"]},
        "latent_height": 6, "latent_width": 8, "frames_per_chunk": 3,
        "denoising_steps": [1000, 750, 500, 250], "timestep_shift": 5.0,
        "cache_kind": "window", "cache_frames": 6, "sink_frames": 0},
      "cascades": [
        {"scale": 1,
         "decoder": {"kind": "tiny", "tiny": {"layout": "tiny", "widths": [16, 12, 8, 8]},
                     "tiny_encoder": {"latent_channels": 16, "width": 8},
                     "checkpoint": {"files": ["tiny_autoencoder.safetensors"]}}},
        )" + enlarged(2) + ", " +
                             enlarged(3) + "]}");
  }
  TrainingFolder(const TrainingFolder&) = delete;
  TrainingFolder& operator=(const TrainingFolder&) = delete;
  ~TrainingFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }

  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const {
    return path_ / name;
  }
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::ofstream(path_ / name) << text;
    return path_ / name;
  }

  /// The options of a stage: in f32, two workers, small data, no pictures. `more` is the rest of
  /// the config's object.
  [[nodiscard]] TrainOptions stage(const std::string& stage, const std::string& out,
                                   const std::string& more) const {
    TrainOptions options;
    options.config = write(stage + ".json", R"({"stage": ")" + stage + R"(", "recipe": ")" +
                                                (path_ / "recipe.json").string() + R"(",
            "compute": "f32", "log_every": 1, "data": {"workers": 2, "prefetch": 2},
            "autoencoder": {"eval_clips": 0, "frames": 8, "data_scales": [1, 2]},
            "bank": {"clips": 8, "encode_batch": 4, "latent_frames": 6, "refresh": 2},
            "flow": {"sample_clips": 0}, "cascade": {"eval_clips": 0, "frames": 4},
            "ode": {"teacher_steps": 4, "pairs": 4, "make_batch": 2, "refresh_every": 2})" +
                                                (more.empty() ? "" : ", " + more) + "}");
    options.out = path_ / out;
    return options;
  }

 private:
  // The cascade of a scale; its transformer is as the generator.
  static std::string enlarged(int scale) {
    const std::string s = std::to_string(scale);
    return R"({"scale": )" + s + R"(,
         "upsampler": {
           "network": {"version": 1, "scale": )" +
           s + R"(, "mid_channels": 8, "num_blocks": 2},
           "checkpoint": {"files": ["upsampler_)" +
           s + R"(x.safetensors"]}},
         "refiner": {
           "network": {
             "transformer": {"dim": 48, "ffn_dim": 64, "num_layers": 2, "num_heads": 2,
                             "in_dim": 32, "out_dim": 16, "freq_dim": 16, "text_dim": 32,
                             "text_len": 32},
             "window_frames": 2, "window_height": 4, "window_width": 4, "local_range": 3,
             "ref_spatial_tokens": 24, "stream_chunk_size": 2},
           "checkpoint": {"files": ["sr_dit.safetensors"]}, "kv_len": 2},
         "decoder": {"kind": "tiny",
                     "tiny": {"layout": "ultra", "widths": [12, 8, 8, 8],
                              "memory_init": "replicate"},
                     "checkpoint": {"files": ["ultra_decoder.safetensors"]}}})";
  }

  std::filesystem::path path_;
};

}  // namespace ultraflash::testing
