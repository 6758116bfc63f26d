// Attention over keys and values that lie in blocks; see paged.cpp. Knows no tensors and starts no threads.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace pipe_kernels {

// Tokens of a block (pool.rs has the same number).
constexpr int64_t kBlock = 16;

// A block of one layer holds keys as [kv_heads, dim, kBlock], so that one number of all its tokens lies together, and behind
// them values as [kv_heads, kBlock, dim].
struct PagedShape {
  int64_t kv_heads, group, dim;
  float scale;
  float cap;  // 0 for none; otherwise scores become cap * tanh(score / cap)
};

// Numbers of scratch memory that attend_blocks needs for `keys` tokens.
int64_t paged_scratch(const PagedShape& shape, int64_t keys);

// The queries [group, dim] that share a key head, over tokens [first, last) of a row whose blocks are `blocks`, to `out`
// [group, dim]. Sums are f32, in an order that depends on the row alone.
void attend_blocks(const float* q, const float* const* blocks, const PagedShape& shape, int64_t head, int64_t first,
                   int64_t last, float* scratch, float* out);
void attend_blocks(const bf16* q, const bf16* const* blocks, const PagedShape& shape, int64_t head, int64_t first,
                   int64_t last, float* scratch, bf16* out);

// Writes a token's keys and values [kv_heads, dim] to place `slot` of a block.
void store_token(const float* k, const float* v, const PagedShape& shape, int64_t slot, float* block);
void store_token(const bf16* k, const bf16* v, const PagedShape& shape, int64_t slot, bf16* block);

}  // namespace pipe_kernels
