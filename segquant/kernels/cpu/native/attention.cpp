// segquant_cpu::attention: softmax(q kᵀ scale) v without a matrix of all scores, by products of codes or of floats.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>

#include "attention.h"

namespace segquant {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kHeadBytes = 32 << 20;  // of heads that are packed at once
constexpr float kLogOfE = 1.44269504088896341f;

Tokens tokens_of(const Tensor& x, int64_t batch, int64_t head) {
  const bool half = x.scalar_type() == ScalarType::BFloat16;
  const int64_t at = batch * x.stride(0) + head * x.stride(1);
  return {static_cast<const char*>(x.const_data_ptr()) + at * (half ? 2 : 4), x.stride(2), half};
}

// out: [batch, queries, heads, size], contiguous.
template <Kind K, class T>
void run(const Tensor& q, const Tensor& k, const Tensor& v, float scale, T* out) {
  const int64_t heads = q.size(1), all = q.size(0) * heads, queries = q.size(2);
  const HeadSize size{k.size(2), q.size(3)};
  const int64_t bytes = up_to(size.bytes<K>(), 64), blocks = (queries + kQueries - 1) / kQueries;
  const int64_t together = std::min(all, std::max<int64_t>(1, kHeadBytes / bytes));
  thread_local Scratch memory;
  char* packed = memory.get<char>(bytes * together);
  for (int64_t top = 0; top < all; top += together) {
    const int64_t count = std::min(together, all - top);
    torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t batch = (top + i) / heads, head = (top + i) % heads;
        pack_head<K>(tokens_of(k, batch, head), tokens_of(v, batch, head), Head<K>(size, packed + i * bytes));
      }
    });
    torch::stable::parallel_for(0, count * blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t own = i / blocks, first = i % blocks * kQueries;
        const int64_t batch = (top + own) / heads, head = (top + own) % heads;
        T* to = out + (batch * queries * heads + head) * size.size;
        attend_all(Head<K>(size, packed + own * bytes), tokens_of(q, batch, head), first,
                   std::min(kQueries, queries - first), scale, to, heads * size.size);
      }
    });
  }
}

void check(const Tensor& q, const Tensor& k, const Tensor& v) {
  for (const Tensor* x : {&q, &k, &v}) {
    STD_TORCH_CHECK(x->dim() == 4 && x->stride(3) == 1, "q, k and v must be [batch, heads, tokens, size], sizes side by side");
    STD_TORCH_CHECK(x->scalar_type() == q.scalar_type(), "q, k and v must have one dtype");
    STD_TORCH_CHECK(x->size(0) == q.size(0) && x->size(1) == q.size(1) && x->size(3) == q.size(3),
                    "q, k and v must have the same batch, heads and size");
  }
  STD_TORCH_CHECK(q.scalar_type() == ScalarType::Float || q.scalar_type() == ScalarType::BFloat16,
                  "q must be float32 or bfloat16");
  STD_TORCH_CHECK(k.size(2) == v.size(2) && k.size(2) > 0, "k and v must have the same tokens, at least one");
}

// [batch, heads, queries, size], which lies as [batch, queries, heads, size].
Tensor attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale, bool codes) {
  check(q, k, v);
  const int64_t sizes[4] = {q.size(0), q.size(2), q.size(1), q.size(3)};
  Tensor out = torch::stable::new_empty(q, {sizes, 4});
  const float by = static_cast<float>(scale) * kLogOfE;
  const auto begin = [&](auto* to) {
    if (codes) run<kCodes>(q, k, v, by, to);
    else run<Kind::kFloat>(q, k, v, by, to);
  };
  if (out.numel() > 0) {
    if (q.scalar_type() == ScalarType::BFloat16) begin(static_cast<uint16_t*>(out.mutable_data_ptr()));
    else begin(static_cast<float*>(out.mutable_data_ptr()));
  }
  return torch::stable::transpose(out, 1, 2);
}

}  // namespace
}  // namespace segquant

STABLE_TORCH_LIBRARY_FRAGMENT(segquant_cpu, m) {
  m.def("attention(Tensor q, Tensor k, Tensor v, float scale, bool codes) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(segquant_cpu, CPU, m) { m.impl("attention", TORCH_BOX(&segquant::attention)); }
