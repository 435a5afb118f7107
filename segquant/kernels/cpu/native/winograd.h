// A convolution of floats by 3 × 3, four outputs of 2 × 2 at once: 16 products in place of 36 (Lavin and Gray, 2015,
// arXiv 1509.09308, F(2 × 2, 3 × 3)).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "job.h"

namespace segquant {

constexpr int kPoints = 16;             // products of a square
constexpr int64_t kMostSquares = 384;  // that are multiplied by a panel at once

// (a - c, b + c, c - b, b - d) of four.
SEGQUANT_INLINE void points_of_input(Floats& a, Floats& b, Floats& c, Floats& d) {
  const Floats first = minus(a, c), second = plus(b, c), third = minus(c, b), fourth = minus(b, d);
  a = first, b = second, c = third, d = fourth;
}

// (a, (a + b + c) / 2, (a - b + c) / 2, c) of three.
SEGQUANT_INLINE void points_of_weight(Floats a, Floats b, Floats c, Floats (&out)[4]) {
  const Floats half = all_floats(0.5f), ends = times(plus(a, c), half), middle = times(b, half);
  out[0] = a, out[1] = plus(ends, middle), out[2] = minus(ends, middle), out[3] = c;
}

// The squares of a convolution's outputs, 2 × 2 each: those at an odd end reach over it.
struct Squares {
  const Patches& patches;

  int64_t high() const { return (patches.out_height() + 1) / 2; }
  int64_t wide() const { return (patches.out_width() + 1) / 2; }
  int64_t lines(int64_t rows) const { return rows / patches.positions() * high(); }  // of squares, of all images

  // Points of a line of squares, [point][squares][channels]; true if some value is infinite or no number.
  bool points(const float* images, const float* zeros, int64_t line, int64_t squares, int64_t first, float* out) const {
    const int64_t channels = patches.channels, width = patches.padded_width();
    const float* image = images + line / high() * patches.pixels() * channels;
    const int64_t top = line % high() * 2;
    Flags bad = no_flags();
    for (int64_t square = 0; square < wide(); ++square) {
      const float* at[kPoints];
      for (int64_t i = 0; i < kPoints; ++i) {
        const int64_t y = top + i / 4, x = 2 * square + i % 4;
        at[i] = y < patches.padded_height() && x < width ? image + (y * width + x) * channels : zeros;
      }
      float* to = out + (first + square) * channels;
      for (int64_t c = 0; c < channels; c += kLanes) bad = points_at(at, c, squares * channels, to + c, bad);
    }
    return any(bad);
  }

 private:
  static SEGQUANT_INLINE Flags points_at(const float* const* at, int64_t channel, int64_t step, float* out, Flags bad) {
    Floats d[4][4];
    each<4>([&](auto i) {
      each<4>([&](auto j) {
        d[i][j] = load_floats(at[4 * i + j] + channel);
        bad = or_nan(bad, minus(d[i][j], d[i][j]));
      });
    });
    each<4>([&](auto j) { points_of_input(d[0][j], d[1][j], d[2][j], d[3][j]); });
    each<4>([&](auto i) {
      points_of_input(d[i][0], d[i][1], d[i][2], d[i][3]);
      each<4>([&](auto j) { store_floats(out + (4 * i + j) * step, d[i][j]); });
    });
    return bad;
  }
};

// Points of a panel of weights, [tap][channel][kColumns]: [point][channel][kColumns].
SEGQUANT_WHOLE inline void points_of_panel(const float* panel, int64_t channels, float* out) {
  const int64_t step = channels * kColumns;
  for (int64_t at = 0; at < step; at += kLanes) {
    Floats lines[3][4], point[4];
    each<3>([&](auto j) {
      points_of_weight(load_floats(panel + j * step + at), load_floats(panel + (3 + j) * step + at),
                       load_floats(panel + (6 + j) * step + at), lines[j]);
    });
    each<4>([&](auto i) {
      points_of_weight(lines[0][i], lines[1][i], lines[2][i], point);
      each<4>([&](auto j) { store_floats(out + (4 * i + j) * step + at, point[j]); });
    });
  }
}

// The four outputs of a square from its products, which lie `step` apart: rows of kColumns.
SEGQUANT_WHOLE inline void square_of(const float* products, int64_t step, float* (&out)[4]) {
  each<kVectors>([&](auto v) {
    Floats low[4], high[4];
    each<4>([&](auto j) {
      const auto at = [&](int i) { return load_floats(products + (4 * i + j) * step + kLanes * v); };
      const Floats second = at(1), third = at(2);
      low[j] = plus(plus(at(0), second), third), high[j] = minus(minus(second, third), at(3));
    });
    const auto write = [&](const Floats (&line)[4], int first) {
      store_floats(out[first] + kLanes * v, plus(plus(line[0], line[1]), line[2]));
      store_floats(out[first + 1] + kLanes * v, minus(minus(line[1], line[2]), line[3]));
    };
    write(low, 0), write(high, 2);
  });
}

// Whether a convolution's floats, of so many patches, are multiplied by squares.
inline bool fits_squares(const Patches& patches, int64_t rows) {
  const auto all = [](const int64_t(&pair)[2], int64_t wanted) { return pair[0] == wanted && pair[1] == wanted; };
  return all(patches.kernel, 3) && all(patches.stride, 1) && all(patches.dilation, 1) &&
         patches.channels % kLanes == 0 && rows >= 64;  // fewer do not pay for the weights' points
}

inline bool Job::fits_squares() const {
  if (shape.kind != Kind::kFloat || shape.input_bits || !source.patches || low_rank.rank) return false;
  return segquant::fits_squares(*source.patches, rows);
}

inline bool Job::by_squares() const {
  thread_local Scratch memory;
  const Squares squares{*source.patches};
  const int64_t channels = source.patches->channels, lines = squares.lines(rows), wide = squares.wide();
  const int64_t together = std::min(lines, std::max<int64_t>(1, kMostSquares / wide));
  const std::vector<float> zeros(static_cast<size_t>(channels), 0.0f);
  float* points = memory.get<float>(kPoints * together * wide * channels);
  for (int64_t top = 0; top < lines; top += together) {
    const int64_t count = std::min(together, lines - top);
    std::atomic<bool> bad{false};
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        const auto* images = reinterpret_cast<const float*>(source.direct);
        if (squares.points(images, zeros.data(), top + line, count * wide, line * wide, points)) bad.store(true);
      }
    });
    if (bad.load()) return false;  // which would spread over a square
    torch::stable::parallel_for(0, (last - first + kColumns - 1) / kColumns, 1, [&](int64_t begin, int64_t end) {
      for (int64_t each = begin; each < end; ++each) panel_of_squares(first + each * kColumns, top, count, points);
    });
  }
  return true;
}

// Outputs first_output … of `count` lines of squares from `top` on.
inline void Job::panel_of_squares(int64_t first_output, int64_t top, int64_t count, const float* points) const {
  thread_local Scratch panel_memory, weight_memory, product_memory, line_memory;
  const Squares squares{*source.patches};
  const int64_t channels = source.patches->channels, all = count * squares.wide();
  float* weight = weight_memory.get<float>(kPoints * channels * kColumns);
  const Panel own = filled(first_output, panel_memory);
  points_of_panel(reinterpret_cast<const float*>(own.weights), channels, weight);
  const int64_t columns = std::min<int64_t>(kColumns, last - first_output), none = 0;
  auto* products = reinterpret_cast<float(*)[kColumns]>(product_memory.get<float>(kPoints * all * kColumns));
  Plan part;
  part.whole = {&none, 1, channels};
  for (int64_t point = 0; point < kPoints; ++point) {
    TileInput in{};
    in.panel = reinterpret_cast<const int8_t*>(weight + point * channels * kColumns);
    for (int64_t row = 0; row < all; row += kRows) {
      const int64_t here = std::min<int64_t>(kRows, all - row);
      for (int64_t r = 0; r < here; ++r) {
        in.rows[r] = reinterpret_cast<const char*>(points + (point * all + row + r) * channels);
      }
      tile(Kind::kFloat, here, columns, part, in, products + point * all + row);
    }
  }
  auto* values = reinterpret_cast<float(*)[kColumns]>(line_memory.get<float>(4 * squares.wide() * kColumns));
  for (int64_t line = 0; line < count; ++line) {
    store_squares(squares, top + line, first_output, columns, products[line * squares.wide()], all, values);
  }
}

// A line's squares, two lines of outputs, from their products; `values` is memory for them.
inline void Job::store_squares(const Squares& squares, int64_t line, int64_t first_output, int64_t columns,
                               const float* products, int64_t all, float (*values)[kColumns]) const {
  const int64_t wide = squares.wide(), width = source.patches->out_width();
  for (int64_t square = 0; square < wide; ++square) {
    float(*own)[kColumns] = values + 2 * square;
    float* out[4] = {own[0], own[1], own[2 * wide], own[2 * wide + 1]};
    square_of(products + square * kColumns, all * kColumns, out);
  }
  const int64_t image = line / squares.high(), top = line % squares.high() * 2;
  for (int64_t y = top; y < std::min(top + 2, source.patches->out_height()); ++y) {
    const int64_t row = image * source.patches->positions() + y * width;
    for (int64_t x = 0; x < width; x += kTogether) {
      store(row + x, std::min(kTogether, width - x), first_output, columns, values + (y - top) * 2 * wide + x);
    }
  }
}

}  // namespace segquant
