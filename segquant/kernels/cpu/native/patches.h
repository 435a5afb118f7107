// A convolution's input as rows of a linear.
#pragma once

#include <immintrin.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "input.h"
#include "panel.h"
#include "plan.h"

namespace segquant {

// Where patches lie. Columns of a row are a piece's channels, tap by tap: memory that lies together in an image whose
// channels do. Where weights have groups, which lie across taps, they are as in the layer, a channel's taps together.
struct Patches {
  int64_t channels, height, width;      // of the padded input
  int64_t kernel[2], stride[2], dilation[2];
  int64_t out_height, out_width;
  bool by_tap;

  int64_t positions() const { return out_height * out_width; }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t pixels() const { return height * width; }
};

// The smoothed input in float32, channels last if patches are read by tap.
class Image {
 public:
  template <class T>
  void fill(const Patches& patches, int64_t images, const T* x, const float* smooth) {
    const int64_t pixels = patches.pixels(), channels = patches.channels;
    values_ = memory_.get<float>(images * channels * pixels + kSlack);
    const int64_t blocks = (pixels + kBlock - 1) / kBlock;
    torch::stable::parallel_for(0, images * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) {
        const int64_t image = at / blocks, first = at % blocks * kBlock, count = std::min(kBlock, pixels - first);
        const T* from = x + image * channels * pixels + first;
        float* to = values_ + image * channels * pixels;
        for (int64_t channel = 0; channel < channels; ++channel, from += pixels) {
          const float by = smooth ? smooth[channel * patches.taps()] : 1.0f;
          float* own = patches.by_tap ? to + first * channels + channel : to + channel * pixels + first;
          const int64_t step = patches.by_tap ? channels : 1;
          for (int64_t i = 0; i < count; ++i) own[i * step] = load1(from + i) / by;
        }
      }
    });
  }

  // A row's columns; up to kSlack more may be written.
  void read(const Patches& patches, const std::vector<int64_t>& pieces, int64_t row, float* out) const {
    const int64_t image = row / patches.positions(), at = row % patches.positions();
    const int64_t top = at / patches.out_width * patches.stride[0], left = at % patches.out_width * patches.stride[1];
    const float* first = values_ + image * patches.channels * patches.pixels();
    if (patches.by_tap) by_tap(patches, pieces, first + (top * patches.width + left) * patches.channels, out);
    else by_channel(patches, first + top * patches.width + left, out);
  }

  static constexpr int64_t kSlack = 4;

 private:
  static constexpr int64_t kBlock = 16;

  static void by_tap(const Patches& patches, const std::vector<int64_t>& pieces, const float* first, float* out) {
    for (const int64_t piece : pieces) {
      const int64_t count = piece / patches.taps();
      for (int64_t i = 0; i < patches.kernel[0]; ++i) {
        for (int64_t j = 0; j < patches.kernel[1]; ++j, out += count) {
          const int64_t pixel = i * patches.dilation[0] * patches.width + j * patches.dilation[1];
          std::memcpy(out, first + pixel * patches.channels, static_cast<size_t>(count) * sizeof(float));
        }
      }
      first += count;
    }
  }

  static void by_channel(const Patches& patches, const float* first, float* out) {
    const bool three = patches.kernel[1] == 3 && patches.dilation[1] == 1;
    for (int64_t channel = 0; channel < patches.channels; ++channel, first += patches.pixels()) {
      for (int64_t i = 0; i < patches.kernel[0]; ++i) {
        const float* line = first + i * patches.dilation[0] * patches.width;
        if (three) {  // the fourth is overwritten by the next
          _mm_storeu_ps(out, _mm_loadu_ps(line));
          out += 3;
          continue;
        }
        for (int64_t j = 0; j < patches.kernel[1]; ++j) *out++ = line[j * patches.dilation[1]];
      }
    }
  }

  Scratch memory_;
  float* values_ = nullptr;
};

// A layer's codes as s8 in the order of patches by tap, [outputs][columns].
inline void order_by_tap(const Shape& shape, int64_t taps, const uint8_t* codes, int64_t bytes, int64_t outputs,
                         int8_t* out) {
  torch::stable::parallel_for(0, outputs, 1, [&](int64_t begin, int64_t end) {
    std::vector<int8_t> wide(static_cast<size_t>(shape.columns + 31));
    for (int64_t output = begin; output < end; ++output) {
      const auto* own = reinterpret_cast<const int8_t*>(codes + output * bytes);
      if (shape.weight_bits == 4) {
        widen(codes + output * bytes, shape.columns, wide.data());
        own = wide.data();
      }
      int8_t* to = out + output * shape.columns;
      for (const int64_t piece : shape.pieces) {
        const int64_t count = piece / taps;
        for (int64_t tap = 0; tap < taps; ++tap, to += count) {
          for (int64_t channel = 0; channel < count; ++channel) to[channel] = own[channel * taps + tap];
        }
        own += piece;
      }
    }
  });
}

}  // namespace segquant
