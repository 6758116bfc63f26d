// See attend.h.
#include "attend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attend_rows.h"

#if defined(__x86_64__) && defined(__linux__)

namespace pipe_kernels {
namespace {

// Rows of queries whose weights are kept until they are summed up into gradients of keys and values.
constexpr int64_t kRows = 128;

// What one thread works in.
struct Room {
  std::vector<bf16> keys_turned, keys, values_turned, values;  // panels
  std::vector<bf16> q, grad, q_turned, grad_turned;            // some rows of queries
  std::vector<float> scores, weights_grad;                     // [panels][32 rows][32]
  std::vector<bf16> weights, scores_grad;                      // [32 rows][panels * 32]
  std::vector<bf16> weights_panels, scores_grad_panels;        // [panels][rows of queries * 32]
};
thread_local Room room;

template <class T>
T* at_least(std::vector<T>& place, int64_t count) {
  if (static_cast<int64_t>(place.size()) < count) place.resize(count);
  return place.data();
}

// [rows, dim] of keys or values as panels of 32 keys each, depth dim.
const bf16* turned_panels(Instructions how, const bf16* x, const Document& d, std::vector<bf16>& place) {
  const int64_t panels = padded(d.rows) / kPanel;
  bf16* out = at_least(place, panels * kPanel * d.dim);
  const Right right{x, nullptr, d.kv_stride, d.dim, true};
  for (int64_t p = 0; p < panels; p++) pack(how, right, 0, d.dim, p * kPanel, std::min(kPanel, d.rows - p * kPanel), out + p * kPanel * d.dim);
  return out;
}

// The same as panels of 32 of the dim columns each, depth the padded rows.
const bf16* plain_panels(Instructions how, const bf16* x, const Document& d, std::vector<bf16>& place) {
  const int64_t depth = padded(d.rows);
  bf16* out = at_least(place, depth * d.dim);
  const Right right{x, nullptr, d.kv_stride, d.rows, false};
  for (int64_t column = 0; column < d.dim; column += kPanel) pack(how, right, 0, depth, column, kPanel, out + column * depth);
  return out;
}

// Rows [first, first + padded count) of a head's queries end to end, zeros from `count` on.
const bf16* rows_of(const bf16* x, const Document& d, int64_t first, int64_t count, std::vector<bf16>& place) {
  const int64_t room = padded(count);
  bf16* out = at_least(place, room * d.dim);
  for (int64_t r = 0; r < count; r++) std::memcpy(out + r * d.dim, x + (first + r) * d.q_stride, d.dim * sizeof(bf16));
  std::memset(static_cast<void*>(out + count * d.dim), 0, (room - count) * d.dim * sizeof(bf16));
  return out;
}

// The panels of keys that queries [row, row + 32) see any of.
struct Seen {
  int64_t first, last;
  int64_t count() const { return last - first; }
};

Seen seen_from(const Document& d, int64_t row) {
  return {d.window > 0 ? std::max<int64_t>(0, row - d.window + 1) / kPanel : 0, row / kPanel + 1};
}

Keys keys_of_query(const Document& d, int64_t query, const Seen& seen) {
  const int64_t skipped = seen.first * kPanel;
  return {d.window > 0 ? std::max<int64_t>(0, query + 1 - d.window - skipped) : 0, query + 1 - skipped};
}

// Scores, or gradients to weights, of 32 rows: `left` [32, dim] with each seen panel of keys or values.
void scored(Instructions how, const bf16* left, const bf16* panels, const Document& d, const Seen& seen, float* out) {
  for (int64_t p = seen.first; p < seen.last; p++) {
    const Packed part{left, d.dim, panels + p * kPanel * d.dim, d.dim};
    block(how, &part, 1, 0, false, out + (p - seen.first) * kBlock);
  }
}

// `left` [32, seen keys] times panels of all keys or values, to rows of `out`.
void gathered(Instructions how, const bf16* left, const bf16* panels, const Document& d, const Seen& seen, const float* factors, int64_t count, bf16* out) {
  alignas(64) float sums[kBlock];
  const int64_t depth = padded(d.rows), width = seen.count() * kPanel;
  for (int64_t column = 0; column < d.dim; column += kPanel) {
    const Packed part{left, width, panels + column * depth + seen.first * kBlock, width};
    block(how, &part, 1, 0, false, sums);
    put_rows(how, sums, factors, count, out + column, d.q_stride);
  }
}

// What attend_back() has packed of the keys and values.
struct Panels {
  const bf16 *keys_turned, *keys, *values_turned;
};

// The gradient to 32 rows of queries; their weights and gradients to scores go to number `at` of `rows` blocks of each panel.
void queries_back(Instructions how, const Document& d, const Panels& panels, const bf16* q, const bf16* grad, const float* logs,
                  int64_t row, int64_t at, int64_t rows, bf16* dq) {
  const Seen seen = seen_from(d, row);
  const int64_t width = seen.count() * kPanel, real = std::min(kPanel, d.rows - row);
  float *scores = at_least(room.scores, width * kPanel), *weights_grad = at_least(room.weights_grad, width * kPanel);
  bf16 *weights = at_least(room.weights, width * kPanel), *scores_grad = at_least(room.scores_grad, width * kPanel);
  scored(how, q, panels.keys_turned, d, seen, scores);
  scored(how, grad, panels.values_turned, d, seen, weights_grad);
  for (int64_t r = 0; r < real; r++)
    scores_gradient(how, scores + r * kPanel, weights_grad + r * kPanel, keys_of_query(d, row + r, seen), seen.count(), d.scale, logs[row + r],
                    weights + r * width, scores_grad + r * width);
  std::memset(static_cast<void*>(weights + real * width), 0, (kPanel - real) * width * sizeof(bf16));
  std::memset(static_cast<void*>(scores_grad + real * width), 0, (kPanel - real) * width * sizeof(bf16));
  gathered(how, scores_grad, panels.keys, d, seen, nullptr, real, dq + row * d.q_stride);
  for (int64_t p = seen.first; p < seen.last; p++) {
    const int64_t place = p * rows * kBlock + at * kBlock, column = (p - seen.first) * kPanel;
    pack(how, {weights, nullptr, width, kPanel, false}, 0, kPanel, column, kPanel, room.weights_panels.data() + place);
    pack(how, {scores_grad, nullptr, width, kPanel, false}, 0, kPanel, column, kPanel, room.scores_grad_panels.data() + place);
  }
}

// Adds what some rows of one head's queries give to the gradients of keys and values: sums [panels][dim / 32][32 of dim][32 keys].
void rows_back(Instructions how, const Document& d, const Panels& panels, const bf16* q, const bf16* grad, const float* logs,
               int64_t first, bf16* dq, float* keys_sums, float* values_sums) {
  const int64_t count = std::min(kRows, d.rows - first), blocks = padded(count) / kPanel, all = padded(d.rows) / kPanel;
  const bf16 *own = rows_of(q, d, first, count, room.q), *own_grad = rows_of(grad, d, first, count, room.grad);
  bf16 *own_turned = at_least(room.q_turned, blocks * kPanel * d.dim), *grad_turned = at_least(room.grad_turned, blocks * kPanel * d.dim);
  turn(how, own, blocks * kPanel, d.dim, d.dim, own_turned);
  turn(how, own_grad, blocks * kPanel, d.dim, d.dim, grad_turned);
  at_least(room.weights_panels, all * blocks * kBlock);
  at_least(room.scores_grad_panels, all * blocks * kBlock);
  for (int64_t i = 0; i < blocks; i++)
    queries_back(how, d, panels, own + i * kPanel * d.dim, own_grad + i * kPanel * d.dim, logs, first + i * kPanel, i, blocks, dq);
  for (int64_t p = seen_from(d, first).first; p <= first / kPanel + blocks - 1; p++) {
    // Of these blocks, those that see this panel.
    const int64_t from = std::max<int64_t>(0, p - first / kPanel);
    int64_t to = from;
    while (to < blocks && seen_from(d, first + to * kPanel).first <= p) to++;
    if (to == from) continue;
    const int64_t place = (p * blocks + from) * kBlock, depth = (to - from) * kPanel;
    for (int64_t column = 0; column < d.dim; column += kPanel) {
      const int64_t sum = (p * d.dim + column) * kPanel;
      const Packed to_values{grad_turned + from * kPanel, blocks * kPanel, room.weights_panels.data() + place, depth};
      const Packed to_keys{own_turned + from * kPanel, blocks * kPanel, room.scores_grad_panels.data() + place, depth};
      block(how, &to_values, 1, column, true, values_sums + sum);
      block(how, &to_keys, 1, column, true, keys_sums + sum);
    }
  }
}

}  // namespace

void attend(Instructions how, const Document& d, bf16* out, float* logs, int64_t logs_stride) {
  const Tiles tiles(how);
  const bf16 *keys = turned_panels(how, d.k, d, room.keys_turned), *values = plain_panels(how, d.v, d, room.values);
  for (int64_t head = 0; head < d.heads; head++) {
    for (int64_t row = 0; row < d.rows; row += kPanel) {
      const Seen seen = seen_from(d, row);
      const int64_t width = seen.count() * kPanel, real = std::min(kPanel, d.rows - row);
      float* scores = at_least(room.scores, width * kPanel);
      bf16* weights = at_least(room.weights, width * kPanel);
      scored(how, rows_of(d.q + head * d.dim, d, row, real, room.q), keys, d, seen, scores);
      float shares[kPanel];
      for (int64_t r = 0; r < real; r++) {
        const Softmax found = powers_of(how, scores + r * kPanel, keys_of_query(d, row + r, seen), seen.count(), d.scale, weights + r * width);
        shares[r] = 1.0f / found.sum;
        logs[head * logs_stride + row + r] = found.top * d.scale + std::log(found.sum);
      }
      std::memset(static_cast<void*>(weights + real * width), 0, (kPanel - real) * width * sizeof(bf16));
      gathered(how, weights, values, d, seen, shares, real, out + row * d.q_stride + head * d.dim);
    }
  }
}

int64_t gradient_sums(int64_t rows, int64_t dim) {
  return 2 * padded(rows) * dim;
}

void attend_back(Instructions how, const Document& d, const bf16* grad, const float* logs, int64_t logs_stride, bf16* dq, float* sums) {
  const Tiles tiles(how);
  const Panels panels{turned_panels(how, d.k, d, room.keys_turned), plain_panels(how, d.k, d, room.keys), turned_panels(how, d.v, d, room.values_turned)};
  const int64_t each = padded(d.rows) * d.dim;
  std::memset(sums, 0, 2 * each * sizeof(float));
  for (int64_t head = 0; head < d.heads; head++)
    for (int64_t first = 0; first < d.rows; first += kRows)
      rows_back(how, d, panels, d.q + head * d.dim, grad + head * d.dim, logs + head * logs_stride, first, dq + head * d.dim, sums, sums + each);
}

void put_gradients(Instructions how, const Document& d, float* sums, int64_t parts, bf16* dk, bf16* dv) {
  const int64_t count = gradient_sums(d.rows, d.dim);
  for (int64_t part = 1; part < parts; part++)
    for (int64_t i = 0; i < count; i++) sums[i] += sums[part * count + i];
  put_turned(how, sums, d, dk);
  put_turned(how, sums + count / 2, d, dv);
}

}  // namespace pipe_kernels

#else

namespace pipe_kernels {

void attend(Instructions, const Document&, bf16*, float*, int64_t) {}
int64_t gradient_sums(int64_t, int64_t) {
  return 0;
}
void attend_back(Instructions, const Document&, const bf16*, const float*, int64_t, bf16*, float*) {}
void put_gradients(Instructions, const Document&, float*, int64_t, bf16*, bf16*) {}

}  // namespace pipe_kernels

#endif
