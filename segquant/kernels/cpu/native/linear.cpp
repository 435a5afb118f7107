// segquant_cpu::linear and ::convolution: quantize the input, multiply codes, scale; on the CPU, by AVX2.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "input.h"
#include "output.h"
#include "panel.h"
#include "patches.h"
#include "plan.h"
#include "tile.h"

namespace segquant {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Integers = std::vector<int64_t>;
using Maybe = std::optional<Tensor>;

constexpr int64_t kBlockBytes = 1 << 20;  // packed rows that stay in a cache while panels pass

const float* floats(const Maybe& tensor) {
  return tensor ? static_cast<const float*>(tensor->const_data_ptr()) : nullptr;
}

const float* as_floats(const uint16_t* row, int64_t columns, float* buffer) {
  int64_t k = 0;
  for (; k + 8 <= columns; k += 8) _mm256_storeu_ps(buffer + k, load8(row + k));
  for (; k < columns; ++k) buffer[k] = load1(row + k);
  return buffer;
}

struct Job {
  const Shape& shape;
  const Plan& plan;
  Static known;
  const float* smooth;  // [columns] or null
  const float* bias;    // [outputs] or null
  const float* beside;  // [rows][outputs] or null
  Weights weights;
  int64_t first, last;  // outputs of this branch
  int64_t rows;
  const void* x;
  void* out;
  bool half;
  const Patches* patches;  // null: a linear
  const Image* image;      // of the patches

  void run() const;
  void pack(int64_t row, int32_t* out, float* scale, float* zero) const;
  void panel(int64_t first_output, int64_t top, int64_t count, const int32_t* packed, const float* scale,
             const float* zero) const;
  void store(int64_t row, int64_t rows_here, int64_t column, int64_t columns, float (*values)[kColumns]) const;
  template <class T>
  void store_as(T* to, int64_t row, int64_t rows_here, int64_t column, int64_t columns,
                const float (*values)[kColumns]) const;
  int64_t scales() const { return 2 * static_cast<int64_t>(shape.pieces.size()); }
};

void Job::pack(int64_t row, int32_t* packed, float* scale, float* zero) const {
  thread_local Scratch memory;
  float* buffer = memory.get<float>(shape.columns + Image::kSlack);
  const float* values = buffer;
  if (patches) image->read(*patches, shape.pieces, row, buffer);
  else if (half) values = as_floats(static_cast<const uint16_t*>(x) + row * shape.columns, shape.columns, buffer);
  else values = static_cast<const float*>(x) + row * shape.columns;
  if (smooth && !patches) {
    int64_t k = 0;
    for (; k + 8 <= shape.columns; k += 8) {
      _mm256_storeu_ps(buffer + k, _mm256_div_ps(_mm256_loadu_ps(values + k), _mm256_loadu_ps(smooth + k)));
    }
    for (; k < shape.columns; ++k) buffer[k] = values[k] / smooth[k];
    values = buffer;
  }
  pack_row(shape, plan, known, values, packed, scale, zero);
}

// Up to kColumns outputs of some rows, with what is added to them.
void Job::store(int64_t row, int64_t rows_here, int64_t column, int64_t columns, float (*values)[kColumns]) const {
  for (int64_t r = 0; r < rows_here; ++r) {
    if (beside) add(values[r], beside + (row + r) * weights.outputs + column, columns);
    if (bias) add(values[r], bias + column, columns);
  }
  if (half) store_as(static_cast<uint16_t*>(out), row, rows_here, column, columns, values);
  else store_as(static_cast<float*>(out), row, rows_here, column, columns, values);
}

template <class T>
void Job::store_as(T* to, int64_t row, int64_t rows_here, int64_t column, int64_t columns,
                   const float (*values)[kColumns]) const {
  if (!patches) {
    for (int64_t r = 0; r < rows_here; ++r) write(values[r], to + (row + r) * weights.outputs + column, columns);
    return;
  }
  int64_t first[kRows];  // of a row in channel 0 of its image
  for (int64_t r = 0; r < rows_here; ++r) {
    const int64_t image = (row + r) / patches->positions();
    first[r] = image * (weights.outputs - 1) * patches->positions() + row + r;
  }
  for (int64_t c = 0; c < columns; ++c) {  // neighbouring rows are neighbours in a channel
    T* own = to + (column + c) * patches->positions();
    for (int64_t r = 0; r < rows_here; ++r) write(values[r] + c, own + first[r], 1);
  }
}

// Outputs first_output … of the rows top … top + count - 1.
void Job::panel(int64_t first_output, int64_t top, int64_t count, const int32_t* packed, const float* scale,
                const float* zero) const {
  thread_local Scratch weight_memory, wide_memory, scale_memory, sum_memory;
  const int64_t stride = (shape.columns + 63) / 64 * 64;
  Panel own{weight_memory.get<int8_t>(plan.panel_words * kColumns * 4),
            scale_memory.get<float>(weights.groups * kColumns),
            sum_memory.get<int32_t>(static_cast<int64_t>(plan.runs.size()) * kColumns)};
  own.fill(shape, plan, weights, first_output, last, wide_memory.get<int8_t>(stride * kColumns));
  const int64_t columns = std::min<int64_t>(kColumns, last - first_output);
  float values[kRows][kColumns];
  for (int64_t row = 0; row < count; row += kRows) {
    const int64_t rows_here = std::min<int64_t>(kRows, count - row);
    const TileInput in{packed + row * plan.input_words, plan.input_words, own.weights, own.scale, own.sums,
                       scale + row * scales(), zero + row * scales(), scales()};
    tile(shape.kind, rows_here, plan, in, values);
    store(top + row, rows_here, first_output, columns, values);
  }
}

void Job::run() const {
  thread_local Scratch row_memory, scale_memory, zero_memory;
  const int64_t fit = std::max<int64_t>(1, kBlockBytes / (4 * std::max<int64_t>(1, plan.input_words)) / kRows) * kRows;
  const int64_t block = std::min(fit, rows);
  int32_t* packed = row_memory.get<int32_t>(block * plan.input_words);
  float* scale = scale_memory.get<float>(block * scales());
  float* zero = zero_memory.get<float>(block * scales());
  const int64_t panels = (last - first + kColumns - 1) / kColumns;
  for (int64_t top = 0; top < rows; top += block) {
    const int64_t count = std::min(block, rows - top);
    torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        pack(top + row, packed + row * plan.input_words, scale + row * scales(), zero + row * scales());
      }
    });
    torch::stable::parallel_for(0, panels, 1, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) panel(first + at * kColumns, top, count, packed, scale, zero);
    });
  }
}

// What both operators take of a layer.
struct Layer {
  const Tensor& codes;
  const Tensor& weight_scale;
  const Maybe &bias, &smooth, &above, &below, &zero;
  const Integers& branches;
  Shape shape;
};

// That a tensor is there and as large as its reader expects: the loops below check nothing.
void check(const Maybe& tensor, int64_t count, const char* name) {
  if (!tensor) return;
  STD_TORCH_CHECK(tensor->is_contiguous() && tensor->scalar_type() == ScalarType::Float && tensor->numel() == count,
                  name, " must be contiguous float32 of ", count, " elements");
}

void check(const Layer& layer, int64_t rows, const Maybe& beside) {
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
  check(layer.weight_scale, outputs * groups, "weight_scale");
  check(layer.bias, outputs, "bias");
  check(beside, rows * outputs, "beside");
  check(layer.smooth, branches * shape.columns, "smooth");
  check(layer.above, branches * pieces, "above");
  check(layer.below, branches * pieces, "below");
  check(layer.zero, branches * pieces, "zero");
}

void run(const Layer& layer, const Tensor& x, int64_t rows, const Maybe& beside, const Patches* patches,
         const Tensor& out) {
  check(layer, rows, beside);
  const Plan plan = plan_of(layer.shape);
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  Weights weights{static_cast<const uint8_t*>(layer.codes.const_data_ptr()), layer.codes.size(1),
                  static_cast<const float*>(layer.weight_scale.const_data_ptr()), layer.weight_scale.size(1),
                  layer.codes.size(0)};
  Shape shape = layer.shape;
  Scratch code_memory;
  Image image;
  if (patches && patches->by_tap && patches->taps() > 1) {
    int8_t* ordered = code_memory.get<int8_t>(weights.outputs * shape.columns);
    order_by_tap(shape, patches->taps(), weights.codes, weights.bytes, weights.outputs, ordered);
    weights.codes = reinterpret_cast<const uint8_t*>(ordered);
    weights.bytes = shape.columns, shape.weight_bits = 8;
  }
  const int64_t pieces = static_cast<int64_t>(layer.shape.pieces.size());
  int64_t first = 0, branch = 0;
  for (const int64_t size : layer.branches) {
    const auto own = [&](const Maybe& all) { return all ? floats(all) + branch * pieces : nullptr; };
    const float* smooth = layer.smooth ? floats(layer.smooth) + branch * shape.columns : nullptr;
    if (patches && (branch == 0 || smooth)) {
      if (half) image.fill(*patches, x.size(0), static_cast<const uint16_t*>(x.const_data_ptr()), smooth);
      else image.fill(*patches, x.size(0), static_cast<const float*>(x.const_data_ptr()), smooth);
    }
    Job{shape, plan, {own(layer.above), own(layer.below), own(layer.zero)}, smooth, floats(layer.bias),
        floats(beside), weights, first, first + size, rows, x.const_data_ptr(), out.mutable_data_ptr(), half, patches,
        &image}
        .run();
    first += size, ++branch;
  }
}

Shape shape_of(const Integers& pieces, const Integers& dual, const Integers& groups, int64_t weight_bits,
               int64_t input_bits, bool zero_point) {
  Shape shape;
  shape.pieces = pieces, shape.dual = dual, shape.groups = groups;
  for (const int64_t size : pieces) shape.columns += size;
  shape.weight_bits = weight_bits, shape.input_bits = input_bits, shape.zero_point = zero_point;
  bool split = true;
  for (size_t piece = 0; piece < pieces.size(); ++piece) split = split && shape.split(static_cast<int64_t>(piece));
  const Kind eight = split && kEightBits == Kind::kPairs ? Kind::kSplit : kEightBits;
  shape.kind = input_bits == 0 ? Kind::kFloat : weight_bits == 4 ? Kind::kQuads : eight;
  return shape;
}

Tensor linear(const Tensor& x, const Tensor& codes, const Tensor& weight_scale, Maybe bias, Maybe beside,
              Maybe smooth, Maybe above, Maybe below, Maybe zero, Integers branches, Integers pieces, Integers dual,
              Integers groups, int64_t weight_bits, int64_t input_bits, bool zero_point) {
  const Layer layer{codes, weight_scale, bias, smooth, above, below, zero, branches,
                    shape_of(pieces, dual, groups, weight_bits, input_bits, zero_point)};
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous() && x.size(1) == layer.shape.columns, "x must be [rows, in]");
  const int64_t sizes[2] = {x.size(0), codes.size(0)};
  Tensor out = torch::stable::new_empty(x, {sizes, 2});
  if (x.size(0) > 0) run(layer, x, x.size(0), beside, nullptr, out);
  return out;
}

Tensor convolution(const Tensor& x, const Tensor& codes, const Tensor& weight_scale, Maybe bias, Maybe beside,
                   Maybe smooth, Maybe above, Maybe below, Maybe zero, Integers branches, Integers pieces,
                   Integers dual, Integers groups, int64_t weight_bits, int64_t input_bits, bool zero_point,
                   Integers kernel, Integers stride, Integers dilation) {
  const Layer layer{codes, weight_scale, bias, smooth, above, below, zero, branches,
                    shape_of(pieces, dual, groups, weight_bits, input_bits, zero_point)};
  STD_TORCH_CHECK(x.dim() == 4 && x.is_contiguous(), "x must be [batch, channels, height, width]");
  Patches patches{x.size(1), x.size(2), x.size(3), {kernel[0], kernel[1]}, {stride[0], stride[1]},
                  {dilation[0], dilation[1]}, 0, 0, layer.shape.whole_channels(kernel[0] * kernel[1])};
  STD_TORCH_CHECK(patches.channels * kernel[0] * kernel[1] == layer.shape.columns, "x does not fit the layer");
  patches.out_height = (x.size(2) - dilation[0] * (kernel[0] - 1) - 1) / stride[0] + 1;
  patches.out_width = (x.size(3) - dilation[1] * (kernel[1] - 1) - 1) / stride[1] + 1;
  const int64_t sizes[4] = {x.size(0), codes.size(0), patches.out_height, patches.out_width};
  Tensor out = torch::stable::new_empty(x, {sizes, 4});
  const int64_t rows = x.size(0) * patches.positions();
  if (rows > 0) run(layer, x, rows, beside, &patches, out);
  return out;
}

}  // namespace
}  // namespace segquant

STABLE_TORCH_LIBRARY(segquant_cpu, m) {
  m.def(
      "linear(Tensor x, Tensor codes, Tensor weight_scale, Tensor? bias, Tensor? beside, Tensor? smooth, "
      "Tensor? above, Tensor? below, Tensor? zero, int[] branches, int[] pieces, int[] dual, int[] groups, "
      "int weight_bits, int input_bits, bool zero_point) -> Tensor");
  m.def(
      "convolution(Tensor x, Tensor codes, Tensor weight_scale, Tensor? bias, Tensor? beside, Tensor? smooth, "
      "Tensor? above, Tensor? below, Tensor? zero, int[] branches, int[] pieces, int[] dual, int[] groups, "
      "int weight_bits, int input_bits, bool zero_point, int[] kernel, int[] stride, int[] dilation) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segquant_cpu, CPU, m) {
  m.impl("linear", TORCH_BOX(&segquant::linear));
  m.impl("convolution", TORCH_BOX(&segquant::convolution));
}
