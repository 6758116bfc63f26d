// The C interface between Rust (shim.rs) and libtorch's autograd. Each call returns a new tensor, or null with a
// message in `error` that the caller frees with pipe_free. No C++ exception crosses it.
#pragma once
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>

extern "C" {

// A frozen linear weight [rows, columns]: `dense`; or 4-bit codes as `packed` (two a byte, high first) with a scale per
// 64 weights: `absmax` itself, or `scale_codes` into the dynamic map times `absmax` per 256 blocks, plus `offset`; or
// 8-bit integers as `packed` with a factor per row as `absmax`.
struct PipeWeight {
  int64_t rows;
  int64_t columns;
  const at::Tensor* dense;
  const at::Tensor* packed;
  const at::Tensor* scale_codes;
  const at::Tensor* absmax;
  float offset;
  // 0 is NF4, 1 FP4, 2 eight bits.
  int32_t format;
};

// A low-rank adapter: a [r, columns], b [rows, r], both f32.
struct PipeLora {
  const at::Tensor* a;
  const at::Tensor* b;
  double scale;
  double dropout;
  uint64_t seed;
};

// A frozen layer; `bias` may be null, and so may the adapter's matrices.
struct PipeLayer {
  PipeWeight weight;
  const at::Tensor* bias;
  PipeLora lora;
};

// How attention is computed. A cap or a window of 0 is none.
struct PipeAttention {
  int64_t dim;
  int64_t window;
  double scale;
  double cap;
  double dropout;
  uint64_t seed;
};

// Where the keys and values of some rows lie: blocks of the cache, and for each new token its row's blocks and its place.
struct PipePages {
  // Tensors of `blocks_each` blocks; block i is block i % blocks_each of tensor i / blocks_each, [layers, 2, kv * dim * 16].
  const at::Tensor* const* slabs;
  int64_t slab_count;
  int64_t blocks_each;
  int64_t layers;
  int64_t kv_heads;
  int64_t dim;
  // The rows' blocks, end to end.
  const int64_t* blocks;
  int64_t block_count;
  // Of each new token: where its row's blocks begin among them, and how many tokens of its row it sees, itself included.
  const int64_t* starts;
  const int64_t* seen;
  int64_t tokens;
};

// `fp4` chooses the second set of sixteen values.
// Writes weights of blocks [first, last) as f32 or bf16 to the start of `out` + 64 * first; implemented in Rust (kernels/).
void pipe_nf4_decode(const uint8_t* packed, const uint8_t* scale_codes, const float* absmax, float offset, int64_t first,
                     int64_t last, int64_t count, int32_t wide, int32_t fp4, void* out);

// The sixteen values of 4-bit codes, and the 256 of their scales' codes.
const float* pipe_codebook(int32_t fp4);
const float* pipe_dynamic_map();

// Whether operations of this thread are recorded for a backward pass.
int32_t pipe_wants_gradient();
// Calls `work` with ranges of [0, count) on libtorch's threads; a range has at least `grain` elements but for the last.
void pipe_parallel(int64_t count, int64_t grain, void (*work)(const void* with, int64_t first, int64_t last), const void* with);

// The recomputed part of activation checkpointing; implemented in Rust. Returns a new tensor or null.
at::Tensor* pipe_checkpoint_run(void* closure, const at::Tensor* x);
void pipe_checkpoint_drop(void* closure);
}
