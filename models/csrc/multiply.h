// Products of bf16 tensors by our own kernel (products.h), columns shared out among libtorch's threads.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "products.h"
#include "typed.h"

namespace {

using at::Tensor;

// Whether our own kernel knows products of tensors of this type, this deep.
bool known_to_own_kernel(const Tensor& x, int64_t depth) {
  return x.scalar_type() == at::kBFloat16 && depth % pipe_kernels::kPanel == 0 &&
         pipe_kernels::product_instructions() != pipe_kernels::Instructions::none;
}

// Whether products of tensors like this one, [rows, depth], go to our own kernel.
bool by_own_kernel(const Tensor& x, int64_t depth) {
  return x.size(0) % pipe_kernels::kPanel == 0 && known_to_own_kernel(x, depth);
}

// Whether libtorch's products of this type are better widened: without instructions for bf16 it multiplies number by number,
// five times slower than f32.
bool better_widened(const Tensor& x) {
  return x.scalar_type() == at::kBFloat16 && pipe_kernels::widens(pipe_kernels::product_instructions());
}

// a b by libtorch, in the type of a; both matrices, or batches of them.
Tensor by_libtorch(const Tensor& a, const Tensor& b) {
  return better_widened(a) ? at::matmul(a.to(at::kFloat), b.to(at::kFloat)).to(a.scalar_type()) : at::matmul(a, b);
}

// onto += scale * a b
void add_by_libtorch(const Tensor& onto, const Tensor& a, const Tensor& b, double scale = 1) {
  if (better_widened(a)) onto.add_(by_libtorch(a, b), scale);
  else onto.addmm_(a, b, 1, scale);
}

using pipe_kernels::padded;

// x [rows, columns in memory] of bf16 as the left side, from column `from` on; `right` names the depth that is used.
pipe_kernels::Summand summand(const Tensor& x, const pipe_kernels::Right& right, int64_t from = 0) {
  TORCH_CHECK(x.is_contiguous(), "a product's left side does not lie row after row");
  return {data<pipe_kernels::bf16>(x) + from, x.size(1), right};
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

void add_summand(pipe_kernels::Product& what, const pipe_kernels::Summand& summand) {
  TORCH_CHECK(what.count < pipe_kernels::kSummands, "a product of more summands than there is room for");
  what.summands[what.count++] = summand;
}

// Columns [from, from + columns) of out, [rows, more columns] bf16 or f32, become the sum of the summands.
pipe_kernels::Product product_into(const Tensor& out, int64_t from, int64_t columns, std::initializer_list<pipe_kernels::Summand> summands) {
  const bool wide = out.scalar_type() == at::kFloat;
  pipe_kernels::Product what{};
  what.rows = out.size(0);
  what.columns = columns;
  what.out = wide ? nullptr : data<pipe_kernels::bf16>(out) + from;
  what.wide = wide ? data<float>(out) + from : nullptr;
  what.out_stride = out.size(1);
  for (const auto& each : summands) add_summand(what, each);
  return what;
}

// How a product is shared out: by columns, or where these are too few to be even, by rows.
struct Cut {
  bool by_rows;
  int64_t pieces;  // panels of columns, or blocks of rows
  double each;     // work of one of them

  static Cut of(const pipe_kernels::Product& what, int64_t threads) {
    const int64_t panels = padded(what.columns) / pipe_kernels::kPanel, blocks = what.rows / pipe_kernels::kPanel;
    int64_t depth = 0;
    for (int i = 0; i < what.count; i++) depth += what.summands[i].right.depth;
    const double block = static_cast<double>(depth);
    if (panels < 2 * threads && panels % threads != 0) return {true, blocks, block * panels};
    // To pack a panel takes about as long as to multiply one block with it.
    return {false, panels, block * (blocks + 1)};
  }
};

void multiply_piece(const pipe_kernels::Product& what, bool by_rows, int64_t first, int64_t last) {
  constexpr int64_t panel = pipe_kernels::kPanel;
  const auto how = pipe_kernels::product_instructions();
  if (!by_rows) return pipe_kernels::product(how, what, first * panel, std::min(what.columns, last * panel));
  pipe_kernels::Product part = what;
  part.rows = (last - first) * panel;
  for (int i = 0; i < part.count; i++) part.summands[i].left += first * panel * part.summands[i].left_stride;
  if (part.wide) part.wide += first * panel * part.out_stride;
  else part.out += first * panel * part.out_stride;
  pipe_kernels::product(how, part, 0, part.columns);
}

// Makes the products, which do not depend on one another; each thread has an even share of the work of all.
void multiply(const std::vector<pipe_kernels::Product>& products) {
  const int64_t threads = at::get_num_threads();
  std::vector<Cut> cuts;
  double all = 0;
  for (const auto& what : products) {
    cuts.push_back(Cut::of(what, threads));
    all += cuts.back().pieces * cuts.back().each;
  }
  at::parallel_for(0, products.empty() ? 0 : threads, 1, [&](int64_t from, int64_t to) {
    double before = 0;
    for (size_t i = 0; i < products.size(); i++) {
      const Cut& cut = cuts[i];
      // Whose a piece is, its middle says.
      const auto up_to = [&](int64_t thread) {
        if (thread == threads) return cut.pieces;
        const double pieces = (all * static_cast<double>(thread) / static_cast<double>(threads) - before) / cut.each + 0.5;
        return static_cast<int64_t>(std::clamp(pieces, 0.0, static_cast<double>(cut.pieces)));
      };
      const int64_t first = up_to(from), last = up_to(to);
      if (first < last) multiply_piece(products[i], cut.by_rows, first, last);
      before += cut.pieces * cut.each;
    }
  });
}

// The first `columns` columns of out become a product.
void multiply(const pipe_kernels::Summand& summand, int64_t columns, const Tensor& out) {
  multiply({product_into(out, 0, columns, {summand})});
}

// Each x [rows, columns] turned, [columns, rows].
std::vector<Tensor> turned_each(const std::vector<Tensor>& all) {
  std::vector<Tensor> out;
  for (const Tensor& x : all) out.push_back(at::empty({x.size(1), x.size(0)}, x.options()));
  at::parallel_for(0, static_cast<int64_t>(all.size()), 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const Tensor& x = all[i];
      pipe_kernels::turn(pipe_kernels::product_instructions(), data<pipe_kernels::bf16>(x), x.size(0), x.size(1), x.size(1), data<pipe_kernels::bf16>(out[i]));
    }
  });
  return out;
}

// a [count, rows, depth] times b [count, depth, columns], or b turned, [count, columns, depth]; all contiguous.
Tensor batched(const Tensor& a, const Tensor& b, bool b_turned) {
  const int64_t count = a.size(0), rows = a.size(1), depth = a.size(2), columns = b.size(b_turned ? 1 : 2);
  if (!by_own_kernel(a.flatten(0, 1), depth) || rows % pipe_kernels::kPanel != 0) return by_libtorch(a, b_turned ? b.transpose(1, 2) : b);
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
  if (!by_own_kernel(a.flatten(0, 1), depth) || rows % pipe_kernels::kPanel != 0) return by_libtorch(a.transpose(1, 2), b);
  const Tensor left = at::empty({count, rows, depth}, a.options());
  at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++)
      pipe_kernels::turn(pipe_kernels::product_instructions(), data<pipe_kernels::bf16>(a) + i * rows * depth, depth, rows, rows, data<pipe_kernels::bf16>(left) + i * rows * depth);
  });
  return batched(left, b, false);
}

}  // namespace
