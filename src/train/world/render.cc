#include "train/world/render.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/check.h"
#include "train/world/shading.h"

namespace ultraflash::world {
namespace {

// Three canvas rows make `scale` rows of the picture, and three columns as many columns.
constexpr int64_t kGroup = 3;
constexpr int64_t kMaxScale = 3;

// Weight of canvas row j of a group in row i of the picture, [scale][i][j].
constexpr float kWeights[4][3][3] = {
    {},
    {{1.0F / 3, 1.0F / 3, 1.0F / 3}, {}, {}},
    {{2.0F / 3, 1.0F / 3, 0.0F}, {0.0F, 1.0F / 3, 2.0F / 3}, {}},
    {{1.0F, 0.0F, 0.0F}, {0.0F, 1.0F, 0.0F}, {0.0F, 0.0F, 1.0F}},
};

// One canvas row, or one row of sums, by channel.
struct Planes {
  alignas(64) float channel[3][kCanvasWidth];
};

// Columns [begin, end) of the canvas; `shift` leads from there to the object's own, unwrapped
// columns. Multiples of kGroup.
struct Columns {
  int64_t begin = 0;
  int64_t end = 0;
  float shift = 0.0F;
};

using BlendRow = void (*)(const PlacedObject&, float dy, const Columns&, Planes&);

template <Shape SHAPE, Texture TEXTURE>
void blend_row(const PlacedObject& object, float dy, const Columns& columns, Planes& row) {
  const float first = 0.5F + columns.shift - object.x;
  const float cosine = object.cosine;
  const float sine = object.sine;
  const float radius = object.radius;
  const Rgb colour = object.colour;
  float* const red = row.channel[0];
  float* const green = row.channel[1];
  float* const blue = row.channel[2];
  const auto begin = static_cast<int32_t>(columns.begin);
  const auto end = static_cast<int32_t>(columns.end);
  for (int32_t x = begin; x < end; ++x) {
    const float dx = static_cast<float>(x) + first;
    const Sample s = sample_object_at<SHAPE, TEXTURE>(dx, dy, cosine, sine, radius);
    red[x] += s.coverage * (s.shade * colour.r - red[x]);
    green[x] += s.coverage * (s.shade * colour.g - green[x]);
    blue[x] += s.coverage * (s.shade * colour.b - blue[x]);
  }
}

template <Shape SHAPE>
constexpr std::array<BlendRow, 4> textures_of() {
  return {blend_row<SHAPE, Texture::kPlain>, blend_row<SHAPE, Texture::kStriped>,
          blend_row<SHAPE, Texture::kDotted>, blend_row<SHAPE, Texture::kCheckered>};
}
constexpr std::array<std::array<BlendRow, 4>, 6> kBlendRow = {
    textures_of<Shape::kCircle>(), textures_of<Shape::kSquare>(), textures_of<Shape::kTriangle>(),
    textures_of<Shape::kStar>(),   textures_of<Shape::kRing>(),   textures_of<Shape::kCross>()};

// Difference on an axis whose ends are joined, the nearest way.
float nearest(float difference, float length) {
  return difference - length * std::floor(difference / length + 0.5F);
}

// The canvas columns that `object` may touch in the rows of a band: at most two pieces.
int touched_columns(const PlacedObject& object, int64_t band, std::array<Columns, 2>& pieces) {
  const float middle = static_cast<float>(band * kGroup) + 0.5F * static_cast<float>(kGroup);
  const float away = std::max(
      0.0F, std::abs(nearest(middle - object.y, static_cast<float>(kCanvasHeight))) - 1.5F);
  if (away >= object.reach) return 0;
  const float half = std::sqrt(object.reach * object.reach - away * away);
  const auto group_of = [](float x) {
    return static_cast<int64_t>(std::floor(x / static_cast<float>(kGroup))) * kGroup;
  };
  const int64_t begin = group_of(object.x - half);
  const int64_t end = std::min(group_of(object.x + half) + kGroup, begin + kCanvasWidth);
  int count = 0;
  for (int64_t turn = -1; turn <= 1; ++turn) {
    const int64_t offset = turn * kCanvasWidth;
    const int64_t low = std::max<int64_t>(begin - offset, 0);
    const int64_t high = std::min<int64_t>(end - offset, kCanvasWidth);
    if (low < high) pieces[static_cast<size_t>(count++)] = {low, high, static_cast<float>(offset)};
  }
  return count;
}

class Renderer {
 public:
  Renderer(const Scene& scene, const RenderWindow& window)
      : scene_(scene), window_(window), scale_(window.scale) {
    begin_ = window.x / scale_ * kGroup;
    end_ = ((window.x + window.width - 1) / scale_ + 1) * kGroup;
    first_band_ = window.y / scale_;
    last_band_ = (window.y + window.height - 1) / scale_;
    sort_stars();
    // The picture without objects, copied wherever no object is.
    empty_.resize(static_cast<size_t>(window.height * window.width * 3));
    for (int64_t band = first_band_; band <= last_band_; ++band) {
      draw(band, {begin_, end_}, {}, empty_.data());
    }
  }

  void frame(int64_t index, uint8_t* out) {
    std::memcpy(out, empty_.data(), empty_.size());
    std::array<PlacedObject, 2> placed;
    for (int i = 0; i < scene_.object_count; ++i) {
      placed[static_cast<size_t>(i)] = place(scene_.objects[static_cast<size_t>(i)], index);
    }
    for (int64_t band = first_band_; band <= last_band_; ++band) draw_objects(band, placed, out);
  }

 private:
  struct Piece {
    const PlacedObject* object = nullptr;
    Columns columns;
  };

  void sort_stars() {
    if (!scene_.starry) return;
    std::array<Star, kMaxStars> stars;
    const int64_t count = stars_of(scene_.star_seed, stars);
    for (int64_t i = 0; i < count; ++i) {
      const Star& star = stars[static_cast<size_t>(i)];
      stars_[static_cast<size_t>(star.y)].push_back(star);
    }
  }

  void draw_objects(int64_t band, const std::array<PlacedObject, 2>& placed, uint8_t* out) {
    std::array<Piece, 4> pieces;
    size_t count = 0;
    for (int i = 0; i < scene_.object_count; ++i) {
      std::array<Columns, 2> touched;
      const PlacedObject& object = placed[static_cast<size_t>(i)];
      const int parts = touched_columns(object, band, touched);
      for (int part = 0; part < parts; ++part) {
        Columns columns = touched[static_cast<size_t>(part)];
        columns.begin = std::max(columns.begin, begin_);
        columns.end = std::min(columns.end, end_);
        if (columns.begin < columns.end) pieces[count++] = {&object, columns};
      }
    }
    // Ranges that meet are drawn together, in the order of the objects.
    std::array<bool, 4> done = {};
    for (size_t i = 0; i < count; ++i) {
      if (done[i]) continue;
      Columns all = pieces[i].columns;
      std::array<bool, 4> together = {};
      together[i] = true;
      for (bool grown = true; grown;) {
        grown = false;
        for (size_t j = 0; j < count; ++j) {
          const Columns& other = pieces[j].columns;
          if (together[j] || other.begin >= all.end || other.end <= all.begin) continue;
          all.begin = std::min(all.begin, other.begin);
          all.end = std::max(all.end, other.end);
          together[j] = true;
          grown = true;
        }
      }
      std::array<Piece, 4> group;
      size_t members = 0;
      for (size_t j = 0; j < count; ++j) {
        if (!together[j]) continue;
        group[members++] = pieces[j];
        done[j] = true;
      }
      draw(band, all, std::span(group).first(members), out);
    }
  }

  // Draws columns `all` of a band with the pieces of objects in it.
  void draw(int64_t band, const Columns& all, std::span<const Piece> pieces, uint8_t* out) {
    for (int64_t i = 0; i < scale_; ++i) {
      for (auto& channel : sums_[static_cast<size_t>(i)].channel) {
        std::fill(channel + all.begin, channel + all.end, 0.0F);
      }
    }
    for (int64_t j = 0; j < kGroup; ++j) {
      const int64_t y = band * kGroup + j;
      canvas_row(y, all, pieces);
      for (int64_t i = 0; i < scale_; ++i) {
        const float weight = kWeights[scale_][i][j];
        if (weight == 0.0F) continue;
        for (int channel = 0; channel < 3; ++channel) {
          float* const sum = sums_[static_cast<size_t>(i)].channel[channel];
          const float* const row = row_.channel[channel];
          for (int64_t x = all.begin; x < all.end; ++x) sum[x] += weight * row[x];
        }
      }
    }
    for (int64_t i = 0; i < scale_; ++i)
      store(band * scale_ + i, sums_[static_cast<size_t>(i)], all, out);
  }

  void canvas_row(int64_t y, const Columns& all, std::span<const Piece> pieces) {
    const float centre = static_cast<float>(y) + 0.5F;
    const Rgb ground = ground_colour(scene_.ground_rgb, scene_.gradient,
                                     centre / static_cast<float>(kCanvasHeight));
    std::fill(row_.channel[0] + all.begin, row_.channel[0] + all.end, ground.r);
    std::fill(row_.channel[1] + all.begin, row_.channel[1] + all.end, ground.g);
    std::fill(row_.channel[2] + all.begin, row_.channel[2] + all.end, ground.b);
    for (const Star& star : stars_[static_cast<size_t>(y)]) {
      if (star.x < all.begin || star.x >= all.end) continue;
      for (auto& channel : row_.channel) channel[star.x] = star.level;
    }
    for (const Piece& piece : pieces) {
      const PlacedObject& object = *piece.object;
      const float dy = nearest(centre - object.y, static_cast<float>(kCanvasHeight));
      kBlendRow[static_cast<size_t>(object.shape)][static_cast<size_t>(object.texture)](
          object, dy, piece.columns, row_);
    }
  }

  // Row `y` of the picture from its sums over canvas rows.
  void store(int64_t y, const Planes& sums, const Columns& all, uint8_t* out) const {
    if (y < window_.y || y >= window_.y + window_.height) return;
    const int64_t begin = std::max(all.begin / kGroup * scale_, window_.x);
    const int64_t end = std::min(all.end / kGroup * scale_, window_.x + window_.width);
    uint8_t* target = out + ((y - window_.y) * window_.width + begin - window_.x) * 3;
    for (int64_t x = begin; x < end; ++x) {
      const float* const weights = kWeights[scale_][x % scale_];
      const int64_t from = x / scale_ * kGroup;
      for (const auto& channel : sums.channel) {
        const float value = weights[0] * channel[from] + weights[1] * channel[from + 1] +
                            weights[2] * channel[from + 2];
        *target++ = static_cast<uint8_t>(static_cast<int32_t>(value + 0.5F));
      }
    }
  }

  const Scene& scene_;
  const RenderWindow& window_;
  int64_t scale_;
  int64_t begin_ = 0;  // canvas columns of the window, whole groups
  int64_t end_ = 0;
  int64_t first_band_ = 0;
  int64_t last_band_ = 0;
  std::array<std::vector<Star>, kCanvasHeight> stars_;
  std::vector<uint8_t> empty_;
  Planes row_;
  std::array<Planes, kMaxScale> sums_;
};

}  // namespace

PlacedObject place(const SceneObject& object, int64_t frame) {
  const Pose pose = pose_at(object, frame);
  PlacedObject placed;
  placed.x = static_cast<float>(pose.x);
  placed.y = static_cast<float>(pose.y);
  placed.cosine = static_cast<float>(std::cos(pose.angle));
  placed.sine = static_cast<float>(std::sin(pose.angle));
  placed.radius = static_cast<float>(object.radius);
  placed.reach = placed.radius * reach_of(object.traits.shape) + 1.0F;
  placed.colour = object.colour;
  placed.shape = object.traits.shape;
  placed.texture = object.traits.texture;
  return placed;
}

int64_t scale_of(int64_t width, int64_t height) {
  for (int64_t scale = 1; scale <= kMaxScale; ++scale) {
    if (width == scale * kBaseWidth && height == scale * kBaseHeight) return scale;
  }
  return 0;
}

void render(const Scene& scene, const RenderWindow& window, std::span<uint8_t> out) {
  UF_CHECK(window.scale >= 1 && window.scale <= kMaxScale, "scale must be 1, 2 or 3");
  UF_CHECK(window.x >= 0 && window.y >= 0 && window.width >= 1 && window.height >= 1 &&
               window.x + window.width <= window.scale * kBaseWidth &&
               window.y + window.height <= window.scale * kBaseHeight && window.frames >= 0,
           "the window must lie inside the picture");
  UF_CHECK(static_cast<int64_t>(out.size()) == window.bytes(), "out must hold the window");
  Renderer renderer(scene, window);
  const int64_t frame_bytes = window.height * window.width * 3;
  for (int64_t i = 0; i < window.frames; ++i) {
    renderer.frame(window.first_frame + i, out.data() + i * frame_bytes);
  }
}

std::vector<uint8_t> render(const Scene& scene, const RenderWindow& window) {
  std::vector<uint8_t> out(static_cast<size_t>(window.bytes()));
  render(scene, window, out);
  return out;
}

}  // namespace ultraflash::world
