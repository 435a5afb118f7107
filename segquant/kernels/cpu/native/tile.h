// Products of a few rows with a panel of weights: the inner loops.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "plan.h"

namespace segquant {

// What a tile reads; scales and zeros of a row lie `scales` apart, those of a panel kColumns apart.
struct TileInput {
  const char* rows[kRows];  // of codes, or floats
  const int8_t* panel;
  const float* weight_scale;  // [groups][kColumns]
  const int32_t* sums;        // [runs][kColumns]: of the weights, for zero points; floats if quads
  const float* scale;         // [rows][scales]
  const float* zero;          // [rows][scales]
  int64_t scales;
  const float* inner;  // [rows][inner_words], of which `rank`: a low-rank branch's; null: none
  int64_t inner_words;
  const float* up;  // [rank][kColumns]
  int64_t rank;
};

constexpr int64_t kFew = 256;  // words of floats that are added up before their sum joins others: a long sum errs more

// A tile has R rows and V vectors of columns, which lie kColumns apart.

// Σ codes · weights of some spans: result[r][v] of row r and vector v; quads' in 16 bits.
template <int R, int V, Kind K>
SEGQUANT_INLINE void dot(const char* const* rows, const Spans& spans, const int8_t* weights, Ints (&result)[R][V]) {
  constexpr int kBytes = K == Kind::kPairs ? 2 : 4;
  const Ints ones = all_shorts(1);
  Ints sum[R][V];
  each<R>([&](auto r) { each<V>([&](auto v) { sum[r][v] = no_ints(); }); });
  for (int64_t span = 0; span < spans.count; ++span) {
    const int32_t* row[R];
    each<R>([&](auto r) { row[r] = reinterpret_cast<const int32_t*>(rows[r] + spans.offsets[span]); });
    for (int64_t k = 0; k < spans.words; ++k, weights += kBytes * kColumns) {
      Ints b[V];
      each<V>([&](auto v) {
        const int8_t* at = weights + v * kBytes * kLanes;
        if constexpr (K == Kind::kPairs) b[v] = load_shorts(at);
        else b[v] = load_ints(at);
      });
      each<R>([&](auto r) {
        const Ints a = all_ints(row[r][k]);
        each<V>([&](auto v) {
          Ints own = sum[r][v];
          if constexpr (K == Kind::kPairs) add32(own, pairs(a, b[v]));
          else if constexpr (K == Kind::kBytes) dot_bytes(own, a, b[v]);
#if defined(SEGQUANT_BFLOATS)
          else if constexpr (K == Kind::kBfloats) dot_bfloats(own, a, b[v]);
#endif
          else if constexpr (K == Kind::kSplit) add32(own, pairs(quads(a, b[v]), ones));
          else add16(own, quads(a, b[v]));
          sum[r][v] = own;
        });
      });
    }
  }
  each<R>([&](auto r) { each<V>([&](auto v) { result[r][v] = sum[r][v]; }); });
}

// As many quads as 16 bits hold, added to 32-bit sums; apart, so that the loop's sums have all registers.
template <int R, int V>
__attribute__((noinline, flatten)) void add_quads(const char* const* rows, const Spans& span, const int8_t* weights,
                                         Ints (&total)[R][V]) {
  Ints sum[R][V];
  dot<R, V, Kind::kQuads>(rows, span, weights, sum);
  const Ints ones = all_shorts(1);
  each<R>([&](auto r) { each<V>([&](auto v) { total[r][v] = plus(total[r][v], pairs(sum[r][v], ones)); }); });
}

#if defined(SEGQUANT_BFLOATS)
// Some pairs of bfloat16, added to float32 sums.
template <int R, int V>
__attribute__((noinline, flatten)) void add_bfloats(const char* const* rows, const Spans& spans, const int8_t* weights,
                                                    Ints (&total)[R][V]) {
  Ints sum[R][V];
  dot<R, V, Kind::kBfloats>(rows, spans, weights, sum);
  each<R>([&](auto r) {
    each<V>([&](auto v) {
      total[r][v] = floats_as_bits(plus(bits_as_floats(total[r][v]), bits_as_floats(sum[r][v])));
    });
  });
}

// All of a run, kFew words at a time: whole spans, or parts of one.
template <int R, int V>
SEGQUANT_INLINE void dot_bfloats(const Spans& spans, const char* const* rows, const int8_t* weights,
                                 Ints (&total)[R][V]) {
  each<R>([&](auto r) { each<V>([&](auto v) { total[r][v] = no_ints(); }); });
  const int64_t many = std::max<int64_t>(1, kFew / spans.words);
  for (int64_t span = 0; span < spans.count; span += many) {
    const int64_t count = std::min(many, spans.count - span);
    if (spans.words <= kFew) {
      add_bfloats<R, V>(rows, {spans.offsets + span, count, spans.words}, weights, total);
      weights += count * spans.words * 4 * kColumns;
      continue;
    }
    for (int64_t k = 0; k < spans.words; k += kFew) {
      const int64_t offset = spans.offsets[span] + 4 * k, words = std::min(kFew, spans.words - k);
      add_bfloats<R, V>(rows, {&offset, 1, words}, weights, total);
      weights += words * 4 * kColumns;
    }
  }
}
#endif

// Σ codes · weights of one run, in 32 bits.
template <int R, int V, Kind K>
SEGQUANT_INLINE void dot_run(const Run& run, int64_t short_words, const TileInput& in, Ints (&result)[R][V]) {
  const int8_t* weights = in.panel + run.panel * (K == Kind::kPairs ? 2 : 4) * kColumns;
#if defined(SEGQUANT_BFLOATS)
  if constexpr (K == Kind::kBfloats) {
    if (run.words > kFew) return dot_bfloats<R, V>(run.spans, in.rows, weights, result);
  }
#endif
  if constexpr (K != Kind::kQuads) {
    dot<R, V, K>(in.rows, run.spans, weights, result);
  } else if (run.words <= short_words) {
    dot<R, V, K>(in.rows, run.spans, weights, result);
    const Ints ones = all_shorts(1);
    each<R>([&](auto r) { each<V>([&](auto v) { result[r][v] = pairs(result[r][v], ones); }); });
  } else {
    each<R>([&](auto r) { each<V>([&](auto v) { result[r][v] = no_ints(); }); });
    for (int64_t span = 0; span < run.spans.count; ++span) {
      for (int64_t k = 0; k < run.spans.words; k += short_words) {
        const int64_t offset = run.spans.offsets[span] + 4 * k, words = std::min(short_words, run.spans.words - k);
        add_quads<R, V>(in.rows, {&offset, 1, words}, weights, result);
        weights += words * 4 * kColumns;
      }
    }
  }
}

// The run's sums less zero points, as floats. Those of s4 weights are below 2^24, so floats subtract exactly.
template <Kind K>
SEGQUANT_INLINE Floats centred(Ints sum, const int32_t* sums, float zero) {
  if constexpr (K == Kind::kPairs || K == Kind::kSplit) return to_floats(sum);  // zeros are none
  if constexpr (K == Kind::kBfloats) return bits_as_floats(sum);
  const Ints all = load_ints(sums);
  if constexpr (K == Kind::kQuads) return less_product(to_floats(sum), all_floats(zero), bits_as_floats(all));
  else return to_floats(minus(sum, times(all_ints(static_cast<int>(zero)), all)));
}

// out[r][c] = (Σ (code - zero) · weight) · weight scale · input scale, of one run.
template <int R, int V, Kind K>
SEGQUANT_WHOLE void tile_of_one_run(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  Ints sum[R][V];
  dot_run<R, V, K>(plan.runs[0], plan.short_words, in, sum);
  each<V>([&](auto v) {
    const Floats by = load_floats(in.weight_scale + kLanes * v);
    each<R>([&](auto r) {
      const Floats value = centred<K>(sum[r][v], in.sums + kLanes * v, in.zero[r * in.scales]);
      store_floats(out[r] + kLanes * v, times(times(value, by), all_floats(in.scale[r * in.scales])));
    });
  });
}

// The same, Σ over runs.
template <int R, int V, Kind K>
SEGQUANT_WHOLE void tile_integer(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  each<R>([&](auto r) { each<V>([&](auto v) { store_floats(out[r] + kLanes * v, no_floats()); }); });
  alignas(64) float piece[R][kColumns];  // of runs that share the input's scale
  const int32_t* sums = in.sums;
  const Run* last = plan.runs.data() + plan.runs.size();
  const auto begins = [&](const Run* run) {
    return run == plan.runs.data() || run == last || run->piece != run[-1].piece || run->sign != run[-1].sign;
  };
  for (const Run* run = plan.runs.data(); run != last; ++run, sums += kColumns) {
    Ints sum[R][V];
    dot_run<R, V, K>(*run, plan.short_words, in, sum);
    const int64_t at = 2 * run->piece + run->sign;
    const bool first = begins(run);
    each<V>([&](auto v) {
      const Floats by = load_floats(in.weight_scale + run->group * kColumns + kLanes * v);
      each<R>([&](auto r) {
        float* own = piece[r] + kLanes * v;
        const Floats value = centred<K>(sum[r][v], sums + kLanes * v, in.zero[r * in.scales + at]);
        store_floats(own, first ? times(value, by) : plus_product(load_floats(own), value, by));
      });
    });
    if (!begins(run + 1)) continue;
    each<R>([&](auto r) {
      const Floats scale = all_floats(in.scale[r * in.scales + at]);
      each<V>([&](auto v) {
        float* to = out[r] + kLanes * v;
        store_floats(to, plus_product(load_floats(to), load_floats(piece[r] + kLanes * v), scale));
      });
    });
  }
}

// out += floats by floats, weights [words][kColumns].
template <int R, int V>
SEGQUANT_WHOLE void add_floats(const char* const* rows, int64_t offset, int64_t words, const float* weights,
                               float (*out)[kColumns]) {
  Floats sum[R][V];
  each<R>([&](auto r) { each<V>([&](auto v) { sum[r][v] = no_floats(); }); });
  const float* row[R];
  each<R>([&](auto r) { row[r] = reinterpret_cast<const float*>(rows[r] + offset); });
  for (int64_t k = 0; k < words; ++k, weights += kColumns) {
    Floats b[V];
    each<V>([&](auto v) { b[v] = load_floats(weights + kLanes * v); });
    each<R>([&](auto r) {
      const Floats a = all_floats(row[r][k]);
      each<V>([&](auto v) {
        Floats own = sum[r][v];
        add_product(own, a, b[v]);
        sum[r][v] = own;
      });
    });
  }
  each<R>([&](auto r) {
    each<V>([&](auto v) {
      float* to = out[r] + kLanes * v;
      store_floats(to, plus(load_floats(to), sum[r][v]));
    });
  });
}

// The panel holds dequantized weights.
template <int R, int V>
void tile_float(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  each<R>([&](auto r) { each<V>([&](auto v) { store_floats(out[r] + kLanes * v, no_floats()); }); });
  const auto* weights = reinterpret_cast<const float*>(in.panel);
  for (int64_t span = 0; span < plan.whole.count; ++span) {
    for (int64_t k = 0; k < plan.whole.words; k += kFew) {
      const int64_t words = std::min(kFew, plan.whole.words - k);
      add_floats<R, V>(in.rows, plan.whole.offsets[span] + 4 * k, words, weights, out);
      weights += words * kColumns;
    }
  }
}

// out += a low-rank branch.
template <int R, int V>
void add_branch(const TileInput& in, float (*out)[kColumns]) {
  const char* rows[R];
  each<R>([&](auto r) { rows[r] = reinterpret_cast<const char*>(in.inner + r * in.inner_words); });
  add_floats<R, V>(rows, 0, in.rank, in.up, out);
}

template <int R, int V, Kind K>
void tile_of_runs(const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  if (plan.runs.size() == 1) tile_of_one_run<R, V, K>(plan, in, out);
  else tile_integer<R, V, K>(plan, in, out);
}

template <int R, int V>
void tile_of(Kind kind, const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  if (kind == Kind::kFloat) {
    tile_float<R, V>(plan, in, out);
#if defined(SEGQUANT_BFLOATS)
  } else if (kind == Kind::kBfloats) {
    tile_of_runs<R, V, Kind::kBfloats>(plan, in, out);
#endif
  } else if constexpr (kProductsOfBytes) {
    tile_of_runs<R, V, Kind::kBytes>(plan, in, out);
  } else {
    if (kind == Kind::kPairs) tile_integer<R, V, Kind::kPairs>(plan, in, out);
    else if (kind == Kind::kSplit) tile_integer<R, V, Kind::kSplit>(plan, in, out);
    else tile_integer<R, V, Kind::kQuads>(plan, in, out);
  }
  if (in.inner) add_branch<R, V>(in, out);
}

// The first `columns` of a panel; half its vectors where they hold them.
template <int R>
void tile_of(Kind kind, int64_t columns, const Plan& plan, const TileInput& in, float (*out)[kColumns]) {
  if (columns <= kColumns / 2) return tile_of<R, kVectors / 2>(kind, plan, in, out);
  tile_of<R, kVectors>(kind, plan, in, out);
}

inline void tile(Kind kind, int64_t rows, int64_t columns, const Plan& plan, const TileInput& in,
                 float (*out)[kColumns]) {
  switch (rows) {
    case 6: return tile_of<6>(kind, columns, plan, in, out);
    case 5: return tile_of<5>(kind, columns, plan, in, out);
    case 4: return tile_of<4>(kind, columns, plan, in, out);
    case 3: return tile_of<3>(kind, columns, plan, in, out);
    case 2: return tile_of<2>(kind, columns, plan, in, out);
    default: return tile_of<1>(kind, columns, plan, in, out);
  }
}

}  // namespace segquant
