// Weights of kColumns outputs, from a layer's codes to the order in which tiles read them.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "e4m3.h"
#include "lanes.h"
#include "plan.h"
#include "reals.h"
#include "taps.h"

namespace segquant {

struct Weights {
  const uint8_t* codes;  // [outputs][bytes]: s8 or e4m3, or s4 two per byte, even columns in the low half
  int64_t bytes;
  Reals scale;  // [outputs][groups]
  int64_t groups;
  int64_t outputs;
};

// s4 codes of a row as s8.
inline void widen(const uint8_t* codes, int64_t columns, int8_t* out) {
  const __m128i low = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  int64_t k = 0;
  for (; k + 32 <= columns; k += 32) {
    const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k / 2));
    __m128i even = _mm_and_si128(both, low), odd = _mm_and_si128(_mm_srli_epi16(both, 4), low);
    even = _mm_sub_epi8(_mm_xor_si128(even, eight), eight);
    odd = _mm_sub_epi8(_mm_xor_si128(odd, eight), eight);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k), _mm_unpacklo_epi8(even, odd));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + k + 16), _mm_unpackhi_epi8(even, odd));
  }
  for (; k < columns; ++k) {
    const int nibble = codes[k / 2] >> (k % 2 * 4) & 15;
    out[k] = static_cast<int8_t>((nibble ^ 8) - 8);
  }
}

// Eight words of eight rows: rows by words to words by rows, words `step` bytes apart.
inline void transpose_pairs(const int8_t* const* rows, int64_t first, int8_t* out, int64_t step) {
  __m128i a[8], b[8];
  for (int i = 0; i < 8; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + first));
  for (int i = 0; i < 4; ++i) {
    b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 2; ++j) {
      a[4 * i + 2 * j] = _mm_unpacklo_epi32(b[4 * i + j], b[4 * i + 2 + j]);
      a[4 * i + 2 * j + 1] = _mm_unpackhi_epi32(b[4 * i + j], b[4 * i + 2 + j]);
    }
  }
  for (int j = 0; j < 4; ++j) {
    _mm_store_si128(reinterpret_cast<__m128i*>(out + 2 * j * step), _mm_unpacklo_epi64(a[j], a[4 + j]));
    _mm_store_si128(reinterpret_cast<__m128i*>(out + (2 * j + 1) * step), _mm_unpackhi_epi64(a[j], a[4 + j]));
  }
}

// Four words of four bytes, of four rows.
inline void transpose_quads(const int8_t* const* rows, int64_t first, int8_t* out, int64_t step) {
  __m128i a[4];
  for (int i = 0; i < 4; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + first));
  const __m128i b0 = _mm_unpacklo_epi32(a[0], a[1]), b1 = _mm_unpackhi_epi32(a[0], a[1]);
  const __m128i b2 = _mm_unpacklo_epi32(a[2], a[3]), b3 = _mm_unpackhi_epi32(a[2], a[3]);
  _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi64(b0, b2));
  _mm_store_si128(reinterpret_cast<__m128i*>(out + step), _mm_unpackhi_epi64(b0, b2));
  _mm_store_si128(reinterpret_cast<__m128i*>(out + 2 * step), _mm_unpacklo_epi64(b1, b3));
  _mm_store_si128(reinterpret_cast<__m128i*>(out + 3 * step), _mm_unpackhi_epi64(b1, b3));
}

inline void fill_run(const Run& run, int64_t each, const int8_t* const* rows, int8_t* out) {
  const int64_t step = each * kColumns, block = each == 2 ? 8 : 4;
  int64_t word = 0;
  for (; (word + block) * each <= run.count; word += block) {
    const int64_t first = run.first + word * each;
    int8_t* at = out + word * step;
    for (int column = 0; column < kColumns; column += static_cast<int>(block)) {
      if (each == 2) transpose_pairs(rows + column, first, at + column * each, step);
      else transpose_quads(rows + column, first, at + column * each, step);
    }
  }
  for (; word < run.words; ++word) {
    for (int column = 0; column < kColumns; ++column) {
      for (int64_t i = 0; i < each; ++i) {
        const int64_t k = word * each + i;
        out[word * step + column * each + i] = k < run.count ? rows[column][run.first + k] : int8_t{0};
      }
    }
  }
}

// Σ weights of a run by column; as floats where tiles take them so.
inline void sum_run(const Run& run, const int8_t* weights, bool floats, int32_t* sums) {
  const Ints bytes = all_ints(0x01010101), ones = all_shorts(1);
  each<kVectors>([&](auto v) {
    Ints sum = no_ints();
    for (int64_t word = 0; word < run.words; ++word) {
      const Ints four = load_ints(weights + (word * kVectors + v) * 4 * kLanes);
      if constexpr (kProductsOfBytes) dot_bytes(sum, bytes, four);
      else sum = plus(sum, pairs(quads(bytes, four), ones));
    }
    store_ints(sums + kLanes * v, floats ? floats_as_bits(to_floats(sum)) : sum);
  });
}

// Weights of a run by quads (up to a word more), dequantized: [columns of the input][kColumns], of a window tap by tap.
template <bool E4m3>
void fill_float(const Run& run, const Shape& shape, const int8_t* quads, const float* scale, float* out) {
  const int64_t channels = shape.columns / shape.taps;
  each<kVectors>([&](auto v) {
    const Floats by = load_floats(scale + run.group * kColumns + kLanes * v);
    int64_t tap = run.first % shape.taps;
    float* to = out + (tap * channels + run.first / shape.taps) * kColumns + kLanes * v;
    for (int64_t k = 0; k < run.count; k += 4) {
      const Ints words = load_ints(quads + (k * kVectors + 4 * v) * kLanes);
      each<4>([&](auto byte) {
        if (k + byte >= run.count) return;
        Floats value;
        if constexpr (E4m3) value = e4m3_floats(byte_of<byte>(words));
        else value = to_floats(byte_of<byte>(words));
        store_floats(to, times(value, by));
        to += channels * kColumns;
        if (++tap == shape.taps) tap = 0, to -= (shape.columns - 1) * kColumns;
      });
    }
  });
}

// A panel of the outputs `first` … `first + kColumns - 1`; those from `last` on are zero.
struct Panel {
  int8_t* weights;
  float* scale;  // [groups][kColumns]
  int32_t* sums;  // [runs][kColumns]

  // `wide` and `quads` are memory for as many s8 codes, and a row more, rows of them rounded up to 64.
  void fill(const Shape& shape, const Plan& plan, const Weights& from, int64_t first, int64_t last, int8_t* wide,
            int8_t* quads) {
    const int8_t* rows[kColumns];
    const int64_t stride = (shape.columns + 63) / 64 * 64;
    for (int column = 0; column < kColumns; ++column) {
      const int64_t output = first + column;
      rows[column] = row_of(shape, from, output, output < last, wide + column * stride, wide + kColumns * stride);
      for (int64_t group = 0; group < from.groups; ++group) {
        scale[group * kColumns + column] = output < last ? from.scale[output * from.groups + group] : 0.0f;
      }
    }
    const int64_t each = per_word(shape.kind);
    int32_t* sum = sums;
    for (const Run& run : plan.runs) {
      if (shape.kind == Kind::kFloat) {
        Run whole = run;
        whole.words = (run.count + 3) / 4;
        fill_run(whole, 4, rows, quads);
        auto* to = reinterpret_cast<float*>(weights);
        if (shape.e4m3) fill_float<true>(run, shape, quads, scale, to);
        else fill_float<false>(run, shape, quads, scale, to);
        continue;
      }
#if defined(SEGQUANT_BFLOATS)
      if (shape.kind == Kind::kBfloats) {
        if (run.sign) continue;
        fill_run(run, each, rows, quads);
        to_bfloats(quads, run.words * each * kColumns, weights + run.panel * 4 * kColumns);
        continue;
      }
#endif
      int8_t* at = weights + run.panel * each * kColumns;
      if (run.sign == 0) fill_run(run, each, rows, at);
      const bool floats = shape.kind == Kind::kQuads;
      if (floats || shape.kind == Kind::kBytes) sum_run(run, at, floats, sum), sum += kColumns;
    }
  }

 private:
  // An output's codes as s8 in the order of the input's columns: as they lie, or in `own`.
  static const int8_t* row_of(const Shape& shape, const Weights& from, int64_t output, bool given, int8_t* own,
                              int8_t* buffer) {
    if (!given) return static_cast<int8_t*>(std::memset(own, 0, static_cast<size_t>(shape.columns)));
    const uint8_t* codes = from.codes + output * from.bytes;
    const auto* wide = reinterpret_cast<const int8_t*>(codes);
    if (shape.weight_bits == 4) {
      int8_t* to = shape.by_tap ? buffer : own;
      widen(codes, shape.columns, to);
      wide = to;
    }
    if (!shape.by_tap) return wide;
    order_by_tap(shape, wide, own);
    return own;
  }
};

}  // namespace segquant
