// What a layer's product is made of, and memory for it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "lanes.h"

namespace segquant {

// How codes are multiplied.
enum class Kind {
  kPairs,  // s8 weights, inputs in s16: vpmaddwd, exact for any codes
  kBytes,  // s8 or s4 weights, inputs in u8: vpdpbusd, where there is one
  kSplit,  // s8 weights, inputs in u8 up to 128 (a scale per sign): vpmaddubsw, which then holds two products
  kQuads,  // s4 weights, inputs in u8: vpmaddubsw, whose 16-bit sums hold a few words and go to 32 bits then
  kBfloats,  // e4m3 weights and inputs, both in bfloat16: vdpbf16ps
  kFloat,  // float inputs (e4m3 ones where there is no vdpbf16ps), weights dequantized on the way
};

// Parts of a row that follow one another in a panel: offsets in bytes from the row's pointer, and words of each.
struct Spans {
  const int64_t* offsets;
  int64_t count;
  int64_t words;
};

// A run of input columns that share the input's scale and the weight's.
struct Run {
  int64_t first;  // column
  int64_t count;  // columns
  int64_t input;  // where its codes begin in a packed row, in words of four bytes
  int64_t panel;  // where its weights begin in a panel, in words
  int64_t words;  // columns by pairs, quads or ones, rounded up
  int64_t piece;  // of the input's scales
  int64_t sign;   // 0: all codes, or those at least 0; 1: those below 0
  int64_t group;  // of the weight's scales
  Spans spans;    // where tiles read its codes
};

// A layer's shape, as in segquant.numerics.layout.Layout.
struct Shape {
  int64_t columns = 0;              // input features
  std::vector<int64_t> pieces;      // columns per input scale
  std::vector<int64_t> dual;        // pieces with a scale per sign
  std::vector<int64_t> groups;      // columns per weight scale
  Kind kind = Kind::kPairs;
  int64_t weight_bits = 8;
  int64_t input_bits = 8;           // 0: float
  bool e4m3 = false;                // weights are, and inputs if they have bits
  bool zero_point = false;          // asymmetric grids where dual says so
  int64_t taps = 1;                 // of a convolution's window
  bool by_tap = false;              // integer inputs are read tap by tap, though weights' codes are not

  // Whether codes of the two signs have runs of their own; floats are scaled before they are multiplied.
  bool split(int64_t piece) const { return dual[piece] != 0 && !zero_point && kind != Kind::kFloat; }

  // Whether pieces are made of whole channels of so many taps, and the weight's scales change between pieces alone.
  bool whole_channels(int64_t taps) const {
    int64_t end = 0, covered = 0;
    size_t piece = 0;
    for (const int64_t group : groups) {
      end += group;
      for (; covered < end && piece < pieces.size(); covered += pieces[piece++]) {
        if (pieces[piece] % taps) return false;
      }
      if (covered != end) return false;
    }
    return true;
  }

  bool whole_pieces(int64_t taps) const {
    return std::all_of(pieces.begin(), pieces.end(), [&](int64_t piece) { return piece % taps == 0; });
  }

  // Whether a convolution's image holds rounded floats.
  bool rounds_images(bool by_tap) const { return kind == Kind::kFloat && input_bits != 0 && by_tap; }

  // Whether rows of a window of so many taps are read tap by tap: floats, and codes where their pieces let them.
  // Floats that are rounded by scales of their row have that row's order.
  bool reads_by_tap(int64_t taps, bool known_scales) const {
    if (kind != Kind::kFloat) return whole_channels(taps);
    return input_bits == 0 || (known_scales && whole_pieces(taps));
  }
};

struct Plan {
  std::vector<Run> runs;
  int64_t input_words = 0;  // of a packed row
  int64_t panel_words = 0;
  int64_t short_words = 0;  // of quads
  std::vector<int64_t> offsets;  // of all runs' spans
  Spans whole;                   // of floats

  Plan() = default;
  Plan(const Plan&) = delete;
  Plan(Plan&&) = default;
};

// Kinds whose inputs take two bytes each.
inline bool two_bytes(Kind kind) { return kind == Kind::kPairs || kind == Kind::kBfloats; }

inline int64_t per_word(Kind kind) { return two_bytes(kind) ? 2 : kind == Kind::kFloat ? 1 : 4; }

// Words of quads whose sums 16 bits hold: two products of 8 and an input's largest code, below 1 << input_bits, per word.
inline int64_t short_words(const Shape& shape) { return int64_t{1} << std::min<int64_t>(11 - shape.input_bits, 6); }

// Columns of a run in a group of so many: those whose products a sum of the kernel's integers holds.
inline int64_t longest_run(const Shape& shape, int64_t group) {
  if (shape.kind == Kind::kFloat || shape.kind == Kind::kBfloats) return int64_t{1} << 40;  // see tile.h
  if (shape.kind != Kind::kQuads) return 32768;  // 255 * 128 each in 32 bits
  const int64_t few = 4 * short_words(shape);
  return group < 4 * few ? few : 8192;  // 255 * 8 each below 2^24; sums of few go to floats faster than to 32 bits
}

// Packed rows: one span for each run.
inline void to_packed(Plan& plan) {
  plan.offsets.resize(plan.runs.size() + 1, 0);
  for (size_t run = 0; run < plan.runs.size(); ++run) {
    plan.offsets[run] = 4 * plan.runs[run].input;
    plan.runs[run].spans = {&plan.offsets[run], 1, plan.runs[run].words};
  }
  plan.whole = {&plan.offsets.back(), 1, plan.panel_words};
}

// Offsets point into the plan: it is not copied.
inline Plan plan_of(const Shape& shape) {
  Plan plan;
  plan.short_words = short_words(shape);
  const int64_t each = per_word(shape.kind);
  int64_t start = 0, group = 0, group_end = shape.groups.empty() ? 0 : shape.groups[0];
  for (size_t piece = 0; piece < shape.pieces.size(); ++piece) {
    for (int64_t left = shape.pieces[piece]; left > 0;) {
      if (start == group_end) group_end += shape.groups[++group];
      const int64_t count = std::min({left, group_end - start, longest_run(shape, shape.groups[group])});
      const int64_t words = (count + each - 1) / each;
      for (int64_t sign = 0; sign <= (shape.split(piece) ? 1 : 0); ++sign) {
        plan.runs.push_back({start, count, plan.input_words, plan.panel_words, words,
                             static_cast<int64_t>(piece), sign, group, {}});
        plan.input_words += words;
      }
      plan.panel_words += words;
      start += count, left -= count;
    }
  }
  to_packed(plan);
  return plan;
}

// Aligned memory that grows, one per thread and use.
class Scratch {
 public:
  template <class T>
  T* get(int64_t count) {
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 127) / 64 * 64;
    if (bytes > size_) {
      memory_.reset(std::aligned_alloc(64, bytes));
      if (!memory_) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

}  // namespace segquant
