// What attention in tiles (attend.h) does row by row: softmax, its gradient, and rounding to where answers belong.
#pragma once
#include <algorithm>
#include <cstdint>

#include "attend.h"

namespace pipe_kernels {

// Numbers of a block of 32 rows and 32 columns. Scores lie in blocks: a row's next 32 columns are this far away.
constexpr int64_t kBlock = kPanel * kPanel;

// The keys that one query sees, counted from the first panel's first.
struct Keys {
  int64_t first, last;
  uint32_t within(int64_t panel) const {
    const int64_t low = std::max<int64_t>(0, first - panel * kPanel), high = std::min<int64_t>(kPanel, last - panel * kPanel);
    return static_cast<uint32_t>(((uint64_t{1} << high) - 1) & ~((uint64_t{1} << low) - 1));
  }
  int64_t first_panel() const { return first / kPanel; }
  int64_t last_panel() const { return (last + kPanel - 1) / kPanel; }
};

struct Softmax {
  float sum, top;
};

// One row's scores, [panels][.. 32 ..], become bf16 powers of their distance to the largest, in `out` [panels * 32]. Gives the
// sum of powers and the largest score.
Softmax powers_of(Instructions how, const float* scores, const Keys& keys, int64_t panels, float scale, bf16* out);

// One row's scores become weights again, and with the gradient to the weights the gradient to the scores; both as bf16.
void scores_gradient(Instructions how, float* scores, const float* weights_grad, const Keys& keys, int64_t panels, float scale, float log,
                     bf16* weights, bf16* scores_grad);

// Sums [32, 32] times a factor per row as bf16 to rows of `out`, the first `count` of them.
void put_rows(Instructions how, const float* sums, const float* factors, int64_t count, bf16* out, int64_t stride);

// sums [panels][dim / 32][32 of dim][32 keys] to rows of bf16.
void put_turned(Instructions how, const float* sums, const Document& document, bf16* out);

}  // namespace pipe_kernels
