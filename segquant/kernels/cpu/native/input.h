// Inputs, from floats to the codes that tiles read.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "e4m3.h"
#include "lanes.h"
#include "plan.h"

namespace segquant {

inline float load1(const float* at) { return *at; }
inline float load1(const uint16_t* at) {
  const uint32_t bits = static_cast<uint32_t>(*at) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// A row of bfloat16, made wide.
inline const float* as_floats(const uint16_t* row, int64_t columns, float* buffer) {
  int64_t k = 0;
  for (; k + kLanes <= columns; k += kLanes) store_floats(buffer + k, load_floats(row + k));
  for (; k < columns; ++k) buffer[k] = load1(row + k);
  return buffer;
}

// Calibrated scales of a branch, [pieces] each; null where they are taken from the row.
struct Static {
  const float* above = nullptr;
  const float* below = nullptr;  // null: one scale for both signs
  const float* zero = nullptr;
};

inline float code_max(int64_t bits) { return static_cast<float>((int64_t{1} << (bits - 1)) - 1); }

struct Range {
  float most, least;  // the largest code, and the smallest without its sign
};

inline Range range_of(const Shape& shape) {
  if (shape.e4m3) return {448.0f, 448.0f};
  return {code_max(shape.input_bits), code_max(shape.input_bits) + 1};
}

inline float not_denormal(float scale) { return std::max(scale, std::numeric_limits<float>::min()); }

struct Extremes {
  float most, least;  // NaN where a value is
};

inline Extremes extremes(const float* row, int64_t count) {
  Floats high = no_floats(), low = high;
  Flags bad = no_flags();
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    const Floats x = load_floats(row + k);
    high = most(high, x), low = least(low, x), bad = or_nan(bad, x);
  }
  float highs[kLanes], lows[kLanes];
  store_floats(highs, high), store_floats(lows, low);
  float top = *std::max_element(highs, highs + kLanes), bottom = *std::min_element(lows, lows + kLanes);
  bool nan = any(bad);
  for (; k < count; ++k) top = std::max(top, row[k]), bottom = std::min(bottom, row[k]), nan |= row[k] != row[k];
  if (nan) top = bottom = std::numeric_limits<float>::quiet_NaN();
  return {top, bottom};
}

// Scales and zero points of a row from its values, as segquant.numerics.input_grid.InputGrid.dynamic.
inline void row_scales(const Shape& shape, const float* row, float* scale, float* zero) {
  const auto [top, offset] = range_of(shape);
  for (size_t piece = 0; piece < shape.pieces.size(); ++piece, scale += 2, zero += 2) {
    const Extremes found = extremes(row, shape.pieces[piece]);
    const float most = found.most, least = -found.least;
    row += shape.pieces[piece];
    zero[0] = offset, zero[1] = 0;
    if (!shape.dual[piece]) {
      const float amax = std::isnan(most) ? most : std::max(most, least);
      scale[0] = scale[1] = amax > 0 ? not_denormal(amax / top) : amax == 0 ? 1.0f : amax;
      continue;
    }
    if (std::isnan(most)) {
      scale[0] = scale[1] = most;
      continue;
    }
    if (shape.zero_point) {  // one grid from the smallest value to the largest
      const float range = most + least;
      scale[0] = scale[1] = range > 0 ? not_denormal(range / (2 * top + 1)) : 1.0f;
      zero[0] = std::min(std::max(std::nearbyint(least / scale[0]), 0.0f), 2 * top + 1);
      continue;
    }
    const float above = not_denormal(most / top), below = not_denormal(least / offset);
    scale[0] = most > 0 ? above : least > 0 ? below : 1.0f;
    scale[1] = least > 0 ? below : most > 0 ? above : 1.0f;
    zero[0] = 0;
  }
}

inline void fixed_scales(const Shape& shape, const Static& known, float* scale, float* zero) {
  const float offset = range_of(shape).least;
  for (size_t piece = 0; piece < shape.pieces.size(); ++piece, scale += 2, zero += 2) {
    scale[0] = known.above[piece];
    scale[1] = known.below && shape.dual[piece] ? known.below[piece] : scale[0];
    zero[0] = known.zero ? known.zero[piece] : shape.dual[piece] ? 0 : offset;
    zero[1] = 0;
  }
}

// Codes round(x / scale), ties to even; flags where a value is no number.
struct Grid {
  Floats above, below, lowest, highest;
  Floats by_above, by_below;  // reciprocals

  Grid(float above_scale, float below_scale, float least_code, float most_code)
      : above(all_floats(above_scale)), below(all_floats(below_scale)), lowest(all_floats(least_code)),
        highest(all_floats(most_code)), by_above(all_floats(1 / above_scale)), by_below(all_floats(1 / below_scale)) {}

  SEGQUANT_INLINE Ints operator()(Floats x, Flags& bad) const {
    // x >= 0 takes the scale above: the sign bit chooses the one below, and -0 / anything rounds to 0
    Floats ratio = times(x, by_sign(x, by_above, by_below));
    // a product differs from the quotient in its last bits: near a tie that decides, and is divided
    if (any_not_below(magnitude(minus(ratio, nearest(ratio))), 0.4999f)) [[unlikely]] {
      ratio = divided(x, by_sign(x, above, below));
    }
    bad = or_nan(bad, ratio);
    return to_ints(least(most(ratio, lowest), highest));
  }
};

// How the codes of a run are stored.
struct Store {
  bool pairs;
  int64_t part;  // -1: all codes, 0: those at least 0, 1: those below
  Ints lift;     // added: quads hold codes with their zero point, pairs less it

  SEGQUANT_INLINE void operator()(Ints codes, uint8_t* words, int64_t k) const {
    if (part == 0) codes = most(codes, no_ints());
    if (part == 1) {
      codes = least(codes, no_ints());
      if (!pairs) codes = minus(no_ints(), codes);  // magnitudes: u8
    }
    codes = plus(codes, lift);
    if (pairs) store_codes(codes, reinterpret_cast<int16_t*>(words) + k);
    else store_codes(codes, words + k);
  }
};

// The grid of a piece, from its scales and zero points.
inline Grid grid_of(const Shape& shape, int64_t piece, const float* scale, const float* zero) {
  const float most = code_max(shape.input_bits), middle = zero[2 * piece];
  const bool split = shape.split(piece);
  const bool lifted = shape.dual[piece] && !split;  // codes 0 … 255, less their zero
  return Grid(scale[2 * piece], scale[2 * piece + (split ? 1 : 0)], lifted ? -middle : -most - 1,
              lifted ? 2 * most + 1 - middle : most);
}

inline Store store_of(const Shape& shape, int64_t piece, int64_t sign, const float* zero) {
  const bool pairs = shape.kind == Kind::kPairs;
  return {pairs, shape.split(piece) ? sign : -1, all_ints(pairs ? 0 : static_cast<int>(zero[2 * piece]))};
}

// A row's codes in the order of the plan's runs; false if some value is no number.
inline bool pack_codes(const Shape& shape, const Plan& plan, const float* row, const float* scale, const float* zero,
                       int32_t* out) {
  const int64_t bytes = shape.kind == Kind::kPairs ? 2 : 1;
  Flags bad = no_flags();
  Grid grid(1, 1, 0, 0);
  int64_t piece = -1;
  for (const Run& run : plan.runs) {
    if (run.piece != piece) piece = run.piece, grid = grid_of(shape, piece, scale, zero);
    const Store store = store_of(shape, piece, run.sign, zero);
    const float* x = row + run.first;
    auto* words = reinterpret_cast<uint8_t*>(out + run.input);
    int64_t k = 0;
    for (; k + kLanes <= run.count; k += kLanes) store(grid(load_floats(x + k), bad), words, k);
    const int64_t room = run.words * per_word(shape.kind) - k;
    if (room > 0) {
      float tail[kLanes] = {};
      std::memcpy(tail, x + k, static_cast<size_t>(run.count - k) * sizeof(float));
      alignas(2) uint8_t block[2 * kLanes];
      store(grid(load_floats(tail), bad), block, 0);
      std::memcpy(words + k * bytes, block, static_cast<size_t>(room * bytes));
    }
  }
  return !any(bad);
}

// Codes below zero are stored as magnitudes, but for pairs.
inline void to_signed_scales(const Shape& shape, float* scale) {
  if (two_bytes(shape.kind)) return;
  for (size_t piece = 0; piece < shape.pieces.size(); ++piece) {
    if (shape.split(static_cast<int64_t>(piece))) scale[2 * piece + 1] = -scale[2 * piece + 1];
  }
}

// Codes of a row, its scales, and zeros; scales of what is no number spread it over the row's outputs.
inline void pack_row(const Shape& shape, const Plan& plan, const Static& known, const float* row, int32_t* out,
                     float* scale, float* zero) {
  if (shape.input_bits == 0) {
    std::memcpy(out, row, static_cast<size_t>(shape.columns) * sizeof(float));
    return;
  }
  if (known.above) fixed_scales(shape, known, scale, zero);
  else row_scales(shape, row, scale, zero);
  if (shape.kind == Kind::kBfloats) return pack_bfloats(shape, plan, row, scale, out);
  if (shape.kind == Kind::kFloat) return pack_rounded(shape, row, scale, reinterpret_cast<float*>(out));
  if (!pack_codes(shape, plan, row, scale, zero, out)) {
    std::fill(scale, scale + 2 * shape.pieces.size(), std::numeric_limits<float>::quiet_NaN());
  }
  to_signed_scales(shape, scale);
}

}  // namespace segquant
