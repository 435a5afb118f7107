// Numbers that are kept as float32, bfloat16 or float16, read as float32.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace segquant {

enum class Kept { kFloat, kBfloat, kHalf };

struct Reals {
  const void* values = nullptr;
  Kept kept = Kept::kFloat;

  float operator[](int64_t at) const {
    if (kept == Kept::kFloat) return static_cast<const float*>(values)[at];
    const uint16_t bits = static_cast<const uint16_t*>(values)[at];
    if (kept == Kept::kHalf) return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }

  void skip(int64_t count) {
    values = static_cast<const char*>(values) + count * (kept == Kept::kFloat ? sizeof(float) : sizeof(uint16_t));
  }
};

}  // namespace segquant
