// What the row kernels are written with: numbers as they lie in memory, and the functions that are vectorised with them.
#pragma once
#include <cstdint>

#include "kernels.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PIPE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PIPE_CLONES
#endif
#define PIPE_INLINE static inline __attribute__((always_inline))

namespace pipe_kernels {
namespace {

PIPE_INLINE uint32_t bits_of(float value) {
  return __builtin_bit_cast(uint32_t, value);
}
PIPE_INLINE float load(float value) {
  return value;
}
PIPE_INLINE float load(bf16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}
PIPE_INLINE void store(float& place, float value) {
  place = value;
}
PIPE_INLINE void store(bf16& place, float value) {
  // Round to nearest even; a NaN stays one because its upper half is never all zero after setting the quiet bit.
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  place.bits = static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40 : rounded);
}

// e^x to 2 ulp for x in [-87, 88], clamped outside; the classic split into 2^n and a polynomial on [-ln2/2, ln2/2].
PIPE_INLINE float exp_(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float n = __builtin_rintf(x * 1.44269504088896341f);
  const float r = (x - n * 0.693145751953125f) - n * 1.428606765330187e-6f;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t power = static_cast<int32_t>(n) + 127;
  return p * __builtin_bit_cast(float, static_cast<uint32_t>(power) << 23);
}

PIPE_INLINE float log_(float value) {
  return __builtin_logf(value);
}

// Lanes by hand: with NaN kept, the compiler may not reorder a maximum itself.
template <class T>
PIPE_INLINE float largest(const T* x, int64_t n) {
  constexpr int64_t width = 32;
  float lanes[width];
  for (int64_t j = 0; j < width; j++) lanes[j] = load(x[0]);
  int64_t i = 0;
  for (; i + width <= n; i += width)
    for (int64_t j = 0; j < width; j++) lanes[j] = load(x[i + j]) > lanes[j] ? load(x[i + j]) : lanes[j];
  float top = load(x[0]);
  for (; i < n; i++) top = load(x[i]) > top ? load(x[i]) : top;
  for (int64_t j = 0; j < width; j++) top = lanes[j] > top ? lanes[j] : top;
  return top;
}

}  // namespace
}  // namespace pipe_kernels
