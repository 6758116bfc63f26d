// Products of bf16 matrices summed in f32: with the processor's own instructions for them (AMX tiles, or AVX-512 BF16), or
// widened on the way to the registers (AVX2, or AVX-512 without its bf16 part).
//
// libtorch's path to the same instructions builds a description of every product anew and keeps a quarter of a megabyte
// for every size it has seen; and it cannot take a weight that is decoded as it is read. Raw memory in, raw memory out; the
// caller shares columns out among threads.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace pipe_kernels {

enum class Instructions {
  none,
  multiply_add,       // of f32, AVX2
  wide_multiply_add,  // of f32, AVX-512
  dot_products,       // of bf16, AVX-512
  tiles,              // of bf16, AMX
};

// Whether bf16 is widened to be multiplied.
inline bool widens(Instructions how) {
  return how == Instructions::multiply_add || how == Instructions::wide_multiply_add;
}

// The best this processor has. Asks the system for leave to use tiles, once.
Instructions product_instructions();

// Columns are made in panels of this many; rows and depths are multiples of it. Products that libtorch makes are rounded up to
// it as well, because oneDNN compiles and keeps a kernel for every new size: documents of all lengths would otherwise cost more
// compiling than computing, and memory without end.
constexpr int64_t kPanel = 32;

// The next multiple of it.
inline int64_t padded(int64_t n) {
  return (n + kPanel - 1) / kPanel * kPanel;
}

// A matrix of 4-bit codes, two a byte, high first, with a scale per 64 of them in a row: `absmax` itself, or, where there
// are `scale_codes`, a value of `map` times `absmax` per 256 blocks, plus `offset`.
struct FourBits {
  const uint8_t* bytes;
  const uint8_t* scale_codes;
  const float* absmax;
  float offset;
  const float* codebook;  // sixteen values
  const float* map;

  float scale_of(int64_t block) const {
    if (!scale_codes) return absmax[block];
    float scale = absmax[block >> 8] * map[scale_codes[block]];
#if defined(__x86_64__)
    __asm__("" : "+x"(scale));  // rounded before the sum, also where it is compiled with multiply-adds
#endif
    return scale + offset;
  }
};

// The right side of a product, [depth, columns]: `values` as they lie, or, when `turned`, [columns, depth] in memory.
// f32 values are rounded and codes decoded as they are packed. Rows past `depth` up to the next multiple of kPanel count as zeros.
// Codes have a stride, a depth and columns that are multiples of kPanel.
struct Right {
  const bf16* values = nullptr;
  const float* wide = nullptr;
  int64_t stride = 0;
  int64_t depth = 0;
  bool turned = false;
  float scale = 1;  // of `wide` values
  const FourBits* codes = nullptr;
};

// One summand: left [rows, depth] times right.
struct Summand {
  const bf16* left;
  int64_t left_stride;
  Right right;
};

// Summands that one product may have: three layers' weights and adapters.
constexpr int kSummands = 6;

// out[rows, columns from first to last] = the sum of the summands; as bf16, or as f32 where `wide` is given.
// `first` is a multiple of kPanel. `how` is what product_instructions() said.
struct Product {
  Summand summands[kSummands];
  int count;
  int64_t rows;
  int64_t columns;
  bf16* out;
  float* wide;
  int64_t out_stride;
};
void product(Instructions how, const Product& what, int64_t first, int64_t last);

// The parts of a product, for work that joins several of them while they are in the cache.

// Packs rows [from, from + depth) and 32 columns of a right side: tiles of 16 pairs of rows by 16 columns,
// [depth / 32][2 tiles][16 pairs][16 columns][2]. Columns from `columns` on are zeros; `depth` is a multiple of kPanel.
void pack(Instructions how, const Right& right, int64_t from, int64_t depth, int64_t column, int64_t columns, bf16* panel);

// What a block of 32 rows is multiplied with.
struct Packed {
  const bf16* left;
  int64_t left_stride;
  const bf16* panel;
  int64_t depth;
};

// sums [32, 32] of rows from `row` on (+)= the summands.
void block(Instructions how, const Packed* parts, int count, int64_t row, bool add, float* sums);

// A thread has to hold one while it calls block().
class Tiles {
 public:
  explicit Tiles(Instructions how);
  ~Tiles();
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  bool used;
};

// out [columns, padded rows] = x [rows, columns] turned, in bf16; both sizes are multiples of kPanel.
void turn(Instructions how, const bf16* x, int64_t rows, int64_t columns, int64_t stride, bf16* out);

}  // namespace pipe_kernels
