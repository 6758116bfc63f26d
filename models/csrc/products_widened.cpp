// See products_widened.h.
//
// The blocking is Goto's and BLIS's (Van Zee and van de Geijn, ACM TOMS 41:3, 2015): a strip of sixteen columns and one part
// of the depth stays in the first cache, some rows of the left side in the second, all strips at hand in the third.
#include "products_widened.h"

#if defined(__x86_64__) && defined(__linux__)

#include <algorithm>
#include <cstring>
#include <vector>

#include "vectors.h"
#include "vectors_avx2.h"

namespace pipe_kernels::widening {
namespace {

using namespace avx2;

// Columns of a strip; with six rows their sums take twelve of the sixteen registers.
constexpr int64_t kStrip = 16, kHeight = 6;
// Rows of the left side that are widened at a time, and the most of the depth that goes with them.
constexpr int64_t kRows = 96, kPart = 384;
// Rows of the right side that are asked for before they are read.
constexpr int64_t kAhead = 8;
// The most of the depth, of numbers of the right side, and of sums that a thread has at hand.
constexpr int64_t kDeep = 1024, kRight = 320 * kDeep, kSums = 1024 * 1024;

struct Scratch {
  std::vector<float> right, left, sums;
};
thread_local Scratch scratch;

// Room for `count` numbers that starts with a line of the cache: loads that cross lines take twice as long.
float* at_least(std::vector<float>& place, int64_t count) {
  constexpr int64_t line = 64 / sizeof(float);
  if (static_cast<int64_t>(place.size()) < count + line) place.resize(count + line);
  return reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(place.data()) + 63) & ~uintptr_t{63});
}

// 32 weights from number `at` on, a multiple of 32, as pipe_nf4_decode makes them: bf16 in two vectors, in order.
struct Words {
  __m256i first, second;
};
PIPE_AVX2 inline Words decoded(const FourBits& four, int64_t at) {
  const float scale = four.scale_of(at >> 6);
  const __m256 factor = _mm256_set1_ps(scale);
  const __m256i table = rounded(_mm256_mul_ps(_mm256_loadu_ps(four.codebook), factor), _mm256_mul_ps(_mm256_loadu_ps(four.codebook + 8), factor));
  // The table's lower and upper bytes, each in both halves.
  const auto bytes_of = [](__m256i words) PIPE_AVX2 {
    const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0xD8);
    return _mm256_permute2x128_si256(bytes, bytes, 0);
  };
  const __m256i lower = bytes_of(_mm256_and_si256(table, _mm256_set1_epi16(0xFF))), upper = bytes_of(_mm256_srli_epi16(table, 8));
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(four.bytes + (at >> 1))), four_bits = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(_mm_srli_epi16(bytes, 4), four_bits), odd = _mm_and_si128(bytes, four_bits);
  const __m256i codes = _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
  const __m256i low = _mm256_shuffle_epi8(lower, codes), high = _mm256_shuffle_epi8(upper, codes);
  const __m256i a = _mm256_unpacklo_epi8(low, high), b = _mm256_unpackhi_epi8(low, high);
  return {_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31)};
}

// 32 values of a row as bf16, zeros past the last.
PIPE_AVX2 inline Words words_at(const Right& right, int64_t at, int64_t count) {
  if (right.codes) return decoded(*right.codes, at);
  if (right.values) {
    if (count >= 32) {
      const auto* place = reinterpret_cast<const __m256i*>(right.values + at);
      return {_mm256_loadu_si256(place), _mm256_loadu_si256(place + 1)};
    }
    alignas(32) bf16 room[32] = {};
    if (count > 0) std::memcpy(static_cast<void*>(room), right.values + at, count * sizeof(bf16));
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(room)), _mm256_load_si256(reinterpret_cast<const __m256i*>(room + 16))};
  }
  alignas(32) float room[32] = {};
  const float* place = right.wide + at;
  if (count < 32) {
    if (count > 0) std::memcpy(room, place, count * sizeof(float));
    place = room;
  }
  const __m256 scale = _mm256_set1_ps(right.scale);
  const auto eight = [&](int64_t skip) PIPE_AVX2 { return _mm256_mul_ps(_mm256_loadu_ps(place + skip), scale); };
  return {rounded(eight(0), eight(8)), rounded(eight(16), eight(24))};
}

// The same, widened.
PIPE_AVX2 inline void numbers_at(const Right& right, int64_t at, int64_t count, __m256 (&out)[4]) {
  const Words words = words_at(right, at, count);
  out[0] = widened(_mm256_castsi256_si128(words.first));
  out[1] = widened(_mm256_extracti128_si256(words.first, 1));
  out[2] = widened(_mm256_castsi256_si128(words.second));
  out[3] = widened(_mm256_extracti128_si256(words.second, 1));
}

// Asks for number `at` of a right side, which is read soon. Any address may be asked for.
inline void ask_for(const Right& right, int64_t at) {
  const void* place = right.codes ? static_cast<const void*>(right.codes->bytes + (at >> 1)) : right.values ? static_cast<const void*>(right.values + at) : right.wide + at;
  _mm_prefetch(static_cast<const char*>(place), _MM_HINT_T0);
}

// Rows [from, from + depth) and columns [column, column + columns) of a right side as strips, an even number of them:
// [strips][depth][16].
PIPE_AVX2 void pack_strips(const Right& right, int64_t from, int64_t depth, int64_t column, int64_t columns, float* out) {
  const int64_t room = padded(columns), stride = depth * kStrip;
  __m256 numbers[4];
  if (!right.turned) {
    for (int64_t d = 0; d < depth; d++) {
      for (int64_t c = 0; c < room; c += 32) {
        ask_for(right, (from + d + kAhead) * right.stride + column + c);
        if (from + d < right.depth) numbers_at(right, (from + d) * right.stride + column + c, columns - c, numbers);
        else for (auto& each : numbers) each = _mm256_setzero_ps();
        float* place = out + c / kStrip * stride + d * kStrip;
        _mm256_storeu_ps(place, numbers[0]);
        _mm256_storeu_ps(place + 8, numbers[1]);
        _mm256_storeu_ps(place + stride, numbers[2]);
        _mm256_storeu_ps(place + stride + 8, numbers[3]);
      }
    }
    return;
  }
  for (int64_t c = 0; c < room; c += 8) {
    float* strip = out + c / kStrip * stride + c % kStrip;
    for (int64_t d = 0; d < depth; d += 32) {
      __m256 square[4][8];
      for (int64_t i = 0; i < 8; i++) {
        ask_for(right, (column + c + i + 8) * right.stride + from + d);
        if (c + i < columns) numbers_at(right, (column + c + i) * right.stride + from + d, right.depth - from - d, numbers);
        else for (auto& each : numbers) each = _mm256_setzero_ps();
        for (int64_t j = 0; j < 4; j++) square[j][i] = numbers[j];
      }
      for (int64_t j = 0; j < 4; j++) {
        turn_numbers(square[j]);
        for (int64_t i = 0; i < 8; i++) _mm256_storeu_ps(strip + (d + j * 8 + i) * kStrip, square[j][i]);
      }
    }
  }
}

// Rows of the left side side by side, [depth][height]; up to eight numbers past the end are written to.
template <int height>
PIPE_AVX2 void side_by_side(const bf16* left, int64_t stride, int64_t depth, float* out) {
  for (int64_t d = 0; d < depth; d += 8) {
    __m256 rows[8];
    for (int r = 0; r < 8; r++) rows[r] = r < height ? widened_at(left + r * stride + d) : _mm256_setzero_ps();
    turn_numbers(rows);
    for (int64_t i = 0; i < 8; i++) _mm256_storeu_ps(out + (d + i) * height, rows[i]);
  }
}

// sums [height, 16] (+)= rows of the left side with a strip.
template <int height>
PIPE_AVX2 inline void multiply_rows(const float* left, const float* strip, int64_t depth, bool add, float* sums, int64_t stride) {
  __m256 low[height], high[height];
#pragma GCC unroll 6
  for (int r = 0; r < height; r++) {
    low[r] = add ? _mm256_load_ps(sums + r * stride) : _mm256_setzero_ps();
    high[r] = add ? _mm256_load_ps(sums + r * stride + 8) : _mm256_setzero_ps();
  }
#pragma GCC unroll 4
  for (int64_t d = 0; d < depth; d++) {
    const __m256 a = _mm256_load_ps(strip + d * kStrip), b = _mm256_load_ps(strip + d * kStrip + 8);
#pragma GCC unroll 6
    for (int r = 0; r < height; r++) {
      const __m256 both = _mm256_broadcast_ss(left + d * height + r);
      low[r] = _mm256_fmadd_ps(both, a, low[r]);
      high[r] = _mm256_fmadd_ps(both, b, high[r]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < height; r++) {
    _mm256_store_ps(sums + r * stride, low[r]);
    _mm256_store_ps(sums + r * stride + 8, high[r]);
  }
}

// The same with AVX-512: `groups` times as many rows, each group's side by side, and two strips.
template <int height, int groups>
PIPE_VECTORS inline void multiply_wide_rows(const float* left, const float* strips, int64_t depth, bool add, float* sums, int64_t stride) {
  constexpr int rows = height * groups;
  __m512 low[rows], high[rows];
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) {
    low[r] = add ? _mm512_load_ps(sums + r * stride) : _mm512_setzero_ps();
    high[r] = add ? _mm512_load_ps(sums + r * stride + kStrip) : _mm512_setzero_ps();
  }
  const float* second = strips + depth * kStrip;
  for (int64_t d = 0; d < depth; d++) {
    const __m512 a = _mm512_load_ps(strips + d * kStrip), b = _mm512_load_ps(second + d * kStrip);
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
      const __m512 both = _mm512_set1_ps(left[r / height * depth * height + d * height + r % height]);
      low[r] = _mm512_fmadd_ps(both, a, low[r]);
      high[r] = _mm512_fmadd_ps(both, b, high[r]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < rows; r++) {
    _mm512_store_ps(sums + r * stride, low[r]);
    _mm512_store_ps(sums + r * stride + kStrip, high[r]);
  }
}

// How many of `rows`, a multiple of 32, are taken six at a time; the rest are fours.
int64_t in_sixes(int64_t rows) {
  return (rows - rows % kHeight) - (rows % kHeight == 2 ? kHeight : 0);
}

// The next rows come from far: they are asked for while these are widened.
void ask_for(const bf16* left, int64_t stride, int64_t rows, int64_t depth) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < depth; d += 32) _mm_prefetch(reinterpret_cast<const char*>(left + r * stride + d), _MM_HINT_T0);
}

// sums [rows, stride] (+)= `rows` widened rows of the left side with strips, an even number of them.
PIPE_VECTORS void multiply_pairs_of_strips(const float* wide, int64_t rows, int64_t depth, const float* strips, int64_t count, bool add, float* sums, int64_t stride) {
  const int64_t sixes = in_sixes(rows);
  for (int64_t i = 0; i < count; i += 2) {
    const float* pair = strips + i * depth * kStrip;
    float* place = sums + i * kStrip;
    int64_t r = 0;
    for (; r + 2 * kHeight <= sixes; r += 2 * kHeight) multiply_wide_rows<kHeight, 2>(wide + r * depth, pair, depth, add, place + r * stride, stride);
    for (; r < sixes; r += kHeight) multiply_wide_rows<kHeight, 1>(wide + r * depth, pair, depth, add, place + r * stride, stride);
    for (; r < rows; r += 4) multiply_wide_rows<4, 1>(wide + r * depth, pair, depth, add, place + r * stride, stride);
  }
}

// sums [rows, stride] (+)= `rows` of the left side with strips, both `depth` deep; there is room for an even number of strips.
PIPE_AVX2 void multiply_strips(Instructions how, const bf16* left, int64_t left_stride, int64_t rows, int64_t depth, const float* strips, int64_t count, bool add,
                                float* sums, int64_t stride) {
  float* wide = at_least(scratch.left, kRows * kPart + 8);
  const int64_t sixes = in_sixes(rows);
  for (int64_t r = 0; r < sixes; r += kHeight) {
    ask_for(left + (r + kHeight) * left_stride, left_stride, std::min(kHeight, rows - r - kHeight), depth);
    side_by_side<kHeight>(left + r * left_stride, left_stride, depth, wide + r * depth);
  }
  for (int64_t r = sixes; r < rows; r += 4) side_by_side<4>(left + r * left_stride, left_stride, depth, wide + r * depth);
  if (how == Instructions::wide_multiply_add) return multiply_pairs_of_strips(wide, rows, depth, strips, count, add, sums, stride);
  for (int64_t i = 0; i < count; i++) {
    const float* strip = strips + i * depth * kStrip;
    float* place = sums + i * kStrip;
    for (int64_t r = 0; r < sixes; r += kHeight) multiply_rows<kHeight>(wide + r * depth, strip, depth, add, place + r * stride, stride);
    for (int64_t r = sixes; r < rows; r += 4) multiply_rows<4>(wide + r * depth, strip, depth, add, place + r * stride, stride);
  }
}

// Sums [rows, stride] to columns [column, column + columns) of rows from `row` on.
PIPE_AVX2 void put(const float* sums, int64_t stride, const Product& what, int64_t row, int64_t rows, int64_t column, int64_t columns) {
  for (int64_t r = 0; r < rows; r++) {
    const float* from = sums + r * stride;
    const int64_t at = (row + r) * what.out_stride + column;
    if (what.wide) {
      std::memcpy(what.wide + at, from, columns * sizeof(float));
      continue;
    }
    for (int64_t c = 0; c < columns; c += kStrip) {
      const __m256i words = rounded(_mm256_loadu_ps(from + c), _mm256_loadu_ps(from + c + 8));
      if (columns - c >= kStrip) _mm256_storeu_si256(reinterpret_cast<__m256i*>(what.out + at + c), words);
      else std::memcpy(static_cast<void*>(what.out + at + c), &words, (columns - c) * sizeof(bf16));
    }
  }
}

// One part of the depth of one summand.
struct Part {
  const Summand* of;
  int64_t from, depth;
};

std::vector<Part> parts_of(const Product& what) {
  std::vector<Part> parts;
  for (int s = 0; s < what.count; s++) {
    const int64_t depth = padded(what.summands[s].right.depth), count = (depth + kPart - 1) / kPart, each = padded((depth + count - 1) / count);
    for (int64_t from = 0; from < depth; from += each) parts.push_back({&what.summands[s], from, std::min(each, depth - from)});
  }
  return parts;
}

// Packs the right sides of some parts, each as [strips][depth][16].
const float* strips_of(const Part* parts, int64_t count, int64_t depth, int64_t column, int64_t columns) {
  float* out = at_least(scratch.right, padded(columns) * depth);
  int64_t at = 0;
  for (int64_t i = 0; i < count; i++) {
    pack_strips(parts[i].of->right, parts[i].from, parts[i].depth, column, columns, out + at);
    at += padded(columns) * parts[i].depth;
  }
  return out;
}

// So many columns that their strips are at hand for all rows. Sums of a product that is deeper are kept until its last part.
void some_columns(Instructions how, const Product& what, const std::vector<Part>& parts, int64_t column, int64_t columns) {
  const int64_t used = (columns + kStrip - 1) / kStrip, stride = padded(columns), all = static_cast<int64_t>(parts.size());
  for (int64_t first = 0, last = 0; first < all; first = last) {
    int64_t depth = 0;
    while (last < all && depth + parts[last].depth <= kDeep) depth += parts[last++].depth;
    const bool whole = first == 0 && last == all;
    const float* strips = strips_of(parts.data() + first, last - first, depth, column, columns);
    float* sums = at_least(scratch.sums, (whole ? kRows : what.rows) * stride);
    for (int64_t row = 0; row < what.rows; row += kRows) {
      const int64_t rows = std::min(kRows, what.rows - row);
      float* own = sums + (whole ? 0 : row * stride);
      int64_t at = 0;
      for (int64_t i = first; i < last; i++) {
        const Summand& summand = *parts[i].of;
        multiply_strips(how, summand.left + row * summand.left_stride + parts[i].from, summand.left_stride, rows, parts[i].depth, strips + at,
                        used, i > 0, own, stride);
        at += stride * parts[i].depth;
      }
      if (last == all) put(own, stride, what, row, rows, column, columns);
    }
  }
}

// Sums [height, 16] of bf16 rows with one tile column of a panel (products.h), both widened as they are read.
template <int height>
PIPE_AVX2 inline void block_rows(const Packed* parts, int count, int64_t row, int64_t half, bool add, float* sums) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int32_t>(0xFFFF0000));
  __m256 low[height], high[height];
#pragma GCC unroll 6
  for (int r = 0; r < height; r++) {
    low[r] = add ? _mm256_loadu_ps(sums + r * kPanel) : _mm256_setzero_ps();
    high[r] = add ? _mm256_loadu_ps(sums + r * kPanel + 8) : _mm256_setzero_ps();
  }
  for (int p = 0; p < count; p++) {
    const bf16* left = parts[p].left + row * parts[p].left_stride;
    for (int64_t d = 0; d < parts[p].depth; d += 2) {
      const bf16* pairs = parts[p].panel + d / 32 * 1024 + half * 512 + d % 32 * 16;
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs)), b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pairs + 16));
      const __m256 a_first = (__m256)_mm256_slli_epi32(a, 16), b_first = (__m256)_mm256_slli_epi32(b, 16);
      const __m256 a_second = (__m256)_mm256_and_si256(a, upper), b_second = (__m256)_mm256_and_si256(b, upper);
#pragma GCC unroll 6
      for (int r = 0; r < height; r++) {
        int32_t pair;
        std::memcpy(&pair, left + r * parts[p].left_stride + d, 4);
        const __m256i both = _mm256_set1_epi32(pair);
        const __m256 first = (__m256)_mm256_slli_epi32(both, 16), second = (__m256)_mm256_and_si256(both, upper);
        low[r] = _mm256_fmadd_ps(second, a_second, _mm256_fmadd_ps(first, a_first, low[r]));
        high[r] = _mm256_fmadd_ps(second, b_second, _mm256_fmadd_ps(first, b_first, high[r]));
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < height; r++) {
    _mm256_storeu_ps(sums + r * kPanel, low[r]);
    _mm256_storeu_ps(sums + r * kPanel + 8, high[r]);
  }
}

PIPE_AVX2 void narrow_block(const Packed* parts, int count, int64_t row, bool add, float* sums) {
  const int64_t sixes = in_sixes(kPanel);
  for (int64_t half = 0; half < 2; half++) {
    for (int64_t r = 0; r < sixes; r += kHeight) block_rows<kHeight>(parts, count, row + r, half, add, sums + r * kPanel + half * kStrip);
    for (int64_t r = sixes; r < kPanel; r += 4) block_rows<4>(parts, count, row + r, half, add, sums + r * kPanel + half * kStrip);
  }
}

// Sums [height, 32] with AVX-512.
template <int height>
PIPE_VECTORS inline void block_wide_rows(const Packed* parts, int count, int64_t row, bool add, float* sums) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000));
  __m512 low[height], high[height];
#pragma GCC unroll 8
  for (int r = 0; r < height; r++) {
    low[r] = add ? _mm512_loadu_ps(sums + r * kPanel) : _mm512_setzero_ps();
    high[r] = add ? _mm512_loadu_ps(sums + r * kPanel + kStrip) : _mm512_setzero_ps();
  }
  for (int p = 0; p < count; p++) {
    const bf16* left = parts[p].left + row * parts[p].left_stride;
    for (int64_t d = 0; d < parts[p].depth; d += 2) {
      const bf16* pairs = parts[p].panel + d / 32 * 1024 + d % 32 * 16;
      const __m512i a = _mm512_loadu_si512(pairs), b = _mm512_loadu_si512(pairs + 512);
      const __m512 a_first = (__m512)_mm512_slli_epi32(a, 16), b_first = (__m512)_mm512_slli_epi32(b, 16);
      const __m512 a_second = (__m512)_mm512_and_si512(a, upper), b_second = (__m512)_mm512_and_si512(b, upper);
#pragma GCC unroll 8
      for (int r = 0; r < height; r++) {
        int32_t pair;
        std::memcpy(&pair, left + r * parts[p].left_stride + d, 4);
        const __m512i both = _mm512_set1_epi32(pair);
        const __m512 first = (__m512)_mm512_slli_epi32(both, 16), second = (__m512)_mm512_and_si512(both, upper);
        low[r] = _mm512_fmadd_ps(second, a_second, _mm512_fmadd_ps(first, a_first, low[r]));
        high[r] = _mm512_fmadd_ps(second, b_second, _mm512_fmadd_ps(first, b_first, high[r]));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < height; r++) {
    _mm512_storeu_ps(sums + r * kPanel, low[r]);
    _mm512_storeu_ps(sums + r * kPanel + kStrip, high[r]);
  }
}

PIPE_VECTORS void wide_block(const Packed* parts, int count, int64_t row, bool add, float* sums) {
  constexpr int height = 8;
  for (int64_t r = 0; r < kPanel; r += height) block_wide_rows<height>(parts, count, row + r, add, sums + r * kPanel);
}

// Turns 8 x 8 bf16.
inline void turn_eight(const bf16* x, int64_t stride, bf16* out, int64_t out_stride) {
  __m128i r[8], t[8];
  for (int i = 0; i < 8; i++) r[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i * stride));
  for (int i = 0; i < 4; i++) {
    t[i] = _mm_unpacklo_epi16(r[2 * i], r[2 * i + 1]);
    t[i + 4] = _mm_unpackhi_epi16(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[2 * i] = _mm_unpacklo_epi32(t[2 * i], t[2 * i + 1]);
    r[2 * i + 1] = _mm_unpackhi_epi32(t[2 * i], t[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++) {
    const __m128i *from = r + 4 * i;
    t[4 * i] = _mm_unpacklo_epi64(from[0], from[2]);
    t[4 * i + 1] = _mm_unpackhi_epi64(from[0], from[2]);
    t[4 * i + 2] = _mm_unpacklo_epi64(from[1], from[3]);
    t[4 * i + 3] = _mm_unpackhi_epi64(from[1], from[3]);
  }
  for (int i = 0; i < 8; i++) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * out_stride), t[i]);
}

}  // namespace

PIPE_AVX2 void pack(const Right& right, int64_t from, int64_t depth, int64_t column, int64_t columns, bf16* panel) {
  if (right.turned) {
    for (int64_t n = 0; n < kPanel; n += 8) {
      for (int64_t d = 0; d < depth; d += 32) {
        __m256 pairs[2][8];  // sixteen words of each of eight columns, twice
        for (int64_t i = 0; i < 8; i++) {
          Words words{_mm256_setzero_si256(), _mm256_setzero_si256()};
          if (n + i < columns) words = words_at(right, (column + n + i) * right.stride + from + d, right.depth - from - d);
          pairs[0][i] = (__m256)words.first;
          pairs[1][i] = (__m256)words.second;
        }
        bf16* place = panel + d * 32 + n / 16 * 512 + n % 16 * 2;
        for (int64_t j = 0; j < 2; j++) {
          turn_numbers(pairs[j]);
          for (int64_t i = 0; i < 8; i++) _mm256_storeu_ps(reinterpret_cast<float*>(place + (j * 8 + i) * 32), pairs[j][i]);
        }
      }
    }
    return;
  }
  for (int64_t d = 0; d < depth; d += 2) {
    const auto row = [&](int64_t r) PIPE_AVX2 {
      return r < right.depth ? words_at(right, r * right.stride + column, columns) : Words{_mm256_setzero_si256(), _mm256_setzero_si256()};
    };
    const Words a = row(from + d), b = row(from + d + 1);
    bf16* place = panel + d / 32 * 1024 + d % 32 * 16;
    const auto side_by_side = [](__m256i first, __m256i second, bf16* out) PIPE_AVX2 {
      const __m256i low = _mm256_unpacklo_epi16(first, second), high = _mm256_unpackhi_epi16(first, second);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16), _mm256_permute2x128_si256(low, high, 0x31));
    };
    side_by_side(a.first, b.first, place);
    side_by_side(a.second, b.second, place + 512);
  }
}

void block(Instructions how, const Packed* parts, int count, int64_t row, bool add, float* sums) {
  if (how == Instructions::wide_multiply_add) wide_block(parts, count, row, add, sums);
  else narrow_block(parts, count, row, add, sums);
}

void product(Instructions how, const Product& what, int64_t first, int64_t last) {
  const std::vector<Part> parts = parts_of(what);
  int64_t depth = 0;
  for (const Part& part : parts) depth += part.depth;
  if (depth == 0 || first >= last) return;
  int64_t most = kRight / std::min(depth, kDeep);
  if (depth > kDeep) most = std::clamp(kSums / what.rows, kPanel, most);
  // Even pieces.
  const int64_t pieces = (last - first + most - 1) / most, each = padded((last - first + pieces - 1) / pieces);
  for (int64_t column = first; column < last; column += each) some_columns(how, what, parts, column, std::min(each, last - column));
}

void turn(const bf16* x, int64_t rows, int64_t columns, int64_t stride, bf16* out) {
  for (int64_t row = 0; row < rows; row += 8)
    for (int64_t column = 0; column < columns; column += 8) turn_eight(x + row * stride + column, stride, out + column * rows + row, rows);
}

}  // namespace pipe_kernels::widening

#else

namespace pipe_kernels::widening {

void pack(const Right&, int64_t, int64_t, int64_t, int64_t, bf16*) {}
void block(Instructions, const Packed*, int, int64_t, bool, float*) {}
void product(Instructions, const Product&, int64_t, int64_t) {}
void turn(const bf16*, int64_t, int64_t, int64_t, bf16*) {}

}  // namespace pipe_kernels::widening

#endif
