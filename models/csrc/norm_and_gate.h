// Norms and gates of the layers, which can make again what they gave.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "functions.h"
#include "kernels.h"
#include "threads.h"
#include "typed.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Where no gradient is wanted, what is recorded for it would take longer than the work on a few rows.
template <class F, class... Inputs>
Tensor applied(const Inputs&... inputs) {
  if (at::GradMode::is_enabled()) return F::apply(inputs...);
  return F::compute(inputs...);
}

struct RmsNormFunction : Function<RmsNormFunction> {
  // `scales` receives what each row was multiplied by.
  static Tensor normed(const Tensor& x, const Tensor& w, const Tensor& scales, double eps) {
    const int64_t n = x.size(-1), rows = x.numel() / n;
    Tensor out = at::empty_like(x);
    by_kind(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      at::parallel_for(0, rows, grain(n), [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
          const float scale = pipe_kernels::rms_norm_row(data<T>(x) + r * n, data<T>(w), data<T>(out) + r * n, n, static_cast<float>(eps));
          if (scales.defined()) data<float>(scales)[r] = scale;
        }
      });
    });
    return out;
  }
  static Tensor compute(const Tensor& input, const Tensor& weight, double eps) {
    const Tensor x = input.contiguous();
    return normed(x, weight.to(x.scalar_type()).contiguous(), Tensor(), eps);
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& input, const Tensor& weight, double eps) {
    const Tensor x = input.contiguous(), w = weight.to(x.scalar_type()).contiguous();
    const Tensor scales = at::empty({x.numel() / x.size(-1)}, at::kFloat);
    Tensor out = normed(x, w, scales, eps);
    ctx->save_for_backward({x, w, scales});
    ctx->saved_data["eps"] = eps;
    return out;
  }
  static Tensor again(AutogradContext* ctx) {
    const auto saved = ctx->get_saved_variables();
    return normed(saved[0], saved[1], Tensor(), ctx->saved_data["eps"].toDouble());
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &scales = saved[2], grad = grads[0].contiguous();
    const int64_t n = x.size(-1), rows = x.numel() / n;
    Tensor out = at::empty_like(x);
    by_kind(x, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      at::parallel_for(0, rows, grain(n), [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++)
          pipe_kernels::rms_norm_back_row(data<T>(x) + r * n, data<T>(w), data<T>(grad) + r * n, data<T>(out) + r * n, n, data<float>(scales)[r]);
      });
    });
    return {out, Tensor(), Tensor()};
  }
};

struct SwigluFunction : Function<SwigluFunction> {
  static Tensor compute(const Tensor& gate, const Tensor& up) {
    Tensor out = at::empty_like(gate);
    by_kind(gate, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      at::parallel_for(0, gate.numel(), kGrain, [&](int64_t first, int64_t last) {
        pipe_kernels::swiglu_span(data<T>(gate) + first, data<T>(up) + first, data<T>(out) + first, last - first);
      });
    });
    return out;
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& gate, const Tensor& up) {
    ctx->save_for_backward({gate, up});
    return compute(gate, up);
  }
  static Tensor again(AutogradContext* ctx) {
    const auto saved = ctx->get_saved_variables();
    return compute(saved[0], saved[1]);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &gate = saved[0], &up = saved[1], grad = grads[0].contiguous();
    Tensor gate_grad = at::empty_like(gate), up_grad = at::empty_like(up);
    by_kind(gate, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      at::parallel_for(0, gate.numel(), kGrain, [&](int64_t first, int64_t last) {
        pipe_kernels::swiglu_back_span(data<T>(gate) + first, data<T>(up) + first, data<T>(grad) + first,
                               data<T>(gate_grad) + first, data<T>(up_grad) + first, last - first);
      });
    });
    return {gate_grad, up_grad};
  }
};

}  // namespace
