// Autograd functions that keep little and recompute cheaply; see functions.h for the contract with Rust.
#include "functions.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "attention.h"
#include "first_calls.h"
#include "kernels.h"
#include "linear.h"
#include "multiply.h"
#include "norm_and_gate.h"
#include "threads.h"
#include "typed.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

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

// ---- Rotation -----------------------------------------------------------------------------------------------------

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
      const bool own = by_own_kernel(part, part.size(1));
      // Our own products want whole panels: what lies past the vocabulary is zero and stays so.
      const int64_t width = own ? padded(vocabulary) : vocabulary;
      Tensor logits = own ? at::empty({part.size(0), width}, part.options()) : by_libtorch(part, weight.t()), capped;
      if (own) multiply(summand(part, right_of(weight, true)), vocabulary, logits);
      if (width > vocabulary) logits.narrow(1, vocabulary, width - vocabulary).zero_();
      if (scale != 1) logits.mul_(scale);
      if (bias) logits.narrow(1, 0, vocabulary).add_(bias->to(logits.scalar_type()));
      if (cap > 0) {
        logits.div_(cap).tanh_();
        if (differentiate) capped = logits.clone();
        logits.mul_(cap);
      }
      by_kind(logits, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; r++)
            data<float>(losses)[start + r] = pipe_kernels::cross_entropy_row(data<T>(logits) + r * width, vocabulary, data<int64_t>(targets)[start + r], differentiate);
        });
      });
      if (differentiate && cap > 0) logits.mul_(capped.square_().neg_().add_(1));
      if (differentiate && scale != 1) logits.mul_(scale);
      // Rows past the last hold the logits of zeros; their products are left out.
      if (!differentiate) continue;
      const Tensor back = own ? at::empty_like(part) : by_libtorch(logits, weight);
      if (own) multiply(summand(logits, right_of(weight, false)), part.size(1), back);
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

int32_t pipe_linears(const Tensor* x, const PipeLayer* layers, int64_t count, Tensor** out, char** error) {
  Tensor* done = guarded(error, [&] {
    linears(*x, layers, count, out);
    return Tensor();
  });
  delete done;
  return done != nullptr;
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

int32_t pipe_products() {
  return static_cast<int32_t>(pipe_kernels::product_instructions());
}

int32_t pipe_widens() {
  return pipe_kernels::widens(pipe_kernels::product_instructions());
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
