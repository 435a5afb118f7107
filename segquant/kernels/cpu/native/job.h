// A product of rows with some of a layer's outputs: those that share the input's smoothing and scales.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "gelu.h"
#include "image.h"
#include "input.h"
#include "output.h"
#include "panel.h"
#include "patches.h"
#include "plan.h"
#include "reals.h"
#include "tile.h"

namespace segquant {

constexpr int64_t kBlockBytes = 4 << 20;    // packed rows that stay in a cache while panels pass
constexpr int64_t kTogether = 8 * kRows;  // rows that are stored together

// A low-rank branch beside the product: rows · down, and its second factor.
struct LowRank {
  const float* inner = nullptr;  // [rows][words], of which `rank`
  int64_t words = 0;
  Reals up;  // [outputs][rank]
  int64_t rank = 0;

  // Columns `first` …, [rank][kColumns].
  void fill(int64_t first, int64_t columns, float* panel) const {
    for (int64_t k = 0; k < rank; ++k) {
      for (int64_t c = 0; c < kColumns; ++c) panel[k * kColumns + c] = c < columns ? up[(first + c) * rank + k] : 0;
    }
  }
};

// Where a convolution's rows come from: codes where its scales are known, else floats.
struct Source {
  const Patches* patches = nullptr;  // null: a linear
  const Image* floats = nullptr;
  const CodeImage<uint8_t>* bytes = nullptr;
  const CodeImage<int16_t>* pairs = nullptr;
  const char* direct = nullptr;  // tiles read the image itself, with the scales and zeros of every row
  const float* scale = nullptr;
  const float* zero = nullptr;
  int64_t bytes_each = 0;  // of a value there
  int64_t columns = 0;     // of a linear's row

  // Where a row that is read directly begins.
  const char* at(int64_t row) const {
    return direct + (patches ? patches->place(row) : row * columns) * bytes_each;
  }
};

// Rows as tiles take them: where each is, and its scales and zeros.
struct Rows {
  const char** at;
  const float* scale;
  const float* zero;
  int64_t scales;  // floats from a row's to the next one's
};

struct Squares;

struct Job {
  const Shape& shape;
  const Plan& plan;
  Static known;
  const float* smooth;  // [columns] or null
  const float* bias;    // [outputs] or null
  const float* beside;  // [rows][outputs] or null
  LowRank low_rank;
  Weights weights;
  int64_t first, last;  // outputs of this branch
  int64_t rows;
  const void* x;
  void* out;
  bool half;
  bool gelu;  // of the outputs, a linear's
  Source source;

  void run() const;

 private:
  void pack(int64_t row, int32_t* packed, float* scale, float* zero) const;
  Panel filled(int64_t first_output, Scratch& memory) const;
  void panel(int64_t first_output, int64_t top, int64_t count, const Rows& packed) const;
  bool fits_squares() const;
  bool by_squares() const;  // false if some value is infinite or no number
  void panel_of_squares(int64_t first_output, int64_t top, int64_t count, const float* points) const;
  void store_squares(const Squares& squares, int64_t line, int64_t first_output, int64_t columns,
                     const float* products, int64_t all, float (*values)[kColumns]) const;
  void channel_places(int64_t row, int64_t rows_here, int64_t* places) const;
  void expect(int64_t row, int64_t rows_here, int64_t column, int64_t columns) const;
  void store(int64_t row, int64_t rows_here, int64_t column, int64_t columns, float (*values)[kColumns]) const;
  template <class T>
  void store_as(T* to, int64_t row, int64_t rows_here, int64_t column, int64_t columns,
                const float (*values)[kColumns]) const;
};

inline void Job::pack(int64_t row, int32_t* packed, float* scale, float* zero) const {
  if (source.bytes) return source.bytes->read(*source.patches, shape, plan, row, packed, scale, zero);
  if (source.pairs) return source.pairs->read(*source.patches, shape, plan, row, packed, scale, zero);
  thread_local Scratch memory;
  float* buffer = memory.get<float>(shape.columns + Patches::kSlack);
  const float* values = buffer;
  if (source.floats) source.floats->read(*source.patches, shape.pieces, row, buffer);
  else if (half) values = as_floats(static_cast<const uint16_t*>(x) + row * shape.columns, shape.columns, buffer);
  else values = static_cast<const float*>(x) + row * shape.columns;
  if (smooth && !source.floats) {
    int64_t k = 0;
    for (; k + kLanes <= shape.columns; k += kLanes) {
      store_floats(buffer + k, divided(load_floats(values + k), load_floats(smooth + k)));
    }
    for (; k < shape.columns; ++k) buffer[k] = values[k] / smooth[k];
    values = buffer;
  }
  pack_row(shape, plan, known, values, packed, scale, zero);
}

// Up to kColumns outputs of some rows, with what is added to them.
inline void Job::store(int64_t row, int64_t rows_here, int64_t column, int64_t columns,
                       float (*values)[kColumns]) const {
  for (int64_t r = 0; r < rows_here; ++r) {
    if (beside) add(values[r], beside + (row + r) * weights.outputs + column, columns);
    if (bias) add(values[r], bias + column, columns);
    if (gelu && half) to_bfloats(values[r], columns);
    if (gelu) segquant::gelu(values[r], columns);
  }
  if (half) store_as(static_cast<uint16_t*>(out), row, rows_here, column, columns, values);
  else store_as(static_cast<float*>(out), row, rows_here, column, columns, values);
}

// Of rows in channel 0 of their images.
inline void Job::channel_places(int64_t row, int64_t rows_here, int64_t* places) const {
  const int64_t positions = source.patches->positions();
  for (int64_t r = 0; r < rows_here; ++r) {
    places[r] = (row + r) / positions * (weights.outputs - 1) * positions + row + r;
  }
}

// Asks for the lines that `store` is to write.
inline void Job::expect(int64_t row, int64_t rows_here, int64_t column, int64_t columns) const {
  if (!source.patches || half) return;
  const int64_t positions = source.patches->positions();
  int64_t places[kTogether];
  channel_places(row, rows_here, places);
  expect_channels(places, rows_here, columns, static_cast<const float*>(out) + column * positions, positions);
}

template <class T>
void Job::store_as(T* to, int64_t row, int64_t rows_here, int64_t column, int64_t columns,
                   const float (*values)[kColumns]) const {
  if (!source.patches) {
    for (int64_t r = 0; r < rows_here; ++r) write(values[r], to + (row + r) * weights.outputs + column, columns);
    return;
  }
  const int64_t positions = source.patches->positions();
  int64_t places[kTogether];
  channel_places(row, rows_here, places);
  write_channels(values, places, rows_here, columns, to + column * positions, positions);
}

// The panel of outputs first_output …, its weights in `memory`.
inline Panel Job::filled(int64_t first_output, Scratch& memory) const {
  thread_local Scratch wide_memory, quad_memory, scale_memory, sum_memory;
  const int64_t stride = (shape.columns + 63) / 64 * 64;
  Panel own{memory.get<int8_t>(plan.panel_words * kColumns * 4),
            scale_memory.get<float>(weights.groups * kColumns),
            sum_memory.get<int32_t>(static_cast<int64_t>(plan.runs.size()) * kColumns)};
  own.fill(shape, plan, weights, first_output, last, wide_memory.get<int8_t>(stride * (kColumns + 1)),
           quad_memory.get<int8_t>(shape.kind == Kind::kFloat || shape.e4m3 ? stride * kColumns : 0));
  return own;
}

// Outputs first_output … of the rows top … top + count - 1.
inline void Job::panel(int64_t first_output, int64_t top, int64_t count, const Rows& packed) const {
  thread_local Scratch weight_memory, up_memory;
  const Panel own = filled(first_output, weight_memory);
  const int64_t columns = std::min<int64_t>(kColumns, last - first_output);
  float* up = up_memory.get<float>(low_rank.rank * kColumns);
  low_rank.fill(first_output - first, columns, up);
  alignas(64) float values[kTogether][kColumns];
  for (int64_t begin = 0; begin < count; begin += kTogether) {
    const int64_t end = std::min(count, begin + kTogether);
    expect(top + begin, end - begin, first_output, columns);
    for (int64_t row = begin; row < end; row += kRows) {
      TileInput in{{}, own.weights, own.scale, own.sums, packed.scale + row * packed.scales,
                   packed.zero + row * packed.scales, packed.scales,
                   low_rank.inner ? low_rank.inner + (top + row) * low_rank.words : nullptr, low_rank.words, up,
                   low_rank.rank};
      std::copy(packed.at + row, packed.at + std::min(row + kRows, end), in.rows);
      tile(shape.kind, std::min<int64_t>(kRows, end - row), columns, plan, in, values + (row - begin));
    }
    store(top + begin, end - begin, first_output, columns, values);
  }
}

inline void Job::run() const {
  if (fits_squares() && by_squares()) return;
  thread_local Scratch row_memory, place_memory, scale_memory, zero_memory;
  const int64_t bytes = 4 * std::max<int64_t>(1, plan.input_words);
  const int64_t fit = source.direct ? rows : std::max<int64_t>(1, kBlockBytes / bytes / kRows) * kRows;
  const int64_t block = std::min(fit, rows);
  int32_t* packed = row_memory.get<int32_t>(source.direct ? 0 : block * plan.input_words);
  const char** at = place_memory.get<const char*>(block);
  const int64_t scales = source.direct ? 0 : 2 * static_cast<int64_t>(shape.pieces.size());
  float* scale = scale_memory.get<float>(block * scales);
  float* zero = zero_memory.get<float>(block * scales);
  const Rows made = source.direct ? Rows{at, source.scale, source.zero, 0} : Rows{at, scale, zero, scales};
  const int64_t panels = (last - first + kColumns - 1) / kColumns;
  for (int64_t top = 0; top < rows; top += block) {
    const int64_t count = std::min(block, rows - top);
    torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        if (source.direct) {
          at[row] = source.at(top + row);
          continue;
        }
        int32_t* own = packed + row * plan.input_words;
        at[row] = reinterpret_cast<const char*>(own);
        pack(top + row, own, scale + row * scales, zero + row * scales);
      }
    });
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t each = begin; each < end; ++each) panel(first + each * kColumns, top, count, made);
    });
  }
}

}  // namespace segquant
