// Autograd functions that keep little and recompute cheaply; see functions.h for the contract with Rust.
#include "functions.h"

#include <ATen/Parallel.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <string>
#include <vector>

#include "kernels.h"
#include "typed.h"

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

namespace {

// Elements a thread should have before a second one is worth waking.
constexpr int64_t kGrain = 16384;

// Products are made in sizes rounded up to this, because oneDNN compiles and keeps a kernel for every new size: documents
// of all lengths would otherwise cost more compiling than computing, and memory without end.
constexpr int64_t kRound = 32;

int64_t rounded(int64_t n) {
  return (n + kRound - 1) / kRound * kRound;
}

int64_t grain(int64_t row) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row));
}

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

Tensor dropped(const Tensor& x, double p, int64_t seed) {
  if (p <= 0) return x;
  const Tensor from = x.contiguous();
  Tensor out = at::empty_like(from);
  by_kind(from, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    // Blocks of 256 keep every thread's start a multiple of the mask's word.
    const int64_t blocks = (from.numel() + 255) / 256;
    at::parallel_for(0, blocks, kGrain / 256, [&](int64_t first, int64_t last) {
      pipe_kernels::dropout_span(data<T>(from), data<T>(out), first * 256, std::min(last * 256, from.numel()),
                         static_cast<uint64_t>(seed), p);
    });
  });
  return out;
}

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
    const Tensor a = lora_a.value_or(Tensor()), b = lora_b.value_or(Tensor());
    const auto kind = x.scalar_type();
    Tensor y = at::mm(x, weight.tensor(kind).t());
    if (bias) y.add_(bias->to(kind));
    Tensor low;
    if (a.defined()) {
      low = at::mm(dropped(x, dropout, seed), a.to(kind).t());
      y.addmm_(low, b.to(kind).t(), 1, scale);
    }
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
    if (ctx->needs_input_grad(0)) dx = at::mm(grad, Weight::load(ctx).tensor(kind));
    if (a.defined()) {
      const Tensor narrow = at::mm(grad, b.mul(scale).to(kind));  // [n, r]
      if (ctx->needs_input_grad(1)) da = at::mm(narrow.t(), dropped(given(ctx, saved[0]), dropout, seed)).to(at::kFloat);
      if (ctx->needs_input_grad(2)) db = at::mm(grad.t(), low).to(at::kFloat).mul_(scale);
      if (dx.defined() && dropout > 0) dx.add_(dropped(at::mm(narrow, a.to(kind)), dropout, seed));
      if (dx.defined() && dropout <= 0) dx.addmm_(narrow, a.to(kind));
    }
    return {dx, da, db, Tensor(), Tensor(), Tensor(), Tensor(), Tensor()};
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

// ---- Attention ----------------------------------------------------------------------------------------------------

// Queries of long documents are taken in blocks, each against the keys up to its end: half the work of a square, and
// scores that stay in cache.
constexpr int64_t kQueryBlock = 512;

struct Block {
  int64_t document, start, end, key_start;  // rows of the flat token axis
};

struct Heads {
  int64_t dim, kv, group, window;
  double scale;
  double cap;  // 0 for none; otherwise scores become cap * tanh(score / cap)
  double dropout;
  int64_t seed;

  // What the softmax itself multiplies by: with a cap the scores are scaled before it.
  float softmax_scale() const {
    return static_cast<float>(cap > 0 ? 1.0 : scale);
  }
};

std::vector<Block> blocks_of(const std::vector<int64_t>& lengths, int64_t window) {
  std::vector<Block> blocks;
  int64_t document = 0;
  for (const int64_t length : lengths) {
    for (int64_t start = 0; start < length; start += kQueryBlock) {
      const int64_t end = std::min(length, start + kQueryBlock);
      const int64_t keys = window > 0 ? std::max<int64_t>(0, start - window + 1) : 0;
      blocks.push_back({document, document + start, document + end, document + keys});
    }
    document += length;
  }
  return blocks;
}

// Rows [start, end) of flat [tokens, kv * dim] as a strided [kv, rows, dim].
Tensor keys_view(const Tensor& x, const Heads& heads, int64_t start, int64_t end) {
  return x.narrow(0, start, end - start).view({end - start, heads.kv, heads.dim}).transpose(0, 1);
}

// The same rows copied to [kv, rounded rows, dim], zeros after the last.
Tensor keys_of(const Tensor& x, const Heads& heads, const Block& b) {
  const int64_t rows = b.end - b.key_start;
  Tensor out = at::zeros({heads.kv, rounded(rows), heads.dim}, x.options());
  out.narrow(1, 0, rows).copy_(keys_view(x, heads, b.key_start, b.end));
  return out;
}

// Rows of flat [tokens, kv * group * dim] copied to [kv, group * rounded rows, dim], zeros after the last of each head.
Tensor queries(const Tensor& x, const Heads& heads, const Block& b) {
  const int64_t rows = b.end - b.start, room = rounded(rows);
  Tensor out = at::zeros({heads.kv, heads.group, room, heads.dim}, x.options());
  out.narrow(2, 0, rows).copy_(x.narrow(0, b.start, rows).view({rows, heads.kv, heads.group, heads.dim}).permute({1, 2, 0, 3}));
  return out.view({heads.kv, heads.group * room, heads.dim});
}

// The inverse of queries(): writes [kv, group * rounded rows, dim] into rows of `out`.
void put_queries(const Tensor& from, const Tensor& out, const Heads& heads, const Block& b) {
  const int64_t rows = b.end - b.start, room = rounded(rows);
  const Tensor own = from.view({heads.kv, heads.group, room, heads.dim}).narrow(2, 0, rows);
  out.narrow(0, b.start, rows).view({rows, heads.kv, heads.group, heads.dim}).copy_(own.permute({2, 0, 1, 3}));
}

// Attention weights of one block, [kv, group * rounded rows, rounded keys]; zeros outside the block. `capped` receives the
// scores divided by their cap, where there is one.
Tensor weights_of(const Tensor& q, const Tensor& k, const Heads& heads, const Block& b, Tensor* capped = nullptr) {
  Tensor scores = at::bmm(q, k.transpose(1, 2)).contiguous();
  if (heads.cap > 0) {
    scores.mul_(heads.scale / heads.cap).tanh_();
    if (capped) *capped = scores.clone();
    scores.mul_(heads.cap);
  }
  const int64_t rows = b.end - b.start, room = rounded(rows), keys = k.size(1);
  by_kind(scores, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    at::parallel_for(0, heads.kv * heads.group * room, grain(keys), [&](int64_t first, int64_t last) {
      for (int64_t r = first; r < last; r++) {
        T* row = data<T>(scores) + r * keys;
        if (r % room >= rows) {
          std::memset(static_cast<void*>(row), 0, keys * sizeof(T));
          continue;
        }
        const int64_t limit = b.start + r % room - b.key_start + 1;
        const int64_t begin = heads.window > 0 ? std::max<int64_t>(0, limit - heads.window) : 0;
        pipe_kernels::softmax_row(row, begin, limit, keys, heads.softmax_scale());
      }
    });
  });
  return scores;
}

// A block's weights with some of them dropped; the mask is a function of the seed and the block's place.
Tensor dropped_weights(const Tensor& weights, const Heads& heads, const Block& b) {
  return dropped(weights, heads.dropout, heads.seed ^ (b.start * 0x2545F4914F6CDD1D));
}

// Many short documents are shared out whole among the threads; a few long ones share the threads inside each product.
template <class F>
void for_documents(const std::vector<Block>& blocks, F f) {
  const int64_t threads = at::get_num_threads();
  const int64_t count = static_cast<int64_t>(blocks.size());
  bool whole = threads > 1 && count >= 4 * threads;
  for (const Block& b : blocks) whole = whole && b.key_start + kQueryBlock >= b.end;
  const auto run = [&](int64_t first, int64_t last) {
    // Gradient mode is per thread and defaults to on in fresh ones.
    at::NoGradGuard guard;
    for (int64_t i = first; i < last; i++) f(blocks[i]);
  };
  if (whole) at::parallel_for(0, count, 1, run);
  else run(0, count);
}

struct AttentionFunction : Function<AttentionFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::vector<int64_t>& lengths, const PipeAttention& how) {
    const int64_t kv = k.size(1) / how.dim;
    const Heads heads{how.dim, kv, q.size(1) / how.dim / kv, how.window, how.scale, how.cap, how.dropout, static_cast<int64_t>(how.seed)};
    Tensor out = at::empty_like(q);
    for_documents(blocks_of(lengths, heads.window), [&](const Block& b) {
      const Tensor weights = weights_of(queries(q, heads, b), keys_of(k, heads, b), heads, b);
      put_queries(at::bmm(dropped_weights(weights, heads, b), keys_of(v, heads, b)), out, heads, b);
    });
    ctx->save_for_backward({q, k, v});
    ctx->saved_data["lengths"] = lengths;
    ctx->saved_data["whole"] = std::vector<int64_t>{heads.dim, heads.kv, heads.group, heads.window, heads.seed};
    ctx->saved_data["real"] = std::vector<double>{heads.scale, heads.cap, heads.dropout};
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], grad = grads[0].contiguous();
    const auto whole = ctx->saved_data["whole"].toIntVector();
    const auto real = ctx->saved_data["real"].toDoubleVector();
    const Heads heads{whole[0], whole[1], whole[2], whole[3], real[0], real[1], real[2], whole[4]};
    const auto blocks = blocks_of(ctx->saved_data["lengths"].toIntVector(), heads.window);
    // Keys of a long document gather from several blocks; one-block documents are written once and need no zeros.
    bool several = false;
    for (const Block& b : blocks) several = several || b.end - b.start != b.end - b.key_start;
    for (size_t i = 1; i < blocks.size(); i++) several = several || blocks[i].document == blocks[i - 1].document;
    Tensor dq = at::empty_like(q), dk = several ? at::zeros_like(k) : at::empty_like(k), dv = several ? at::zeros_like(v) : at::empty_like(v);
    for_documents(blocks, [&](const Block& b) {
      const Tensor own = queries(q, heads, b), own_grad = queries(grad, heads, b), keys_own = keys_of(k, heads, b);
      Tensor capped;
      const Tensor weights = weights_of(own, keys_own, heads, b, &capped);
      const Tensor kept = dropped_weights(weights, heads, b);
      const Tensor values_grad = at::bmm(kept.transpose(1, 2), own_grad).narrow(1, 0, b.end - b.key_start);
      Tensor scores_grad = dropped_weights(at::bmm(own_grad, keys_of(v, heads, b).transpose(1, 2)).contiguous(), heads, b);
      const int64_t keys = weights.size(2), rows = weights.numel() / keys;
      by_kind(scores_grad, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        at::parallel_for(0, rows, grain(keys), [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; r++)
            pipe_kernels::softmax_back_row(data<T>(weights) + r * keys, data<T>(scores_grad) + r * keys, keys, heads.softmax_scale());
        });
      });
      if (heads.cap > 0) scores_grad.mul_(capped.square_().neg_().add_(1).mul_(heads.scale));
      put_queries(at::bmm(scores_grad, keys_own), dq, heads, b);
      const int64_t real = b.end - b.key_start;
      const Tensor keys_grad = at::bmm(scores_grad.transpose(1, 2), own).narrow(1, 0, real);
      Tensor dk_view = keys_view(dk, heads, b.key_start, b.end), dv_view = keys_view(dv, heads, b.key_start, b.end);
      if (several) {
        dk_view.add_(keys_grad);
        dv_view.add_(values_grad);
      } else {
        dk_view.copy_(keys_grad);
        dv_view.copy_(values_grad);
      }
    });
    return {dq, dk, dv, Tensor(), Tensor()};
  }
};

// ---- Head and loss ------------------------------------------------------------------------------------------------

// Rows of logits alive at a time. Larger is no faster (measured) and costs vocabulary * rows * 2 bytes.
constexpr int64_t kHeadRows = 256;

struct HeadLossFunction : Function<HeadLossFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& hidden, const Tensor& head, const std::optional<Tensor>& bias,
                        const Tensor& targets, double scale, double cap) {
    const int64_t rows = hidden.size(0), vocabulary = head.size(0);
    const bool differentiate = hidden.requires_grad() || head.requires_grad();
    const Tensor weight = head.to(hidden.scalar_type());
    Tensor losses = at::empty({rows}, at::kFloat);
    Tensor hidden_grad = differentiate ? at::empty_like(hidden) : Tensor();
    for (int64_t start = 0; start < rows; start += kHeadRows) {
      const int64_t count = std::min(kHeadRows, rows - start);
      Tensor part = hidden.narrow(0, start, count);
      if (count % kRound != 0) {
        part = at::zeros({rounded(count), hidden.size(1)}, hidden.options());
        part.narrow(0, 0, count).copy_(hidden.narrow(0, start, count));
      }
      Tensor logits = at::mm(part, weight.t()), capped;
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
      if (differentiate) hidden_grad.narrow(0, start, count).copy_(at::mm(logits, weight).narrow(0, 0, count));
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
