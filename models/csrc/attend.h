// Causal attention of one document in bf16, scores and their softmax kept in f32 and in the cache; and its gradients.
//
// The tiling is FlashAttention's (Dao, arXiv 2205.14135 and 2307.08691) as far as it pays on a processor: queries in blocks of 32,
// all their scores at once, nothing computed beyond the diagonal's blocks. Raw memory in, raw memory out, no threads.
#pragma once
#include <cstdint>

#include "products.h"

namespace pipe_kernels {

// A document's tokens in one head of keys and values and in some heads of queries, which lie one after another.
struct Document {
  const bf16* q;
  const bf16* k;
  const bf16* v;
  int64_t rows;       // tokens
  int64_t heads;      // of queries
  int64_t q_stride;   // from token to token
  int64_t kv_stride;
  int64_t dim;        // a multiple of kPanel
  int64_t window;     // tokens that a query sees, itself included; 0 for all
  float scale;        // of scores, positive
};

// Writes to `out`, which lies as q does, and to `logs` of each head and token, [heads, at least rows], the logarithm of the sum of
// powers that its weights were divided by.
void attend(Instructions how, const Document& document, bf16* out, float* logs, int64_t logs_stride);

// Floats that attend_back() sums gradients to keys and values up in.
int64_t gradient_sums(int64_t rows, int64_t dim);

// Given the gradient to `out`: writes the gradient to q, which lies as q does, and sets `sums`.
void attend_back(Instructions how, const Document& document, const bf16* grad, const float* logs, int64_t logs_stride, bf16* dq,
                 float* sums);

// Writes gradients to k and v, which lie as these do, from sums of `parts` calls, one after another. The first are overwritten.
void put_gradients(Instructions how, const Document& document, float* sums, int64_t parts, bf16* dk, bf16* dv);

}  // namespace pipe_kernels
