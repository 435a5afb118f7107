// segquant_cpu::linear, ::linear_gelu and ::convolution: quantize the input, multiply codes, scale; on the CPU, by AVX2 or AVX-512.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

#include "image.h"
#include "job.h"
#include "patches.h"
#include "plan.h"
#include "winograd.h"

namespace segquant {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Integers = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;

const float* floats(const Maybe& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

// What both operators take of a layer.
struct Layer {
  const Tensor& codes;
  const Tensor& weight_scale;
  const Maybe &bias, &beside;
  const Maybe &inner, &up;  // [rows, Σ ranks]; [outputs, rank] of each branch, one after the other
  const Integers& ranks;
  const Maybe &smooth, &above, &below, &zero;
  const Integers& branches;
  Shape shape;
};

// That a tensor is there and as large as its reader expects: the loops below check nothing.
void check(const Maybe& tensor, int64_t count, const char* name) {
  if (!tensor) return;
  STD_TORCH_CHECK(tensor->is_contiguous() && tensor->scalar_type() == ScalarType::Float && tensor->numel() == count,
                  name, " must be contiguous float32 of ", count, " elements");
}

// Likewise of what may be kept in 16 bits.
void check_reals(const Tensor& tensor, int64_t count, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == count &&
                      (type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half),
                  name, " must be contiguous float32, bfloat16 or float16 of ", count, " elements");
}

Reals reals(const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  const Kept kept = type == ScalarType::BFloat16 ? Kept::kBfloat : type == ScalarType::Half ? Kept::kHalf : Kept::kFloat;
  return {tensor.const_data_ptr(), kept};
}

void check_low_rank(const Layer& layer, int64_t rows) {
  const bool given = !layer.ranks.empty();
  STD_TORCH_CHECK(given == layer.inner.has_value() && given == layer.up.has_value() &&
                      (!given || layer.ranks.size() == layer.branches.size()),
                  "inner, up and a rank of each branch go together");
  int64_t words = 0, factors = 0;
  for (size_t branch = 0; branch < layer.ranks.size(); ++branch) {
    STD_TORCH_CHECK(layer.ranks[branch] >= 0, "ranks are at least 0");
    words += layer.ranks[branch], factors += layer.ranks[branch] * layer.branches[branch];
  }
  check(layer.inner, rows * words, "inner");
  if (layer.up) check_reals(*layer.up, factors, "up");
}

void check(const Layer& layer, int64_t rows) {
  const Shape& shape = layer.shape;
  const int64_t outputs = layer.codes.size(0), branches = static_cast<int64_t>(layer.branches.size());
  const int64_t pieces = static_cast<int64_t>(shape.pieces.size()), groups = static_cast<int64_t>(shape.groups.size());
  const int64_t bytes = shape.weight_bits == 4 ? (shape.columns + 1) / 2 : shape.columns;
  int64_t covered = 0, grouped = 0;
  for (const int64_t size : layer.branches) covered += size;
  for (const int64_t size : shape.groups) grouped += size;
  STD_TORCH_CHECK(layer.codes.is_contiguous() && layer.codes.dim() == 2 && layer.codes.size(1) == bytes,
                  "codes must be contiguous, of ", bytes, " bytes a row");
  STD_TORCH_CHECK(covered == outputs && grouped == shape.columns && shape.dual.size() == shape.pieces.size(),
                  "branches, groups and pieces do not fit the layer");
  check_reals(layer.weight_scale, outputs * groups, "weight_scale");
  check(layer.bias, outputs, "bias");
  check(layer.beside, rows * outputs, "beside");
  check_low_rank(layer, rows);
  check(layer.smooth, branches * shape.columns, "smooth");
  check(layer.above, branches * pieces, "above");
  check(layer.below, branches * pieces, "below");
  check(layer.zero, branches * pieces, "zero");
}

// The images of a convolution's input, filled anew where a branch has a smoothing or scales of its own.
struct Images {
  Image floats;
  CodeImage<uint8_t> bytes;
  CodeImage<int16_t> pairs;

  template <class T>
  Source fill(const Patches& patches, const Shape& shape, Plan& plan, const Static& known, int64_t count, const T* x,
              const float* smooth) {
    Source source{&patches};
    if (bytes.fits(shape, known, patches.taps()) && bytes.fill(patches, shape, known, count, x, smooth)) {
      use(bytes, source.bytes, patches, shape, plan, source);
    } else if (pairs.fits(shape, known, patches.taps()) && pairs.fill(patches, shape, known, count, x, smooth)) {
      use(pairs, source.pairs, patches, shape, plan, source);
    } else {
      floats.fill(patches, shape, known, count, x, smooth);
      source.floats = &floats;
      to_packed(plan);
      if (shape.input_bits == 0 || shape.rounds_images(patches.by_tap)) {
        source.direct = floats.spread_over(patches, plan), source.bytes_each = sizeof(float);
      }
    }
    return source;
  }

 private:
  template <class T>
  static void use(const CodeImage<T>& image, const CodeImage<T>*& place, const Patches& patches, const Shape& shape,
                  Plan& plan, Source& source) {
    place = &image;
    source.direct = image.spread_over(patches, shape, plan), source.bytes_each = sizeof(T);
    source.scale = image.scale(), source.zero = image.zero();
    if (!source.direct) to_packed(plan);
  }
};

// A linear's rows as they lie, if nothing is to be done to them.
Source direct(const Shape& shape, bool half, const float* smooth, const void* values) {
  Source source;
  if (shape.input_bits || half || smooth) return source;
  source.direct = static_cast<const char*>(values), source.bytes_each = sizeof(float), source.columns = shape.columns;
  return source;
}

void run(const Layer& layer, const Tensor& x, int64_t rows, const Patches* patches, const Tensor& out, bool gelu) {
  check(layer, rows);
  Plan plan = plan_of(layer.shape);
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  Weights weights{static_cast<const uint8_t*>(layer.codes.const_data_ptr()), layer.codes.size(1),
                  reals(layer.weight_scale), layer.weight_scale.size(1),
                  layer.codes.size(0)};
  Shape shape = layer.shape, multiplied;
  thread_local Images images;
  if (patches) {
    shape.taps = shape.kind == Kind::kFloat && !patches->by_tap ? 1 : patches->taps();  // of a panel's order
    shape.by_tap = patches->by_tap && shape.taps > 1 && shape.kind != Kind::kFloat;
  }
  multiplied = shape;
  if (patches && shape.rounds_images(patches->by_tap)) multiplied.input_bits = 0;  // floats by then
  const int64_t pieces = static_cast<int64_t>(layer.shape.pieces.size());
  int64_t first = 0, words = 0;
  for (const int64_t rank : layer.ranks) words += rank;
  LowRank low_rank{floats(layer.inner), words, layer.up ? reals(*layer.up) : Reals{}, 0};
  Source source;
  for (size_t branch = 0; branch < layer.branches.size(); ++branch) {
    const int64_t size = layer.branches[branch], at = static_cast<int64_t>(branch);
    const auto own = [&](const Maybe& all) { return all ? floats(all) + at * pieces : nullptr; };
    const float* smooth = layer.smooth ? floats(layer.smooth) + at * shape.columns : nullptr;
    const Static known{own(layer.above), own(layer.below), own(layer.zero)};
    const void* values = x.const_data_ptr();
    const auto fill = [&](const auto* at) { return images.fill(*patches, shape, plan, known, x.size(0), at, smooth); };
    if (patches && (branch == 0 || smooth || known.above)) {
      source = half ? fill(static_cast<const uint16_t*>(values)) : fill(static_cast<const float*>(values));
    }
    if (!patches) source = direct(shape, half, smooth, values);
    low_rank.rank = layer.ranks.empty() ? 0 : layer.ranks[branch];
    Job{multiplied, plan, known, smooth, floats(layer.bias), floats(layer.beside), low_rank, weights, first,
        first + size, rows, values, out.mutable_data_ptr(), half, gelu, source}
        .run();
    first += size;
    if (low_rank.rank) low_rank.inner += low_rank.rank, low_rank.up.skip(size * low_rank.rank);
  }
}

Shape shape_of(const Tensor& codes, const Integers& pieces, const Integers& dual, const Integers& groups,
               int64_t weight_bits, int64_t input_bits, bool zero_point) {
  Shape shape;
  shape.pieces = pieces, shape.dual = dual, shape.groups = groups;
  for (const int64_t size : pieces) shape.columns += size;
  shape.e4m3 = codes.scalar_type() == ScalarType::Float8_e4m3fn;
  shape.weight_bits = weight_bits, shape.input_bits = input_bits, shape.zero_point = zero_point;
  STD_TORCH_CHECK(!shape.e4m3 || (weight_bits == 8 && (input_bits == 0 || input_bits == 8) && !zero_point),
                  "e4m3 has 8 bits and no zero point");
  if (input_bits == 0 || (shape.e4m3 && !kProductsOfBfloats)) shape.kind = Kind::kFloat;
  else if (shape.e4m3) shape.kind = Kind::kBfloats;
  if (input_bits == 0 || shape.e4m3) return shape;
  bool split = true;
  for (size_t piece = 0; piece < pieces.size(); ++piece) split = split && shape.split(static_cast<int64_t>(piece));
  const Kind narrow = weight_bits == 4 ? Kind::kQuads : split ? Kind::kSplit : Kind::kPairs;
  shape.kind = kProductsOfBytes ? Kind::kBytes : narrow;
  return shape;
}

// Two products of bfloat16, one of each sign, take as long as one of floats, and squares of floats less than half.
void prefer_squares(Shape& shape, int64_t taps) {
  const bool two = std::any_of(shape.dual.begin(), shape.dual.end(), [](int64_t dual) { return dual != 0; });
  if (shape.kind == Kind::kBfloats && two && shape.whole_pieces(taps)) shape.kind = Kind::kFloat;
}

// With GELU of the outputs before they are written, or without.
template <bool Gelu>
Tensor linear(const Tensor& x, const Tensor& codes, const Tensor& weight_scale, Maybe bias, Maybe beside,
              Maybe inner, Maybe up, Integers ranks, Maybe smooth, Maybe above, Maybe below, Maybe zero,
              Integers branches, Integers pieces, Integers dual, Integers groups, int64_t weight_bits,
              int64_t input_bits, bool zero_point) {
  const Layer layer{codes, weight_scale, bias, beside, inner, up, ranks, smooth, above, below, zero, branches,
                    shape_of(codes, pieces, dual, groups, weight_bits, input_bits, zero_point)};
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.size(1) == layer.shape.columns, "x must be [rows, in]");
  const int64_t sizes[2] = {x.size(0), codes.size(0)};
  Tensor out = torch::stable::new_empty(x, {sizes, 2});
  if (x.size(0) > 0) run(layer, x, x.size(0), nullptr, out, Gelu);
  return out;
}

Tensor convolution(const Tensor& x, const Tensor& codes, const Tensor& weight_scale, Maybe bias, Maybe beside,
                   Maybe inner, Maybe up, Integers ranks, Maybe smooth, Maybe above, Maybe below, Maybe zero,
                   Integers branches, Integers pieces, Integers dual, Integers groups, int64_t weight_bits,
                   int64_t input_bits, bool zero_point, Integers padding, Integers kernel, Integers stride,
                   Integers dilation) {
  Layer layer{codes, weight_scale, bias, beside, inner, up, ranks, smooth, above, below, zero, branches,
              shape_of(codes, pieces, dual, groups, weight_bits, input_bits, zero_point)};
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "x must be [batch, channels, height, width]");
  Patches patches{x.size(1), x.size(2), x.size(3), {padding[0], padding[1], padding[2], padding[3]},
                  {kernel[0], kernel[1]}, {stride[0], stride[1]}, {dilation[0], dilation[1]}, false};
  STD_TORCH_CHECK(patches.channels * patches.taps() == layer.shape.columns, "x does not fit the layer");
  const int64_t sizes[4] = {x.size(0), codes.size(0), patches.out_height(), patches.out_width()};
  Tensor out = torch::stable::new_empty(x, {sizes, 4});
  const int64_t rows = x.size(0) * patches.positions();
  if (above && ranks.empty() && fits_squares(patches, rows)) prefer_squares(layer.shape, patches.taps());
  patches.by_tap = layer.shape.reads_by_tap(patches.taps(), above.has_value());
  if (rows > 0) run(layer, x, rows, &patches, out, false);
  return out;
}

}  // namespace
}  // namespace segquant

#define SEGQUANT_LAYER                                                                                             \
  "(Tensor x, Tensor codes, Tensor weight_scale, Tensor? bias, Tensor? beside, Tensor? inner, Tensor? up, "        \
  "int[] ranks, Tensor? smooth, Tensor? above, Tensor? below, Tensor? zero, int[] branches, int[] pieces, "        \
  "int[] dual, int[] groups, int weight_bits, int input_bits, bool zero_point"

STABLE_TORCH_LIBRARY(segquant_cpu, m) {
  m.def("linear" SEGQUANT_LAYER ") -> Tensor");
  m.def("linear_gelu" SEGQUANT_LAYER ") -> Tensor");
  m.def("convolution" SEGQUANT_LAYER ", int[] padding, int[] kernel, int[] stride, int[] dilation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segquant_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&segquant::linear<false>));
  m.impl("linear_gelu", TORCH_BOX(&segquant::linear<true>));
  m.impl("convolution", TORCH_BOX(&segquant::convolution));
}
