// Attention of some queries of a head: scores, softmax and weighted values, a block of keys at a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "keys.h"
#include "lanes.h"
#include "output.h"
#include "plan.h"
#include "softmax.h"
#include "tile.h"

namespace segquant {

constexpr int64_t kQueries = 8 * kRows;  // that pass a block of keys together
constexpr float kMostCode = 255.0f;      // of a weight

// Memory of a thread for kQueries queries.
template <Kind K>
struct Passing {
  char* rows;    // [kQueries][row()]: codes, or floats
  float* scale;  // [kQueries]: of scores, in powers of two
  float* top;    // [kQueries]
  float* sum;    // [kQueries][kLanes]
  float* sums;   // [all_channels / kColumns][kQueries][kColumns]: of values, by weights so far

  explicit Passing(const HeadSize& size) {
    thread_local Scratch row_memory, state_memory, sum_memory;
    rows = row_memory.get<char>(kQueries * size.row() * kRowBytes<K>);
    scale = state_memory.get<float>(kQueries * (2 + kLanes));
    top = scale + kQueries, sum = top + kQueries;
    sums = sum_memory.get<float>(kQueries * size.all_channels());
  }

  // Queries times `scale`; rows that are none are zeros.
  void begin(const Tokens& from, const HeadSize& size, int64_t first, int64_t count, float by) {
    thread_local Scratch memory;
    float *buffer = memory.get<float>(2 * size.row()), *row = buffer + size.row();
    std::fill(buffer, row, 0.0f);
    const int64_t all = up_to(count, kRows), bytes = size.row() * kRowBytes<K>;
    std::fill(top, top + all, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + all * kLanes, 0.0f);
    for (int64_t c = 0; c < size.size; c += kColumns) std::fill_n(sums + c * kQueries, all * kColumns, 0.0f);
    std::memset(rows + count * bytes, 0, static_cast<size_t>((all - count) * bytes));
    std::fill(scale, scale + all, 1.0f);
    for (int64_t r = 0; r < count; ++r) {
      const float* own = from.read(first + r, size.size, buffer);
      for (int64_t c = 0; c < size.row(); c += kLanes) store_floats(row + c, times(load_floats(own + c), all_floats(by)));
      char* to = rows + r * bytes;
      if constexpr (K == Kind::kFloat) std::memcpy(to, row, static_cast<size_t>(size.row()) * sizeof(float));
      else if constexpr (K == Kind::kPairs) scale[r] = codes_of(row, size.row(), 0, reinterpret_cast<int16_t*>(to));
      else scale[r] = codes_of(row, size.row(), 128, reinterpret_cast<uint8_t*>(to));
    }
  }
};

// Scores of a tile with a block of keys, before `Passing::scale`, and weights of its keys.
template <Kind K>
struct Block {
  alignas(64) float scores[kKeys / kColumns][kRows][kColumns];
  alignas(64) char weights[kRows][kKeys * kRowBytes<K>];
  float highest[kRows];
};

// Scores with the keys of a panel, V vectors of them.
template <Kind K, int V>
SEGQUANT_WHOLE void score_panel(const Head<K>& head, const char* const* rows, int64_t key, float (*scores)[kColumns]) {
  const char* panel = head.key_panel(key);
  if constexpr (K == Kind::kFloat) {
    each<V>([&](auto v) {
      const Floats start = load_floats(reinterpret_cast<const float*>(head.start + key) + kLanes * v);
      each<kRows>([&](auto r) { store_floats(scores[r] + kLanes * v, start); });
    });
    add_floats<kRows, V>(rows, 0, head.size.row(), reinterpret_cast<const float*>(panel), scores);
  } else {
    const int64_t none = 0;
    Ints sum[kRows][V];
    dot<kRows, V, K>(rows, {&none, 1, head.size.row() / kEach<K>}, reinterpret_cast<const int8_t*>(panel), sum);
    each<V>([&](auto v) {
      const Ints less = load_ints(head.start + key + kLanes * v);
      const Floats by = load_floats(head.scale + key + kLanes * v);
      each<kRows>([&](auto r) { store_floats(scores[r] + kLanes * v, times(to_floats(minus(sum[r][v], less)), by)); });
    });
  }
}

// Largest scores of the block's vectors.
template <Kind K>
SEGQUANT_WHOLE inline void find_highest(int64_t vectors, Block<K>& block) {
  each<kRows>([&](auto r) {
    Floats high = load_floats(block.scores[0][r]);
    for (int64_t v = 1; v < vectors; ++v) {
      high = most(high, load_floats(block.scores[v / kVectors][r] + v % kVectors * kLanes));
    }
    block.highest[r] = highest(high);
  });
}

// Weights of a row's keys, as codes 0 … 255 or floats; their sum is added to `sum`.
template <Kind K>
SEGQUANT_INLINE void weigh(int64_t vectors, Block<K>& block, int r, float less, float scale, Floats& sum) {
  const Floats below = all_floats(less), by = all_floats(scale);
  constexpr int kStep = kVectors / 2;  // whose dependent steps a processor does side by side
  for (int64_t first = 0; first < vectors; first += kStep) {
    const float* from = block.scores[first / kVectors][r] + first % kVectors * kLanes;
    char* to = block.weights[r] + first * kLanes * kRowBytes<K>;
    Floats power[kStep];
    each<kStep>([&](auto v) { power[v] = power_of_two(times(minus(load_floats(from + v * kLanes), below), by)); });
    each<kStep>([&](auto v) {
      sum = plus(sum, power[v]);
      if constexpr (K == Kind::kFloat) {
        store_floats(reinterpret_cast<float*>(to) + v * kLanes, power[v]);
      } else {
        using Code = std::conditional_t<K == Kind::kPairs, int16_t, uint8_t>;
        store_codes(to_ints(times(power[v], all_floats(kMostCode))), reinterpret_cast<Code*>(to) + v * kLanes);
      }
    });
  }
}

// A tile's sums of values, times `keep`, plus weights times values of V vectors of channels.
template <Kind K, int V>
SEGQUANT_WHOLE void add_values(const Head<K>& head, const char* const* weights, int64_t channel, int64_t key, int64_t words,
                               const Factors& factors, bool grown, float (*sums)[kColumns]) {
  const char* panel = head.value_panel(channel, key);
  if constexpr (K == Kind::kFloat) {
    if (grown) {
      each<kRows>([&](auto r) {
        const Floats keep = all_floats(factors.keep[r]);
        each<V>([&](auto v) { store_floats(sums[r] + kLanes * v, times(load_floats(sums[r] + kLanes * v), keep)); });
      });
    }
    add_floats<kRows, V>(weights, 0, words, reinterpret_cast<const float*>(panel), sums);
  } else {
    const int64_t none = 0;
    Ints sum[kRows][V];
    dot<kRows, V, K>(weights, {&none, 1, words}, reinterpret_cast<const int8_t*>(panel), sum);
    each<kRows>([&](auto r) {
      const Floats by = all_floats(factors.by[r] / kMostCode), keep = all_floats(factors.keep[r]);
      each<V>([&](auto v) {
        float* to = sums[r] + kLanes * v;
        store_floats(to, plus_product(times(load_floats(to), keep), to_floats(sum[r][v]), by));
      });
    });
  }
}

// What a block of keys adds to a tile of queries.
template <Kind K>
void attend(const Head<K>& head, const Passing<K>& passing, int64_t row, int64_t key, Block<K>& block) {
  const int64_t count = std::min(kKeys, head.size.keys - key), width = head.size.row() * kRowBytes<K>;
  const char *rows[kRows], *weights[kRows];
  each<kRows>([&](auto r) { rows[r] = passing.rows + (row + r) * width, weights[r] = block.weights[r]; });
  for (int64_t k = 0; k < count; k += kColumns) {
    float(*scores)[kColumns] = block.scores[k / kColumns];
    if (count - k <= kColumns / 2) score_panel<K, kVectors / 2>(head, rows, key + k, scores);
    else score_panel<K, kVectors>(head, rows, key + k, scores);
  }
  // panels are scored by halves
  const int64_t vectors = up_to(count, kColumns / 2) / kLanes;
  find_highest<K>(vectors, block);
  Factors factors;
  const bool grown = factors_of<kHasCodes<K>>(block.highest, passing.scale + row, passing.top + row, factors);
  each<kRows>([&](auto r) {
    Floats sum = no_floats();
    weigh<K>(vectors, block, r, factors.less[r], passing.scale[row + r], sum);
    float* to = passing.sum + (row + r) * kLanes;
    if constexpr (kHasCodes<K>) sum = times(sum, all_floats(factors.by[r]));
    store_floats(to, plus_product(sum, load_floats(to), all_floats(factors.keep[r])));
  });
  const int64_t words = up_to(count, kEach<K>) / kEach<K>;
  for (int64_t c = 0; c < head.size.size; c += kColumns) {
    float(*sums)[kColumns] = reinterpret_cast<float(*)[kColumns]>(passing.sums + c * kQueries + row * kColumns);
    if (head.size.size - c <= kColumns / 2) {
      add_values<K, kVectors / 2>(head, weights, c, key, words, factors, grown, sums);
    } else {
      add_values<K, kVectors>(head, weights, c, key, words, factors, grown, sums);
    }
  }
}

// A query's output: sums over the sum of weights.
template <Kind K, class T>
void finish(const Head<K>& head, const Passing<K>& passing, int64_t row, T* out) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += passing.sum[row * kLanes + lane];
  alignas(64) float values[kColumns];
  for (int64_t c = 0; c < head.size.size; c += kColumns) {
    const int64_t columns = std::min<int64_t>(kColumns, head.size.size - c);
    const float* sums = passing.sums + c * kQueries + row * kColumns;
    for (int64_t i = 0; i < kColumns; i += kLanes) {
      Floats value = divided(load_floats(sums + i), all_floats(total));
      if constexpr (kHasCodes<K>) {
        value = plus_product(load_floats(head.mean + c + i), value, load_floats(head.value_scale + c + i));
      }
      store_floats(values + i, value);
    }
    write(values, out + c, columns);
  }
}

// Queries `first` … of a head; outputs of queries lie `step` apart.
template <Kind K, class T>
void attend_all(const Head<K>& head, const Tokens& queries, int64_t first, int64_t count, float scale, T* out,
                int64_t step) {
  Passing<K> passing(head.size);
  Block<K> block;
  passing.begin(queries, head.size, first, count, scale);
  for (int64_t key = 0; key < head.size.keys; key += kKeys) {
    for (int64_t row = 0; row < count; row += kRows) attend(head, passing, row, key, block);
  }
  for (int64_t r = 0; r < count; ++r) finish(head, passing, r, out + (first + r) * step);
}

}  // namespace segquant
