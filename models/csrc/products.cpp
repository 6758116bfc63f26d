// See products.h.
#include "products.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "products_widened.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "vectors.h"

namespace pipe_kernels {
namespace {

// Deeper products are summed up part by part, so that a panel stays in the processor's cache.
constexpr int64_t kDeep = 2048, kPart = 1024;
// Sums that a deep product keeps at a time.
constexpr int64_t kSums = 256 * 1024;
// Rows and columns of one tile.
constexpr int64_t kTile = 16;

// What one thread packs into.
struct Scratch {
  std::vector<bf16> panels[kSummands];
  std::vector<float> sums;
};
thread_local Scratch scratch;

// The compiler does not know what tile instructions read.
inline void settle_memory() {
  __asm__ volatile("" ::: "memory");
}

// The values that the codes of a block of 64 stand for, as pipe_nf4_decode makes them. (Numbers too small for a normal bf16 become
// zeros, which is what the products take them for anyway.)
PIPE_DOTS inline __m256i table_of(const FourBits& four, int64_t block) {
  return (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(_mm512_loadu_ps(four.codebook), _mm512_set1_ps(four.scale_of(block))));
}

// 32 weights of one block.
PIPE_DOTS inline __m512i looked_up(const uint8_t* bytes, __m256i table) {
  // A byte's first weight goes to the lower word, its second to the upper. With the table in both halves, bit 4 of a word says nothing.
  const __m512i pairs = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
  const __m512i words = _mm512_or_si512(_mm512_srli_epi32(pairs, 4), _mm512_slli_epi32(pairs, 16));
  return _mm512_permutexvar_epi16(words, _mm512_broadcast_i64x4(table));
}

// What a right side is read from: 32 numbers from number `at` on, as bf16, of which `count` are there and the others zeros. `ahead`
// asks for what comes later: rows that lie apart are no pattern to the processor, and waiting for them took half of the packing.
struct Values {
  const bf16* values;
  PIPE_DOTS __m512i operator()(int64_t at, int64_t count) const {
    return _mm512_maskz_loadu_epi16(count >= 32 ? 0xFFFFFFFFu : (1u << std::max<int64_t>(0, count)) - 1, values + at);
  }
  void ahead(int64_t at) const { __builtin_prefetch(values + at); }
};

struct WideValues {
  const float* values;
  float scale;
  PIPE_DOTS __m512i operator()(int64_t at, int64_t count) const {
    const auto some = [&](int64_t skip) PIPE_DOTS {
      const int64_t left = std::min<int64_t>(16, std::max<int64_t>(0, count - skip));
      return _mm512_mul_ps(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << left) - 1), values + at + skip), _mm512_set1_ps(scale));
    };
    return rounded(some(0), some(16));
  }
  void ahead(int64_t) const {}  // adapters are small and stay in the cache
};

struct Codes {
  const FourBits& four;
  PIPE_DOTS __m512i operator()(int64_t at, int64_t) const { return looked_up(four.bytes + (at >> 1), table_of(four, at >> 6)); }
  void ahead(int64_t at) const { __builtin_prefetch(four.bytes + (at >> 1)); }
};

// A part of a panel: rows of the right side from `from` on, 32 columns from `column` on, of which `columns` are there.
struct Piece {
  const Right& right;
  int64_t from, depth, column, columns;
  bf16* panel;
};

template <typename Source>
PIPE_DOTS void pack_turned(const Source& source, const Piece& what) {
  constexpr int64_t ahead = 64;
  for (int64_t half = 0; half < 2; half++) {
    for (int64_t d = 0; d < what.depth; d += 32) {
      __m512i rows[16];
      for (int64_t i = 0; i < 16; i++) {
        const int64_t n = half * 16 + i, at = (what.column + n) * what.right.stride + what.from + d;
        source.ahead(at + ahead);
        rows[i] = n < what.columns ? source(at, what.right.depth - what.from - d) : _mm512_setzero_si512();
      }
      turn_words(rows);
      for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(what.panel + d * 32 + half * 512 + i * 32, rows[i]);
    }
  }
}

// Codes, turned: the table of a block is made once for both of its halves.
PIPE_DOTS void pack_turned_codes(const Codes& source, const Piece& what) {
  __m256i tables[16];
  for (int64_t half = 0; half < 2; half++) {
    const int64_t first = (what.column + half * 16) * what.right.stride + what.from;
    for (int64_t d = 0; d < what.depth; d += 32) {
      if (d == 0 || what.right.stride % 64 != 0 || (first + d) % 64 == 0)
        for (int64_t i = 0; i < 16; i++) tables[i] = table_of(source.four, (first + i * what.right.stride + d) >> 6);
      __m512i rows[16];
      for (int64_t i = 0; i < 16; i++) rows[i] = looked_up(source.four.bytes + ((first + i * what.right.stride + d) >> 1), tables[i]);
      turn_words(rows);
      for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(what.panel + d * 32 + half * 512 + i * 32, rows[i]);
    }
  }
}

template <typename Source>
PIPE_DOTS void pack_as_it_lies(const Source& source, const Piece& what) {
  constexpr int64_t ahead = 32;
  // Value i of the first row, then value i of the second.
  const __m512i places = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i first = _mm512_or_si512(places, _mm512_slli_epi32(_mm512_add_epi32(places, _mm512_set1_epi32(32)), 16));
  const __m512i second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
  for (int64_t d = 0; d < what.depth; d += 2) {
    const auto row = [&](int64_t r) PIPE_DOTS {
      const int64_t at = r * what.right.stride + what.column;
      source.ahead(at + ahead * what.right.stride);
      return r < what.right.depth ? source(at, what.columns) : _mm512_setzero_si512();
    };
    const __m512i a = row(what.from + d), b = row(what.from + d + 1);
    bf16* place = what.panel + d / 32 * 1024 + d % 32 * 16;
    _mm512_storeu_si512(place, _mm512_permutex2var_epi16(a, first, b));
    _mm512_storeu_si512(place + 512, _mm512_permutex2var_epi16(a, second, b));
  }
}

template <typename Source>
PIPE_DOTS void pack_from(const Source& source, const Piece& what) {
  if (what.right.turned) pack_turned(source, what);
  else pack_as_it_lies(source, what);
}

PIPE_DOTS void pack_by_pairs(const Right& right, int64_t from, int64_t depth, int64_t column, int64_t columns, bf16* panel) {
  const Piece what{right, from, depth, column, columns, panel};
  if (right.codes && right.turned) pack_turned_codes(Codes{*right.codes}, what);
  else if (right.codes) pack_as_it_lies(Codes{*right.codes}, what);
  else if (right.values) pack_from(Values{right.values}, what);
  else pack_from(WideValues{right.wide, right.scale}, what);
}

// sums [32 rows, 32] (+)= the summands, by tiles. Tiles 0 to 3 are the sums, 4 and 5 left, 6 and 7 right.
PIPE_TILES void block_by_tiles(const Packed* parts, int count, int64_t row, bool add, float* sums) {
  settle_memory();
  if (add) {
    _tile_loadd(0, sums, 128);
    _tile_loadd(1, sums + 16, 128);
    _tile_loadd(2, sums + 512, 128);
    _tile_loadd(3, sums + 528, 128);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int p = 0; p < count; p++) {
    const Packed& part = parts[p];
    const bf16* upper = part.left + row * part.left_stride;
    const bf16* lower = upper + kTile * part.left_stride;
    const int64_t stride = part.left_stride * 2;
    for (int64_t d = 0; d < part.depth; d += 32) {
      const bf16* right = part.panel + d * 32;
      // The panel stays in the first cache; rows of the left side come from the second.
      for (int64_t i = 0; i < kTile; i++) {
        _mm_prefetch(reinterpret_cast<const char*>(upper + i * part.left_stride + d + 64), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(lower + i * part.left_stride + d + 64), _MM_HINT_T0);
      }
      _tile_loadd(4, upper + d, stride);
      _tile_loadd(6, right, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, right + 512, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, lower + d, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 512, 128);
  _tile_stored(3, sums + 528, 128);
  settle_memory();
}

// The same by dot products of pairs, eight rows at a time.
PIPE_DOTS void block_by_dots(const Packed* parts, int count, int64_t row, bool add, float* sums) {
  constexpr int height = 8;
  for (int64_t top = 0; top < 32; top += height) {
    __m512 left[height], right[height];
#pragma GCC unroll 8
    for (int r = 0; r < height; r++) {
      left[r] = add ? _mm512_loadu_ps(sums + (top + r) * 32) : _mm512_setzero_ps();
      right[r] = add ? _mm512_loadu_ps(sums + (top + r) * 32 + 16) : _mm512_setzero_ps();
    }
    for (int p = 0; p < count; p++) {
      const bf16* from = parts[p].left + (row + top) * parts[p].left_stride;
      for (int64_t d = 0; d < parts[p].depth; d += 2) {
        const bf16* pairs = parts[p].panel + d / 32 * 1024 + d % 32 * 16;
        const __m512bh a = (__m512bh)_mm512_loadu_si512(pairs);
        const __m512bh b = (__m512bh)_mm512_loadu_si512(pairs + 512);
#pragma GCC unroll 8
        for (int r = 0; r < height; r++) {
          int32_t pair;
          std::memcpy(&pair, from + r * parts[p].left_stride + d, 4);
          const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
          left[r] = _mm512_dpbf16_ps(left[r], both, a);
          right[r] = _mm512_dpbf16_ps(right[r], both, b);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < height; r++) {
      _mm512_storeu_ps(sums + (top + r) * 32, left[r]);
      _mm512_storeu_ps(sums + (top + r) * 32 + 16, right[r]);
    }
  }
}

// Sums [32, 32] to their place.
PIPE_DOTS void put(const float* sums, const Product& what, int64_t row, int64_t column) {
  const int64_t columns = std::min(kPanel, what.columns - column);
  const uint32_t mask = columns >= 32 ? 0xFFFFFFFFu : (1u << columns) - 1;
  for (int64_t r = 0; r < kPanel; r++) {
    const __m512 low = _mm512_loadu_ps(sums + r * 32), high = _mm512_loadu_ps(sums + r * 32 + 16);
    const int64_t at = (row + r) * what.out_stride + column;
    if (what.wide) {
      _mm512_mask_storeu_ps(what.wide + at, static_cast<__mmask16>(mask), low);
      _mm512_mask_storeu_ps(what.wide + at + 16, static_cast<__mmask16>(mask >> 16), high);
    } else {
      _mm512_mask_storeu_epi16(what.out + at, mask, rounded(low, high));
    }
  }
}

PIPE_TILES void set_up_tiles() {
  alignas(64) uint8_t shape[64] = {};
  shape[0] = 1;
  for (int tile = 0; tile < 8; tile++) {
    shape[16 + 2 * tile] = 64;
    shape[48 + tile] = 16;
  }
  settle_memory();
  _tile_loadconfig(shape);
}

PIPE_TILES void release_tiles() {
  _tile_release();
}

// A part of a summand, packed into the thread's room number `room`.
Packed packed(const Summand& summand, int64_t from, int64_t depth, int64_t column, int64_t columns, int room) {
  auto& place = scratch.panels[room];
  if (static_cast<int64_t>(place.size()) < depth * kPanel) place.resize(depth * kPanel);
  pack_by_pairs(summand.right, from, depth, column, columns, place.data());
  return {summand.left + from, summand.left_stride, place.data(), depth};
}

}  // namespace

void pack(Instructions how, const Right& right, int64_t from, int64_t depth, int64_t column, int64_t columns, bf16* panel) {
  if (widens(how)) widening::pack(right, from, depth, column, columns, panel);
  else pack_by_pairs(right, from, depth, column, columns, panel);
}

void block(Instructions how, const Packed* parts, int count, int64_t row, bool add, float* sums) {
  if (widens(how)) widening::block(how, parts, count, row, add, sums);
  else if (how == Instructions::tiles) block_by_tiles(parts, count, row, add, sums);
  else block_by_dots(parts, count, row, add, sums);
}

Tiles::Tiles(Instructions how) : used(how == Instructions::tiles) {
  if (used) set_up_tiles();
}

Tiles::~Tiles() {
  if (used) release_tiles();
}

namespace {

// One panel of columns of a product whose summands are packed whole.
void shallow_panel(Instructions how, const Product& what, int64_t column) {
  Packed parts[kSummands];
  const int64_t columns = std::min(kPanel, what.columns - column);
  for (int i = 0; i < what.count; i++) parts[i] = packed(what.summands[i], 0, padded(what.summands[i].right.depth), column, columns, i);
  alignas(64) float sums[kPanel * kPanel];
  for (int64_t row = 0; row < what.rows; row += kPanel) {
    block(how, parts, what.count, row, false, sums);
    put(sums, what, row, column);
  }
}

// Deep summands part by part: every panel's sums are kept until the last part is added.
void deep_panels(Instructions how, const Product& what, int64_t first, int64_t last) {
  const int64_t panels = (last - first + kPanel - 1) / kPanel, each = what.rows * kPanel;
  auto& sums = scratch.sums;
  if (static_cast<int64_t>(sums.size()) < panels * each) sums.resize(panels * each);
  for (int s = 0; s < what.count; s++) {
    const Summand& summand = what.summands[s];
    const int64_t depth = padded(summand.right.depth);
    for (int64_t from = 0; from < depth; from += kPart) {
      for (int64_t i = 0; i < panels; i++) {
        const int64_t column = first + i * kPanel;
        const Packed part = packed(summand, from, std::min(kPart, depth - from), column, std::min(kPanel, what.columns - column), 0);
        for (int64_t row = 0; row < what.rows; row += kPanel) block(how, &part, 1, row, s > 0 || from > 0, sums.data() + i * each + row * kPanel);
      }
    }
  }
  for (int64_t i = 0; i < panels; i++)
    for (int64_t row = 0; row < what.rows; row += kPanel) put(sums.data() + i * each + row * kPanel, what, row, first + i * kPanel);
}

Instructions found() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Instructions::none;
  if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) return Instructions::multiply_add;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return Instructions::wide_multiply_add;
  const bool tiles = (d >> 22 & 1) && (d >> 24 & 1);
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return Instructions::wide_multiply_add;
  constexpr int ask_for_state = 0x1023, tile_data = 18;
  return tiles && syscall(SYS_arch_prctl, ask_for_state, tile_data) == 0 ? Instructions::tiles : Instructions::dot_products;
}

}  // namespace

Instructions product_instructions() {
  static const Instructions best = found();
  return best;
}

void product(Instructions how, const Product& what, int64_t first, int64_t last) {
  if (widens(how)) return widening::product(how, what, first, last);
  const Tiles tiles(how);
  const bool deep = std::any_of(what.summands, what.summands + what.count, [](const Summand& each) { return each.right.depth > kDeep; });
  // So many columns at a time that their sums stay in the second cache.
  const int64_t some = deep ? std::max<int64_t>(8, kSums / (what.rows * kPanel)) * kPanel : kPanel;
  for (int64_t column = first; column < last; column += some) {
    if (deep) deep_panels(how, what, column, std::min(last, column + some));
    else shallow_panel(how, what, column);
  }
}

namespace {

PIPE_DOTS void turn_by_pairs(const bf16* x, int64_t rows, int64_t columns, int64_t stride, bf16* out) {
  const Right right{x, nullptr, stride, rows, false, 1};
  std::vector<bf16> room(rows * kPanel);
  for (int64_t column = 0; column < columns; column += kPanel) {
    // Pairs of rows by column, turned: each column's rows in order.
    pack_by_pairs(right, 0, rows, column, kPanel, room.data());
    for (int64_t half = 0; half < 2; half++) {
      for (int64_t row = 0; row < rows; row += 32) {
        __m512i words[16];
        for (int64_t i = 0; i < 16; i++) words[i] = _mm512_loadu_si512(room.data() + row * 32 + half * 512 + i * 32);
        turn_words(words);
        for (int64_t i = 0; i < 16; i++) _mm512_storeu_si512(out + (column + half * 16 + i) * rows + row, words[i]);
      }
    }
  }
}

}  // namespace

void turn(Instructions how, const bf16* x, int64_t rows, int64_t columns, int64_t stride, bf16* out) {
  if (widens(how)) widening::turn(x, rows, columns, stride, out);
  else turn_by_pairs(x, rows, columns, stride, out);
}

}  // namespace pipe_kernels

#else

namespace pipe_kernels {

Instructions product_instructions() {
  return Instructions::none;
}
void product(Instructions, const Product&, int64_t, int64_t) {}
Tiles::Tiles(Instructions) : used(false) {}
Tiles::~Tiles() {}
void pack(Instructions, const Right&, int64_t, int64_t, int64_t, int64_t, bf16*) {}
void block(Instructions, const Packed*, int, int64_t, bool, float*) {}
void turn(Instructions, const bf16*, int64_t, int64_t, int64_t, bf16*) {}

}  // namespace pipe_kernels

#endif

extern "C" {

// out [rows, columns] f32 = left [rows, depth] times right, for the tests of each set of instructions, numbered as
// Instructions are; of whole products, or of blocks and what is packed for them. Says whether the processor has them.
int32_t pipe_product_by(int32_t instructions, int32_t blocks, const uint16_t* left, const uint16_t* right, int32_t turned, int64_t rows,
                        int64_t columns, int64_t depth, float* out) {
  using namespace pipe_kernels;
  if (static_cast<int32_t>(product_instructions()) < instructions) return 0;
  const auto how = static_cast<Instructions>(instructions);
  const auto *values = reinterpret_cast<const bf16*>(right), *given = reinterpret_cast<const bf16*>(left);
  const Right side{values, nullptr, turned ? depth : columns, depth, turned != 0, 1};
  if (!blocks) {
    Product what{};
    what.summands[0] = {given, depth, side};
    what.count = 1;
    what.rows = rows;
    what.columns = columns;
    what.wide = out;
    what.out_stride = columns;
    product(how, what, 0, columns);
    return 1;
  }
  const Tiles tiles(how);
  std::vector<bf16> panel(depth * kPanel);
  std::vector<float> sums(kPanel * kPanel);
  const Packed part{given, depth, panel.data(), depth};
  for (int64_t column = 0; column < columns; column += kPanel) {
    const int64_t some = std::min(kPanel, columns - column);
    pack(how, side, 0, depth, column, some, panel.data());
    for (int64_t row = 0; row < rows; row++) {
      if (row % kPanel == 0) block(how, &part, 1, row, false, sums.data());
      std::copy_n(sums.data() + row % kPanel * kPanel, some, out + row * columns + column);
    }
  }
  return 1;
}
}
