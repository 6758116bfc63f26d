// How work is cut for libtorch's threads, and the dropout that several functions share.
#pragma once
#include <ATen/Parallel.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>

#include "typed.h"

namespace {

using at::Tensor;

// Elements a thread should have before a second one is worth waking.
constexpr int64_t kGrain = 16384;

int64_t grain(int64_t row) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row));
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
