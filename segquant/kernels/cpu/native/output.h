// Outputs of a tile.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "plan.h"

namespace segquant {

// values += others; kColumns at a time where there are as many, which compilers turn into vectors.
inline void add(float* values, const float* others, int64_t columns) {
  if (columns == kColumns) {
    for (int c = 0; c < kColumns; ++c) values[c] += others[c];
  } else {
    for (int64_t c = 0; c < columns; ++c) values[c] += others[c];
  }
}

// To bfloat16, ties to even.
inline uint16_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool nan = value != value;
  return static_cast<uint16_t>(nan ? 0x7fc0u : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void write(const float* values, float* out, int64_t columns) {
  if (columns == kColumns) std::memcpy(out, values, kColumns * sizeof(float));
  else std::memcpy(out, values, static_cast<size_t>(columns) * sizeof(float));
}
inline void write(const float* values, uint16_t* out, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) out[c] = rounded(values[c]);
}

// Four rows of four values, `width` apart, turned: columns `step` apart.
inline void write_across(const float* values, int64_t width, float* out, int64_t step) {
  __m128 a = _mm_loadu_ps(values), b = _mm_loadu_ps(values + width);
  __m128 c = _mm_loadu_ps(values + 2 * width), d = _mm_loadu_ps(values + 3 * width);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(out, a), _mm_storeu_ps(out + step, b);
  _mm_storeu_ps(out + 2 * step, c), _mm_storeu_ps(out + 3 * step, d);
}

// Rows to an image's channels: `places` of rows in channel 0.
template <class T>
void write_channels(const float (*values)[kColumns], const int64_t* places, int64_t rows, int64_t columns, T* to,
                    int64_t step) {
  int64_t whole = 0;  // rows that are written by fours
  if constexpr (sizeof(T) == sizeof(float)) {
    if (places[rows - 1] - places[0] == rows - 1) whole = rows / 4 * 4;
    for (int64_t c = 0; c + 4 <= columns; c += 4) {
      for (int64_t r = 0; r < whole; r += 4) write_across(values[r] + c, kColumns, to + c * step + places[r], step);
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t done = c < columns / 4 * 4 ? whole : 0;
    for (int64_t r = done; r < rows; ++r) write(values[r] + c, to + c * step + places[r], 1);
  }
}

// Asks for the lines that write_channels is to write: they come while tiles are multiplied.
template <class T>
void expect_channels(const int64_t* places, int64_t rows, int64_t columns, const T* to, int64_t step) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; r += kLine) __builtin_prefetch(to + c * step + places[r], 1, 2);
  }
}

}  // namespace segquant
