// Products of a few rows with a panel of weights: the inner loops.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <utility>

#include "plan.h"

namespace segquant {

#define SEGQUANT_INLINE inline __attribute__((always_inline))

// f(0), f(1) … f(N - 1), each with a constant: unrolled, so that arrays stay in registers.
template <int N, class F>
SEGQUANT_INLINE void each(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, N>{});
}

// sum += x by an instruction that compilers neither move nor split: intrinsics alone end with sums in memory.
SEGQUANT_INLINE void add32(__m256i& sum, __m256i x) { asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x)); }
SEGQUANT_INLINE void add16(__m256i& sum, __m256i x) { asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(x)); }
SEGQUANT_INLINE void add_product(__m256& sum, __m256 a, __m256 b) {
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
}

// What a tile reads; scales and zeros of a row lie `2 * pieces` apart, those of a panel kColumns apart.
struct TileInput {
  const int32_t* rows;   // packed codes, or floats
  int64_t row_words;
  const int8_t* panel;
  const float* weight_scale;  // [groups][kColumns]
  const int32_t* sums;        // [runs][kColumns]: of the weights, for zero points; floats if s4
  const float* scale;         // [rows][scales]
  const float* zero;          // [rows][scales]
  int64_t scales;
};

// sum += Σ of four products of u8 and s8, in 32 bits.
SEGQUANT_INLINE void dot_bytes(__m256i& sum, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#elif defined(__AVXVNNI__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
#else
  add32(sum, _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)),
                               _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8)));
  add32(sum, _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8)));
#endif
}

// Σ codes · weights of some words: result[r][h] of row r and half h of the columns; quads' in 16 bits.
template <int R, Kind K>
SEGQUANT_INLINE void dot(const int32_t* rows, int64_t row_words, const int8_t* weights, int64_t words,
                         __m256i (&result)[R][2]) {
  constexpr int kBytes = K == Kind::kPairs ? 2 : 4;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i sum[R][2];
  const int32_t* row[R];
  each<R>([&](auto r) {
    sum[r][0] = sum[r][1] = _mm256_setzero_si256();
    row[r] = rows + r * row_words;
  });
  for (int64_t k = 0; k < words; ++k, weights += kBytes * kColumns) {
    __m256i b0, b1;
    if constexpr (K == Kind::kPairs) {
      const auto* at = reinterpret_cast<const __m128i*>(weights);
      b0 = _mm256_cvtepi8_epi16(_mm_load_si128(at)), b1 = _mm256_cvtepi8_epi16(_mm_load_si128(at + 1));
    } else {
      const auto* at = reinterpret_cast<const __m256i*>(weights);
      b0 = _mm256_load_si256(at), b1 = _mm256_load_si256(at + 1);
    }
    each<R>([&](auto r) {
      const __m256i a = _mm256_set1_epi32(row[r][k]);
      __m256i low = sum[r][0], high = sum[r][1];
      if constexpr (K == Kind::kPairs) {
        add32(low, _mm256_madd_epi16(a, b0)), add32(high, _mm256_madd_epi16(a, b1));
      } else if constexpr (K == Kind::kBytes) {
        dot_bytes(low, a, b0), dot_bytes(high, a, b1);
      } else if constexpr (K == Kind::kSplit) {
        add32(low, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b0), ones));
        add32(high, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b1), ones));
      } else {
        add16(low, _mm256_maddubs_epi16(a, b0)), add16(high, _mm256_maddubs_epi16(a, b1));
      }
      sum[r][0] = low, sum[r][1] = high;
    });
  }
  each<R>([&](auto r) { result[r][0] = sum[r][0], result[r][1] = sum[r][1]; });
}

// As many quads as 16 bits hold, added to 32-bit sums; apart, so that the loop's sums have all registers.
template <int R>
__attribute__((noinline)) void add_quads(const int32_t* rows, int64_t row_words, const int8_t* weights, int64_t words,
                                         __m256i (&total)[R][2]) {
  __m256i sum[R][2];
  dot<R, Kind::kQuads>(rows, row_words, weights, words, sum);
  const __m256i ones = _mm256_set1_epi16(1);
  each<R>([&](auto r) {
    each<2>([&](auto h) { total[r][h] = _mm256_add_epi32(total[r][h], _mm256_madd_epi16(sum[r][h], ones)); });
  });
}

// Σ codes · weights of one run, in 32 bits.
template <int R, Kind K>
SEGQUANT_INLINE void dot_run(const Run& run, int64_t short_words, const TileInput& in, __m256i (&result)[R][2]) {
  const int32_t* rows = in.rows + run.input;
  if constexpr (K == Kind::kQuads) {
    const int8_t* weights = in.panel + run.panel * 4 * kColumns;
    if (run.words <= short_words) {
      dot<R, K>(rows, in.row_words, weights, run.words, result);
      each<R>([&](auto r) {
        each<2>([&](auto h) { result[r][h] = _mm256_madd_epi16(result[r][h], _mm256_set1_epi16(1)); });
      });
      return;
    }
    each<R>([&](auto r) { result[r][0] = result[r][1] = _mm256_setzero_si256(); });
    for (int64_t k = 0; k < run.words; k += short_words) {
      const int64_t words = k + short_words < run.words ? short_words : run.words - k;
      add_quads<R>(rows + k, in.row_words, weights + k * 4 * kColumns, words, result);
    }
  } else {
    dot<R, K>(rows, in.row_words, in.panel + run.panel * (K == Kind::kPairs ? 2 : 4) * kColumns, run.words, result);
  }
}

// The run's sums less zero points, as floats. Those of s4 weights are below 2^24, so floats subtract exactly.
template <Kind K>
SEGQUANT_INLINE __m256 centred(__m256i sum, const int32_t* sums, const float* zero) {
  if constexpr (K == Kind::kPairs || K == Kind::kSplit) return _mm256_cvtepi32_ps(sum);  // zeros are none
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums));
  if constexpr (K == Kind::kQuads) {
    return _mm256_fnmadd_ps(_mm256_broadcast_ss(zero), _mm256_castsi256_ps(all), _mm256_cvtepi32_ps(sum));
  } else {
    const __m256i by = _mm256_set1_epi32(static_cast<int>(*zero));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_mullo_epi32(by, all)));
  }
}

// out[r][c] = Σ over runs of (Σ (code - zero) · weight) · weight scale · input scale.
template <int R, Kind K>
void tile_integer(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  each<R>([&](auto r) { each<2>([&](auto h) { _mm256_storeu_ps(out[r] + 8 * h, _mm256_setzero_ps()); }); });
  alignas(32) float piece[R][kColumns];  // of runs that share the input's scale
  const int32_t* sums = in.sums;
  const Run* last = plan.runs.data() + plan.runs.size();
  const auto begins = [&](const Run* run) {
    return run == plan.runs.data() || run == last || run->piece != run[-1].piece || run->sign != run[-1].sign;
  };
  for (const Run* run = plan.runs.data(); run != last; ++run, sums += kColumns) {
    __m256i sum[R][2];
    dot_run<R, K>(*run, plan.short_words, in, sum);
    const int64_t at = 2 * run->piece + run->sign;
    const bool first = begins(run);
    each<2>([&](auto h) {
      const __m256 by = _mm256_loadu_ps(in.weight_scale + run->group * kColumns + 8 * h);
      each<R>([&](auto r) {
        float* own = piece[r] + 8 * h;
        const __m256 value = centred<K>(sum[r][h], sums + 8 * h, in.zero + r * in.scales + at);
        const __m256 all = first ? _mm256_mul_ps(value, by) : _mm256_fmadd_ps(value, by, _mm256_load_ps(own));
        _mm256_store_ps(own, all);
      });
    });
    if (!begins(run + 1)) continue;
    each<R>([&](auto r) {
      const __m256 scale = _mm256_broadcast_ss(in.scale + r * in.scales + at);
      each<2>([&](auto h) {
        float* to = out[r] + 8 * h;
        _mm256_storeu_ps(to, _mm256_fmadd_ps(_mm256_load_ps(piece[r] + 8 * h), scale, _mm256_loadu_ps(to)));
      });
    });
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
      __m256 low = sum[r][0], high = sum[r][1];
      add_product(low, a, b0), add_product(high, a, b1);
      sum[r][0] = low, sum[r][1] = high;
    });
  }
  each<R>([&](auto r) { each<2>([&](auto h) { _mm256_storeu_ps(out[r] + 8 * h, sum[r][h]); }); });
}

template <int R>
void tile_of(Kind kind, const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  if (kind == Kind::kPairs) return tile_integer<R, Kind::kPairs>(plan, in, out);
  if (kind == Kind::kBytes) return tile_integer<R, Kind::kBytes>(plan, in, out);
  if (kind == Kind::kSplit) return tile_integer<R, Kind::kSplit>(plan, in, out);
  if (kind == Kind::kQuads) return tile_integer<R, Kind::kQuads>(plan, in, out);
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
