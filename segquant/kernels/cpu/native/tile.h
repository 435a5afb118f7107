// Products of a few rows with a panel of weights: the inner loops.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "plan.h"

namespace segquant {

// f(0), f(1) … f(N - 1), each with a constant: unrolled, so that arrays stay in registers.
template <int N, class F>
inline __attribute__((always_inline)) void each(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// Keeps the compiler from moving the rows' sums out of registers.
template <class V>
inline __attribute__((always_inline)) void pin(V& low, V& high) {
  asm("" : "+x"(low), "+x"(high));
}

// What a tile reads; scales and zeros of a row lie `2 * pieces` apart, those of a panel kColumns apart.
struct TileInput {
  const int32_t* rows;   // packed codes, or floats
  int64_t row_words;
  const int8_t* panel;
  const float* weight_scale;  // [groups][kColumns]
  const int32_t* sums;        // [runs][kColumns]: of the weights, for zero points
  const float* scale;         // [rows][scales]
  const float* zero;          // [rows][scales]
  int64_t scales;
};

// sum + Σ of four products of u8 and s8, in 32 bits.
inline __m256i dot_bytes(__m256i sum, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  return _mm256_dpbusd_epi32(sum, a, b);
#elif defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, a, b);
#else
  const __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                                         _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
#endif
}

// out[r][c] = Σ over runs of (Σ codes · weights) · input scale · weight scale; s16 by s8.
template <int R>
void tile_pairs(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  each<R>([&](auto r) { each<2>([&](auto h) { _mm256_storeu_ps(out[r] + 8 * h, _mm256_setzero_ps()); }); });
  for (const Run& run : plan.runs) {
    __m256i sum[R][2];
    const int32_t* row[R];
    each<R>([&](auto r) {
      sum[r][0] = sum[r][1] = _mm256_setzero_si256();
      row[r] = in.rows + r * in.row_words + run.input;
    });
    const int8_t* weights = in.panel + run.panel * 2 * kColumns;
    for (int64_t k = 0; k < run.words; ++k, weights += 2 * kColumns) {
      const auto* at = reinterpret_cast<const __m128i*>(weights);
      const __m256i b0 = _mm256_cvtepi8_epi16(_mm_load_si128(at)), b1 = _mm256_cvtepi8_epi16(_mm_load_si128(at + 1));
      each<R>([&](auto r) {
        const __m256i a = _mm256_set1_epi32(row[r][k]);
        __m256i low = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(a, b0));
        __m256i high = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(a, b1));
        pin(low, high);
        sum[r][0] = low, sum[r][1] = high;
      });
    }
    const float* scale = in.scale + 2 * run.piece + run.sign;
    each<2>([&](auto h) {
      const __m256 by = _mm256_loadu_ps(in.weight_scale + run.group * kColumns + 8 * h);
      each<R>([&](auto r) {
        const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(sum[r][h]), by);
        const __m256 before = _mm256_loadu_ps(out[r] + 8 * h);
        _mm256_storeu_ps(out[r] + 8 * h, _mm256_fmadd_ps(value, _mm256_set1_ps(scale[r * in.scales]), before));
      });
    });
  }
}

// Likewise of u8 codes less their zero point, by s8 weights (kBytes) or s4 ones (kQuads).
template <int R, Kind K>
void tile_unsigned(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  each<R>([&](auto r) { each<2>([&](auto h) { _mm256_storeu_ps(out[r] + 8 * h, _mm256_setzero_ps()); }); });
  const __m256i ones = _mm256_set1_epi16(1);
  const int32_t* sums = in.sums;
  for (const Run& run : plan.runs) {
    __m256i sum[R][2];
    const int32_t* row[R];
    each<R>([&](auto r) {
      sum[r][0] = sum[r][1] = _mm256_setzero_si256();
      row[r] = in.rows + r * in.row_words + run.input;
    });
    const int8_t* weights = in.panel + run.panel * 4 * kColumns;
    for (int64_t k = 0; k < run.words; ++k, weights += 4 * kColumns) {
      const auto* at = reinterpret_cast<const __m256i*>(weights);
      const __m256i b0 = _mm256_load_si256(at), b1 = _mm256_load_si256(at + 1);
      each<R>([&](auto r) {
        const __m256i a = _mm256_set1_epi32(row[r][k]);
        __m256i low, high;
        if constexpr (K == Kind::kBytes) {
          low = dot_bytes(sum[r][0], a, b0), high = dot_bytes(sum[r][1], a, b1);
        } else {
          low = _mm256_add_epi16(sum[r][0], _mm256_maddubs_epi16(a, b0));
          high = _mm256_add_epi16(sum[r][1], _mm256_maddubs_epi16(a, b1));
        }
        pin(low, high);
        sum[r][0] = low, sum[r][1] = high;
      });
    }
    const int64_t at = 2 * run.piece + run.sign;
    each<2>([&](auto h) {
      const __m256 by = _mm256_loadu_ps(in.weight_scale + run.group * kColumns + 8 * h);
      const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + 8 * h));
      each<R>([&](auto r) {
        const __m256i zero = _mm256_set1_epi32(static_cast<int>(in.zero[r * in.scales + at]));
        __m256i whole = K == Kind::kBytes ? sum[r][h] : _mm256_madd_epi16(sum[r][h], ones);
        whole = _mm256_sub_epi32(whole, _mm256_mullo_epi32(zero, all));
        const __m256 value = _mm256_mul_ps(_mm256_cvtepi32_ps(whole), by);
        const __m256 before = _mm256_loadu_ps(out[r] + 8 * h);
        _mm256_storeu_ps(out[r] + 8 * h,
                         _mm256_fmadd_ps(value, _mm256_set1_ps(in.scale[r * in.scales + at]), before));
      });
    });
    sums += kColumns;
  }
}

// Floats by floats; the panel holds dequantized weights.
template <int R>
void tile_float(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  const float* weights = reinterpret_cast<const float*>(in.panel);
  const auto* rows = reinterpret_cast<const float*>(in.rows);
  __m256 sum[R][2];
  each<R>([&](auto r) { sum[r][0] = sum[r][1] = _mm256_setzero_ps(); });
  for (int64_t k = 0; k < plan.panel_words; ++k, weights += kColumns) {
    const __m256 b0 = _mm256_load_ps(weights), b1 = _mm256_load_ps(weights + 8);
    each<R>([&](auto r) {
      const __m256 a = _mm256_set1_ps(rows[r * in.row_words + k]);
      __m256 low = _mm256_fmadd_ps(a, b0, sum[r][0]), high = _mm256_fmadd_ps(a, b1, sum[r][1]);
      pin(low, high);
      sum[r][0] = low, sum[r][1] = high;
    });
  }
  each<R>([&](auto r) { each<2>([&](auto h) { _mm256_storeu_ps(out[r] + 8 * h, sum[r][h]); }); });
}

template <int R>
void tile_of(Kind kind, const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  if (kind == Kind::kPairs) return tile_pairs<R>(plan, in, out);
  if (kind == Kind::kBytes) return tile_unsigned<R, Kind::kBytes>(plan, in, out);
  if (kind == Kind::kQuads) return tile_unsigned<R, Kind::kQuads>(plan, in, out);
  tile_float<R>(plan, in, out);
}

inline void tile(Kind kind, int64_t rows, const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  switch (rows) {
    case 6: return tile_of<6>(kind, plan, in, out);
    case 5: return tile_of<5>(kind, plan, in, out);
    case 4: return tile_of<4>(kind, plan, in, out);
    case 3: return tile_of<3>(kind, plan, in, out);
    case 2: return tile_of<2>(kind, plan, in, out);
    default: return tile_of<1>(kind, plan, in, out);
  }
}

}  // namespace segquant
