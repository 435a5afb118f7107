// A convolution's smoothed input: in float32, or as codes where its scales are known.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "input.h"
#include "output.h"
#include "patches.h"
#include "plan.h"
#include "taps.h"

namespace segquant {

constexpr int64_t kBlock = 16;  // pixels of a line, and channels, that are written together

// Up to kBlock channels of a piece of the input's scales.
struct Channels {
  int64_t first, count, piece;
};

inline std::vector<Channels> channels_of(const Patches& patches, const std::vector<int64_t>& pieces) {
  std::vector<Channels> found;
  int64_t columns = 0, channel = 0;
  for (size_t piece = 0; piece < pieces.size(); ++piece) {
    columns += pieces[piece];
    for (const int64_t last = columns / patches.taps(); channel < last;) {
      const int64_t count = std::min(kBlock, last - channel);
      found.push_back({channel, count, static_cast<int64_t>(piece)});
      channel += count;
    }
  }
  return found;
}

// f(image, channels) of all, in parallel.
template <class F>
void each_channels(const std::vector<Channels>& channels, int64_t images, F f) {
  const int64_t count = static_cast<int64_t>(channels.size());
  torch::stable::parallel_for(0, images * count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) f(at / count, channels[at % count]);
  });
}

// f(first pixel, its place in the padded image, count) of every block of the input's lines.
template <class F>
void each_block(const Patches& patches, F f) {
  for (int64_t y = 0; y < patches.height; ++y) {
    const int64_t padded = (y + patches.padding[2]) * patches.padded_width() + patches.padding[0];
    for (int64_t x = 0; x < patches.width; x += kBlock) {
      f(y * patches.width + x, padded + x, std::min(kBlock, patches.width - x));
    }
  }
}

// Values of a block, [channel][kBlock], to where patches look for them.
template <class T>
void spread(const Patches& patches, const T* block, const Channels& channels, int64_t pixel, int64_t count, T* image) {
  if (!patches.by_tap) {
    for (int64_t c = 0; c < channels.count; ++c) {
      T* own = image + (channels.first + c) * patches.pixels() + pixel;
      std::memcpy(own, block + c * kBlock, static_cast<size_t>(count) * sizeof(T));
    }
    return;
  }
  T* own = image + pixel * patches.channels + channels.first;
  if constexpr (sizeof(T) == 1) {
    if (channels.count == kBlock) {
      __m128i turned[kBlock];
      turn(block, kBlock, turned);
      for (int64_t i = 0; i < count; ++i, own += patches.channels) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(own), turned[i]);
      }
      return;
    }
  }
  if constexpr (sizeof(T) == sizeof(float)) {
    if (channels.count == kBlock && count == kBlock) {
      for (int64_t i = 0; i < kBlock; i += 4, own += 4 * patches.channels) {
        for (int64_t c = 0; c < kBlock; c += 4) {
          write_across(block + c * kBlock + i, kBlock, own + c, patches.channels);
        }
      }
      return;
    }
  }
  for (int64_t i = 0; i < count; ++i, own += patches.channels) {
    for (int64_t c = 0; c < channels.count; ++c) own[c] = block[c * kBlock + i];
  }
}

// A value of every channel, to an image's padding.
template <class T>
void pad(const Patches& patches, const T* values, T* image) {
  patches.each_padded([&](int64_t pixel) {
    if (patches.by_tap) {
      std::memcpy(image + pixel * patches.channels, values, static_cast<size_t>(patches.channels) * sizeof(T));
    } else {
      for (int64_t c = 0; c < patches.channels; ++c) image[c * patches.pixels() + pixel] = values[c];
    }
  });
}

// Some pixels of some channels in float32, smoothed; channels `step` apart.
template <class X>
void take(const X* from, int64_t step, const Channels& channels, int64_t taps, const float* smooth, int64_t count,
          float* block) {
  for (int64_t c = 0; c < channels.count; ++c, from += step, block += kBlock) {
    const float by = smooth ? smooth[(channels.first + c) * taps] : 1.0f;
    if (count == kBlock) {
      for (int64_t i = 0; i < kBlock; i += kLanes) {
        const Floats values = load_floats(from + i);
        store_floats(block + i, smooth ? divided(values, all_floats(by)) : values);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) block[i] = load1(from + i) / by;
    }
  }
}

class Image {
 public:
  // Smoothed; inputs that are rounded to e4m3 by known scales, as the rounded values.
  template <class X>
  void fill(const Patches& patches, const Shape& shape, const Static& known, int64_t images, const X* x,
            const float* smooth) {
    const bool rounds = shape.rounds_images(patches.by_tap);
    std::vector<float> scale(2 * shape.pieces.size()), zero(scale.size());
    if (rounds) fixed_scales(shape, known, scale.data(), zero.data());
    const std::vector<int64_t> whole{patches.channels * patches.taps()};
    const int64_t size = patches.channels * patches.pixels(), given = patches.height * patches.width;
    values_ = memory_.get<float>(images * size + Patches::kSlack);
    const std::vector<float> none(static_cast<size_t>(patches.channels), 0.0f);
    for (int64_t image = 0; image < images; ++image) pad(patches, none.data(), values_ + image * size);
    const std::vector<Channels> all = channels_of(patches, rounds ? shape.pieces : whole);
    each_channels(all, images, [&](int64_t image, const Channels& channels) {
      const X* from = x + (image * patches.channels + channels.first) * given;
      float block[kBlock * kBlock] = {};
      each_block(patches, [&](int64_t first, int64_t pixel, int64_t count) {
        take(from + first, given, channels, patches.taps(), smooth, count, block);
        if (rounds) rounding_of(shape, channels.piece, scale.data()).scale(block, channels.count * kBlock);
        spread(patches, block, channels, pixel, count, values_ + image * size);
      });
    });
  }

  void read(const Patches& patches, const std::vector<int64_t>& pieces, int64_t row, float* out) const {
    patches.read(pieces, row, values_, out);
  }

  // Lets tiles of floats read the image itself.
  const char* spread_over(const Patches& patches, Plan& plan) const {
    plan.offsets.clear();
    patches.offsets(0, sizeof(float), 0, plan.offsets);
    plan.whole = {plan.offsets.data(), patches.taps(), patches.channels};
    return reinterpret_cast<const char*>(values_);
  }

 private:
  Scratch memory_;
  float* values_ = nullptr;
};

// Every value is quantized once, not once for each patch it lies in. T: u8, or two bytes (s16, bfloat16).
// Pieces with a scale per sign have their codes below zero in a second image.
template <class T>
class CodeImage {
 public:
  static bool fits(const Shape& shape, const Static& known, int64_t taps) {
    if (shape.kind == Kind::kFloat || two_bytes(shape.kind) != (sizeof(T) == 2) || !known.above) return false;
    return shape.whole_pieces(taps);
  }

  // False if some value is no number, which codes cannot hold (bfloat16 does): its patches alone are to be none.
  template <class X>
  bool fill(const Patches& patches, const Shape& shape, const Static& known, int64_t images, const X* x,
            const float* smooth) {
    const int64_t size = patches.channels * patches.pixels();
    const size_t pieces = shape.pieces.size();
    scale_.resize(2 * pieces), zero_.resize(2 * pieces);
    fixed_scales(shape, known, scale_.data(), zero_.data());
    values_ = memory_.get<T>(2 * (images * size + Patches::kSlack));
    below_ = values_ + images * size + Patches::kSlack;
    pad_all(patches, shape, images);
    std::atomic<bool> bad{false};
    each_channels(channels_of(patches, shape.pieces), images, [&](int64_t image, const Channels& channels) {
      const int64_t given = patches.height * patches.width, signs = shape.split(channels.piece) ? 2 : 1;
      const X* from = x + (image * patches.channels + channels.first) * given;
      const Grid grid = grid_of(shape, channels.piece, scale_.data(), zero_.data());
      const Rounding rounding = rounding_of(shape, channels.piece, scale_.data());
      Flags none = no_flags();
      float block[kBlock * kBlock] = {};
      T codes[kBlock * kBlock];
      each_block(patches, [&](int64_t first, int64_t pixel, int64_t count) {
        take(from + first, given, channels, patches.taps(), smooth, count, block);
        for (int64_t sign = 0; sign < signs; ++sign) {
          const Store store = store_of(shape, channels.piece, sign, zero_.data());
          const int64_t all = channels.count * kBlock;
          if (shape.kind == Kind::kBfloats) {
            to_bfloats(block, all, rounding, store.part, reinterpret_cast<int16_t*>(codes));
          } else {
            for (int64_t k = 0; k < all; k += kLanes) {
              store(grid(load_floats(block + k), none), reinterpret_cast<uint8_t*>(codes), k);
            }
          }
          spread(patches, codes, channels, pixel, count, (sign ? below_ : values_) + image * size);
        }
      });
      if (any(none)) bad.store(true, std::memory_order_relaxed);
    });
    to_signed_scales(shape, scale_.data());
    return !bad.load();
  }

  // Lets tiles read the image itself; null if its channels are no whole words, or weights' groups lie across taps.
  const char* spread_over(const Patches& patches, const Shape& shape, Plan& plan) const {
    if (!patches.by_tap) return nullptr;
    const int64_t bytes = sizeof(T), taps = patches.taps();
    for (const Run& run : plan.runs) {
      if (run.count != shape.pieces[run.piece] || run.count / taps * bytes % 4) return nullptr;
    }
    const int64_t below = (below_ - values_) * bytes;
    plan.offsets.clear();
    for (const Run& run : plan.runs) patches.offsets(run.first / taps, bytes, run.sign ? below : 0, plan.offsets);
    const int64_t* own = plan.offsets.data();
    for (Run& run : plan.runs) run.spans = {own, taps, run.count / taps * bytes / 4}, own += taps;
    return reinterpret_cast<const char*>(values_);
  }

  // The scales and zeros of every row.
  const float* scale() const { return scale_.data(); }
  const float* zero() const { return zero_.data(); }

  // A row as pack_row makes it.
  void read(const Patches& patches, const Shape& shape, const Plan& plan, int64_t row, int32_t* out, float* scale,
            float* zero) const {
    std::copy(scale_.begin(), scale_.end(), scale);
    std::copy(zero_.begin(), zero_.end(), zero);
    thread_local Scratch memory;
    T* columns[2] = {memory.get<T>(2 * (shape.columns + Patches::kSlack)), nullptr};
    columns[1] = columns[0] + shape.columns + Patches::kSlack;
    const bool two = std::any_of(plan.runs.begin(), plan.runs.end(), [](const Run& run) { return run.sign == 1; });
    patches.read(shape.pieces, row, values_, columns[0]);
    if (two) patches.read(shape.pieces, row, below_, columns[1]);
    for (const Run& run : plan.runs) {
      const size_t bytes = static_cast<size_t>(run.count) * sizeof(T), all = static_cast<size_t>(run.words) * 4;
      auto* own = reinterpret_cast<char*>(out + run.input);
      std::memcpy(own, columns[run.sign] + run.first, bytes);
      std::memset(own + bytes, 0, all - bytes);  // of a weight that is 0; but 0 times what was there may be no number
    }
  }

 private:
  // A zero's code: the zero point of bytes.
  void pad_all(const Patches& patches, const Shape& shape, int64_t images) {
    std::vector<T> zeros, none(static_cast<size_t>(patches.channels), T{0});
    for (size_t piece = 0; piece < shape.pieces.size(); ++piece) {
      const bool pairs = two_bytes(shape.kind);
      zeros.insert(zeros.end(), static_cast<size_t>(shape.pieces[piece] / patches.taps()),
                   pairs ? T{0} : static_cast<T>(zero_[2 * piece]));
    }
    const int64_t size = patches.channels * patches.pixels();
    for (int64_t image = 0; image < images; ++image) {
      pad(patches, zeros.data(), values_ + image * size);
      pad(patches, none.data(), below_ + image * size);
    }
  }

  Scratch memory_;
  T* values_ = nullptr;
  T* below_ = nullptr;
  std::vector<float> scale_, zero_;
};

}  // namespace segquant
