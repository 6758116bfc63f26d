// Autograd functions that keep little and recompute cheaply; see functions.h for the contract with Rust.
#include "functions.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "attention.h"
#include "first_calls.h"
#include "kernels.h"
#include "multiply.h"
#include "threads.h"
#include "typed.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

constexpr int64_t kEightBits = 2;

// ---- Linear -------------------------------------------------------------------------------------------------------

// Owns tensor handles, so a graph stays valid even if the Rust side drops the layer first.
struct Weight {
  Tensor dense, packed, scale_codes, absmax;
  double offset = 0;
  int64_t rows = 0, columns = 0, format = 0;

  static Weight from(const PipeWeight& w) {
    Weight out;
    if (w.dense) out.dense = *w.dense;
    if (w.packed) out.packed = *w.packed;
    if (w.scale_codes) out.scale_codes = *w.scale_codes;
    if (w.absmax) out.absmax = *w.absmax;
    out.offset = w.offset;
    out.rows = w.rows;
    out.columns = w.columns;
    out.format = w.format;
    return out;
  }

  // [rows, columns] in `kind`; dequantised afresh when packed.
  Tensor tensor(at::ScalarType kind) const {
    if (dense.defined()) return dense.to(kind);
    if (format == kEightBits) return integers(kind);
    Tensor out = at::empty({rows, columns}, at::TensorOptions().dtype(kind));
    const int64_t count = rows * columns, blocks = (count + 63) / 64;
    const auto* codes = scale_codes.defined() ? data<uint8_t>(scale_codes) : nullptr;
    const auto* bytes = data<uint8_t>(packed);
    const auto* scales = data<float>(absmax);
    void* place = out.data_ptr();
    at::parallel_for(0, blocks, 1024, [&](int64_t first, int64_t last) {
      pipe_nf4_decode(bytes, codes, scales, static_cast<float>(offset), first, last, count, kind == at::kFloat,
                      static_cast<int32_t>(format), place);
    });
    return out;
  }

  // As the right side of a product in bf16. 4-bit codes are decoded as they are packed; `room` holds what else it points to.
  struct Room {
    Tensor dense;
    pipe_kernels::FourBits codes;
  };
  pipe_kernels::Right right(bool turned, Room& room) const {
    if (dense.defined() || format == kEightBits) {
      room.dense = tensor(at::kBFloat16).contiguous();
      return right_of(room.dense, turned);
    }
    room.codes = {data<uint8_t>(packed), scale_codes.defined() ? data<uint8_t>(scale_codes) : nullptr, data<float>(absmax),
                  static_cast<float>(offset), pipe_codebook(static_cast<int32_t>(format)), pipe_dynamic_map()};
    return {nullptr, nullptr, columns, turned ? columns : rows, turned, 1, &room.codes};
  }

  Tensor integers(at::ScalarType kind) const {
    Tensor out = at::empty({rows, columns}, at::TensorOptions().dtype(kind));
    const auto* codes = data<int8_t>(packed);
    const auto* factors = data<float>(absmax);
    by_kind(out, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      at::parallel_for(0, rows, grain(columns), [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
          pipe_kernels::widen_row(codes + r * columns, factors[r], data<T>(out) + r * columns, columns);
        }
      });
    });
    return out;
  }

  void save(AutogradContext* ctx) const {
    ctx->saved_data["dense"] = dense;
    ctx->saved_data["packed"] = packed;
    ctx->saved_data["scale_codes"] = scale_codes;
    ctx->saved_data["absmax"] = absmax;
    ctx->saved_data["offset"] = offset;
    ctx->saved_data["rows"] = rows;
    ctx->saved_data["columns"] = columns;
    ctx->saved_data["format"] = format;
  }

  static Weight load(AutogradContext* ctx) {
    Weight out;
    out.dense = ctx->saved_data["dense"].toTensor();
    out.packed = ctx->saved_data["packed"].toTensor();
    out.scale_codes = ctx->saved_data["scale_codes"].toTensor();
    out.absmax = ctx->saved_data["absmax"].toTensor();
    out.offset = ctx->saved_data["offset"].toDouble();
    out.rows = ctx->saved_data["rows"].toInt();
    out.columns = ctx->saved_data["columns"].toInt();
    out.format = ctx->saved_data["format"].toInt();
    return out;
  }
};

struct DropoutFunction : Function<DropoutFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, double p, int64_t seed) {
    ctx->saved_data["p"] = p;
    ctx->saved_data["seed"] = seed;
    return dropped(x, p, seed);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    return {dropped(grads[0], ctx->saved_data["p"].toDouble(), ctx->saved_data["seed"].toInt()), Tensor(), Tensor()};
  }
};

// ---- Norm, gate, rotation -----------------------------------------------------------------------------------------

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

// What a product was given, for the gradient of its adapter: kept, or made again in backward of what a norm or a gate has kept
// for its own gradient. That takes a hundredth of the product's time and spares a third of all that a layer keeps.
struct Given : torch::CustomClassHolder {
  explicit Given(c10::intrusive_ptr<torch::autograd::Node> maker) : maker(std::move(maker)) {}

  static bool can_be_made_again(const Tensor& x) {
    const auto maker = x.grad_fn();
    return as<RmsNormFunction>(maker) || as<SwigluFunction>(maker);
  }
  Tensor again() const {
    if (const auto norm = as<RmsNormFunction>(maker)) return RmsNormFunction::again(&norm->ctx_);
    return SwigluFunction::again(&as<SwigluFunction>(maker)->ctx_);
  }
  template <class F>
  static torch::autograd::CppNode<F>* as(const c10::intrusive_ptr<torch::autograd::Node>& node) {
    return dynamic_cast<torch::autograd::CppNode<F>*>(node.get());
  }
  c10::intrusive_ptr<torch::autograd::Node> maker;
};

struct LinearFunction : Function<LinearFunction> {
  // Optional, because autograd takes note of every plain tensor it is given, and an undefined one has no note to take.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const std::optional<Tensor>& lora_a,
                        const std::optional<Tensor>& lora_b, const std::optional<Tensor>& bias, const Weight& weight,
                        double scale, double dropout, int64_t seed) {
    const Tensor a = lora_a ? lora_a->contiguous() : Tensor(), b = lora_b ? lora_b->contiguous() : Tensor();
    const auto kind = x.scalar_type();
    Tensor y, low;
    if (suits(x, weight)) {
      std::tie(y, low) = multiplied(x, a, b, weight, scale, dropout, seed);
    } else {
      y = at::mm(x, weight.tensor(kind).t());
      if (a.defined()) {
        low = at::mm(dropped(x, dropout, seed), a.to(kind).t());
        y.addmm_(low, b.to(kind).t(), 1, scale);
      }
    }
    if (bias) y.add_(bias->to(kind));
    const bool keep = a.defined() && !Given::can_be_made_again(x);
    if (a.defined() && !keep) ctx->saved_data["given"] = c10::IValue::make_capsule(c10::make_intrusive<Given>(x.grad_fn()));
    ctx->save_for_backward({keep ? x : Tensor(), a, b, low});
    weight.save(ctx);
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["dropout"] = dropout;
    ctx->saved_data["seed"] = seed;
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &a = saved[1], &b = saved[2], &low = saved[3];
    const double scale = ctx->saved_data["scale"].toDouble(), dropout = ctx->saved_data["dropout"].toDouble();
    const int64_t seed = ctx->saved_data["seed"].toInt();
    const Tensor grad = grads[0].contiguous();
    const auto kind = grad.scalar_type();
    Tensor dx, da, db;
    const Weight weight = Weight::load(ctx);
    if (suits(grad, weight)) {
      std::tie(dx, da, db) = gradients(ctx, grad, weight, scale, dropout, seed);
      return {dx, da, db, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
    }
    if (ctx->needs_input_grad(0)) dx = at::mm(grad, weight.tensor(kind));
    if (a.defined()) {
      const Tensor narrow = at::mm(grad, b.mul(scale).to(kind));  // [n, r]
      if (ctx->needs_input_grad(1)) da = at::mm(narrow.t(), dropped(given(ctx, saved[0]), dropout, seed)).to(at::kFloat);
      if (ctx->needs_input_grad(2)) db = at::mm(grad.t(), low).to(at::kFloat).mul_(scale);
      if (dx.defined() && dropout > 0) dx.add_(dropped(at::mm(narrow, a.to(kind)), dropout, seed));
      if (dx.defined() && dropout <= 0) dx.addmm_(narrow, a.to(kind));
    }
    return {dx, da, db, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }

  static bool suits(const Tensor& x, const Weight& weight) {
    return by_own_kernel(x, weight.columns) && weight.rows % pipe_kernels::kPanel == 0;
  }

  // x W^T + scale * (x A^T) B^T, both products summed before they are rounded; and x A^T, [rows, padded r].
  static std::tuple<Tensor, Tensor> multiplied(const Tensor& x, const Tensor& a, const Tensor& b, const Weight& weight,
                                               double scale, double dropout, int64_t seed) {
    Weight::Room room;
    const pipe_kernels::Right right = weight.right(true, room);
    Tensor y = at::empty({x.size(0), weight.rows}, x.options()), low;
    if (!a.defined()) {
      multiply({summand(x, right)}, weight.rows, y);
      return {y, low};
    }
    low = narrow_tensor(x, a.size(0));
    multiply({summand(dropped(x, dropout, seed), rounded_of(a, true))}, a.size(0), low);
    multiply({summand(x, right), summand(low, rounded_of(b, true, scale))}, weight.rows, y);
    return {y, low};
  }

  // Gradients to x, A and B.
  static std::tuple<Tensor, Tensor, Tensor> gradients(AutogradContext* ctx, const Tensor& grad, const Weight& weight,
                                                      double scale, double dropout, int64_t seed) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &a = saved[1], &b = saved[2], &low = saved[3];
    const bool wanted = ctx->needs_input_grad(0);
    Weight::Room room;
    const pipe_kernels::Right right = wanted ? weight.right(false, room) : pipe_kernels::Right{};
    Tensor dx = wanted ? at::empty({grad.size(0), weight.columns}, grad.options()) : Tensor(), da, db;
    if (!a.defined()) {
      if (wanted) multiply({summand(grad, right)}, weight.columns, dx);
      return {dx, da, db};
    }
    const int64_t rank = a.size(0);
    const Tensor narrow = narrow_tensor(grad, rank);
    multiply({summand(grad, rounded_of(b, false, scale))}, rank, narrow);
    if (wanted && dropout <= 0) {
      multiply({summand(grad, right), summand(narrow, rounded_of(a, false))}, weight.columns, dx);
    } else if (wanted) {
      multiply({summand(grad, right)}, weight.columns, dx);
      Tensor through = at::empty_like(dx);
      multiply({summand(narrow, rounded_of(a, false))}, weight.columns, through);
      dx.add_(dropped(through, dropout, seed));
    }
    if (ctx->needs_input_grad(1)) {
      da = at::empty({narrow.size(1), weight.columns}, at::kFloat);
      multiply({summand(turned(narrow), right_of(dropped(given(ctx, saved[0]), dropout, seed), false))}, weight.columns, da);
      da = da.narrow(0, 0, rank);
    }
    if (ctx->needs_input_grad(2)) {
      const Tensor across = at::empty({narrow.size(1), weight.rows}, at::kFloat);
      multiply({summand(turned(low), right_of(grad, false))}, weight.rows, across);
      db = across.narrow(0, 0, rank).t().contiguous().mul_(scale);
    }
    return {dx, da, db};
  }

  // [rows of x, r], with zeros up to whole panels.
  static Tensor narrow_tensor(const Tensor& x, int64_t rank) {
    const int64_t columns = padded(rank);
    return columns == rank ? at::empty({x.size(0), columns}, x.options()) : at::zeros({x.size(0), columns}, x.options());
  }

  static Tensor given(AutogradContext* ctx, const Tensor& kept) {
    if (kept.defined()) return kept;
    return c10::static_intrusive_pointer_cast<Given>(ctx->saved_data["given"].toCapsule())->again();
  }
};

// x [tokens, heads * dim]; cos and sin [tokens, dim / 2].
Tensor rotated(const Tensor& input, const Tensor& cos, const Tensor& sin, float sign) {
  const Tensor x = input.contiguous();
  Tensor out = at::empty_like(x);
  const int64_t half = cos.size(1), width = x.size(1), heads = width / (2 * half);
  by_kind(x, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    at::parallel_for(0, x.size(0), grain(width), [&](int64_t first, int64_t last) {
      for (int64_t t = first; t < last; t++)
        for (int64_t h = 0; h < heads; h++) {
          const int64_t at = t * width + h * 2 * half;
          pipe_kernels::rotate_head(data<T>(x) + at, data<float>(cos) + t * half, data<float>(sin) + t * half, data<T>(out) + at, half, sign);
        }
    });
  });
  return out;
}

struct RotateFunction : Function<RotateFunction> {
  static Tensor compute(const Tensor& x, const Tensor& cos, const Tensor& sin) {
    return rotated(x, cos, sin, 1.0f);
  }
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& cos, const Tensor& sin) {
    ctx->save_for_backward({cos, sin});
    return rotated(x, cos, sin, 1.0f);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    return {rotated(grads[0], saved[0], saved[1], -1.0f), Tensor(), Tensor()};
  }
};

// ---- Head and loss ------------------------------------------------------------------------------------------------

// Rows of logits alive at a time, at most. Larger is no faster (measured) and costs vocabulary * rows * 2 bytes.
constexpr int64_t kHeadRows = 256;

struct HeadLossFunction : Function<HeadLossFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& head, const std::optional<Tensor>& bias,
                        const Tensor& targets, double scale, double cap) {
    const int64_t rows = hidden.size(0), vocabulary = head.size(0);
    const bool differentiate = hidden.requires_grad() || head.requires_grad();
    const Tensor weight = head.to(hidden.scalar_type()).contiguous();
    Tensor losses = at::empty({rows}, at::kFloat);
    Tensor hidden_grad = differentiate ? at::empty_like(hidden) : Tensor();
    // Even parts: the head is packed once for each.
    const int64_t parts = (rows + kHeadRows - 1) / kHeadRows, each = parts > 0 ? padded((rows + parts - 1) / parts) : 0;
    for (int64_t start = 0; start < rows; start += each) {
      const int64_t count = std::min(each, rows - start);
      Tensor part = hidden.narrow(0, start, count);
      if (count % pipe_kernels::kPanel != 0) {
        part = at::zeros({padded(count), hidden.size(1)}, hidden.options());
        part.narrow(0, 0, count).copy_(hidden.narrow(0, start, count));
      }
      const bool own = by_own_kernel(part, part.size(1)) && vocabulary % pipe_kernels::kPanel == 0;
      Tensor logits = own ? at::empty({part.size(0), vocabulary}, part.options()) : at::mm(part, weight.t()), capped;
      if (own) multiply({summand(part, right_of(weight, true))}, vocabulary, logits);
      if (scale != 1) logits.mul_(scale);
      if (bias) logits.add_(bias->to(logits.scalar_type()));
      if (cap > 0) {
        logits.div_(cap).tanh_();
        if (differentiate) capped = logits.clone();
        logits.mul_(cap);
      }
      by_kind(logits, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; r++)
            data<float>(losses)[start + r] = pipe_kernels::cross_entropy_row(data<T>(logits) + r * vocabulary, vocabulary, data<int64_t>(targets)[start + r], differentiate);
        });
      });
      if (differentiate && cap > 0) logits.mul_(capped.square_().neg_().add_(1));
      if (differentiate && scale != 1) logits.mul_(scale);
      // Rows past the last hold the logits of zeros; their products are left out.
      if (!differentiate) continue;
      const Tensor back = own ? at::empty_like(part) : at::mm(logits, weight);
      if (own) multiply({summand(logits, right_of(weight, false))}, part.size(1), back);
      hidden_grad.narrow(0, start, count).copy_(back.narrow(0, 0, count));
    }
    ctx->save_for_backward({hidden_grad});
    return losses;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor hidden_grad = ctx->get_saved_variables()[0];
    const Tensor out = hidden_grad.mul(grads[0].unsqueeze(1).to(hidden_grad.scalar_type()));
    return {out, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// ---- Activation checkpointing -------------------------------------------------------------------------------------

// Shared by the forward and the backward of one recomputed part.
struct Closure : torch::CustomClassHolder {
  explicit Closure(void* held) : held(held) {}
  ~Closure() override { pipe_checkpoint_drop(held); }
  Tensor run(const Tensor& x) const {
    Tensor* answer = pipe_checkpoint_run(held, &x);
    TORCH_CHECK(answer, "a recomputed layer failed");
    Tensor out = *answer;
    delete answer;
    return out;
  }
  void* held;
};

struct CheckpointFunction : Function<CheckpointFunction> {
  // `anchor` always requires grad: without it a first layer, whose input does not, would be left out of the graph.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const Tensor& anchor, c10::intrusive_ptr<Closure> closure) {
    ctx->save_for_backward({x});
    ctx->saved_data["closure"] = c10::IValue::make_capsule(closure);
    (void)anchor;
    return closure->run(x);
  }
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    auto closure = c10::static_intrusive_pointer_cast<Closure>(ctx->saved_data["closure"].toCapsule());
    Tensor x = ctx->get_saved_variables()[0].detach();
    const bool wanted = ctx->needs_input_grad(0);
    x.requires_grad_(wanted);
    Tensor y;
    {
      at::AutoGradMode on(true);
      y = closure->run(x);
    }
    torch::autograd::backward({y}, {grads[0]});
    return {wanted ? x.grad() : Tensor(), Tensor(), Tensor()};
  }
};

std::optional<Tensor> if_given(const Tensor* x) {
  return x ? std::optional<Tensor>(*x) : std::nullopt;
}

}  // namespace

extern "C" {

Tensor* pipe_linear(const Tensor* x, const PipeWeight* weight, const Tensor* bias, const PipeLora* lora, char** error) {
  return guarded(error, [&] {
    const PipeLora none{nullptr, nullptr, 0, 0, 0};
    const PipeLora& l = lora ? *lora : none;
    return LinearFunction::apply(x->contiguous(), if_given(l.a), if_given(l.b), if_given(bias),
                                 Weight::from(*weight), l.scale, l.dropout, static_cast<int64_t>(l.seed));
  });
}

Tensor* pipe_dequantize(const PipeWeight* weight, int32_t wide, char** error) {
  return guarded(error, [&] { return Weight::from(*weight).tensor(wide ? at::kFloat : at::kBFloat16); });
}

void pipe_set_gradient(const Tensor* leaf, const Tensor* gradient) {
  leaf->mutable_grad() = gradient ? *gradient : Tensor();
}

Tensor* pipe_dropout(const Tensor* x, double p, uint64_t seed, char** error) {
  return guarded(error, [&] { return DropoutFunction::apply(*x, p, static_cast<int64_t>(seed)); });
}

Tensor* pipe_rms_norm(const Tensor* x, const Tensor* weight, double eps, char** error) {
  return guarded(error, [&] { return applied<RmsNormFunction>(*x, *weight, eps); });
}

Tensor* pipe_swiglu(const Tensor* gate, const Tensor* up, char** error) {
  return guarded(error, [&] { return applied<SwigluFunction>(gate->contiguous(), up->contiguous()); });
}

void pipe_swiglu_numbers(const float* gate, const float* up, float* out, int64_t count) {
  pipe_kernels::swiglu_span(gate, up, out, count);
}

Tensor* pipe_rotate(const Tensor* x, const Tensor* cos, const Tensor* sin, char** error) {
  return guarded(error, [&] { return applied<RotateFunction>(*x, *cos, *sin); });
}

Tensor* pipe_attention(const Tensor* q, const Tensor* k, const Tensor* v, const int64_t* lengths, int64_t documents,
                       const PipeAttention* how, char** error) {
  return guarded(error, [&] {
    return AttentionFunction::apply(q->contiguous(), k->contiguous(), v->contiguous(),
                                    std::vector<int64_t>(lengths, lengths + documents), *how);
  });
}

Tensor* pipe_head_loss(const Tensor* hidden, const Tensor* head, const Tensor* bias, const Tensor* targets, double scale,
                       double cap, char** error) {
  return guarded(error, [&] {
    return HeadLossFunction::apply(hidden->contiguous(), *head, if_given(bias), *targets, scale, cap);
  });
}

Tensor* pipe_checkpoint(const Tensor* x, void* closure, char** error) {
  return guarded(error, [&] {
    // Owned from here on, also when something below throws.
    auto shared = c10::make_intrusive<Closure>(closure);
    Tensor anchor = at::empty({0}, x->options());
    anchor.requires_grad_(true);
    return CheckpointFunction::apply(*x, anchor, shared);
  });
}

int32_t pipe_has_products() {
  return pipe_kernels::product_instructions() != pipe_kernels::Instructions::none;
}

int32_t pipe_wants_gradient() {
  return at::GradMode::is_enabled();
}

void pipe_parallel(int64_t count, int64_t grain, void (*work)(const void*, int64_t, int64_t), const void* with) {
  at::parallel_for(0, count, grain, [&](int64_t first, int64_t last) { work(with, first, last); });
}

void pipe_free(char* message) {
  free(message);
}
}
