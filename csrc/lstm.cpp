// The LSTM's recurrent part, forward and backward, in parallel over rows only: the same bits from run to run.
//
// The weights are packed so that one tile of products holds the four gates of the same units, which are then finished
// in registers. Every thread takes its rows through all of time, without meeting the others.
#include "kernels.h"
#include "packed.h"
#include "simd.h"

namespace FW_ISA {

namespace {

// Rows first … first + count of the batch, those of a thread.
struct Rows {
  const LSTMArguments& a;
  int64_t first, count;
  int T = int(a.T), H = int(a.H);

  const float* gate_input(int64_t b, int t) const {
    if (a.tokens) return a.gate_inputs + a.tokens[b * a.tokens_row + t * a.tokens_step] * a.gate_inputs_row;
    return a.gate_inputs + b * a.gate_inputs_row + t * a.gate_inputs_step;
  }
  bool passes(int64_t b, int t) const { return !a.mask || a.mask[b * T + t]; }
  bool reset(int64_t b, int t) const { return a.resets && a.resets[b * T + t]; }
  int units(int unit) const { return smaller(WIDTH, H - unit); }  // of the vector that begins at a unit
};

// The units of a vector at step t, from what the recurrent weights add to their gates, [2][count][2][WIDTH].
FW_INLINE void step(const Rows& rows, int64_t r, int t, int unit, const float* sums, const float* hidden, float* cell) {
  const LSTMArguments& a = rows.a;
  const int H = rows.H, n = rows.units(unit);
  const int64_t b = rows.first + r;
  const float* input = rows.gate_input(b, t) + unit;
  auto gate = [&](int g) {
    return load<WIDTH>(input + g * H, n) + load<WIDTH>(sums + ((g / 2 * rows.count + r) * 2 + g % 2) * WIDTH);
  };
  vec<WIDTH> i = sigmoid<WIDTH>(gate(0)), f = sigmoid<WIDTH>(gate(1)), g = tanh<WIDTH>(gate(2));
  vec<WIDTH> o = sigmoid<WIDTH>(gate(3));
  float* c = cell + r * H + unit;
  vec<WIDTH> before = load<WIDTH>(c, n);
  vec<WIDTH> after = f * before + i * g;
  vec<WIDTH> out = o * tanh<WIDTH>(after);
  const std::size_t place = (std::size_t(t) * a.B + b) * H + unit;
  if (!rows.passes(b, t)) {
    after = before;
    out = load<WIDTH>(hidden + r * H + unit, n);
  }
  store<WIDTH>(c, after, n);
  store<WIDTH>(a.hiddens + place, out, n);
  if (a.gates) {
    float* saved = a.gates + (std::size_t(t) * a.B + b) * 4 * H + unit;
    store<WIDTH>(saved, i, n);
    store<WIDTH>(saved + H, f, n);
    store<WIDTH>(saved + 2 * H, g, n);
    store<WIDTH>(saved + 3 * H, o, n);
    store<WIDTH>(a.cells + place, after, n);
  }
}

template <typename P>
void forward_rows(const Rows& rows, const Packed<P>& weights) {
  const LSTMArguments& a = rows.a;
  const int H = rows.H, count = int(rows.count);
  const std::size_t size = rows.count * H;
  float* hidden = workspace(2 * size + 4 * count * WIDTH + Operands<P>::floats(count, H));
  float *cell = hidden + size, *sums = cell + size;
  std::memcpy(hidden, a.hidden + rows.first * H, sizeof(float) * size);
  std::memcpy(cell, a.cell + rows.first * H, sizeof(float) * size);
  for (int t = 0; t < rows.T; ++t) {
    for (int64_t r = 0; r < count; ++r)
      if (rows.reset(rows.first + r, t)) {
        std::memset(hidden + r * H, 0, sizeof(float) * H);
        std::memset(cell + r * H, 0, sizeof(float) * H);
      }
    const Operands<P> operands(hidden, count, H, sums + 4 * count * WIDTH);
    for (int unit = 0; unit < H; unit += WIDTH) {
      for (int i = 0; i < 2; ++i) weights.multiply(unit / WIDTH * 2 + i, operands, sums + i * count * 2 * WIDTH);
      for (int r = 0; r < count; ++r) step(rows, r, t, unit, sums, hidden, cell);
    }
    std::memcpy(hidden, a.hiddens + (std::size_t(t) * a.B + rows.first) * H, sizeof(float) * size);
  }
  std::memcpy(a.last_hidden + rows.first * H, hidden, sizeof(float) * size);
  std::memcpy(a.last_cell + rows.first * H, cell, sizeof(float) * size);
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
    const int n = rows.units(unit);
    vec<WIDTH> dh = load<WIDTH>(d_hidden + r * H + unit, n);
    if (above) dh += load<WIDTH>(above + unit, n);
    if (!passes) {  // h and c go through this step as they are
      store<WIDTH>(d_hidden + r * H + unit, dh, n);
      for (int g = 0; g < 4; ++g) store<WIDTH>(out + g * H + unit, vec<WIDTH>{}, n);
      continue;
    }
    vec<WIDTH> i = load<WIDTH>(saved + unit, n), f = load<WIDTH>(saved + H + unit, n);
    vec<WIDTH> g = load<WIDTH>(saved + 2 * H + unit, n), o = load<WIDTH>(saved + 3 * H + unit, n);
    vec<WIDTH> c = reset ? vec<WIDTH>{} : load<WIDTH>(before + unit, n);
    vec<WIDTH> squashed = tanh<WIDTH>(load<WIDTH>(a.cells + place + unit, n));
    vec<WIDTH> dc = load<WIDTH>(d_cell + r * H + unit, n) + dh * o * (1.f - squashed * squashed);
    store<WIDTH>(out + unit, dc * g * i * (1.f - i), n);
    store<WIDTH>(out + H + unit, dc * c * f * (1.f - f), n);
    store<WIDTH>(out + 2 * H + unit, dc * i * (1.f - g * g), n);
    store<WIDTH>(out + 3 * H + unit, dh * squashed * o * (1.f - o), n);
    store<WIDTH>(d_cell + r * H + unit, dc * f, n);
  }
}

// d_hidden and d_cell hold the gradients of the last states at first, and of the initial ones in the end.
template <typename P>
void backward_rows(const Rows& rows, const Packed<P>& weights) {
  const LSTMArguments& a = rows.a;
  const int H = rows.H, count = int(rows.count);
  float *d_hidden = a.d_hidden + rows.first * H, *d_cell = a.d_cell + rows.first * H;
  float* sums = workspace(count * weights.PANEL + Operands<P>::floats(count, 4 * H));
  for (int t = rows.T - 1; t >= 0; --t) {
    for (int64_t r = 0; r < count; ++r) gate_gradients(rows, r, t, d_hidden, d_cell);
    const float* d_gates = a.d_gate_inputs + (std::size_t(t) * a.B + rows.first) * 4 * H;
    const Operands<P> operands(d_gates, count, 4 * H, sums + count * weights.PANEL);
    for (int panel = 0; panel * weights.PANEL < H; ++panel) {
      weights.multiply(panel, operands, sums);
      for (int r = 0; r < count; ++r) {
        const bool reset = rows.reset(rows.first + r, t), passes = rows.passes(rows.first + r, t);
        for (int n = 0; n < weights.PANEL && (reset || passes); n += WIDTH) {
          const int unit = panel * weights.PANEL + n;
          if (unit < H)
            store<WIDTH>(d_hidden + r * H + unit, reset ? vec<WIDTH>{} : load<WIDTH>(sums + r * weights.PANEL + n),
                         rows.units(unit));
        }
      }
    }
    for (int64_t r = 0; r < count; ++r)
      if (rows.reset(rows.first + r, t)) std::memset(d_cell + r * H, 0, sizeof(float) * H);
  }
}

int threads_for(const LSTMArguments& a) { return larger(1, smaller(int(a.threads), int(a.B))); }

template <typename F>
void for_threads(const LSTMArguments& a, F&& run) {
  const int threads = threads_for(a);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    const int64_t first = a.B * i / threads, last = a.B * (i + 1) / threads;
    run(Rows{a, first, last - first});
  }
}

template <typename P>
int forward(const LSTMArguments& a) {
  const int H = int(a.H), panels = 2 * ((H + WIDTH - 1) / WIDTH);
  Packed<P> weights(panels, H, threads_for(a), [&](int panel, int column, int k) {
    const int gate = panel % 2 * 2 + column / WIDTH, unit = panel / 2 * WIDTH + column % WIDTH;
    return unit < H ? a.weight[std::size_t(gate * H + unit) * H + k] : 0.f;
  });
  for_threads(a, [&](const Rows& rows) { forward_rows(rows, weights); });
  return DONE;
}

template <typename P>
int backward(const LSTMArguments& a) {
  const int H = int(a.H), wide = Packed<P>::PANEL, panels = (H + wide - 1) / wide;
  Packed<P> weights(panels, 4 * H, threads_for(a), [&](int panel, int column, int k) {
    const int unit = panel * wide + column;
    return unit < H ? a.weight[std::size_t(k) * H + unit] : 0.f;
  });
  for_threads(a, [&](const Rows& rows) { backward_rows(rows, weights); });
  return DONE;
}

}  // namespace

int lstm_forward(const LSTMArguments& a) {
#ifdef FW_BFLOAT16
  if (a.bfloat16) return forward<BFloat16>(a);
#endif
  return forward<Float32>(a);
}

int lstm_backward(const LSTMArguments& a) {
#ifdef FW_BFLOAT16
  if (a.bfloat16) return backward<BFloat16>(a);
#endif
  return backward<Float32>(a);
}

// d_table[token] += d_gate_inputs, for every position in the order of time; each thread has columns of its own.
int gather_backward(const GatherArguments& a) {
  const int64_t vectors = (a.columns + WIDTH - 1) / WIDTH;
  const int threads = larger(1, smaller(int(a.threads), int(vectors)));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    const int64_t first = vectors * i / threads * WIDTH, last = vectors * (i + 1) / threads * WIDTH;
    for (int64_t p = 0; p < a.positions; ++p) {
      const float* from = a.gradient + p * a.columns;
      float* to = a.table + a.tokens[p] * a.columns;
      for (int64_t c = first; c < last; c += WIDTH) {
        const int n = smaller(WIDTH, int(a.columns - c));
        store<WIDTH>(to + c, load<WIDTH>(to + c, n) + load<WIDTH>(from + c, n), n);
      }
    }
  }
  return DONE;
}

}  // namespace FW_ISA
