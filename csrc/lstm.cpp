// The LSTM's recurrent part, forward and backward, in parallel over rows only: the same bits from run to run.
//
// The weights are packed so that one tile of products holds the four gates of the same units, which are then finished
// in registers. Every thread takes its rows through all of time, without meeting the others.
#include "kernels.h"
#include "simd.h"

namespace FW_ISA {

namespace {

constexpr int GATE_ROWS = rows_for(4);

// Panels [H / W][k][gate][W] of the weight [4 H, H].
void pack_forward(const float* weight, int H, float* packed) {
  for (int panel = 0; panel < H / WIDTH; ++panel)
    for (int gate = 0; gate < 4; ++gate)
      for (int unit = 0; unit < WIDTH; ++unit) {
        const float* row = weight + std::size_t(gate * H + panel * WIDTH + unit) * H;
        float* to = packed + std::size_t(panel) * H * 4 * WIDTH + gate * WIDTH + unit;
        for (int k = 0; k < H; ++k) to[std::size_t(k) * 4 * WIDTH] = row[k];
      }
}

struct Rows {
  const LSTMArguments& a;
  int T, H;
  int64_t first, count;
  float *hidden, *cell;  // [count][H]

  const float* gate_input(int64_t b, int t) const {
    if (a.tokens) return a.gate_inputs + a.tokens[b * a.tokens_row + t * a.tokens_step] * a.gate_inputs_row;
    return a.gate_inputs + b * a.gate_inputs_row + t * a.gate_inputs_step;
  }
  bool passes(int64_t b, int t) const { return !a.mask || a.mask[b * T + t]; }
  bool reset(int64_t b, int t) const { return a.resets && a.resets[b * T + t]; }
};

template <int R>
FW_INLINE void gates(const Rows& rows, const float* packed, int panel, int from, int t, const float* h) {
  const LSTMArguments& a = rows.a;
  const int H = rows.H, unit = panel * WIDTH;
  const float* w = packed + std::size_t(panel) * H * 4 * WIDTH;
  vec<WIDTH> sums[R][4];
  for (int r = 0; r < R; ++r)
    for (int g = 0; g < 4; ++g) sums[r][g] = load<WIDTH>(rows.gate_input(rows.first + from + r, t) + g * H + unit);
  for (int k = 0; k < H; ++k, w += 4 * WIDTH) {
    vec<WIDTH> column[4];
    for (int g = 0; g < 4; ++g) column[g] = load<WIDTH>(w + g * WIDTH);
    for (int r = 0; r < R; ++r) {
      float x = h[(from + r) * H + k];
      for (int g = 0; g < 4; ++g) sums[r][g] += x * column[g];
    }
  }
  for (int r = 0; r < R; ++r) {
    const int64_t b = rows.first + from + r;
    vec<WIDTH> i = sigmoid<WIDTH>(sums[r][0]), f = sigmoid<WIDTH>(sums[r][1]);
    vec<WIDTH> g = tanh<WIDTH>(sums[r][2]), o = sigmoid<WIDTH>(sums[r][3]);
    float* c = rows.cell + (from + r) * H + unit;
    vec<WIDTH> before = load<WIDTH>(c);
    vec<WIDTH> after = f * before + i * g;
    vec<WIDTH> out = o * tanh<WIDTH>(after);
    const std::size_t place = (std::size_t(t) * a.B + b) * H + unit;
    if (!rows.passes(b, t)) {
      after = before;
      out = load<WIDTH>(h + (from + r) * H + unit);
    }
    store<WIDTH>(c, after);
    store<WIDTH>(a.hiddens + place, out);
    if (a.gates) {
      float* saved = a.gates + (std::size_t(t) * a.B + b) * 4 * H + unit;
      store<WIDTH>(saved, i);
      store<WIDTH>(saved + H, f);
      store<WIDTH>(saved + 2 * H, g);
      store<WIDTH>(saved + 3 * H, o);
      store<WIDTH>(a.cells + place, after);
    }
  }
}

void forward_rows(Rows& rows, const float* packed) {
  const LSTMArguments& a = rows.a;
  const int H = rows.H;
  const std::size_t bytes = sizeof(float) * H;
  for (int t = 0; t < rows.T; ++t) {
    for (int64_t r = 0; r < rows.count; ++r)
      if (rows.reset(rows.first + r, t)) {
        std::memset(rows.hidden + r * H, 0, bytes);
        std::memset(rows.cell + r * H, 0, bytes);
      }
    for (int panel = 0; panel < H / WIDTH; ++panel)
      tiles<GATE_ROWS>(int(rows.count), [&](int from, auto size) {
        gates<decltype(size)::value>(rows, packed, panel, from, t, rows.hidden);
      });
    std::memcpy(rows.hidden, a.hiddens + (std::size_t(t) * a.B + rows.first) * H, bytes * rows.count);
  }
}

// The gradient of one row's gates at one step, from those of its h and c; returns with those of c_{t-1} in d_cell.
void gate_gradients(const Rows& rows, int64_t r, int t, float* d_hidden, float* d_cell) {
  const LSTMArguments& a = rows.a;
  const int H = rows.H;
  const int64_t b = rows.first + r;
  const std::size_t place = (std::size_t(t) * a.B + b) * H;
  const float* saved = a.gates + place * 4;
  const float* before = t ? a.cells + place - std::size_t(a.B) * H : a.cell + b * H;
  const float* above = a.d_hiddens ? a.d_hiddens + b * a.d_hiddens_row + t * a.d_hiddens_step : nullptr;
  float* out = a.d_gate_inputs + place * 4;
  const bool passes = rows.passes(b, t), reset = rows.reset(b, t);
  for (int unit = 0; unit < H; unit += WIDTH) {
    vec<WIDTH> dh = load<WIDTH>(d_hidden + r * H + unit);
    if (above) dh += load<WIDTH>(above + unit);
    if (!passes) {  // h and c go through this step as they are
      store<WIDTH>(d_hidden + r * H + unit, dh);
      for (int g = 0; g < 4; ++g) store<WIDTH>(out + g * H + unit, vec<WIDTH>{});
      continue;
    }
    vec<WIDTH> i = load<WIDTH>(saved + unit), f = load<WIDTH>(saved + H + unit);
    vec<WIDTH> g = load<WIDTH>(saved + 2 * H + unit), o = load<WIDTH>(saved + 3 * H + unit);
    vec<WIDTH> c = reset ? vec<WIDTH>{} : load<WIDTH>(before + unit);
    vec<WIDTH> squashed = tanh<WIDTH>(load<WIDTH>(a.cells + place + unit));
    vec<WIDTH> dc = load<WIDTH>(d_cell + r * H + unit) + dh * o * (1.f - squashed * squashed);
    store<WIDTH>(out + unit, dc * g * i * (1.f - i));
    store<WIDTH>(out + H + unit, dc * c * f * (1.f - f));
    store<WIDTH>(out + 2 * H + unit, dc * i * (1.f - g * g));
    store<WIDTH>(out + 3 * H + unit, dh * squashed * o * (1.f - o));
    store<WIDTH>(d_cell + r * H + unit, dc * f);
  }
}

// Panels [ceil(H / wide)][4 H][wide] of the weight [4 H, H], padded with zeros.
void pack_backward(const float* weight, int H, int wide, float* packed) {
  for (int first = 0; first < H; first += wide) {
    const int filled = smaller(wide, H - first);
    for (int k = 0; k < 4 * H; ++k, packed += wide) {
      std::memcpy(packed, weight + std::size_t(k) * H + first, sizeof(float) * filled);
      std::memset(packed + filled, 0, sizeof(float) * (wide - filled));
    }
  }
}

// NV: vectors in a panel of the packed weight.
template <int NV>
void backward_rows(Rows& rows, const float* packed, float* d_hidden, float* d_cell) {
  const LSTMArguments& a = rows.a;
  const int H = rows.H;
  constexpr int whole = NV * WIDTH;
  for (int t = rows.T - 1; t >= 0; --t) {
    for (int64_t r = 0; r < rows.count; ++r) gate_gradients(rows, r, t, d_hidden, d_cell);
    const float* d_gates = a.d_gate_inputs + (std::size_t(t) * a.B + rows.first) * 4 * H;
    for (int first = 0; first < H; first += whole) {
      const float* w = packed + std::size_t(first) * 4 * H;
      const int filled = smaller(whole, H - first);
      tiles<rows_for(NV)>(int(rows.count), [&](int from, auto size) {
        constexpr int R = decltype(size)::value;
        float found[R * whole];
        product_tile<WIDTH, R, NV, false>(4 * H, d_gates + std::size_t(from) * 4 * H, 4 * H, 1, w, whole, found, whole);
        for (int r = 0; r < R; ++r) {
          const int64_t b = rows.first + from + r;
          float* to = d_hidden + (from + r) * H + first;
          if (rows.passes(b, t)) std::memcpy(to, found + r * whole, sizeof(float) * filled);
          if (rows.reset(b, t)) std::memset(to, 0, sizeof(float) * filled);
        }
      });
    }
    for (int64_t r = 0; r < rows.count; ++r)
      if (rows.reset(rows.first + r, t)) std::memset(d_cell + r * H, 0, sizeof(float) * H);
  }
}

template <typename F>
void for_threads(const LSTMArguments& a, F&& run) {
  const int threads = larger(1, smaller(int(a.threads), int(a.B)));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    const int64_t first = a.B * i / threads, last = a.B * (i + 1) / threads;
    run(first, last - first);
  }
}

}  // namespace

int lstm_forward(const LSTMArguments& a) {
  if (a.H % WIDEST_VECTOR) return UNSUPPORTED_SIZE;
  const int H = int(a.H);
  float* packed = aligned_floats(std::size_t(4) * H * H);
  pack_forward(a.weight, H, packed);
  for_threads(a, [&](int64_t first, int64_t count) {
    float* hidden = workspace(2 * count * H);
    Rows rows{a, int(a.T), H, first, count, hidden, hidden + count * H};
    std::memcpy(rows.hidden, a.hidden + first * H, sizeof(float) * count * H);
    std::memcpy(rows.cell, a.cell + first * H, sizeof(float) * count * H);
    forward_rows(rows, packed);
    std::memcpy(a.last_hidden + first * H, rows.hidden, sizeof(float) * count * H);
    std::memcpy(a.last_cell + first * H, rows.cell, sizeof(float) * count * H);
  });
  std::free(packed);
  return DONE;
}

int lstm_backward(const LSTMArguments& a) {
  if (a.H % WIDEST_VECTOR) return UNSUPPORTED_SIZE;
  const int H = int(a.H), wide = (H > 2 * WIDTH ? 4 : 2) * WIDTH;
  float* packed = aligned_floats(std::size_t(4) * H * ((H + wide - 1) / wide * wide));
  pack_backward(a.weight, H, wide, packed);
  // d_hidden and d_cell hold the gradients of the last states at first, and of the initial ones in the end
  for_threads(a, [&](int64_t first, int64_t count) {
    Rows rows{a, int(a.T), H, first, count, nullptr, nullptr};
    (H > 2 * WIDTH ? backward_rows<4> : backward_rows<2>)(rows, packed, a.d_hidden + first * H, a.d_cell + first * H);
  });
  std::free(packed);
  return DONE;
}

// d_table[token] += d_gate_inputs, for every position in the order of time; each thread has columns of its own.
int gather_backward(const GatherArguments& a) {
  const int threads = larger(1, smaller(int(a.threads), int(a.columns) / WIDTH));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    const int64_t vectors = a.columns / WIDTH;
    const int64_t first = vectors * i / threads * WIDTH, last = vectors * (i + 1) / threads * WIDTH;
    for (int64_t p = 0; p < a.positions; ++p) {
      const float* from = a.gradient + p * a.columns;
      float* to = a.table + a.tokens[p] * a.columns;
      for (int64_t c = first; c < last; c += WIDTH) store<WIDTH>(to + c, load<WIDTH>(to + c) + load<WIDTH>(from + c));
    }
  }
  return DONE;
}

}  // namespace FW_ISA
