// Codes of a channel's taps together, to those of a tap's channels together.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "plan.h"

namespace segquant {

// Every `step`th of some codes, four to a word.
inline void take_each(const int8_t* codes, int64_t step, int64_t count, int8_t* out) {
  int64_t k = 0;
  for (; k + 4 <= count; k += 4, codes += 4 * step) {
    const auto byte = [&](int64_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(codes[i * step])) << 8 * i; };
    const uint32_t word = byte(0) | byte(1) | byte(2) | byte(3);
    std::memcpy(out + k, &word, 4);
  }
  for (; k < count; ++k, codes += step) out[k] = *codes;
}

// Sixteen rows of sixteen bytes, `step` apart, turned: rows of columns.
SEGQUANT_INLINE void turn(const void* rows, int64_t step, __m128i (&turned)[16]) {
  __m128i a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const char*>(rows) + i * step));
  }
#pragma GCC unroll 4
  for (int stage = 0; stage < 4; ++stage) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]), b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) turned[i] = a[i];
}

// A piece's codes, a channel's taps together, to a tap's channels together.
inline void turn_taps(const int8_t* codes, int64_t taps, int64_t channels, int8_t* out) {
  int64_t channel = 0;
  if (taps <= 16) {
    for (; channel * taps + 15 * taps + 16 <= channels * taps; channel += 16) {
      __m128i turned[16];
      turn(codes + channel * taps, taps, turned);
      for (int64_t tap = 0; tap < taps; ++tap) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + tap * channels + channel), turned[tap]);
      }
    }
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    take_each(codes + channel * taps + tap, taps, channels - channel, out + tap * channels + channel);
  }
}

// An output's codes in the order of patches by tap.
inline void order_by_tap(const Shape& shape, const int8_t* codes, int8_t* out) {
  for (const int64_t piece : shape.pieces) {
    turn_taps(codes, shape.taps, piece / shape.taps, out);
    codes += piece, out += piece;
  }
}

}  // namespace segquant
