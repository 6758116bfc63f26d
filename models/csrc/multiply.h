// Products of bf16 tensors by our own kernel (products.h), columns shared out among libtorch's threads.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <initializer_list>

#include "products.h"
#include "typed.h"

namespace {

using at::Tensor;

// Whether products of tensors like this one, [rows, depth], go to our own kernel.
bool by_own_kernel(const Tensor& x, int64_t depth) {
  return x.scalar_type() == at::kBFloat16 && x.size(0) % pipe_kernels::kPanel == 0 && depth % pipe_kernels::kPanel == 0 &&
         pipe_kernels::product_instructions() != pipe_kernels::Instructions::none;
}

using pipe_kernels::padded;

// x [rows, columns in memory] of bf16 as the left side; `right` names the depth that is used.
pipe_kernels::Summand summand(const Tensor& x, const pipe_kernels::Right& right) {
  TORCH_CHECK(x.is_contiguous(), "a product's left side does not lie row after row");
  return {data<pipe_kernels::bf16>(x), x.size(1), right};
}

// A bf16 matrix as the right side.
pipe_kernels::Right right_of(const Tensor& x, bool turned) {
  TORCH_CHECK(x.is_contiguous(), "a product's right side does not lie row after row");
  return {data<pipe_kernels::bf16>(x), nullptr, x.size(1), turned ? x.size(1) : x.size(0), turned, 1};
}

// An f32 matrix as the right side, rounded as it is read.
pipe_kernels::Right rounded_of(const Tensor& x, bool turned, double scale = 1) {
  TORCH_CHECK(x.is_contiguous() && x.scalar_type() == at::kFloat, "an adapter's matrix is not f32, row after row");
  return {nullptr, data<float>(x), x.size(1), turned ? x.size(1) : x.size(0), turned, static_cast<float>(scale)};
}

// The first `columns` columns of out, [rows, at least columns] bf16 or f32, become the sum of the summands.
void multiply(std::initializer_list<pipe_kernels::Summand> summands, int64_t columns, const Tensor& out) {
  const bool wide = out.scalar_type() == at::kFloat;
  pipe_kernels::Product what{{}, 0, out.size(0), columns, wide ? nullptr : data<pipe_kernels::bf16>(out), wide ? data<float>(out) : nullptr, out.size(1)};
  for (const auto& each : summands) what.summands[what.count++] = each;
  const auto how = pipe_kernels::product_instructions();
  constexpr int64_t panel = pipe_kernels::kPanel;
  if (padded(columns) / panel < at::get_num_threads()) {
    // Too few columns to share: rows are.
    return at::parallel_for(0, what.rows / panel, 1, [&](int64_t first, int64_t last) {
      pipe_kernels::Product part = what;
      part.rows = (last - first) * panel;
      for (int i = 0; i < part.count; i++) part.summands[i].left += first * panel * part.summands[i].left_stride;
      if (wide) part.wide += first * panel * part.out_stride;
      else part.out += first * panel * part.out_stride;
      pipe_kernels::product(how, part, 0, columns);
    });
  }
  at::parallel_for(0, padded(columns) / panel, 1, [&](int64_t first, int64_t last) {
    pipe_kernels::product(how, what, first * panel, std::min(columns, last * panel));
  });
}

// x [rows, columns] turned, [columns, rows].
Tensor turned(const Tensor& x) {
  Tensor out = at::empty({x.size(1), x.size(0)}, x.options());
  pipe_kernels::turn(data<pipe_kernels::bf16>(x), x.size(0), x.size(1), x.size(1), data<pipe_kernels::bf16>(out));
  return out;
}

// a [count, rows, depth] times b [count, depth, columns], or b turned, [count, columns, depth]; all contiguous.
Tensor batched(const Tensor& a, const Tensor& b, bool b_turned) {
  const int64_t count = a.size(0), rows = a.size(1), depth = a.size(2), columns = b.size(b_turned ? 1 : 2);
  if (!by_own_kernel(a.flatten(0, 1), depth) || rows % pipe_kernels::kPanel != 0) return at::bmm(a, b_turned ? b.transpose(1, 2) : b);
  Tensor out = at::empty({count, rows, columns}, a.options());
  const auto how = pipe_kernels::product_instructions();
  constexpr int64_t panel = pipe_kernels::kPanel;
  const int64_t panels = padded(columns) / panel;
  at::parallel_for(0, count * panels, 1, [&](int64_t first, int64_t last) {
    for (int64_t at = first; at < last;) {
      const int64_t i = at / panels, from = at % panels, to = std::min(panels, from + last - at);
      const pipe_kernels::Right right{data<pipe_kernels::bf16>(b) + i * depth * columns, nullptr, b_turned ? depth : columns, depth, b_turned, 1};
      const pipe_kernels::Product what{{{data<pipe_kernels::bf16>(a) + i * rows * depth, depth, right}, {}}, 1, rows, columns,
                                       data<pipe_kernels::bf16>(out) + i * rows * columns, nullptr, columns};
      pipe_kernels::product(how, what, from * panel, std::min(columns, to * panel));
      at += to - from;
    }
  });
  return out;
}

// a [count, depth, rows] turned, times b [count, depth, columns].
Tensor batched_turned(const Tensor& a, const Tensor& b) {
  const int64_t count = a.size(0), depth = a.size(1), rows = a.size(2);
  if (!by_own_kernel(a.flatten(0, 1), depth) || rows % pipe_kernels::kPanel != 0) return at::bmm(a.transpose(1, 2), b);
  const Tensor left = at::empty({count, rows, depth}, a.options());
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      pipe_kernels::turn(data<pipe_kernels::bf16>(a) + i * rows * depth, depth, rows, rows, data<pipe_kernels::bf16>(left) + i * rows * depth);
  });
  return batched(left, b, false);
}

}  // namespace
