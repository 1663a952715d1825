// VideoWriter: takes the pictures of a session and puts them into files.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common.h"
#include "generate_settings.h"
#include "media/frame_sink.h"
#include "ultraflash/engine.h"
#include "ultraflash/status.h"

namespace ultraflash::cli {

/// One finished video.
struct Written {
  std::string path;
  std::string low_resolution_path;  // empty: none
  std::string sink;
  int64_t frames = 0;
  int64_t width = 0;
  int64_t height = 0;
  double seconds = 0.0;        // from the start of the stream until the file was complete
  double first_seconds = 0.0;  // until the first pictures
  int64_t bytes = 0;
  Status outcome;  // how the stream ended: kEnd, or why there are fewer frames than planned
};

class VideoWriter {
 public:
  /// Both must outlive it. `settings` say how to encode.
  VideoWriter(const GenerateSettings& settings, const Engine& engine)
      : settings_(settings), engine_(engine) {}

  /// Opens the files; until run() has written something, they are part files. `low_resolution_path`
  /// may be empty.
  Status open(const std::string& prompt, const std::string& path,
              const std::string& low_resolution_path);
  /// Reads the session to its end. What was made is kept, whatever ended the stream; a failure to
  /// write is the result's status.
  Result<Written> run(Session& session, ProgressLine& progress);

 private:
  Result<std::unique_ptr<FrameSink>> open_sink_at(const std::string& prompt,
                                                  const std::string& path, int64_t width,
                                                  int64_t height) const;
  Status write(const Frames& frames);
  void report(ProgressLine& progress, int64_t planned, double seconds) const;

  const GenerateSettings& settings_;
  const Engine& engine_;
  EngineInfo info_;
  std::unique_ptr<FrameSink> sink_;
  std::unique_ptr<FrameSink> small_;
  Written written_;
};

}  // namespace ultraflash::cli
