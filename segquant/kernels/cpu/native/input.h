// Inputs, from floats to the codes that tiles read.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "plan.h"

namespace segquant {

inline __m256 load8(const float* at) { return _mm256_loadu_ps(at); }
inline __m256 load8(const uint16_t* at) {  // bfloat16
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline float load1(const float* at) { return *at; }
inline float load1(const uint16_t* at) {
  const uint32_t bits = static_cast<uint32_t>(*at) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Calibrated scales of a branch, [pieces] each; null where they are taken from the row.
struct Static {
  const float* above = nullptr;
  const float* below = nullptr;  // null: one scale for both signs
  const float* zero = nullptr;
};

inline float code_max(int64_t bits) { return static_cast<float>((int64_t{1} << (bits - 1)) - 1); }

inline float not_denormal(float scale) { return std::max(scale, std::numeric_limits<float>::min()); }

struct Extremes {
  float most, least;  // NaN where a value is
};

inline Extremes extremes(const float* row, int64_t count) {
  __m256 most = _mm256_setzero_ps(), least = most, bad = most;
  int64_t k = 0;
  for (; k + 8 <= count; k += 8) {
    const __m256 x = _mm256_loadu_ps(row + k);
    most = _mm256_max_ps(most, x), least = _mm256_min_ps(least, x);
    bad = _mm256_or_ps(bad, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  }
  float high[8], low[8];
  _mm256_storeu_ps(high, most), _mm256_storeu_ps(low, least);
  float top = *std::max_element(high, high + 8), bottom = *std::min_element(low, low + 8);
  bool nan = _mm256_movemask_ps(bad) != 0;
  for (; k < count; ++k) top = std::max(top, row[k]), bottom = std::min(bottom, row[k]), nan |= row[k] != row[k];
  if (nan) top = bottom = std::numeric_limits<float>::quiet_NaN();
  return {top, bottom};
}

// Scales and zero points of a row from its values, as segquant.numerics.input_grid.InputGrid.dynamic.
inline void row_scales(const Shape& shape, const float* row, float* scale, float* zero) {
  const float top = code_max(shape.input_bits), offset = top + 1;
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
  const float offset = code_max(shape.input_bits) + 1;
  for (size_t piece = 0; piece < shape.pieces.size(); ++piece, scale += 2, zero += 2) {
    scale[0] = known.above[piece];
    scale[1] = known.below && shape.dual[piece] ? known.below[piece] : scale[0];
    zero[0] = known.zero ? known.zero[piece] : shape.dual[piece] ? 0 : offset;
    zero[1] = 0;
  }
}

// Codes round(x / scale), ties to even, of 8 values, and whether one of them is no number.
struct Codes {
  __m256i codes;
  __m256 bad;
};

struct Grid {
  __m256 above, below, least, most;
  __m256 by_above, by_below;  // reciprocals

  Grid(float above_scale, float below_scale, float least_code, float most_code)
      : above(_mm256_set1_ps(above_scale)), below(_mm256_set1_ps(below_scale)), least(_mm256_set1_ps(least_code)),
        most(_mm256_set1_ps(most_code)), by_above(_mm256_set1_ps(1 / above_scale)),
        by_below(_mm256_set1_ps(1 / below_scale)) {}

  Codes operator()(__m256 x) const {
    // x >= 0 takes the scale above: the sign bit chooses the one below, and -0 / anything rounds to 0
    __m256 ratio = _mm256_mul_ps(x, _mm256_blendv_ps(by_above, by_below, x));
    // a product differs from the quotient in its last bits: near a tie that decides, and is divided
    const __m256 whole = _mm256_round_ps(ratio, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 apart = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), _mm256_sub_ps(ratio, whole));
    if (_mm256_movemask_ps(_mm256_cmp_ps(apart, _mm256_set1_ps(0.4999f), _CMP_NLT_UQ))) [[unlikely]] {
      ratio = _mm256_div_ps(x, _mm256_blendv_ps(above, below, x));
    }
    const __m256 within = _mm256_min_ps(_mm256_max_ps(ratio, least), most);
    return {_mm256_cvtps_epi32(within), _mm256_cmp_ps(ratio, ratio, _CMP_UNORD_Q)};
  }
};

inline void store_pairs(__m256i codes, int16_t* out) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes, codes), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm256_castsi256_si128(packed));
}

inline void store_quads(__m256i codes, uint8_t* out) {
  const __m256i half = _mm256_permute4x64_epi64(_mm256_packs_epi32(codes, codes), 0x08);
  const __m128i packed = _mm_packus_epi16(_mm256_castsi256_si128(half), _mm_setzero_si128());
  _mm_storel_epi64(reinterpret_cast<__m128i*>(out), packed);
}

// How the codes of a run are stored.
struct Store {
  bool pairs;
  int64_t part;   // -1: all codes, 0: those at least 0, 1: those below
  __m256i lift;   // added: quads hold codes with their zero point, pairs less it

  void operator()(__m256i codes, uint8_t* words, int64_t k) const {
    const __m256i none = _mm256_setzero_si256();
    if (part == 0) codes = _mm256_max_epi32(codes, none);
    if (part == 1) {
      codes = _mm256_min_epi32(codes, none);
      if (!pairs) codes = _mm256_sub_epi32(none, codes);  // magnitudes: u8
    }
    codes = _mm256_add_epi32(codes, lift);
    if (pairs) store_pairs(codes, reinterpret_cast<int16_t*>(words) + k);
    else store_quads(codes, words + k);
  }
};

// A row's codes in the order of the plan's runs; false if some value is no number.
inline bool pack_codes(const Shape& shape, const Plan& plan, const float* row, const float* scale, const float* zero,
                       int32_t* out) {
  const float most = code_max(shape.input_bits), least = -most - 1;
  const bool pairs = shape.kind == Kind::kPairs;
  const int64_t bytes = pairs ? 2 : 1;
  __m256 bad = _mm256_setzero_ps();
  Grid grid(1, 1, least, most);
  Store store{pairs, -1, _mm256_setzero_si256()};
  int64_t piece = -1;
  for (const Run& run : plan.runs) {
    const bool split = shape.split(run.piece);
    if (run.piece != piece) {
      piece = run.piece;
      const float* own = scale + 2 * piece;
      const float middle = zero[2 * piece];
      const bool lifted = shape.dual[piece] && !split;  // codes 0 … 255, less their zero
      grid = Grid(own[0], split ? own[1] : own[0], lifted ? -middle : least, lifted ? 2 * most + 1 - middle : most);
      store.lift = _mm256_set1_epi32(pairs ? 0 : static_cast<int>(middle));
    }
    store.part = split ? run.sign : -1;
    const float* x = row + run.first;
    auto* words = reinterpret_cast<uint8_t*>(out + run.input);
    int64_t k = 0;
    for (; k + 8 <= run.count; k += 8) {
      const Codes found = grid(_mm256_loadu_ps(x + k));
      bad = _mm256_or_ps(bad, found.bad);
      store(found.codes, words, k);
    }
    const int64_t room = run.words * per_word(shape.kind) - k;
    if (room > 0) {
      float tail[8] = {};
      std::memcpy(tail, x + k, static_cast<size_t>(run.count - k) * sizeof(float));
      const Codes found = grid(_mm256_loadu_ps(tail));
      bad = _mm256_or_ps(bad, found.bad);
      uint8_t block[16];
      store(found.codes, block, 0);
      std::memcpy(words + k * bytes, block, static_cast<size_t>(room * bytes));
    }
  }
  return _mm256_movemask_ps(bad) == 0;
}

// Codes of a row, its scales, and zeros; scales of what is no number spread it over the row's outputs.
inline void pack_row(const Shape& shape, const Plan& plan, const Static& known, const float* row, int32_t* out,
                     float* scale, float* zero) {
  if (shape.kind == Kind::kFloat) {
    std::memcpy(out, row, static_cast<size_t>(shape.columns) * sizeof(float));
    return;
  }
  if (known.above) fixed_scales(shape, known, scale, zero);
  else row_scales(shape, row, scale, zero);
  if (!pack_codes(shape, plan, row, scale, zero, out)) {
    std::fill(scale, scale + 2 * shape.pieces.size(), std::numeric_limits<float>::quiet_NaN());
  }
  if (shape.kind != Kind::kPairs) {  // magnitudes below zero
    for (size_t piece = 0; piece < shape.pieces.size(); ++piece) {
      if (shape.split(static_cast<int64_t>(piece))) scale[2 * piece + 1] = -scale[2 * piece + 1];
    }
  }
}

}  // namespace segquant
