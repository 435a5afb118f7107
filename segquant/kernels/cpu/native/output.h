// Outputs of a tile.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "lanes.h"
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

#if defined(SEGQUANT_WIDE)
constexpr int64_t kSquare = 16;  // rows, and columns, that are turned together

// Sixteen rows of sixteen values, turned: columns `step` apart, whole lines of a cache.
inline void write_square(const float* values, int64_t width, float* out, int64_t step) {
  __m512 fours[4][4];  // [j][g]: columns j, 4 + j, 8 + j, 12 + j of rows 4 g … 4 g + 3
  each<4>([&](auto g) {
    const float* own = values + 4 * g * width;
    const __m512 a = _mm512_loadu_ps(own), b = _mm512_loadu_ps(own + width);
    const __m512 c = _mm512_loadu_ps(own + 2 * width), d = _mm512_loadu_ps(own + 3 * width);
    const __m512d ab = _mm512_castps_pd(_mm512_unpacklo_ps(a, b)), cd = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    const __m512d ba = _mm512_castps_pd(_mm512_unpackhi_ps(a, b)), dc = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    fours[0][g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
    fours[1][g] = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
    fours[2][g] = _mm512_castpd_ps(_mm512_unpacklo_pd(ba, dc));
    fours[3][g] = _mm512_castpd_ps(_mm512_unpackhi_pd(ba, dc));
  });
  each<4>([&](auto j) {
    const __m512 (&own)[4] = fours[j];
    const __m512 low = _mm512_shuffle_f32x4(own[0], own[1], 0x44), lower = _mm512_shuffle_f32x4(own[2], own[3], 0x44);
    const __m512 high = _mm512_shuffle_f32x4(own[0], own[1], 0xee), higher = _mm512_shuffle_f32x4(own[2], own[3], 0xee);
    _mm512_storeu_ps(out + j * step, _mm512_shuffle_f32x4(low, lower, 0x88));
    _mm512_storeu_ps(out + (4 + j) * step, _mm512_shuffle_f32x4(low, lower, 0xdd));
    _mm512_storeu_ps(out + (8 + j) * step, _mm512_shuffle_f32x4(high, higher, 0x88));
    _mm512_storeu_ps(out + (12 + j) * step, _mm512_shuffle_f32x4(high, higher, 0xdd));
  });
}
#else
constexpr int64_t kSquare = 4;
inline void write_square(const float* values, int64_t width, float* out, int64_t step) {
  write_across(values, width, out, step);
}
#endif

// Rows to an image's channels: `places` of rows in channel 0.
template <class T>
void write_channels(const float (*values)[kColumns], const int64_t* places, int64_t rows, int64_t columns, T* to,
                    int64_t step) {
  int64_t whole = 0;  // rows that are written by squares
  if constexpr (sizeof(T) == sizeof(float)) {
    if (places[rows - 1] - places[0] == rows - 1) whole = rows / kSquare * kSquare;
    for (int64_t c = 0; c + kSquare <= columns; c += kSquare) {
      for (int64_t r = 0; r < whole; r += kSquare) {
        write_square(values[r] + c, kColumns, to + c * step + places[r], step);
      }
    }
  }
  for (int64_t c = 0; c < columns; ++c) {
    const int64_t done = c < columns / kSquare * kSquare ? whole : 0;
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
