// GELU by its tanh form: x · (1 + tanh u) / 2 with u = √(2/π) (x + .044715 x³), which is x / (1 + 2^(-2 u log₂ e)).
#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "output.h"
#include "softmax.h"

namespace segquant {

SEGQUANT_INLINE Floats gelu(Floats x) {
  const Floats one = all_floats(1.0f);
  const Floats cubic = plus_product(one, times(x, x), all_floats(0.044715f));
  const Floats u = magnitude(times(times(x, all_floats(0x1.26aec2p+1f)), cubic));  // 2 log₂ e √(2/π) = 2.3022…
  // less what stands for all smaller ones, so that far below zero nothing is left of x
  const Floats power = minus(power_of_two(minus(no_floats(), u)), all_floats(kAtLeastPower));
  return divided(times(x, by_sign(x, one, power)), plus(one, power));
}

// In place, whole vectors: what is beyond `columns` up to the next is changed too.
inline void gelu(float* values, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kLanes) store_floats(values + c, gelu(load_floats(values + c)));
}

// As outputs of 16 bits hold them: GELU is of the output, not of what it was before it was rounded.
inline void to_bfloats(float* values, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    const uint32_t bits = static_cast<uint32_t>(rounded(values[c])) << 16;
    std::memcpy(values + c, &bits, sizeof bits);
  }
}

}  // namespace segquant
