// Linear layers with dense, 4-bit or 8-bit weights and adapters.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "functions.h"
#include "multiply.h"
#include "norm_and_gate.h"
#include "threads.h"
#include "typed.h"

namespace {

constexpr int64_t kEightBits = 2;

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

// Several linear layers of one input: their answers, and one gradient to the input.
//
// Where our own products know them, the input's rows are packed once for the gradients of all adapters, and what the layers and
// their adapters give to the input's gradient is summed up before it is rounded.
struct Layer {
  Weight weight;
  Tensor bias;
  int64_t rank = 0;  // of its adapter; 0 for none
  double scale = 0, dropout = 0;
  int64_t seed = 0;
};

struct Layers : torch::CustomClassHolder {
  std::vector<Layer> all;
  c10::intrusive_ptr<Given> given;
  // Whether all of them see the input itself, with nothing dropped.
  bool see_input = true;
  // Columns of what adapters make of the input, whole panels each; those of layer i start at low_at[i].
  std::vector<int64_t> low_at;
  int64_t low_width = 0;
};

struct LinearsFunction : Function<LinearsFunction> {
  // `adapters` holds a [r, columns] and b [rows, r] of each layer that has one, in f32.
  static variable_list forward(AutogradContext* ctx, const Tensor& x, at::TensorList adapters, c10::intrusive_ptr<Layers> layers) {
    variable_list matrices;
    for (const Tensor& matrix : adapters) matrices.push_back(matrix.contiguous());
    for (const Layer& layer : layers->all) {
      layers->low_at.push_back(layers->low_width);
      layers->low_width += padded(layer.rank);
      layers->see_input = layers->see_input && (layer.rank == 0 || layer.dropout <= 0);
    }
    variable_list answers;
    Tensor low;
    if (suits(x, *layers)) {
      std::tie(answers, low) = multiplied(x, matrices, *layers);
    } else {
      std::tie(answers, low) = plainly(x, matrices, *layers);
    }
    for (size_t i = 0; i < answers.size(); i++)
      if (layers->all[i].bias.defined()) answers[i].add_(layers->all[i].bias.to(x.scalar_type()));
    const bool keep = !matrices.empty() && !Given::can_be_made_again(x);
    if (!matrices.empty() && !keep) layers->given = c10::make_intrusive<Given>(x.grad_fn());
    matrices.push_back(keep ? x : Tensor());
    matrices.push_back(low);
    ctx->save_for_backward(std::move(matrices));
    ctx->saved_data["layers"] = c10::IValue::make_capsule(layers);
    return answers;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto layers = c10::static_intrusive_pointer_cast<Layers>(ctx->saved_data["layers"].toCapsule());
    auto matrices = ctx->get_saved_variables();
    const Tensor low = matrices.back();
    matrices.pop_back();
    Tensor x = matrices.back();
    matrices.pop_back();
    bool wanted = false;
    for (size_t i = 0; i < matrices.size(); i++) wanted = wanted || ctx->needs_input_grad(1 + i);
    if (wanted && !x.defined()) x = layers->given->again();
    for (Tensor& grad : grads) grad = grad.contiguous();
    const bool input = ctx->needs_input_grad(0);
    variable_list out = suits(grads[0], *layers) ? gradients(x, grads, matrices, low, *layers, input, wanted)
                                                 : plain_gradients(x, grads, matrices, low, *layers, input, wanted);
    out.push_back(Tensor());
    return out;
  }

  static bool suits(const Tensor& x, const Layers& layers) {
    return x.size(0) % pipe_kernels::kPanel == 0 && suits_in_whole_panels(x, layers);
  }

  // The same for a number of rows that is still to be rounded up.
  static bool suits_in_whole_panels(const Tensor& x, const Layers& layers) {
    return std::all_of(layers.all.begin(), layers.all.end(), [&](const Layer& layer) {
      return known_to_own_kernel(x, layer.weight.columns) && layer.weight.rows % pipe_kernels::kPanel == 0;
    });
  }

  // ---- By libtorch's products. `low` is [rows of x, the layers' padded ranks].

  static std::pair<variable_list, Tensor> plainly(const Tensor& x, const variable_list& matrices, const Layers& layers) {
    const auto kind = x.scalar_type();
    variable_list answers;
    const Tensor low = layers.low_width > 0 ? at::zeros({x.size(0), layers.low_width}, x.options()) : Tensor();
    size_t next = 0;
    for (size_t i = 0; i < layers.all.size(); i++) {
      const Layer& layer = layers.all[i];
      Tensor y = by_libtorch(x, layer.weight.tensor(kind).t());
      if (layer.rank > 0) {
        const Tensor &a = matrices[next], &b = matrices[next + 1], own = low.narrow(1, layers.low_at[i], layer.rank);
        own.copy_(by_libtorch(dropped(x, layer.dropout, layer.seed), a.to(kind).t()));
        add_by_libtorch(y, own, b.to(kind).t(), layer.scale);
        next += 2;
      }
      answers.push_back(y);
    }
    return {answers, low};
  }

  static variable_list plain_gradients(const Tensor& x, const variable_list& grads, const variable_list& matrices, const Tensor& low,
                                       const Layers& layers, bool input, bool wanted) {
    const auto kind = grads[0].scalar_type();
    Tensor dx;
    variable_list out{dx};
    const auto add = [&](const Tensor& left, const Tensor& right) {
      if (dx.defined()) add_by_libtorch(dx, left, right);
      else dx = by_libtorch(left, right);
    };
    for (size_t i = 0; i < layers.all.size(); i++) {
      const Layer& layer = layers.all[i];
      if (input) add(grads[i], layer.weight.tensor(kind));
      if (layer.rank == 0) continue;
      const Tensor &a = matrices[out.size() - 1], &b = matrices[out.size()];
      const Tensor narrow = by_libtorch(grads[i], b.mul(layer.scale).to(kind));  // [n, r]
      if (input && layer.dropout > 0) dx.add_(dropped(by_libtorch(narrow, a.to(kind)), layer.dropout, layer.seed));
      if (input && layer.dropout <= 0) add(narrow, a.to(kind));
      out.push_back(wanted ? by_libtorch(narrow.t(), dropped(x, layer.dropout, layer.seed)).to(at::kFloat) : Tensor());
      out.push_back(wanted ? by_libtorch(grads[i].t(), low.narrow(1, layers.low_at[i], layer.rank)).to(at::kFloat).mul_(layer.scale) : Tensor());
    }
    out[0] = dx;
    return out;
  }

  // ---- By our own.

  static Tensor narrow_tensor(const Tensor& x, const Layers& layers) {
    const bool whole = std::all_of(layers.all.begin(), layers.all.end(), [](const Layer& layer) { return layer.rank == padded(layer.rank); });
    return whole ? at::empty({x.size(0), layers.low_width}, x.options()) : at::zeros({x.size(0), layers.low_width}, x.options());
  }

  // The first matrices of all adapters, [their padded ranks, columns], zeros in between.
  static Tensor side_by_side(const variable_list& matrices, const Layers& layers) {
    const Tensor out = at::zeros({layers.low_width, layers.all[0].weight.columns}, at::kFloat);
    size_t next = 0;
    for (size_t i = 0; i < layers.all.size(); i++) {
      if (layers.all[i].rank == 0) continue;
      out.narrow(0, layers.low_at[i], layers.all[i].rank).copy_(matrices[next]);
      next += 2;
    }
    return out;
  }

  // x W^T + scale * (x A^T) B^T of each, both products summed before they are rounded; and x A^T of all.
  static std::pair<variable_list, Tensor> multiplied(const Tensor& x, const variable_list& matrices, const Layers& layers) {
    const size_t count = layers.all.size();
    std::vector<Weight::Room> rooms(count);
    std::vector<Tensor> seen(count);
    std::vector<pipe_kernels::Product> to_low, to_answers;
    variable_list answers;
    const Tensor low = layers.low_width > 0 ? narrow_tensor(x, layers) : Tensor();
    size_t next = 0;
    for (size_t i = 0; i < count; i++) {
      const Layer& layer = layers.all[i];
      answers.push_back(at::empty({x.size(0), layer.weight.rows}, x.options()));
      to_answers.push_back(product_into(answers[i], 0, layer.weight.rows, {summand(x, layer.weight.right(true, rooms[i]))}));
      if (layer.rank == 0) continue;
      if (!layers.see_input) {
        seen[i] = dropped(x, layer.dropout, layer.seed);
        to_low.push_back(product_into(low, layers.low_at[i], layer.rank, {summand(seen[i], rounded_of(matrices[next], true))}));
      }
      add_summand(to_answers[i], summand(low, rounded_of(matrices[next + 1], true, layer.scale), layers.low_at[i]));
      next += 2;
    }
    const Tensor together = low.defined() && layers.see_input ? side_by_side(matrices, layers) : Tensor();
    if (together.defined()) to_low.push_back(product_into(low, 0, layers.low_width, {summand(x, rounded_of(together, true))}));
    multiply(to_low);
    multiply(to_answers);
    return {answers, low};
  }

  static variable_list gradients(const Tensor& x, const variable_list& grads, const variable_list& matrices, const Tensor& low,
                                 const Layers& layers, bool input, bool wanted) {
    const size_t count = layers.all.size();
    const Tensor &first = grads[0], narrow = layers.low_width > 0 ? narrow_tensor(first, layers) : Tensor();
    std::vector<pipe_kernels::Product> products;
    size_t next = 0;
    for (size_t i = 0; i < count; i++) {
      if (layers.all[i].rank == 0) continue;
      products.push_back(product_into(narrow, layers.low_at[i], layers.all[i].rank, {summand(grads[i], rounded_of(matrices[next + 1], false, layers.all[i].scale))}));
      next += 2;
    }
    multiply(products);
    products.clear();

    std::vector<Weight::Room> rooms(count);
    variable_list out{input ? at::empty({first.size(0), layers.all[0].weight.columns}, first.options()) : Tensor()}, through;
    if (input) input_products(out[0], grads, narrow, matrices, layers, rooms, products, through);
    variable_list turned_both, across, seen;
    if (wanted) {
      turned_both = turned_each({narrow, low});
      adapter_products(x, grads, turned_both, layers, products, across, seen);
    }
    multiply(products);
    for (size_t i = 0, part = 0; i < count; i++)
      if (layers.all[i].rank > 0 && input && layers.all[i].dropout > 0) out[0].add_(dropped(through[part++], layers.all[i].dropout, layers.all[i].seed));
    for (size_t i = 0, part = 0; i < count; i++) {
      const Layer& layer = layers.all[i];
      if (layer.rank == 0) continue;
      out.push_back(wanted ? across[part].narrow(0, layers.see_input ? layers.low_at[i] : 0, layer.rank) : Tensor());
      out.push_back(wanted ? turned_and_scaled(across[part + 1], layer.rank, layer.scale) : Tensor());
      part += 2;
    }
    return out;
  }

  // The first `rank` rows of x, f32, turned: scale * x^T.
  static Tensor turned_and_scaled(const Tensor& x, int64_t rank, double scale) {
    const int64_t columns = x.size(1);
    const Tensor out = at::empty({columns, rank}, x.options());
    const float *from = data<float>(x), factor = static_cast<float>(scale);
    float* to = data<float>(out);
    at::parallel_for(0, columns, grain(rank), [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; c++)
        for (int64_t r = 0; r < rank; r++) to[c * rank + r] = factor * from[r * columns + c];
    });
    return out;
  }

  // The gradient to the input; what goes through an adapter that has seen it with some of it dropped is apart, in `through`.
  static void input_products(const Tensor& dx, const variable_list& grads, const Tensor& narrow, const variable_list& matrices, const Layers& layers,
                             std::vector<Weight::Room>& rooms, std::vector<pipe_kernels::Product>& products, variable_list& through) {
    pipe_kernels::Product whole = product_into(dx, 0, dx.size(1), {});
    size_t next = 0;
    for (size_t i = 0; i < layers.all.size(); i++) {
      const Layer& layer = layers.all[i];
      add_summand(whole, summand(grads[i], layer.weight.right(false, rooms[i])));
      if (layer.rank == 0) continue;
      const pipe_kernels::Summand adapted = summand(narrow, rounded_of(matrices[next], false), layers.low_at[i]);
      next += 2;
      if (layer.dropout <= 0) {
        add_summand(whole, adapted);
      } else {
        through.push_back(at::empty_like(dx));
        products.push_back(product_into(through.back(), 0, dx.size(1), {adapted}));
      }
    }
    products.push_back(whole);
  }

  // The gradients to a and to b turned, [padded r, ...] f32 each, in `across`; those to a are parts of one product where all
  // adapters have seen the same.
  static void adapter_products(const Tensor& x, const variable_list& grads, const variable_list& turned_both, const Layers& layers,
                               std::vector<pipe_kernels::Product>& products, variable_list& across, variable_list& seen) {
    const Tensor &narrow = turned_both[0], &low = turned_both[1];
    const Tensor together = layers.see_input ? at::empty({layers.low_width, x.size(1)}, at::kFloat) : Tensor();
    if (layers.see_input) products.push_back(product_into(together, 0, x.size(1), {summand(narrow, right_of(x, false))}));
    for (size_t i = 0; i < layers.all.size(); i++) {
      const Layer& layer = layers.all[i];
      if (layer.rank == 0) continue;
      const int64_t from = layers.low_at[i], rows = padded(layer.rank);
      if (layers.see_input) {
        across.push_back(together);
      } else {
        seen.push_back(dropped(x, layer.dropout, layer.seed));
        across.push_back(at::empty({rows, x.size(1)}, at::kFloat));
        products.push_back(product_into(across.back(), 0, x.size(1), {summand(narrow.narrow(0, from, rows), right_of(seen.back(), false))}));
      }
      across.push_back(at::empty({rows, layer.weight.rows}, at::kFloat));
      products.push_back(product_into(across.back(), 0, layer.weight.rows, {summand(low.narrow(0, from, rows), right_of(grads[i], false))}));
    }
  }
};

// The answers of layers to x, [rows, columns] contiguous, at `out`.
void linears(const Tensor& x, const PipeLayer* layers, int64_t count, Tensor** out) {
  auto all = c10::make_intrusive<Layers>();
  variable_list adapters;
  for (int64_t i = 0; i < count; i++) {
    const PipeLayer& from = layers[i];
    Layer layer{Weight::from(from.weight), from.bias ? *from.bias : Tensor()};
    if (from.lora.a) {
      layer.rank = from.lora.a->size(0);
      layer.scale = from.lora.scale;
      layer.dropout = from.lora.dropout;
      layer.seed = static_cast<int64_t>(from.lora.seed);
      adapters.push_back(*from.lora.a);
      adapters.push_back(*from.lora.b);
    }
    all->all.push_back(std::move(layer));
  }
  const int64_t rows = x.size(0), more = padded(rows) - rows;
  const bool fill = more > 0 && LinearsFunction::suits_in_whole_panels(x, *all);
  const Tensor filled = fill ? at::constant_pad_nd(x, {0, 0, 0, more}) : x.contiguous();
  const variable_list answers = LinearsFunction::apply(filled, at::TensorList(adapters), all);
  for (int64_t i = 0; i < count; i++) out[i] = new Tensor(fill ? answers[i].narrow(0, 0, rows) : answers[i]);
}

}  // namespace
