// See kernels.h. Compiled with reassociation allowed (sums may be split over vector lanes) but with NaN and infinity
// kept, because a NaN must reach the loss.
#include "kernels.h"

#include <cstring>

#include "numbers.h"

namespace pipe_kernels {
namespace {

template <class T>
PIPE_INLINE float rms_norm(const T* x, const T* weight, T* __restrict out, int64_t n, float eps) {
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += load(x[i]) * load(x[i]);
  const float scale = 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
  for (int64_t i = 0; i < n; i++) store(out[i], load(x[i]) * scale * load(weight[i]));
  return scale;
}

template <class T>
PIPE_INLINE void rms_norm_back(const T* x, const T* weight, const T* grad, T* __restrict out, int64_t n, float scale) {
  float dot = 0;
  for (int64_t i = 0; i < n; i++) dot += load(grad[i]) * load(weight[i]) * load(x[i]);
  const float along = dot * scale * scale * scale / static_cast<float>(n);
  for (int64_t i = 0; i < n; i++) store(out[i], load(grad[i]) * load(weight[i]) * scale - load(x[i]) * along);
}

template <class T>
PIPE_INLINE void swiglu(const T* gate, const T* up, T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float g = load(gate[i]);
    store(out[i], g / (1.0f + exp_(-g)) * load(up[i]));
  }
}

template <class T>
PIPE_INLINE void swiglu_back(const T* gate, const T* up, const T* grad, T* __restrict gate_grad, T* __restrict up_grad, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    const float g = load(gate[i]), d = load(grad[i]);
    const float sigmoid = 1.0f / (1.0f + exp_(-g));
    const float silu = g * sigmoid;
    store(gate_grad[i], d * load(up[i]) * (sigmoid + silu * (1.0f - sigmoid)));
    store(up_grad[i], d * silu);
  }
}

template <class T>
PIPE_INLINE void rotate(const T* x, const float* cos, const float* sin, T* __restrict out, int64_t half, float sign) {
  for (int64_t i = 0; i < half; i++) {
    const float low = load(x[i]), high = load(x[i + half]), s = sin[i] * sign;
    store(out[i], low * cos[i] - high * s);
    store(out[i + half], high * cos[i] + low * s);
  }
}

template <class T>
PIPE_INLINE void softmax(T* x, int64_t first, int64_t last, int64_t n, float scale) {
  // Whole blocks, without a remainder of single steps: what lies outside the range counts as nothing. Powers of the first
  // so many blocks are kept; they are all that short documents have.
  constexpr int64_t width = 32, kept = 64;
  float powers[kept][width];
  const float top = largest(x + first, last - first);
  const int64_t start = first / width * width;
  const auto block = [&](int64_t base, float* out) __attribute__((always_inline)) {
    const int64_t count = base + width <= n ? width : n - base;
    float sum = 0;
    if (count == width) {
      for (int64_t j = 0; j < width; j++) {
        const float power = exp_((load(x[base + j]) - top) * scale);
        out[j] = base + j >= first && base + j < last ? power : 0.0f;
        sum += out[j];
      }
      return sum;
    }
    for (int64_t j = 0; j < count; j++) {
      const float power = exp_((load(x[base + j]) - top) * scale);
      out[j] = base + j >= first && base + j < last ? power : 0.0f;
      sum += out[j];
    }
    return sum;
  };
  float sum = 0, spare[width];
  for (int64_t i = 0, base = start; base < last; i++, base += width) sum += block(base, i < kept ? powers[i] : spare);
  const float share = 1.0f / sum;
  for (int64_t i = 0, base = start; base < last; i++, base += width) {
    const float* found = i < kept ? powers[i] : spare;
    if (i >= kept) block(base, spare);
    const int64_t count = base + width <= n ? width : n - base;
    for (int64_t j = 0; j < count; j++) store(x[base + j], found[j] * share);
  }
  const int64_t end = start + (last - start + width - 1) / width * width;
  std::memset(x, 0, start * sizeof(T));
  if (end < n) std::memset(x + end, 0, (n - end) * sizeof(T));
}

template <class T>
PIPE_INLINE void softmax_back(const T* weights, T* grad, int64_t n, float scale) {
  float dot = 0;
  for (int64_t i = 0; i < n; i++) dot += load(weights[i]) * load(grad[i]);
  for (int64_t i = 0; i < n; i++) store(grad[i], load(weights[i]) * (load(grad[i]) - dot) * scale);
}

template <class T>
PIPE_INLINE float cross_entropy(T* logits, int64_t n, int64_t target, bool gradient) {
  const float top = largest(logits, n);
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += exp_(load(logits[i]) - top);
  const float own = load(logits[target]);
  if (gradient) {
    const float share = 1.0f / sum;
    for (int64_t i = 0; i < n; i++) store(logits[i], exp_(load(logits[i]) - top) * share);
    store(logits[target], exp_(own - top) * share - 1.0f);
  }
  return log_(sum) - (own - top);
}

// SplitMix64 of seed + counter; four 16-bit draws per call.
PIPE_INLINE uint64_t draw(uint64_t seed, uint64_t counter) {
  uint64_t z = seed + (counter + 1) * 0x9E3779B97F4A7C15ull;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

template <class T>
PIPE_INLINE void dropout(const T* x, T* __restrict out, int64_t begin, int64_t end, uint64_t seed, double p) {
  const uint32_t least = static_cast<uint32_t>(p * 65536.0 + 0.5);
  const float scale = static_cast<float>(1.0 / (1.0 - p));
  uint64_t draws[64];
  for (int64_t base = begin; base < end; base += 256) {
    for (int64_t i = 0; i < 64; i++) draws[i] = draw(seed, static_cast<uint64_t>(base / 4 + i));
    uint16_t lanes[256];
    std::memcpy(lanes, draws, sizeof(lanes));
    const int64_t count = end - base < 256 ? end - base : 256;
    for (int64_t i = 0; i < count; i++) store(out[base + i], lanes[i] >= least ? load(x[base + i]) * scale : 0.0f);
  }
}

template <class T>
PIPE_INLINE void widen(const int8_t* codes, float factor, T* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; i++) store(out[i], static_cast<float>(codes[i]) * factor);
}

}  // namespace

#define PIPE_KERNELS(T)                                                                                               \
  PIPE_CLONES float rms_norm_row(const T* x, const T* weight, T* out, int64_t n, float eps) {                         \
    return rms_norm(x, weight, out, n, eps);                                                                          \
  }                                                                                                                   \
  PIPE_CLONES void rms_norm_back_row(const T* x, const T* weight, const T* grad, T* out, int64_t n, float scale) {    \
    rms_norm_back(x, weight, grad, out, n, scale);                                                                    \
  }                                                                                                                   \
  PIPE_CLONES void swiglu_span(const T* gate, const T* up, T* out, int64_t n) { swiglu(gate, up, out, n); }           \
  PIPE_CLONES void swiglu_back_span(const T* gate, const T* up, const T* grad, T* gate_grad, T* up_grad, int64_t n) { \
    swiglu_back(gate, up, grad, gate_grad, up_grad, n);                                                               \
  }                                                                                                                   \
  PIPE_CLONES void rotate_head(const T* x, const float* cos, const float* sin, T* out, int64_t half, float sign) {    \
    rotate(x, cos, sin, out, half, sign);                                                                             \
  }                                                                                                                   \
  PIPE_CLONES void softmax_row(T* x, int64_t first, int64_t last, int64_t n, float scale) {                           \
    softmax(x, first, last, n, scale);                                                                                \
  }                                                                                                                   \
  PIPE_CLONES void softmax_back_row(const T* weights, T* grad, int64_t n, float scale) {                              \
    softmax_back(weights, grad, n, scale);                                                                            \
  }                                                                                                                   \
  PIPE_CLONES float cross_entropy_row(T* logits, int64_t n, int64_t target, bool gradient) {                          \
    return cross_entropy(logits, n, target, gradient);                                                                \
  }                                                                                                                   \
  PIPE_CLONES void dropout_span(const T* x, T* out, int64_t begin, int64_t end, uint64_t seed, double p) {            \
    dropout(x, out, begin, end, seed, p);                                                                             \
  }                                                                                                                   \
  PIPE_CLONES void widen_row(const int8_t* codes, float factor, T* out, int64_t n) { widen(codes, factor, out, n); }

PIPE_KERNELS(float)
PIPE_KERNELS(bf16)

}  // namespace pipe_kernels
