// Row kernels: plain loops over raw memory, vectorised by the compiler and chosen for the processor at load time.
// They know no tensors and start no threads; functions.cpp does both. Every kernel has a plain libtorch twin in Rust
// (the path that `kernels: false` takes) which the tests compare it with.
#pragma once
#include <cstdint>

namespace pipe_kernels {

// bfloat16 as it lies in memory.
struct bf16 {
  uint16_t bits;
};

// out = x * weight / sqrt(mean(x^2) + eps) over one row; returns 1 / sqrt(...).
float rms_norm_row(const float* x, const float* weight, float* out, int64_t n, float eps);
float rms_norm_row(const bf16* x, const bf16* weight, bf16* out, int64_t n, float eps);
// Gradient to x of the above, given its scale.
void rms_norm_back_row(const float* x, const float* weight, const float* grad, float* out, int64_t n, float scale);
void rms_norm_back_row(const bf16* x, const bf16* weight, const bf16* grad, bf16* out, int64_t n, float scale);

// out = silu(gate) * up
void swiglu_span(const float* gate, const float* up, float* out, int64_t n);
void swiglu_span(const bf16* gate, const bf16* up, bf16* out, int64_t n);
void swiglu_back_span(const float* gate, const float* up, const float* grad, float* gate_grad, float* up_grad, int64_t n);
void swiglu_back_span(const bf16* gate, const bf16* up, const bf16* grad, bf16* gate_grad, bf16* up_grad, int64_t n);

// Rotates one head of 2 * half elements; sign -1 turns back.
void rotate_head(const float* x, const float* cos, const float* sin, float* out, int64_t half, float sign);
void rotate_head(const bf16* x, const float* cos, const float* sin, bf16* out, int64_t half, float sign);

// Softmax of scale * x over [first, last) in place; zeros elsewhere in [0, n).
void softmax_row(float* x, int64_t first, int64_t last, int64_t n, float scale);
void softmax_row(bf16* x, int64_t first, int64_t last, int64_t n, float scale);
// grad = weights * (grad - sum(grad * weights)) * scale, in place.
void softmax_back_row(const float* weights, float* grad, int64_t n, float scale);
void softmax_back_row(const bf16* weights, bf16* grad, int64_t n, float scale);

// Cross-entropy of one row of logits; the row becomes the gradient (softmax - one hot) when `gradient` is set.
float cross_entropy_row(float* logits, int64_t n, int64_t target, bool gradient);
float cross_entropy_row(bf16* logits, int64_t n, int64_t target, bool gradient);

// out = x * keep / (1 - p) for elements begin..end of a tensor, the mask a pure function of seed and element number.
// begin is a multiple of 4.
void dropout_span(const float* x, float* out, int64_t begin, int64_t end, uint64_t seed, double p);
void dropout_span(const bf16* x, bf16* out, int64_t begin, int64_t end, uint64_t seed, double p);

// out = codes * factor
void widen_row(const int8_t* codes, float factor, float* out, int64_t n);
void widen_row(const int8_t* codes, float factor, bf16* out, int64_t n);

}  // namespace pipe_kernels
