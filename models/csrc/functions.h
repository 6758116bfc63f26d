// The C interface between Rust (shim.rs) and libtorch's autograd. Each call returns a new tensor, or null with a
// message in `error` that the caller frees with pipe_free. No C++ exception crosses it.
#pragma once
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdint>

extern "C" {

// A frozen linear weight [rows, columns]: `dense`, or NF4 as `packed` (two codes a byte, high first) with a scale per
// 64 weights: `absmax` itself, or `scale_codes` into the dynamic map times `absmax` per 256 blocks, plus `offset`.
struct PipeWeight {
  int64_t rows;
  int64_t columns;
  const at::Tensor* dense;
  const at::Tensor* packed;
  const at::Tensor* scale_codes;
  const at::Tensor* absmax;
  float offset;
};

// A low-rank adapter: a [r, columns], b [rows, r], both f32.
struct PipeLora {
  const at::Tensor* a;
  const at::Tensor* b;
  double scale;
  double dropout;
  uint64_t seed;
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

// Writes weights of blocks [first, last) as f32 or bf16 to the start of `out` + 64 * first; implemented in Rust (kernels/).
void pipe_nf4_decode(const uint8_t* packed, const uint8_t* scale_codes, const float* absmax, float offset, int64_t first,
                     int64_t last, int64_t count, int32_t wide, void* out);

// The recomputed part of activation checkpointing; implemented in Rust. Returns a new tensor or null.
at::Tensor* pipe_checkpoint_run(void* closure, const at::Tensor* x);
void pipe_checkpoint_drop(void* closure);
}
