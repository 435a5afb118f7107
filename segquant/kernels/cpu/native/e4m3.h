// e4m3, floats of eight bits: weights to bfloat16 and float32, inputs rounded.
//
// Each is a bfloat16, and a product of two has 8 bits and is a multiple of 2^-18: so are all sums of products, and none
// is denormal. vdpbf16ps, which takes denormals for zero, meets none; scales are multiplied afterwards, in float32.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "plan.h"

namespace segquant {

// Values of codes that have their byte's sign.
SEGQUANT_INLINE Floats e4m3_floats(Ints codes) {
  const Ints size = both(codes, all_ints(127)), sign = both(codes, all_ints(INT32_MIN));
  const Floats normal = bits_as_floats(plus(up<20>(size), all_ints(120 << 23)));
  const Floats small = times(to_floats(size), all_floats(0x1p-9f));
  Floats value = by_sign(bits_as_floats(minus(size, all_ints(8))), normal, small);
  value = by_sign(bits_as_floats(minus(all_ints(126), size)), value, bits_as_floats(all_ints(0x7fc00000)));
  return bits_as_floats(plus(floats_as_bits(value), sign));
}

#if defined(SEGQUANT_BFLOATS)
// Of the codes without a sign, as bfloat16.
constexpr std::array<uint16_t, 128> e4m3_table() {
  std::array<uint16_t, 128> found{};
  for (int code = 0; code < 127; ++code) found[code] = static_cast<uint16_t>((code << 4) + (120 << 7));
  const uint16_t small[] = {0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60};  // times 2^-9
  for (int code = 0; code < 8; ++code) found[code] = small[code];
  found[127] = 0x7fc0;
  return found;
}

// Codes, a multiple of 32, to bfloat16.
inline void to_bfloats(const int8_t* codes, int64_t count, int8_t* out) {
  alignas(64) static constexpr std::array<uint16_t, 128> table = e4m3_table();
  const Ints first = load_ints(&table[0]), second = load_ints(&table[32]);
  const Ints third = load_ints(&table[64]), fourth = load_ints(&table[96]);
  for (int64_t k = 0; k < count; k += 32) {
    const Ints code = load_shorts(codes + k);
    const Ints low = _mm512_permutex2var_epi16(first, code, second);
    const Ints high = _mm512_permutex2var_epi16(third, code, fourth);
    const Ints value = _mm512_mask_blend_epi16(_mm512_test_epi16_mask(code, all_shorts(64)), low, high);
    store_ints(out + 2 * k, _mm512_or_si512(value, both(code, all_shorts(INT16_MIN))));
  }
}
#endif

// x / scale to the nearest e4m3, ties to even, at most 448, as segquant.numerics.grids; NaN stays one.
struct Rounding {
  Floats above, below;  // scales of x >= 0 and of x below

  SEGQUANT_INLINE Floats operator()(Floats x) const {
    const Floats ratio = divided(x, by_sign(x, above, below));
    // of a number and none, vectors' minimum and maximum are the second
    const Floats value = least(all_floats(448.0f), most(all_floats(-448.0f), ratio));
    const Floats exponent = bits_as_floats(both(floats_as_bits(value), all_ints(0xff << 23)));
    // a sum whose last place is the format's: the processor's own rounding
    const Floats large = times(most(all_floats(0x1p-6f), exponent), all_floats(0x1.8p20f));
    return minus(plus(value, large), large);
  }

  SEGQUANT_INLINE Floats scaled(Floats x) const { return times((*this)(x), by_sign(x, above, below)); }

  // Of `count` floats, in their place; a multiple of kLanes.
  void scale(float* x, int64_t count) const {
    for (int64_t k = 0; k < count; k += kLanes) store_floats(x + k, scaled(load_floats(x + k)));
  }
};

inline Rounding rounding_of(const Shape& shape, int64_t piece, const float* scale) {
  return {all_floats(scale[2 * piece]), all_floats(scale[2 * piece + (shape.dual[piece] ? 1 : 0)])};
}

// Rounded values as bfloat16; part -1: all, 0: those at least 0, 1: those below.
SEGQUANT_INLINE void store_bfloats(Floats values, int64_t part, int16_t* out) {
  if (part == 0) values = most(no_floats(), values);
  if (part == 1) values = least(no_floats(), values);
  store_codes(down<16>(floats_as_bits(values)), out);
}

// Likewise of `count` floats; a multiple of kLanes.
inline void to_bfloats(const float* x, int64_t count, const Rounding& rounding, int64_t part, int16_t* out) {
  for (int64_t k = 0; k < count; k += kLanes) store_bfloats(rounding(load_floats(x + k)), part, out + k);
}

// A row's values in the order of the plan's runs, as bfloat16.
inline void pack_bfloats(const Shape& shape, const Plan& plan, const float* row, const float* scale, int32_t* out) {
  for (const Run& run : plan.runs) {
    const Rounding rounding = rounding_of(shape, run.piece, scale);
    const int64_t part = shape.split(run.piece) ? run.sign : -1;
    const float* x = row + run.first;
    auto* words = reinterpret_cast<int16_t*>(out + run.input);
    const int64_t k = run.count / kLanes * kLanes, room = 2 * run.words - k;
    to_bfloats(x, k, rounding, part, words);
    if (room > 0) {
      float tail[kLanes] = {};
      std::memcpy(tail, x + k, static_cast<size_t>(run.count - k) * sizeof(float));
      int16_t block[kLanes];
      to_bfloats(tail, kLanes, rounding, part, block);
      std::memcpy(words + k, block, static_cast<size_t>(room) * sizeof(int16_t));
    }
  }
}

// The same in float32, with their scales.
inline void pack_rounded(const Shape& shape, const float* row, const float* scale, float* out) {
  for (size_t piece = 0; piece < shape.pieces.size(); ++piece) {
    const Rounding rounding = rounding_of(shape, static_cast<int64_t>(piece), scale);
    const int64_t count = shape.pieces[piece];
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) store_floats(out + k, rounding.scaled(load_floats(row + k)));
    if (k < count) {
      float tail[kLanes] = {};
      std::memcpy(tail, row + k, static_cast<size_t>(count - k) * sizeof(float));
      store_floats(tail, rounding.scaled(load_floats(tail)));
      std::memcpy(out + k, tail, static_cast<size_t>(count - k) * sizeof(float));
    }
    row += count, out += count;
  }
}

}  // namespace segquant
