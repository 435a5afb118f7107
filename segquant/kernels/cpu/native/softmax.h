// Powers of two, and the softmax of a tile of scores, block of keys by block of keys.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"

namespace segquant {

constexpr float kLeastPower = -126.0f;  // 2^-126 stands for all smaller ones: beside a sum of at least 1 it is nothing
constexpr float kAtLeastPower = 0x1.000002p-126f;  // what the polynomial's last coefficient makes of it

// 2^x for x ≤ 0, relative error below 2.5e-7 where x ≥ kLeastPower; NaN stays NaN.
SEGQUANT_INLINE Floats power_of_two(Floats x) {
  const Floats magic = all_floats(12582912.0f);  // 1.5 · 2^23: in a sum with it, the lowest bits are the whole number
  x = most(all_floats(kLeastPower), x);          // the second operand where one is NaN
  const Floats shifted = plus(x, magic);
  const Floats f = minus(x, minus(shifted, magic));  // -.5 … .5
  Floats p = all_floats(0x1.5c08e4p-10f);            // minimax, of degree 5
  p = plus_product(all_floats(0x1.3d0c52p-7f), p, f);
  p = plus_product(all_floats(0x1.c6b6e4p-5f), p, f);
  p = plus_product(all_floats(0x1.ebf918p-3f), p, f);
  p = plus_product(all_floats(0x1.62e428p-1f), p, f);
  p = plus_product(all_floats(0x1.000002p+0f), p, f);
  return bits_as_floats(plus(floats_as_bits(p), to_exponent(floats_as_bits(shifted))));
}

// Of a block of keys, by row. A score s becomes 2^((s - less) · scale); what comes of the block counts `by`, what came of
// blocks before it `keep`.
struct Factors {
  alignas(64) float less[kLanes], by[kLanes], keep[kLanes];
};

// From the block's largest scores; `top`: the largest so far, times its scale. With codes, the largest of the block has
// the largest code, and `by` is what it is beside the largest so far. True if `keep` is not 1.
template <bool Codes>
SEGQUANT_INLINE bool factors_of(const float* highest, const float* scale, float* top, Factors& out) {
  alignas(64) float now[kLanes] = {}, before[kLanes] = {}, here[kLanes] = {};
  bool grown = false;
  for (int r = 0; r < kRows; ++r) {
    here[r] = highest[r] * scale[r], before[r] = top[r], now[r] = std::max(top[r], here[r]);
    grown |= now[r] != top[r];
    top[r] = now[r], out.less[r] = Codes ? highest[r] : now[r];
  }
  store_floats(out.keep, power_of_two(minus(load_floats(before), load_floats(now))));
  if constexpr (Codes) store_floats(out.by, power_of_two(minus(load_floats(here), load_floats(now))));
  return grown;
}

}  // namespace segquant
