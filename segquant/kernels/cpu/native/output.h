// Outputs of a tile.
#pragma once

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

}  // namespace segquant
