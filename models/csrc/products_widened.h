// Products of bf16 matrices on processors without instructions for them: both sides are widened as they are packed, and
// multiplied in f32 by AVX2's fused multiply-adds, or by AVX-512's, to the same bits. What these functions are given and give is
// said in products.h.
#pragma once
#include "products.h"

namespace pipe_kernels::widening {

void pack(const Right& right, int64_t from, int64_t depth, int64_t column, int64_t columns, bf16* panel);
void block(Instructions how, const Packed* parts, int count, int64_t row, bool add, float* sums);
void product(Instructions how, const Product& what, int64_t first, int64_t last);
void turn(const bf16* x, int64_t rows, int64_t columns, int64_t stride, bf16* out);

}  // namespace pipe_kernels::widening
