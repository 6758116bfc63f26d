// How work is cut for libtorch's threads and shared out among them, and the dropout that several functions share.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <atomic>

#include "typed.h"

namespace {

using at::Tensor;

// Elements a thread should have before a second one is worth waking.
constexpr int64_t kGrain = 16384;

int64_t grain(int64_t row) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row));
}

// f(i) for each i below `count`; each thread takes the next one when it is through with one, so that none waits long for another.
template <class F>
void for_each_taken(int64_t count, F f) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(count, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < count; i = next++) f(i);
  });
}

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

}  // namespace
