// Causal attention within documents laid end to end, and its gradients.
#pragma once
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "attend.h"
#include "functions.h"
#include "multiply.h"
#include "threads.h"

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

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
  Tensor out = at::zeros({heads.kv, padded(rows), heads.dim}, x.options());
  out.narrow(1, 0, rows).copy_(keys_view(x, heads, b.key_start, b.end));
  return out;
}

// Rows of flat [tokens, kv * group * dim] copied to [kv, group * rounded rows, dim], zeros after the last of each head.
Tensor queries(const Tensor& x, const Heads& heads, const Block& b) {
  const int64_t rows = b.end - b.start, room = padded(rows);
  Tensor out = at::zeros({heads.kv, heads.group, room, heads.dim}, x.options());
  out.narrow(2, 0, rows).copy_(x.narrow(0, b.start, rows).view({rows, heads.kv, heads.group, heads.dim}).permute({1, 2, 0, 3}));
  return out.view({heads.kv, heads.group * room, heads.dim});
}

// The inverse of queries(): writes [kv, group * rounded rows, dim] into rows of `out`.
void put_queries(const Tensor& from, const Tensor& out, const Heads& heads, const Block& b) {
  const int64_t rows = b.end - b.start, room = padded(rows);
  const Tensor own = from.view({heads.kv, heads.group, room, heads.dim}).narrow(2, 0, rows);
  out.narrow(0, b.start, rows).view({rows, heads.kv, heads.group, heads.dim}).copy_(own.permute({2, 0, 1, 3}));
}

// Attention weights of one block, [kv, group * rounded rows, rounded keys]; zeros outside the block. `capped` receives the
// scores divided by their cap, where there is one.
Tensor weights_of(const Tensor& q, const Tensor& k, const Heads& heads, const Block& b, Tensor* capped = nullptr) {
  Tensor scores = batched(q, k, true);
  if (heads.cap > 0) {
    scores.mul_(heads.scale / heads.cap).tanh_();
    if (capped) *capped = scores.clone();
    scores.mul_(heads.cap);
  }
  const int64_t rows = b.end - b.start, room = padded(rows), keys = k.size(1);
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

// ---- By a kernel of our own ---------------------------------------------------------------------------------------

bool by_own_attention(const Tensor& q, const Heads& heads) {
  return q.scalar_type() == at::kBFloat16 && heads.dim % pipe_kernels::kPanel == 0 && heads.cap <= 0 && heads.dropout <= 0 &&
         pipe_kernels::product_instructions() != pipe_kernels::Instructions::none;
}

// One document with one head of keys and some of the heads of queries that share it.
struct Share {
  int64_t start, rows, kv_head, first_head, heads;
  int64_t part, parts;

  pipe_kernels::Document document(const Tensor& q, const Tensor& k, const Tensor& v, const Heads& all) const {
    using pipe_kernels::bf16;
    const int64_t keys = start * k.size(1) + kv_head * all.dim;
    return {data<bf16>(q) + queries_at(q, all), data<bf16>(k) + keys, data<bf16>(v) + keys, rows, heads, q.size(1), k.size(1), all.dim, all.window,
            static_cast<float>(all.scale)};
  }
  int64_t queries_at(const Tensor& q, const Heads& all) const {
    return start * q.size(1) + first_head * all.dim;
  }
};

// Largest first, and cut so that no share is much above an eighth of all: what is summed up in which order depends on
// sizes alone, not on how many threads there are. Parts of a head of keys follow one another.
std::vector<Share> shares_of(const std::vector<int64_t>& lengths, const Heads& heads) {
  std::vector<size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return lengths[a] > lengths[b]; });
  std::vector<int64_t> starts(lengths.size());
  std::exclusive_scan(lengths.begin(), lengths.end(), starts.begin(), int64_t{0});
  double all = 0;
  for (const int64_t rows : lengths) all += static_cast<double>(rows) * rows * heads.kv;
  std::vector<Share> shares;
  for (const size_t i : order) {
    const double part_of_all = static_cast<double>(lengths[i]) * lengths[i] / all;
    const int64_t parts = std::min(heads.group, static_cast<int64_t>(8 * part_of_all) + 1);
    for (int64_t kv = 0; kv < heads.kv; kv++)
      for (int64_t part = 0; part < parts; part++) {
        const int64_t first = heads.group * part / parts, end = heads.group * (part + 1) / parts;
        shares.push_back({starts[i], lengths[i], kv, kv * heads.group + first, end - first, part, parts});
      }
  }
  return shares;
}

// The answer, and for each head and token the logarithm that its weights are made again with.
std::pair<Tensor, Tensor> attended(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& lengths, const Heads& heads) {
  const Tensor out = at::empty_like(q), logs = at::empty({heads.kv * heads.group, q.size(0)}, at::kFloat);
  const auto shares = shares_of(lengths, heads);
  for_each_taken(static_cast<int64_t>(shares.size()), [&](int64_t i) {
    const Share& share = shares[i];
    pipe_kernels::attend(pipe_kernels::product_instructions(), share.document(q, k, v, heads),
                         data<pipe_kernels::bf16>(out) + share.queries_at(q, heads),
                         data<float>(logs) + share.first_head * q.size(0) + share.start, q.size(0));
  });
  return {out, logs};
}

// Gradients to q, k and v.
variable_list attended_back(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad, const Tensor& logs,
                            const std::vector<int64_t>& lengths, const Heads& heads) {
  using pipe_kernels::bf16;
  const Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
  const auto shares = shares_of(lengths, heads);
  // Where heads of queries that share keys are apart, each part has sums of its own.
  std::vector<int64_t> sums_at(shares.size());
  int64_t floats = 0;
  for (size_t i = 0; i < shares.size(); i++) {
    sums_at[i] = floats;
    if (shares[i].parts > 1) floats += pipe_kernels::gradient_sums(shares[i].rows, heads.dim);
  }
  const Tensor apart = at::empty({floats}, at::kFloat);
  const auto put = [&](const Share& share, float* sums) {
    const int64_t keys = share.start * k.size(1) + share.kv_head * heads.dim;
    pipe_kernels::put_gradients(pipe_kernels::product_instructions(), share.document(q, k, v, heads), sums, share.parts, data<bf16>(dk) + keys, data<bf16>(dv) + keys);
  };
  for_each_taken(static_cast<int64_t>(shares.size()), [&](int64_t i) {
    const Share& share = shares[i];
    thread_local std::vector<float> own;
    if (share.parts == 1) own.resize(std::max<size_t>(own.size(), pipe_kernels::gradient_sums(share.rows, heads.dim)));
    float* sums = share.parts > 1 ? data<float>(apart) + sums_at[i] : own.data();
    pipe_kernels::attend_back(pipe_kernels::product_instructions(), share.document(q, k, v, heads),
                              data<bf16>(grad) + share.queries_at(q, heads), data<float>(logs) + share.first_head * q.size(0) + share.start,
                              q.size(0), data<bf16>(dq) + share.queries_at(q, heads), sums);
    if (share.parts == 1) put(share, sums);
  });
  for_each_taken(static_cast<int64_t>(shares.size()), [&](int64_t i) {
    if (shares[i].parts > 1 && shares[i].part == 0) put(shares[i], data<float>(apart) + sums_at[i]);
  });
  return {dq, dk, dv, Tensor(), Tensor()};
}

struct AttentionFunction : Function<AttentionFunction> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q, const Tensor& k, const Tensor& v,
                        const std::vector<int64_t>& lengths, const PipeAttention& how) {
    const int64_t kv = k.size(1) / how.dim;
    const Heads heads{how.dim, kv, q.size(1) / how.dim / kv, how.window, how.scale, how.cap, how.dropout, static_cast<int64_t>(how.seed)};
    Tensor out, logs;
    if (by_own_attention(q, heads)) std::tie(out, logs) = attended(q, k, v, lengths, heads);
    else out = in_blocks(q, k, v, lengths, heads);
    ctx->save_for_backward({q, k, v, logs});
    ctx->saved_data["lengths"] = lengths;
    ctx->saved_data["whole"] = std::vector<int64_t>{heads.dim, heads.kv, heads.group, heads.window, heads.seed};
    ctx->saved_data["real"] = std::vector<double>{heads.scale, heads.cap, heads.dropout};
    return out;
  }

  static Tensor in_blocks(const Tensor& q, const Tensor& k, const Tensor& v, const std::vector<int64_t>& lengths, const Heads& heads) {
    Tensor out = at::empty_like(q);
    for_documents(blocks_of(lengths, heads.window), [&](const Block& b) {
      const Tensor weights = weights_of(queries(q, heads, b), keys_of(k, heads, b), heads, b);
      put_queries(batched(dropped_weights(weights, heads, b), keys_of(v, heads, b), false), out, heads, b);
    });
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], grad = grads[0].contiguous();
    const auto whole = ctx->saved_data["whole"].toIntVector();
    const auto real = ctx->saved_data["real"].toDoubleVector();
    const Heads heads{whole[0], whole[1], whole[2], whole[3], real[0], real[1], real[2], whole[4]};
    const auto lengths = ctx->saved_data["lengths"].toIntVector();
    if (saved[3].defined()) return attended_back(q, k, v, grad, saved[3], lengths, heads);
    return in_blocks_back(q, k, v, grad, lengths, heads);
  }

  static variable_list in_blocks_back(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& grad,
                                      const std::vector<int64_t>& lengths, const Heads& heads) {
    const auto blocks = blocks_of(lengths, heads.window);
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
      const Tensor values_grad = batched_turned(kept, own_grad).narrow(1, 0, b.end - b.key_start);
      Tensor scores_grad = dropped_weights(batched(own_grad, keys_of(v, heads, b), true), heads, b);
      const int64_t keys = weights.size(2), rows = weights.numel() / keys;
      by_kind(scores_grad, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        at::parallel_for(0, rows, grain(keys), [&](int64_t first, int64_t last) {
          for (int64_t r = first; r < last; r++)
            pipe_kernels::softmax_back_row(data<T>(weights) + r * keys, data<T>(scores_grad) + r * keys, keys, heads.softmax_scale());
        });
      });
      if (heads.cap > 0) scores_grad.mul_(capped.square_().neg_().add_(1).mul_(heads.scale));
      put_queries(batched(scores_grad, keys_own, false), dq, heads, b);
      const int64_t real = b.end - b.key_start;
      const Tensor keys_grad = batched_turned(scores_grad, own).narrow(1, 0, real);
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

}  // namespace
