// See paged.h. A block's keys are taken once for all queries that share them; each token's score grows in a lane of its own,
// so no lane is ever summed across. Compiled as kernels.cpp is.
#include "paged.h"

#include "numbers.h"

namespace pipe_kernels {
namespace {

// Lanes that compilers lower to whatever the processor has.
typedef float f8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));

PIPE_INLINE f8 load8(const float* x) {
  f8 out;
  __builtin_memcpy(&out, x, sizeof(out));
  return out;
}
PIPE_INLINE f8 load8(const bf16* x) {
  u16x8 half;
  __builtin_memcpy(&half, x, sizeof(half));
  return __builtin_bit_cast(f8, __builtin_convertvector(half, u32x8) << 16);
}
PIPE_INLINE void store8(float* place, f8 x) {
  __builtin_memcpy(place, &x, sizeof(x));
}

// Scores of G queries against a block's keys [dim, kBlock]; `room` numbers lie between two queries' scores. U sums run side
// by side where one would wait for itself.
template <int G, int U, class T>
PIPE_INLINE void scores(const float* q, const T* keys, int64_t dim, float* out, int64_t room) {
  f8 sums[U][G][2] = {};
  int64_t d = 0;
  for (; d + U <= dim; d += U)
    for (int u = 0; u < U; u++) {
      const f8 low = load8(keys + (d + u) * kBlock), high = load8(keys + (d + u) * kBlock + 8);
      for (int g = 0; g < G; g++) {
        sums[u][g][0] += low * q[g * dim + d + u];
        sums[u][g][1] += high * q[g * dim + d + u];
      }
    }
  for (; d < dim; d++) {
    const f8 low = load8(keys + d * kBlock), high = load8(keys + d * kBlock + 8);
    for (int g = 0; g < G; g++) {
      sums[0][g][0] += low * q[g * dim + d];
      sums[0][g][1] += high * q[g * dim + d];
    }
  }
  for (int g = 0; g < G; g++)
    for (int half = 0; half < 2; half++) {
      f8 sum = sums[0][g][half];
      for (int u = 1; u < U; u++) sum += sums[u][g][half];
      store8(out + g * room + 8 * half, sum);
    }
}

// Adds places [from, to) of a block's values [kBlock, dim], weighted, to G sums [dim].
template <int G, class T>
PIPE_INLINE void mix(const float* weights, int64_t room, const T* values, int64_t from, int64_t to, int64_t dim, float* out) {
  int64_t d = 0;
  for (; d + 16 <= dim; d += 16) {
    f8 sums[G][2];
    for (int g = 0; g < G; g++) {
      sums[g][0] = load8(out + g * dim + d);
      sums[g][1] = load8(out + g * dim + d + 8);
    }
    for (int64_t t = from; t < to; t++) {
      const f8 low = load8(values + t * dim + d), high = load8(values + t * dim + d + 8);
      for (int g = 0; g < G; g++) {
        sums[g][0] += low * weights[g * room + t];
        sums[g][1] += high * weights[g * room + t];
      }
    }
    for (int g = 0; g < G; g++) {
      store8(out + g * dim + d, sums[g][0]);
      store8(out + g * dim + d + 8, sums[g][1]);
    }
  }
  for (; d < dim; d++)
    for (int g = 0; g < G; g++)
      for (int64_t t = from; t < to; t++) out[g * dim + d] += weights[g * room + t] * load(values[t * dim + d]);
}

// Scores of one query become weights, but for a factor common to all: one over the sum that is returned.
PIPE_INLINE float weigh(float* x, int64_t n, float scale, float cap) {
  if (cap > 0) {
    const float by = 2.0f * scale / cap;
    // tanh(x) = 1 - 2 / (e^2x + 1)
    for (int64_t i = 0; i < n; i++) x[i] = cap - 2.0f * cap / (exp_(x[i] * by) + 1.0f);
    scale = 1.0f;
  }
  const float top = largest(x, n);
  float sum = 0;
  for (int64_t i = 0; i < n; i++) {
    x[i] = exp_((x[i] - top) * scale);
    sum += x[i];
  }
  return sum;
}

// Attention of G queries, `q` [G, dim], to `sums` [G, dim].
template <int G, int U, class T>
PIPE_INLINE void attend_group(const float* q, const T* const* blocks, const PagedShape& shape, int64_t head, int64_t first,
                              int64_t last, float* weights, int64_t room, float* sums) {
  const int64_t dim = shape.dim, own = head * dim * kBlock, values = shape.kv_heads * dim * kBlock + own;
  const int64_t begin = first / kBlock, end = (last + kBlock - 1) / kBlock, before = begin * kBlock;
  for (int64_t b = begin; b < end; b++) scores<G, U>(q, blocks[b] + own, dim, weights + (b - begin) * kBlock, room);
  float totals[G];
  for (int g = 0; g < G; g++) totals[g] = weigh(weights + g * room + first - before, last - first, shape.scale, shape.cap);
  for (int64_t i = 0; i < G * dim; i++) sums[i] = 0;
  for (int64_t b = begin; b < end; b++) {
    const int64_t from = b == begin ? first - before : 0, to = b + 1 == end ? last - b * kBlock : kBlock;
    mix<G>(weights + (b - begin) * kBlock, room, blocks[b] + values, from, to, dim, sums);
  }
  for (int g = 0; g < G; g++)
    for (int64_t d = 0; d < dim; d++) sums[g * dim + d] /= totals[g];
}

template <class T>
PIPE_INLINE void attend(const T* q, const T* const* blocks, const PagedShape& shape, int64_t head, int64_t first, int64_t last,
                        float* scratch, T* out) {
  const int64_t dim = shape.dim, room = (last - first / kBlock * kBlock + kBlock - 1) / kBlock * kBlock;
  float* queries = scratch;
  float* sums = queries + 4 * dim;
  float* weights = sums + 4 * dim;
  for (int64_t g = 0; g < shape.group;) {
    const int64_t count = shape.group - g < 4 ? shape.group - g : 4;
    for (int64_t i = 0; i < count * dim; i++) queries[i] = load(q[g * dim + i]);
    if (count == 4) attend_group<4, 1>(queries, blocks, shape, head, first, last, weights, room, sums);
    else if (count == 3) attend_group<3, 1>(queries, blocks, shape, head, first, last, weights, room, sums);
    else if (count == 2) attend_group<2, 2>(queries, blocks, shape, head, first, last, weights, room, sums);
    else attend_group<1, 4>(queries, blocks, shape, head, first, last, weights, room, sums);
    for (int64_t i = 0; i < count * dim; i++) store(out[g * dim + i], sums[i]);
    g += count;
  }
}

template <class T>
PIPE_INLINE void put(const T* k, const T* v, const PagedShape& shape, int64_t slot, T* block) {
  const int64_t width = shape.kv_heads * shape.dim;
  T* values = block + width * kBlock;
  for (int64_t i = 0; i < width; i++) block[i * kBlock + slot] = k[i];
  for (int64_t h = 0; h < shape.kv_heads; h++)
    for (int64_t d = 0; d < shape.dim; d++) values[(h * kBlock + slot) * shape.dim + d] = v[h * shape.dim + d];
}

}  // namespace

int64_t paged_scratch(const PagedShape& shape, int64_t keys) {
  return 8 * shape.dim + 4 * (keys + 2 * kBlock);
}

PIPE_CLONES void attend_blocks(const float* q, const float* const* blocks, const PagedShape& shape, int64_t head, int64_t first,
                               int64_t last, float* scratch, float* out) {
  attend(q, blocks, shape, head, first, last, scratch, out);
}
PIPE_CLONES void attend_blocks(const bf16* q, const bf16* const* blocks, const PagedShape& shape, int64_t head, int64_t first,
                               int64_t last, float* scratch, bf16* out) {
  attend(q, blocks, shape, head, first, last, scratch, out);
}

void store_token(const float* k, const float* v, const PagedShape& shape, int64_t slot, float* block) {
  put(k, v, shape, slot, block);
}
void store_token(const bf16* k, const bf16* v, const PagedShape& shape, int64_t slot, bf16* block) {
  put(k, v, shape, slot, block);
}

}  // namespace pipe_kernels
