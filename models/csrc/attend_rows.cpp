// See attend_rows.h.
#include "attend_rows.h"

#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__linux__)

#include "numbers.h"
#include "vectors.h"
#include "vectors_avx2.h"

namespace pipe_kernels {
namespace {

// Panels that a row sees nothing of, before `first` and from `last` on.
void clear_around(int64_t first, int64_t last, int64_t panels, bf16* out) {
  std::memset(static_cast<void*>(out), 0, first * kPanel * sizeof(bf16));
  std::memset(static_cast<void*>(out + last * kPanel), 0, (panels - last) * kPanel * sizeof(bf16));
}

}  // namespace

namespace avx512 {
namespace {

// e^x for x up to 0, to 2 ulp; a NaN stays one.
PIPE_VECTORS inline __m512 power(__m512 x) {
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145751953125f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.428606765330187e-6f), r);
  __m512 p = _mm512_set1_ps(1.0f / 720.0f);
  for (const float next : {1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f, 1.0f, 1.0f}) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(next));
  return _mm512_scalef_ps(p, n);
}

PIPE_DOTS Softmax powers_of(const float* scores, const Keys& keys, int64_t panels, float scale, bf16* out) {
  const int64_t first = keys.first_panel(), last = keys.last_panel();
  clear_around(first, last, panels, out);
  __m512 most = _mm512_set1_ps(-INFINITY);
  for (int64_t p = first; p < last; p++) {
    const uint32_t mask = keys.within(p);
    most = _mm512_mask_max_ps(most, static_cast<__mmask16>(mask), most, _mm512_loadu_ps(scores + p * kBlock));
    most = _mm512_mask_max_ps(most, static_cast<__mmask16>(mask >> 16), most, _mm512_loadu_ps(scores + p * kBlock + 16));
  }
  const float top = _mm512_reduce_max_ps(most);
  const __m512 tops = _mm512_set1_ps(top), scales = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t p = first; p < last; p++) {
    const uint32_t mask = keys.within(p);
    const __m512 low = power(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + p * kBlock), tops), scales));
    const __m512 high = power(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + p * kBlock + 16), tops), scales));
    const __m512 low_kept = _mm512_maskz_mov_ps(static_cast<__mmask16>(mask), low);
    const __m512 high_kept = _mm512_maskz_mov_ps(static_cast<__mmask16>(mask >> 16), high);
    sum = _mm512_add_ps(sum, _mm512_add_ps(low_kept, high_kept));
    _mm512_storeu_si512(out + p * kPanel, rounded(low_kept, high_kept));
  }
  return {_mm512_reduce_add_ps(sum), top};
}

PIPE_DOTS void scores_gradient(float* scores, const float* weights_grad, const Keys& keys, int64_t panels, float scale, float log,
                               bf16* weights, bf16* scores_grad) {
  const int64_t first = keys.first_panel(), last = keys.last_panel();
  for (bf16* out : {weights, scores_grad}) clear_around(first, last, panels, out);
  const __m512 logs = _mm512_set1_ps(log), scales = _mm512_set1_ps(scale);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t p = first; p < last; p++) {
    const uint32_t mask = keys.within(p);
    float* place = scores + p * kBlock;
    const float* grad = weights_grad + p * kBlock;
    const __m512 low = _mm512_maskz_mov_ps(static_cast<__mmask16>(mask), power(_mm512_fmsub_ps(_mm512_loadu_ps(place), scales, logs)));
    const __m512 high = _mm512_maskz_mov_ps(static_cast<__mmask16>(mask >> 16), power(_mm512_fmsub_ps(_mm512_loadu_ps(place + 16), scales, logs)));
    _mm512_storeu_ps(place, low);
    _mm512_storeu_ps(place + 16, high);
    _mm512_storeu_si512(weights + p * kPanel, rounded(low, high));
    sum = _mm512_fmadd_ps(low, _mm512_loadu_ps(grad), sum);
    sum = _mm512_fmadd_ps(high, _mm512_loadu_ps(grad + 16), sum);
  }
  const __m512 dot = _mm512_set1_ps(_mm512_reduce_add_ps(sum));
  for (int64_t p = first; p < last; p++) {
    const float *place = scores + p * kBlock, *grad = weights_grad + p * kBlock;
    const __m512 low = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(place), scales), _mm512_sub_ps(_mm512_loadu_ps(grad), dot));
    const __m512 high = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(place + 16), scales), _mm512_sub_ps(_mm512_loadu_ps(grad + 16), dot));
    _mm512_storeu_si512(scores_grad + p * kPanel, rounded(low, high));
  }
}

PIPE_DOTS void put_rows(const float* sums, const float* factors, int64_t count, bf16* out, int64_t stride) {
  for (int64_t r = 0; r < count; r++) {
    const __m512 factor = _mm512_set1_ps(factors ? factors[r] : 1.0f);
    const __m512 low = _mm512_mul_ps(_mm512_loadu_ps(sums + r * kPanel), factor), high = _mm512_mul_ps(_mm512_loadu_ps(sums + r * kPanel + 16), factor);
    _mm512_storeu_si512(out + r * stride, rounded(low, high));
  }
}

PIPE_DOTS void put_turned(const float* sums, const Document& d, bf16* out) {
  for (int64_t key = 0; key < d.rows; key += 16) {
    for (int64_t column = 0; column < d.dim; column += 16) {
      const float* from = sums + (key / kPanel * d.dim + column) * kPanel + key % kPanel;
      __m512i words[16];
      for (int64_t i = 0; i < 16; i++) words[i] = _mm512_loadu_si512(from + i * kPanel);
      turn_words(words);
      for (int64_t i = 0; i < std::min<int64_t>(16, d.rows - key); i++)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (key + i) * d.kv_stride + column), (__m256i)_mm512_cvtneps_pbh(_mm512_castsi512_ps(words[i])));
    }
  }
}

}  // namespace
}  // namespace avx512

// The compiler makes the vectors.
namespace avx2 {
namespace {

// Columns of one panel that a row sees.
struct Within {
  int32_t first, last;
  Within(const Keys& keys, int64_t panel)
      : first(static_cast<int32_t>(std::max<int64_t>(0, keys.first - panel * kPanel))),
        last(static_cast<int32_t>(std::min<int64_t>(kPanel, keys.last - panel * kPanel))) {}
  bool operator()(int32_t column) const { return column >= first && column < last; }
};

PIPE_AVX2 Softmax powers_of(const float* scores, const Keys& keys, int64_t panels, float scale, bf16* out) {
  const int64_t first = keys.first_panel(), last = keys.last_panel();
  clear_around(first, last, panels, out);
  float most[kPanel];
  for (float& each : most) each = -INFINITY;
  for (int64_t p = first; p < last; p++) {
    const Within within(keys, p);
    for (int32_t j = 0; j < kPanel; j++) {
      const float score = within(j) ? scores[p * kBlock + j] : -INFINITY;
      most[j] = score > most[j] ? score : most[j];
    }
  }
  float top = most[0];
  for (const float each : most) top = each > top ? each : top;
  float sums[kPanel] = {};
  for (int64_t p = first; p < last; p++) {
    const Within within(keys, p);
    for (int32_t j = 0; j < kPanel; j++) {
      const float power = within(j) ? exp_((scores[p * kBlock + j] - top) * scale) : 0.0f;
      sums[j] += power;
      store(out[p * kPanel + j], power);
    }
  }
  float sum = 0;
  for (const float each : sums) sum += each;
  return {sum, top};
}

PIPE_AVX2 void scores_gradient(float* scores, const float* weights_grad, const Keys& keys, int64_t panels, float scale, float log,
                               bf16* weights, bf16* scores_grad) {
  const int64_t first = keys.first_panel(), last = keys.last_panel();
  for (bf16* out : {weights, scores_grad}) clear_around(first, last, panels, out);
  float sums[kPanel] = {};
  for (int64_t p = first; p < last; p++) {
    const Within within(keys, p);
    float* place = scores + p * kBlock;
    for (int32_t j = 0; j < kPanel; j++) {
      const float weight = within(j) ? exp_(place[j] * scale - log) : 0.0f;
      place[j] = weight;
      store(weights[p * kPanel + j], weight);
      sums[j] += weight * weights_grad[p * kBlock + j];
    }
  }
  float dot = 0;
  for (const float each : sums) dot += each;
  for (int64_t p = first; p < last; p++) {
    const float *place = scores + p * kBlock, *grad = weights_grad + p * kBlock;
    for (int64_t j = 0; j < kPanel; j++) store(scores_grad[p * kPanel + j], place[j] * scale * (grad[j] - dot));
  }
}

PIPE_AVX2 void put_rows(const float* sums, const float* factors, int64_t count, bf16* out, int64_t stride) {
  for (int64_t r = 0; r < count; r++) {
    const float factor = factors ? factors[r] : 1.0f;
    for (int64_t j = 0; j < kPanel; j++) store(out[r * stride + j], sums[r * kPanel + j] * factor);
  }
}

PIPE_AVX2 void put_turned(const float* sums, const Document& d, bf16* out) {
  for (int64_t key = 0; key < d.rows; key += 8) {
    for (int64_t column = 0; column < d.dim; column += 16) {
      const float* from = sums + (key / kPanel * d.dim + column) * kPanel + key % kPanel;
      __m256 low[8], high[8];
      for (int64_t i = 0; i < 8; i++) {
        low[i] = _mm256_loadu_ps(from + i * kPanel);
        high[i] = _mm256_loadu_ps(from + (i + 8) * kPanel);
      }
      turn_numbers(low);
      turn_numbers(high);
      for (int64_t i = 0; i < std::min<int64_t>(8, d.rows - key); i++)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (key + i) * d.kv_stride + column), rounded(low[i], high[i]));
    }
  }
}

}  // namespace
}  // namespace avx2

Softmax powers_of(Instructions how, const float* scores, const Keys& keys, int64_t panels, float scale, bf16* out) {
  return (widens(how) ? avx2::powers_of : avx512::powers_of)(scores, keys, panels, scale, out);
}

void scores_gradient(Instructions how, float* scores, const float* weights_grad, const Keys& keys, int64_t panels, float scale, float log,
                     bf16* weights, bf16* scores_grad) {
  (widens(how) ? avx2::scores_gradient : avx512::scores_gradient)(scores, weights_grad, keys, panels, scale, log, weights, scores_grad);
}

void put_rows(Instructions how, const float* sums, const float* factors, int64_t count, bf16* out, int64_t stride) {
  (widens(how) ? avx2::put_rows : avx512::put_rows)(sums, factors, count, out, stride);
}

void put_turned(Instructions how, const float* sums, const Document& document, bf16* out) {
  (widens(how) ? avx2::put_turned : avx512::put_turned)(sums, document, out);
}

}  // namespace pipe_kernels

#endif
