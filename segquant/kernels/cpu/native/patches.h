// A convolution's input as rows of a linear: where its columns lie.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "plan.h"

namespace segquant {

// A few hundred bytes: a call of memcpy takes as long.
inline void copy(const void* from, int64_t bytes, void* to) {
  const auto* at = static_cast<const char*>(from);
  auto* out = static_cast<char*>(to);
  for (; bytes >= 32; bytes -= 32, at += 32, out += 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  }
  if (bytes) std::memcpy(out, at, static_cast<size_t>(bytes));
}

// Where patches lie. Columns of a row are a piece's channels, tap by tap: memory that lies together in an image whose
// channels do. Where weights have groups, which lie across taps, they are as in the layer, a channel's taps together.
struct Patches {
  int64_t channels, height, width;  // of the input
  int64_t padding[4];               // left, right, top, bottom: of zeros
  int64_t kernel[2], stride[2], dilation[2];
  bool by_tap;

  int64_t padded_height() const { return height + padding[2] + padding[3]; }
  int64_t padded_width() const { return width + padding[0] + padding[1]; }
  int64_t out_height() const { return (padded_height() - dilation[0] * (kernel[0] - 1) - 1) / stride[0] + 1; }
  int64_t out_width() const { return (padded_width() - dilation[1] * (kernel[1] - 1) - 1) / stride[1] + 1; }
  int64_t positions() const { return out_height() * out_width(); }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t pixels() const { return padded_height() * padded_width(); }

  static constexpr int64_t kSlack = 4;  // values more than its own that reading a row may touch, on both sides

  // Where a row's first tap is, in values of all images whose channels come last.
  int64_t place(int64_t row) const {
    const int64_t at = row % positions();
    const int64_t top = at / out_width() * stride[0], left = at % out_width() * stride[1];
    return (row / positions() * pixels() + top * padded_width() + left) * channels;
  }

  // Offsets of the taps of channel `first` from there.
  void offsets(int64_t first, int64_t bytes, int64_t from, std::vector<int64_t>& out) const {
    for (int64_t i = 0; i < kernel[0]; ++i) {
      for (int64_t j = 0; j < kernel[1]; ++j) {
        out.push_back(from + ((i * dilation[0] * padded_width() + j * dilation[1]) * channels + first) * bytes);
      }
    }
  }

  // The columns of a row, from padded images whose channels come last if patches are read by tap.
  template <class T>
  void read(const std::vector<int64_t>& pieces, int64_t row, const T* images, T* out) const {
    const int64_t at = row % positions();
    const int64_t top = at / out_width() * stride[0], left = at % out_width() * stride[1];
    const T* first = images + row / positions() * channels * pixels();
    const int64_t pixel = top * padded_width() + left;
    if (by_tap) read_by_tap(pieces, first + pixel * channels, out);
    else read_by_channel(first + pixel, out);
  }

  // f(pixel) of an image's padding.
  template <class F>
  void each_padded(F f) const {
    const int64_t high = padded_height(), wide = padded_width();
    for (int64_t y = 0; y < high; ++y) {
      const bool whole = y < padding[2] || y >= padding[2] + height;
      for (int64_t x = 0; x < (whole ? wide : padding[0]); ++x) f(y * wide + x);
      for (int64_t x = whole ? wide : padding[0] + width; x < wide; ++x) f(y * wide + x);
    }
  }

 private:
  template <class T>
  void read_by_tap(const std::vector<int64_t>& pieces, const T* first, T* out) const {
    for (const int64_t piece : pieces) {
      const int64_t count = piece / taps();
      for (int64_t i = 0; i < kernel[0]; ++i) {
        for (int64_t j = 0; j < kernel[1]; ++j, out += count) {
          const int64_t pixel = i * dilation[0] * padded_width() + j * dilation[1];
          copy(first + pixel * channels, count * static_cast<int64_t>(sizeof(T)), out);
        }
      }
      first += count;
    }
  }

  template <class T>
  void read_by_channel(const T* first, T* out) const {
    const bool three = kernel[1] == 3 && dilation[1] == 1;
    for (int64_t channel = 0; channel < channels; ++channel, first += pixels()) {
      for (int64_t i = 0; i < kernel[0]; ++i) {
        const T* line = first + i * dilation[0] * padded_width();
        if (three) {  // the fourth is overwritten by the next
          std::memcpy(out, line, 4 * sizeof(T));
          out += 3;
          continue;
        }
        for (int64_t j = 0; j < kernel[1]; ++j) *out++ = line[j * dilation[1]];
      }
    }
  }
};

}  // namespace segquant
