// Readers and writers of files when memory runs out, at every allocation in turn, and how much
// memory a small file can make them ask for.
#include <algorithm>
#include <functional>
#include <span>
#include <vector>

#include "core/bytes.h"
#include "media/frame_sink.h"
#include "media/image.h"
#include "media/video_reader.h"
#include "robustness/counted_memory.h"
#include "support/files.h"
#include "support/status.h"
#include "text/tokenizer.h"
#include "weights/checkpoint.h"
#include "weights/convert.h"
#include "weights/crc32.h"
#include "weights/inspect.h"
#include "weights/lora.h"
#include "weights/safetensors.h"
#include "weights/safetensors_writer.h"
#include "weights/torch_archive.h"

namespace ultraflash {
namespace {

using testing::CountedMemory;

/// Runs `body`, which works when there is memory, with every allocation failing in turn. It must
/// say kOutOfMemory, or do without; a program that ends, or another code, fails the test. `check`
/// looks at what each failure leaves behind.
void fail_everywhere(
    const std::function<Status()>& body, const std::function<void()>& check = [] {}) {
  ASSERT_OK(body());
  for (const auto failing : {CountedMemory::Failing::kOnce, CountedMemory::Failing::kFromThenOn}) {
    bool has_failed = true;
    int64_t refusals = 0;
    for (int64_t n = 0; has_failed; ++n) {
      ASSERT_LT(n, 100'000);
      Status status;
      {
        const CountedMemory memory(n, failing);
        status = body();
        has_failed = memory.has_failed();
      }
      refusals += status.ok() ? 0 : 1;
      ASSERT_TRUE(status.ok() || status.code() == StatusCode::kOutOfMemory)
          << "allocation " << n << ": " << status.to_string();
      ASSERT_TRUE(status.ok() || has_failed) << status.to_string();
      check();
    }
    EXPECT_GT(refusals, 3);
  }
}

std::vector<NamedTensor> some_tensors() {
  const auto tensor = [](const Shape& shape) { return Tensor::zeros(DType::kF32, shape); };
  return {{"model.blocks.0.q.weight", tensor({4, 6})},
          {"model.blocks.0.q.bias", tensor({4})},
          {"model.head.weight", Tensor::zeros(DType::kBF16, {2, 4})}};
}

Status load_all(const Checkpoint& checkpoint) {
  for (const TensorEntry& entry : checkpoint.entries()) {
    UF_TRY(checkpoint.tensor(entry.name).status());
  }
  return {};
}

Status open_and_load(const std::filesystem::path& path, const CheckpointOptions& options) {
  UF_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(path, options));
  UF_TRY(load_all(checkpoint));
  return describe_checkpoint(path).status();
}

TEST(OutOfMemoryTest, CheckpointsOfEveryFormatOpen) {
  const TempFolder folder;
  const std::vector<NamedTensor> tensors = some_tensors();
  ASSERT_OK(save_safetensors(folder / "a.safetensors", tensors, {{"module", "x"}}));
  ASSERT_OK(save_sharded_safetensors(folder / "b.safetensors", tensors, {}, 64));
  ASSERT_OK(save_torch_archive(folder / "c.pt", tensors, "generator"));
  for (const std::filesystem::path& path :
       {folder / "a.safetensors", folder / "b.safetensors.index.json", folder / "c.pt",
        source_path("tests/weights/data/training.pt"),
        source_path("tests/weights/data/views.pt")}) {
    // Made here: what the test itself allocates must not fail.
    const CheckpointOptions options;
    fail_everywhere([&] { return open_and_load(path, options); });
  }
}

TEST(OutOfMemoryTest, WritersLeaveTheOldFileOrTheWholeNewOne) {
  const TempFolder folder;
  const std::vector<NamedTensor> tensors = some_tensors();
  ASSERT_OK(save_safetensors(folder / "whole.safetensors", tensors, {{"k", "v"}}));
  ASSERT_OK(save_torch_archive(folder / "whole.pt", tensors));
  const auto written = [&](const std::string& ending) {
    const std::string whole = read_text(folder / ("whole" + ending));
    const std::filesystem::path path = folder / ("x" + ending);
    return [&folder, whole, path] {
      if (std::filesystem::exists(path)) {
        EXPECT_TRUE(read_text(path) == whole);
        std::filesystem::remove(path);
      }
      EXPECT_EQ(folder.files(), (std::vector<std::string>{"whole.pt", "whole.safetensors"}));
    };
  };
  // Made here: what the test itself allocates must not fail.
  const CheckpointMetadata metadata = {{"k", "v"}};
  const std::filesystem::path safetensors = folder / "x.safetensors";
  const std::filesystem::path archive = folder / "x.pt";
  const std::filesystem::path input = folder / "whole.pt";
  ConvertOptions options;
  options.input.clean_names = false;
  fail_everywhere([&] { return save_safetensors(safetensors, tensors, metadata); },
                  written(".safetensors"));
  fail_everywhere([&] { return save_torch_archive(archive, tensors); }, written(".pt"));
  fail_everywhere([&] { return convert_checkpoint(input, archive, options); }, written(".pt"));
}

TEST(OutOfMemoryTest, AdaptersMerge) {
  const TempFolder folder;
  ASSERT_OK(save_safetensors(folder / "a.safetensors",
                             {{"q.lora_A.weight", Tensor::zeros(DType::kF32, {2, 6})},
                              {"q.lora_B.weight", Tensor::zeros(DType::kBF16, {40, 2})},
                              {"q.alpha", Tensor::zeros(DType::kF32, {1})}}));
  const Tensor weight = Tensor::zeros(DType::kBF16, {40, 6});
  const std::filesystem::path path = folder / "a.safetensors";
  const LoraOptions options;
  fail_everywhere([&]() -> Status {
    UF_ASSIGN(const LoraAdapter adapter, LoraAdapter::open(path, options));
    return merge_lora(weight, adapter.layers()[0], 1.0).status();
  });
}

TEST(OutOfMemoryTest, PicturesAndUncompressedVideos) {
  const TempFolder folder;
  const RgbImage image = RgbImage::black(16, 8);
  const auto options_for = [&](std::string_view name) {
    SinkOptions options;
    options.path = folder / name;
    return options;
  };
  const auto write = [&](const SinkOptions& options) -> Status {
    UF_ASSIGN(const auto sink, open_sink(options, {16, 8, 16, 1}));
    UF_TRY(sink->write(image.view()));
    UF_TRY(sink->write(image.view()));
    return sink->finish();
  };
  const auto read = [](const std::string& path) -> Status {
    UF_ASSIGN(VideoReader reader, VideoReader::open(path));
    for (int64_t frames = 0;; ++frames) {
      UF_ASSIGN(const auto frame, reader.next());
      if (!frame) return frames == 2 ? Status() : Status(StatusCode::kInternal, "frames are lost");
    }
  };
  const SinkOptions y4m = options_for("a.y4m");
  ASSERT_OK(write(y4m));
  const std::string whole = read_text(y4m.path);
  fail_everywhere([&] { return write(y4m); }, [&] { EXPECT_TRUE(read_text(y4m.path) == whole); });
  fail_everywhere([&] { return read(y4m.path); });
  constexpr uint8_t kPixel[3] = {};
  if (!encode_png(RgbFrame::contiguous(kPixel, 1, 1)).ok()) {
    GTEST_SKIP() << "this build has no libpng";
  }
  const std::string png = folder / "a.png";
  const std::vector<RgbFrame> frames(3, image.view());
  fail_everywhere([&]() -> Status {
    UF_TRY(write_png(png, image.view()));
    UF_ASSIGN(const RgbImage back, read_png(png));
    UF_TRY(resize(back.view(), 5, 7).status());
    return contact_sheet(frames).status();
  });
  const SinkOptions pictures = options_for("f_%d.png");
  fail_everywhere([&] { return write(pictures); });
  fail_everywhere([&] { return read(pictures.path); });
}

TEST(OutOfMemoryTest, CompressedVideos) {
  if (available_video_encoders().empty()) GTEST_SKIP() << "this build has no FFmpeg";
  const TempFolder folder;
  const std::string path = folder / "a.mp4";
  const RgbImage image = RgbImage::black(64, 64);
  SinkOptions options;
  options.path = path;
  options.threads = 1;
  options.metadata = {{"prompt", "a cat"}};
  const auto write = [&]() -> Status {
    UF_ASSIGN(const auto sink, open_sink(options, {64, 64, 16, 1}));
    for (int i = 0; i < 3; ++i) UF_TRY(sink->write(image.view()));
    return sink->finish();
  };
  ASSERT_OK(write());
  const std::string whole = read_text(path);
  fail_everywhere(write, [&] { EXPECT_TRUE(read_text(path) == whole); });
  fail_everywhere([&]() -> Status {
    UF_TRY(read_metadata(path).status());
    UF_ASSIGN(VideoReader reader, VideoReader::open(path));
    while (true) {
      UF_ASSIGN(const auto frame, reader.next());
      if (!frame) return {};
    }
  });
}

TEST(OutOfMemoryTest, Prompts) {
  const Result<Tokenizer> tokenizer = Tokenizer::load(source_path("models/pocket/spiece.model"));
  ASSERT_OK(tokenizer.status());
  fail_everywhere([&] {
    return encode_prompt(*tokenizer,
                         "A caf\xc3\xa9 &amp; a r\xc3\xa9"
                         "d circle",
                         32)
        .status();
  });
}

/// Most memory that `parse` asks for, beside the input.
int64_t peak_of(const std::function<void()>& parse) {
  const CountedMemory memory;
  parse();
  return memory.peak_bytes();
}

// A byte of a file may become this many of memory. The densest are JSON values and pickle opcodes
// of one or two bytes, which take 16 to 64; growing vectors double that for a moment.
constexpr int64_t kBytesPerByte = 256;
constexpr int64_t kFixedBytes = int64_t{1} << 20;

TEST(HostileSizeTest, NoParserOfWeightsAsksForMoreThanItsInputJustifies) {
  std::vector<std::string> inputs;
  for (const char* corpus : {"safetensors", "torch_archive"}) {
    const std::filesystem::path folder = source_path("fuzz/corpus") / corpus;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      inputs.push_back(read_text(entry.path()));
    }
  }
  ASSERT_GT(inputs.size(), 20U);
  // Sizes and counts far past what there is.
  const auto header = [](std::string json) {
    std::string file;
    append_le(file, json.size(), 8);
    return file + json;
  };
  inputs.push_back(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f{", 9));
  inputs.push_back(std::string("\x00\xe1\xf5\x05\x00\x00\x00\x00{", 9));
  inputs.push_back(header(R"({"a":{"dtype":"F32","shape":[4611686018427387904,1],)"
                          R"("data_offsets":[0,9223372036854775807]}})"));
  inputs.push_back(header(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],)"
                          R"("data_offsets":[0,0]}})"));
  inputs.push_back(header("[" + std::string(100'000, '[')));
  std::string zeros = "{\"x\":[0";
  for (int i = 0; i < 100'000; ++i) zeros += ",0";
  inputs.push_back(header(zeros + "]}"));
  std::string end_record(
      "PK\x05\x06\x00\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", 20);
  inputs.push_back(end_record + std::string(2, '\0'));
  for (const std::string& input : inputs) {
    const ByteSpan bytes = as_byte_span(input);
    const int64_t limit = kBytesPerByte * std::ssize(input) + kFixedBytes;
    EXPECT_LE(peak_of([&] { static_cast<void>(parse_safetensors(bytes, "x").ok()); }), limit);
    EXPECT_LE(peak_of([&] { static_cast<void>(parse_safetensors_index(input, "x").ok()); }), limit);
    EXPECT_LE(peak_of([&] { static_cast<void>(parse_torch_archive(bytes, "x").ok()); }), limit);
  }
}

TEST(HostileSizeTest, AHeaderAloneGetsNoMemoryForItsFrames) {
  std::vector<std::string> inputs;
  for (const auto& entry : std::filesystem::directory_iterator(source_path("fuzz/corpus/y4m"))) {
    inputs.push_back(read_text(entry.path()));
  }
  inputs.emplace_back("YUV4MPEG2 W8192 H8192 F16:1 C444\nFRAME\n");
  inputs.emplace_back("YUV4MPEG2 W2147483647 H2147483647 F16:1 C444\nFRAME\n");
  inputs.emplace_back("YUV4MPEG2 W99999999999999999999 H1 F16:1\nFRAME\n");
  for (const std::string& input : inputs) {
    const std::vector<uint8_t> bytes(input.begin(), input.end());
    const int64_t peak = peak_of([&] {
      Result<VideoReader> reader = VideoReader::open_memory(bytes, "x");
      while (reader.ok()) {
        const auto frame = reader->next();
        if (!frame.ok() || !frame->has_value()) break;
      }
    });
    EXPECT_LE(peak, kBytesPerByte * std::ssize(input) + kFixedBytes) << input.substr(0, 80);
  }
}

TEST(HostileSizeTest, APictureIsRefusedBeforeItsPixelsAreAllocated) {
  constexpr uint8_t kPixel[3] = {};
  Result<std::vector<uint8_t>> png = encode_png(RgbFrame::contiguous(kPixel, 1, 1));
  if (!png.ok()) GTEST_SKIP() << "this build has no libpng";
  // The header: its name and data at bytes 12 to 28, width and height the first of these, and then
  // their checksum.
  constexpr uint8_t kSize[8] = {0x00, 0xff, 0xff, 0xff, 0x00, 0xff, 0xff, 0xff};
  std::copy(std::begin(kSize), std::end(kSize), png->begin() + 16);
  const uint32_t crc = crc32(as_byte_span(std::span<const uint8_t>(*png).subspan(12, 17)));
  for (int i = 0; i < 4; ++i) (*png)[29 + i] = static_cast<uint8_t>(crc >> (24 - 8 * i));
  const int64_t peak = peak_of([&] {
    expect_failure(decode_png(*png, "x", {}).status(), StatusCode::kUnsupported,
                   {"16777215x16777215"});
  });
  EXPECT_LE(peak, kFixedBytes);
}

}  // namespace
}  // namespace ultraflash
