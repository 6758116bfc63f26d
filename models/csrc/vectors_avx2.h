// What code for AVX2 is written with, as vectors.h is for AVX-512. Included only where the compiler aims at x86-64 on Linux;
// whoever calls such code has asked product_instructions() before.
#pragma once
#include <immintrin.h>

#include "kernels.h"

#define PIPE_AVX2 __attribute__((target("avx2,fma")))

namespace pipe_kernels::avx2 {
namespace {

// Eight numbers that lie as bf16.
PIPE_AVX2 inline __m256 widened(__m128i words) {
  return (__m256)_mm256_slli_epi32(_mm256_cvtepu16_epi32(words), 16);
}

PIPE_AVX2 inline __m256 widened_at(const bf16* place) {
  return widened(_mm_loadu_si128(reinterpret_cast<const __m128i*>(place)));
}

// Rounds to nearest even, as a bf16 in the lower half of each word; a NaN stays one.
PIPE_AVX2 inline __m256i rounded_words(__m256 x) {
  const __m256i bits = (__m256i)x, last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, (__m256i)_mm256_cmp_ps(x, x, _CMP_UNORD_Q)), 16);
}

// Sixteen numbers as bf16.
PIPE_AVX2 inline __m256i rounded(__m256 low_half, __m256 high_half) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(rounded_words(low_half), rounded_words(high_half)), 0xD8);
}

// Turns 8 x 8 numbers.
PIPE_AVX2 inline void turn_numbers(__m256 (&r)[8]) {
  __m256 t[8];
  for (int i = 0; i < 4; i++) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xEE);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xEE);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
    t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
  }
  for (int i = 0; i < 8; i++) r[i] = t[i];
}

}  // namespace
}  // namespace pipe_kernels::avx2
