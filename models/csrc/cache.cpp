// Attention over the cache's blocks: every new token attends over what its own row holds, and pays for that alone.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <vector>

#include "functions.h"
#include "paged.h"
#include "typed.h"

using at::Tensor;
using pipe_kernels::kBlock;
using pipe_kernels::PagedShape;

namespace {

// Multiplications that a thread should have before a second one is worth waking.
constexpr int64_t kWork = 65536;

// Where each of the rows' blocks begins, for one layer.
template <class T>
std::vector<T*> places_of(const PipePages& pages, int64_t layer) {
  const int64_t width = 2 * pages.kv_heads * pages.dim * kBlock;
  for (int64_t i = 0; i < pages.slab_count; i++) {
    const Tensor& slab = *pages.slabs[i];
    TORCH_CHECK(slab.is_contiguous() && slab.itemsize() == sizeof(T), "the cache's memory is of another kind");
    TORCH_CHECK(slab.numel() == pages.blocks_each * pages.layers * width, "the cache's memory is of another size");
  }
  TORCH_CHECK(layer >= 0 && layer < pages.layers, "no layer ", layer, " in the cache");
  std::vector<T*> places(pages.block_count);
  for (int64_t i = 0; i < pages.block_count; i++) {
    const int64_t block = pages.blocks[i], slab = block / pages.blocks_each;
    TORCH_CHECK(block >= 0 && slab < pages.slab_count, "no block ", block, " in the cache");
    places[i] = data<T>(*pages.slabs[slab]) + (block % pages.blocks_each * pages.layers + layer) * width;
  }
  for (int64_t t = 0; t < pages.tokens; t++) {
    const int64_t last = pages.starts[t] + (pages.seen[t] - 1) / kBlock;
    TORCH_CHECK(pages.starts[t] >= 0 && pages.seen[t] > 0 && last < pages.block_count, "a row sees more than it holds");
  }
  return places;
}

template <class T>
void store(const Tensor& k, const Tensor& v, const PipePages& pages, const PagedShape& shape, const std::vector<T*>& places) {
  const int64_t width = pages.kv_heads * pages.dim;
  TORCH_CHECK(k.numel() == pages.tokens * width && v.numel() == pages.tokens * width, "keys of another size");
  for (int64_t t = 0; t < pages.tokens; t++) {
    const int64_t place = pages.seen[t] - 1;
    pipe_kernels::store_token(data<T>(k) + t * width, data<T>(v) + t * width, shape, place % kBlock,
                              places[pages.starts[t] + place / kBlock]);
  }
}

// Work is shared out by what it costs, not by number: rows differ in length.
template <class T>
void attend(const Tensor& q, const Tensor& out, const PipePages& pages, const PagedShape& shape, int64_t window,
            const std::vector<T*>& places) {
  const int64_t width = shape.group * shape.dim, items = pages.tokens * shape.kv_heads;
  std::vector<int64_t> before(items + 1, 0);
  int64_t longest = 0;
  for (int64_t i = 0; i < items; i++) {
    const int64_t seen = pages.seen[i / shape.kv_heads], keys = window > 0 ? std::min(seen, window) : seen;
    longest = std::max(longest, keys);
    before[i + 1] = before[i] + keys + kBlock;
  }
  const int64_t all = before[items];
  const int64_t threads = std::clamp<int64_t>(2 * all * width / kWork, 1, std::min<int64_t>(at::get_num_threads(), std::max<int64_t>(1, items)));
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    const auto at_share = [&](int64_t n) { return std::lower_bound(before.begin(), before.end(), (all * n + threads - 1) / threads) - before.begin(); };
    std::vector<float> scratch(pipe_kernels::paged_scratch(shape, longest));
    const int64_t end = std::min<int64_t>(items, at_share(last));
    for (int64_t i = at_share(first); i < end; i++) {
      const int64_t token = i / shape.kv_heads, seen = pages.seen[token];
      const int64_t from = window > 0 ? std::max<int64_t>(0, seen - window) : 0;
      pipe_kernels::attend_blocks(data<T>(q) + i * width, places.data() + pages.starts[token], shape, i % shape.kv_heads, from, seen,
                                  scratch.data(), data<T>(out) + i * width);
    }
  });
}

}  // namespace

extern "C" {

// Stores the new tokens' keys and values, [tokens, kv_heads * dim], in one layer of the cache. With `q`, [tokens, heads * dim],
// their attention, else an empty tensor.
Tensor* pipe_cached_attention(const Tensor* q, const Tensor* k, const Tensor* v, const PipePages* pages, int64_t layer,
                              const PipeAttention* how, char** error) {
  return guarded(error, [&] {
    const Tensor keys = k->contiguous(), values = v->contiguous();
    TORCH_CHECK(keys.scalar_type() == values.scalar_type(), "keys and values of different kinds");
    return by_kind(keys, [&](auto* type) {
      using T = std::remove_pointer_t<decltype(type)>;
      PagedShape shape{pages->kv_heads, 1, pages->dim, static_cast<float>(how->scale), static_cast<float>(how->cap)};
      const std::vector<T*> places = places_of<T>(*pages, layer);
      store<T>(keys, values, *pages, shape, places);
      if (!q) return at::empty({0}, keys.options());
      const Tensor queries = q->contiguous();
      TORCH_CHECK(queries.scalar_type() == keys.scalar_type() && queries.size(0) == pages->tokens, "queries of another size");
      shape.group = queries.size(1) / (pages->kv_heads * pages->dim);
      TORCH_CHECK(shape.group > 0 && queries.size(1) == shape.group * pages->kv_heads * pages->dim, "heads of another size");
      const Tensor out = at::empty_like(queries);
      attend<T>(queries, out, *pages, shape, how->window, places);
      return out;
    });
  });
}
}
