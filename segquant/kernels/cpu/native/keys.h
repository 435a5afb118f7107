// Keys and values of a head of attention, in the order in which tiles read them.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "input.h"
#include "lanes.h"
#include "output.h"
#include "panel.h"
#include "plan.h"

namespace segquant {

// How attention multiplies: codes of bytes, codes of pairs where there is no instruction for bytes, or floats.
constexpr Kind kCodes = kProductsOfBytes ? Kind::kBytes : Kind::kPairs;
template <Kind K>
constexpr bool kHasCodes = K != Kind::kFloat;
template <Kind K>
constexpr int64_t kEach = K == Kind::kFloat ? 1 : K == Kind::kPairs ? 2 : 4;  // values of a word
template <Kind K>
constexpr int64_t kPanelBytes = K == Kind::kFloat ? 4 : 1;  // of a value in a panel
template <Kind K>
constexpr int64_t kRowBytes = K == Kind::kFloat ? 4 : K == Kind::kPairs ? 2 : 1;  // of a query's value, or a weight

constexpr int64_t kKeys = 128;                 // of a block, which stays in the first cache while queries pass
constexpr float kNoKey = -3e38f;               // a score that no key has
constexpr int32_t kNoKeyCode = 1 << 30;        // likewise before scaling by kNoKeyScale
constexpr float kNoKeyScale = 1e29f;
constexpr float kLeastScale = 1e-30f;          // of queries' and keys' codes: times a smaller one, no key would be a score

inline int64_t up_to(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

// Tokens of a head: values lie side by side, tokens `step` apart. float32, or bfloat16 with `half`.
struct Tokens {
  const void* data;
  int64_t step;
  bool half;

  // A token's values and zeros up to a multiple of 16: as they lie, or in a buffer whose end is zeros.
  const float* read(int64_t token, int64_t size, float* buffer) const {
    constexpr int64_t kAhead = 8, kLine = 64;  // tokens lie in pages of their own, which processors do not foresee
    const int64_t bytes = half ? 2 : 4;
    const char* next = static_cast<const char*>(data) + (token + kAhead) * step * bytes;
    for (int64_t at = 0; at < size * bytes; at += kLine) __builtin_prefetch(next + at, 0, 3);
    if (half) return as_floats(static_cast<const uint16_t*>(data) + token * step, size, buffer);
    const float* own = static_cast<const float*>(data) + token * step;
    if (size % 16 == 0) return own;
    std::memcpy(buffer, own, static_cast<size_t>(size) * sizeof(float));
    return buffer;
  }
};

struct HeadSize {
  int64_t keys, size;  // tokens, and channels of a head

  int64_t all_keys() const { return up_to(keys, kColumns); }
  int64_t all_channels() const { return up_to(size, kColumns); }
  int64_t row() const { return up_to(size, 16); }  // of a query, and of a key before it is turned
  template <Kind K>
  int64_t bytes() const {
    return all_keys() * (row() + all_channels()) * kPanelBytes<K> + 8 * all_keys() + 8 * all_channels();
  }
};

// A head's part of the memory.
template <Kind K>
struct Head {
  HeadSize size;
  char* keys;      // [key panel][words of channels][kColumns]
  char* values;    // [channel panel][words of keys][kColumns]
  float* scale;    // of a key's codes
  int32_t* start;  // what a key's sums are less (codes), or begin with (floats)
  float* value_scale;
  float* mean;  // of values

  Head(const HeadSize& own, char* memory) : size(own), keys(memory) {
    values = keys + own.all_keys() * own.row() * kPanelBytes<K>;
    scale = reinterpret_cast<float*>(values + own.all_keys() * own.all_channels() * kPanelBytes<K>);
    start = reinterpret_cast<int32_t*>(scale + own.all_keys());
    value_scale = reinterpret_cast<float*>(start + own.all_keys());
    mean = value_scale + own.all_channels();
  }

  char* key_panel(int64_t key) const { return keys + key * size.row() * kPanelBytes<K>; }
  char* value_panel(int64_t channel, int64_t key) const {
    return values + (channel * size.all_keys() + key * kColumns) * kPanelBytes<K>;
  }
};

// Mean of each channel, float32 sums in the order of tokens.
inline void channel_means(const Tokens& from, const HeadSize& size, float* row, float* mean) {
  std::fill(mean, mean + size.row(), 0.0f);
  for (int64_t token = 0; token < size.keys; ++token) {
    const float* own = from.read(token, size.size, row);
    for (int64_t c = 0; c < size.row(); c += kLanes) {
      store_floats(mean + c, plus(load_floats(mean + c), load_floats(own + c)));
    }
  }
  const Floats by = all_floats(1.0f / static_cast<float>(size.keys));
  for (int64_t c = 0; c < size.row(); c += kLanes) store_floats(mean + c, times(load_floats(mean + c), by));
}

// Scale of codes -127 … 127 up to `most`; NaN where that is. Denormal where values are: a user divides by it.
inline float code_scale(float most) {
  const float scale = most / 127;
  // among the smallest floats, the nearest one may be so much too small that codes are more than 127
  const float above = scale < std::numeric_limits<float>::min() && scale * 127 < most ? std::nextafter(scale, most) : scale;
  return most > 0 ? above : most == 0 ? 1.0f : most;
}

// Codes of a row of a multiple of 16 values; returns their scale. Codes are stored plus `lift`.
template <class T>
SEGQUANT_INLINE float codes_of(const float* row, int64_t count, int32_t lift, T* out) {
  const Extremes found = extremes(row, count);
  const float largest = found.most != found.most ? found.most : std::max(found.most, -found.least);
  const float scale = std::max(code_scale(largest), kLeastScale);  // NaN where the first one is
  const Floats by = all_floats(1 / scale);
  for (int64_t c = 0; c < count; c += kLanes) {
    store_codes(plus(to_ints(times(load_floats(row + c), by)), all_ints(lift)), out + c);
  }
  return scale;
}

// Σ of a panel's codes by column.
template <Kind K>
inline void sum_panel(const char* panel, int64_t words, int32_t* sums) {
  each<kVectors>([&](auto v) {
    Ints sum = no_ints();
    if constexpr (K == Kind::kBytes) {
      for (int64_t w = 0; w < words; ++w) {
        dot_bytes(sum, all_ints(0x01010101), load_ints(panel + (w * kVectors + v) * 4 * kLanes));
      }
    }
    store_ints(sums + kLanes * v, sum);
  });
}

// Keys of a panel as codes, less their mean: which takes the same off all scores of a query.
template <Kind K>
void pack_key_codes(const Tokens& from, const Head<K>& to, int64_t first, const float* mean, float* row, float* centred,
                    int8_t* codes) {
  const int64_t width = to.size.row(), there = std::min<int64_t>(kColumns, to.size.keys - first);
  const int8_t* rows[kColumns];
  for (int64_t k = 0; k < kColumns; ++k) {
    int8_t* own = codes + k * width;
    rows[k] = own;
    to.scale[first + k] = kNoKeyScale;
    if (k >= there) {
      std::memset(own, 0, static_cast<size_t>(width));
      continue;
    }
    const float* key = from.read(first + k, to.size.size, row);
    for (int64_t c = 0; c < width; c += kLanes) {
      store_floats(centred + c, minus(load_floats(key + c), load_floats(mean + c)));
    }
    to.scale[first + k] = codes_of(centred, width, 0, own);
  }
  const Run run{0, width, 0, 0, width / kEach<K>, 0, 0, 0, {}};
  fill_run(run, kEach<K>, rows, reinterpret_cast<int8_t*>(to.key_panel(first)));
  sum_panel<K>(to.key_panel(first), run.words, to.start + first);
  for (int64_t k = 0; k < kColumns; ++k) to.start[first + k] = k < there ? 128 * to.start[first + k] : kNoKeyCode;
}

// Keys of a panel as floats.
inline void pack_key_floats(const Tokens& from, const Head<Kind::kFloat>& to, int64_t first, float* rows) {
  const int64_t width = to.size.row();
  auto* panel = reinterpret_cast<float*>(to.key_panel(first));
  auto* start = reinterpret_cast<float*>(to.start + first);
  for (int64_t k = 0; k < kColumns; k += kSquare) {
    std::fill(rows, rows + kSquare * width, 0.0f);
    for (int64_t i = 0; i < kSquare; ++i) {
      const bool is = first + k + i < to.size.keys;
      start[k + i] = is ? 0.0f : kNoKey;
      if (!is) continue;
      const float* own = from.read(first + k + i, to.size.size, rows + i * width);
      if (own != rows + i * width) std::memcpy(rows + i * width, own, static_cast<size_t>(width) * sizeof(float));
    }
    for (int64_t c = 0; c < width; c += kSquare) write_square(rows + c, width, panel + c * kColumns + k, kColumns);
  }
}

// Values' channels of four (pairs: two) tokens, side by side for a product.
template <Kind K>
SEGQUANT_INLINE void interleave(const int8_t* const* rows, int64_t c, int8_t* out) {
  const auto load = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + c)); };
  const auto store = [&](int i, __m128i x) { _mm_storeu_si128(reinterpret_cast<__m128i*>(out) + i, x); };
  const __m128i ab = _mm_unpacklo_epi8(load(0), load(1)), ba = _mm_unpackhi_epi8(load(0), load(1));
  if constexpr (K == Kind::kPairs) {
    store(0, ab), store(1, ba);
  } else {
    const __m128i cd = _mm_unpacklo_epi8(load(2), load(3)), dc = _mm_unpackhi_epi8(load(2), load(3));
    store(0, _mm_unpacklo_epi16(ab, cd)), store(1, _mm_unpackhi_epi16(ab, cd));
    store(2, _mm_unpacklo_epi16(ba, dc)), store(3, _mm_unpackhi_epi16(ba, dc));
  }
}

// Scale of each channel's codes, of values less their mean.
inline void value_scales(const Tokens& from, const HeadSize& size, const float* mean, float* row, float* scale) {
  std::fill(scale, scale + size.row(), 0.0f);
  for (int64_t token = 0; token < size.keys; ++token) {
    const float* own = from.read(token, size.size, row);
    for (int64_t c = 0; c < size.row(); c += kLanes) {
      store_floats(scale + c, most(magnitude(minus(load_floats(own + c), load_floats(mean + c))), load_floats(scale + c)));
    }
  }
  for (int64_t c = 0; c < size.row(); ++c) scale[c] = code_scale(mean[c] != mean[c] ? mean[c] : scale[c]);
}

template <Kind K>
void pack_value_codes(const Tokens& from, const Head<K>& to, float* row, int8_t* codes) {
  const int64_t width = to.size.row();
  channel_means(from, to.size, row, to.mean);
  value_scales(from, to.size, to.mean, row, to.value_scale);
  for (int64_t key = 0; key < to.size.keys; key += kEach<K>) {
    const int8_t* rows[kEach<K>];
    for (int64_t i = 0; i < kEach<K>; ++i) {
      int8_t* own = codes + i * width;
      rows[i] = own;
      std::memset(own, 0, static_cast<size_t>(width));
      if (key + i >= to.size.keys) continue;
      const float* values = from.read(key + i, to.size.size, row);
      for (int64_t c = 0; c < width; c += kLanes) {
        const Floats value = minus(load_floats(values + c), load_floats(to.mean + c));
        store_codes(to_ints(divided(value, load_floats(to.value_scale + c))), own + c);
      }
    }
    for (int64_t c = 0; c < width; c += 16) {
      auto* panel = reinterpret_cast<int8_t*>(to.value_panel(c / kColumns * kColumns, key));
      interleave<K>(rows, c, panel + c % kColumns * kEach<K>);
    }
  }
}

inline void pack_value_floats(const Tokens& from, const Head<Kind::kFloat>& to, float* row) {
  for (int64_t key = 0; key < to.size.keys; ++key) {
    std::fill(row, row + to.size.all_channels(), 0.0f);
    const float* own = from.read(key, to.size.size, row);
    if (own != row) std::memcpy(row, own, static_cast<size_t>(to.size.size) * sizeof(float));
    for (int64_t c = 0; c < to.size.all_channels(); c += kColumns) {
      std::memcpy(to.value_panel(c, key), row + c, kColumns * sizeof(float));
    }
  }
}

template <Kind K>
void pack_head(const Tokens& keys, const Tokens& values, const Head<K>& to) {
  thread_local Scratch row_memory, mean_memory, code_memory;
  const int64_t width = to.size.row(), most_rows = std::max(kSquare * width, to.size.all_channels());
  float* row = row_memory.get<float>(most_rows);
  std::fill(row, row + most_rows, 0.0f);
  if constexpr (K == Kind::kFloat) {
    for (int64_t first = 0; first < to.size.all_keys(); first += kColumns) pack_key_floats(keys, to, first, row);
    pack_value_floats(values, to, row);
  } else {
    float *mean = mean_memory.get<float>(2 * width), *centred = mean + width;
    int8_t* codes = code_memory.get<int8_t>(width * kColumns + 64);
    channel_means(keys, to.size, row, mean);
    for (int64_t first = 0; first < to.size.all_keys(); first += kColumns) {
      pack_key_codes(keys, to, first, mean, row, centred, codes);
    }
    pack_value_codes(values, to, row, codes);
  }
}

}  // namespace segquant
