// The fast weight LSTM (without memory: the layer-normalised LSTM), forward and backward; src/fastweights/ops/fw_lstm.
//
// In parallel over rows only, each step's product with W for a block of rows at once: the same bits from run to run.
#include "kernels.h"
#include "outer_product.h"

namespace FW_ISA {

namespace {

struct FWLSTM : Recurrence<FWLSTMArguments> {
  float *gates_gain, *gates_bias, *cell_gain, *cell_bias;
  Weight weight;

  // of W, whose rows are padded gate by gate
  static float entry(const FWLSTMArguments& a, int P, int out, int in) {
    const int H = int(a.H);
    return in < H && out % P < H ? a.weight[(std::size_t(out / P) * H + out % P) * H + in] : 0.f;
  }

  FWLSTM(const FWLSTMArguments& a, bool forward)
      : Recurrence(a, a.memory != nullptr), weight(forward ? 4 * P : P, forward ? P : 4 * P, a.threads, [&](int column, int k) {
          return forward ? entry(a, P, column, k) : entry(a, P, k, column);
        }) {
    float* norms = aligned_floats(std::size_t(10) * P);
    gates_gain = norms, gates_bias = norms + 4 * P, cell_gain = norms + 8 * P, cell_bias = norms + 9 * P;
    pad(gates_gain, a.gates_gain, H, P, 4);
    pad(gates_bias, a.gates_bias, H, P, 4);
    pad(cell_gain, a.cell_gain, H, P);
    pad(cell_bias, a.cell_bias, H, P);
  }
  ~FWLSTM() { std::free(gates_gain); }

  std::size_t forward_space() const {
    return std::size_t(2 * ROWS_AT_ONCE) * P + P + padded(C) + std::size_t(C) * P + forming_space(C, H, P);
  }
  void forward(int64_t first, int rows) const {
    Pieces space{workspace(forward_space())};
    float *h = space.take(ROWS_AT_ONCE * P), *c = space.take(ROWS_AT_ONCE * P), *found = space.take(P);
    float *counts = space.take(C), *counted = space.take(std::size_t(C) * P), *formed = space.take(forming_space(C, H, P));
    pad(h, a.hidden + first * H, H, P, rows);
    pad(c, a.cell + first * H, H, P, rows);
    for (int begin = 0; begin < T; begin += C) {
      const int end = smaller(T, begin + C);
      for (int t = begin; t < end; ++t) {
        for (int r = 0; r < rows; ++r) {
          const int64_t b = first + r;
          if (row(b).reset(t)) zero(h + r * P, P), zero(c + r * P, P);
          pad(a.before + at(b, t) * 4 * P, a.gate_inputs + b * a.gate_inputs_row + t * a.gate_inputs_step, H, P, 4);
        }
        weight.multiply<true>(rows, h, a.before + at(first, t) * 4 * P);
        for (int r = 0; r < rows; ++r) {
          const int64_t b = first + r;
          if (row(b).passes(t))
            step(b, begin, t, h + r * P, c + r * P, counts, found);
          else
            zero(keys(b, begin) + (t - begin) * P, P);
          unpad(a.hiddens + (b * T + t) * H, h + r * P, H, P);
          std::memcpy(a.cells + at(b, t) * P, c + r * P, sizeof(float) * P);
        }
      }
      for (int r = 0; a.memory && r < rows; ++r) {
        const int64_t b = first + r;
        float* to = end < T && a.keep ? const_cast<float*>(start(b, end)) : a.last_memory + std::size_t(b) * H * H;
        form_memory(row(b), begin, end, keys(b, begin), start(b, begin), H, P, counts, counted, formed, to);
      }
    }
    unpad(a.last_hidden + first * H, h, H, P, rows);
    unpad(a.last_cell + first * H, c, H, P, rows);
  }

  void step(int64_t b, int begin, int t, float* h, float* c, float* counts, float* found) const {
    const float* before = a.before + at(b, t) * 4 * P;
    float *gates = a.gates + at(b, t) * 4 * P, *moments = a.moments + at(b, t) * 4;
    float *total = a.totals + at(b, t) * P, *candidate = a.candidates + at(b, t) * P;
    float *history = keys(b, begin), *key = history + (t - begin) * P;
    const Moments of_gates = moments_of(before, H, P, 4);
    for (int u = 0; u < 3 * P; u += WIDTH)
      store<WIDTH>(gates + u, sigmoid<WIDTH>(normalized(before + u, of_gates, gates_gain + u, gates_bias + u)));
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> g = normalized(before + 3 * P + u, of_gates, gates_gain + 3 * P + u, gates_bias + 3 * P + u);
      store<WIDTH>(gates + 3 * P + u, g);
      store<WIDTH>(key + u, relu<WIDTH>(g));
    }
    zero(found, P);
    if (a.memory) {
      const float of_start = row(b).writes(begin, t, counts);
      read(history, counts, t - begin + 1, key, P, found);
      read_memory(start(b, begin), of_start, key, H, found);
    }
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> x = relu<WIDTH>(load<WIDTH>(gates + 3 * P + u) + load<WIDTH>(found + u));
      store<WIDTH>(candidate + u, x);
      store<WIDTH>(total + u, load<WIDTH>(gates + P + u) * load<WIDTH>(c + u) + load<WIDTH>(gates + u) * x);
    }
    const Moments of_cell = moments_of(total, H, P, 1);
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> x = normalized(total + u, of_cell, cell_gain + u, cell_bias + u);
      store<WIDTH>(c + u, x);
      store<WIDTH>(h + u, load<WIDTH>(gates + 2 * P + u) * relu<WIDTH>(x));
    }
    moments[0] = of_gates.mean, moments[1] = of_gates.inverse_deviation;
    moments[2] = of_cell.mean, moments[3] = of_cell.inverse_deviation;
  }

  // What a block of rows works on in the backward pass.
  struct Gradients {
    float *h, *c, *before, *product, *reads, *of_last, *found, *counts, *counted, *formed, *cell;
    bool from_last;
  };
  std::size_t backward_space() const {
    return std::size_t(ROWS_AT_ONCE) * (7 * P + std::size_t(2 * C) * P) + 2 * P + padded(C) + std::size_t(C) * P +
           forming_space(C, H, P);
  }
  void backward(int64_t first, int rows) const {
    Pieces space{workspace(backward_space())};
    const std::size_t block = std::size_t(ROWS_AT_ONCE) * P;
    Gradients d;
    d.h = space.take(block), d.c = space.take(block), d.before = space.take(4 * block), d.product = space.take(block);
    d.reads = space.take(block * C), d.of_last = space.take(block * C), d.found = space.take(P), d.cell = space.take(P);
    d.counts = space.take(C), d.counted = space.take(std::size_t(C) * P), d.formed = space.take(forming_space(C, H, P));
    pad(d.h, a.d_hidden + first * H, H, P, rows);
    pad(d.c, a.d_cell + first * H, H, P, rows);
    zero(a.d_norms + first * 10 * P, rows * 10 * P);
    for (int begin = (T - 1) / C * C; begin >= 0; begin -= C) {
      const int end = smaller(T, begin + C);
      d.from_last = a.memory && (end < T || a.has_d_last_memory);
      for (int r = 0; d.from_last && r < rows; ++r)
        form_memory_backward(row(first + r), begin, end, keys(first + r, begin), a.d_memory + (first + r) * H * H, H, P,
                             d.counts, d.counted, d.formed, d.of_last + std::size_t(r) * C * P);
      for (int t = end - 1; t >= begin; --t) {
        for (int r = 0; r < rows; ++r) {
          if (row(first + r).passes(t)) {
            step_backward(first + r, r, begin, end, t, d);
          } else {
            zero(d.before + r * 4 * P, 4 * P);
            zero(d.reads + (std::size_t(r) * C + t - begin) * P, P);
            const float* above = d_output(first + r, t);
            for (int u = 0; above && u < H; ++u) d.h[r * P + u] += above[u];
          }
          unpad(a.d_gate_inputs + ((first + r) * T + t) * 4 * H, d.before + r * 4 * P, H, P, 4);
        }
        weight.multiply<false>(rows, d.before, d.product);
        for (int r = 0; r < rows; ++r) {
          if (row(first + r).passes(t)) std::memcpy(d.h + r * P, d.product + r * P, sizeof(float) * P);
          if (row(first + r).reset(t)) zero(d.h + r * P, P), zero(d.c + r * P, P);
        }
      }
      for (int r = 0; a.memory && a.d_memory && r < rows; ++r)
        memory_gradient(row(first + r), begin, end, 1, keys(first + r, begin), d.reads + std::size_t(r) * C * P,
                        d.from_last, H, P, d.counts, d.counted, d.formed, a.d_memory + (first + r) * H * H);
    }
    unpad(a.d_hidden + first * H, d.h, H, P, rows);
    unpad(a.d_cell + first * H, d.c, H, P, rows);
  }

  const float* d_output(int64_t b, int t) const {
    return a.d_hiddens ? a.d_hiddens + b * a.d_hiddens_row + t * a.d_hiddens_step : nullptr;
  }

  void step_backward(int64_t b, int r, int begin, int end, int t, Gradients& d) const {
    const float *before = a.before + at(b, t) * 4 * P, *gates = a.gates + at(b, t) * 4 * P;
    const float *total = a.totals + at(b, t) * P, *candidate = a.candidates + at(b, t) * P;
    const float *cell = a.cells + at(b, t) * P, *moments = a.moments + at(b, t) * 4;
    const float *history = keys(b, begin), *key = history + (t - begin) * P, *above = d_output(b, t);
    float *d_h = d.h + r * P, *d_c = d.c + r * P, *d_gates = d.before + r * 4 * P, *norms = a.d_norms + b * 10 * P;
    float *d_reads = d.reads + std::size_t(r) * C * P, *d_read = d_reads + (t - begin) * P;
    float previous[WIDTH];
    for (int u = 0; above && u < H; ++u) d_h[u] += above[u];
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> c = load<WIDTH>(cell + u), dh = load<WIDTH>(d_h + u), o = load<WIDTH>(gates + 2 * P + u);
      store<WIDTH>(d_gates + 2 * P + u, c > 0.f ? dh * c * o * (1.f - o) : vec<WIDTH>{});
      store<WIDTH>(d.cell + u, load<WIDTH>(d_c + u) + (c > 0.f ? dh * o : vec<WIDTH>{}));
    }
    normalize_backward(d.cell, total, {moments[2], moments[3]}, cell_gain, H, P, 1, d.cell, norms + 8 * P,
                       norms + 9 * P);
    const bool fresh = row(b).reset(t);
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> dt = load<WIDTH>(d.cell + u), i = load<WIDTH>(gates + u), f = load<WIDTH>(gates + P + u);
      vec<WIDTH> x = load<WIDTH>(candidate + u), c{};
      if (!fresh && t) c = load<WIDTH>(a.cells + at(b, t - 1) * P + u);
      if (!fresh && !t && u < H) {
        for (int lane = 0; lane < WIDTH; ++lane) previous[lane] = u + lane < H ? a.cell[b * H + u + lane] : 0.f;
        c = load<WIDTH>(previous);
      }
      store<WIDTH>(d_gates + u, dt * x * i * (1.f - i));
      store<WIDTH>(d_gates + P + u, dt * c * f * (1.f - f));
      store<WIDTH>(d_c + u, dt * f);
      store<WIDTH>(d_read + u, x > 0.f ? dt * i : vec<WIDTH>{});
    }
    if (a.memory) {
      const float of_start = row(b).writes(begin, t, d.counts);
      zero(d.found, P);
      read(history, d.counts, t - begin + 1, d_read, P, d.found);
      read_memory_transposed(start(b, begin), of_start, d_read, H, d.found);
      const int readers = row(b).readers(t, end, d.counts);
      read_by(key, d_read, d.counts, readers, 1, key, P, d.found);
      const float* of_last = d.of_last + (std::size_t(r) * C + t - begin) * P;
      for (int u = 0; d.from_last && u < P; ++u) d.found[u] += of_last[u];
    }
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> dg = load<WIDTH>(d_read + u);
      vec<WIDTH> through_key = a.memory ? load<WIDTH>(d.found + u) : vec<WIDTH>{};
      store<WIDTH>(d_gates + 3 * P + u, dg + (load<WIDTH>(key + u) > 0.f ? through_key : vec<WIDTH>{}));
    }
    normalize_backward(d_gates, before, {moments[0], moments[1]}, gates_gain, H, P, 4, d_gates, norms, norms + 4 * P);
  }
};

}  // namespace

int fw_lstm_forward(const FWLSTMArguments& a) {
  FWLSTM op(a, true);
  for_blocks_of_rows(a.B, a.threads, op.rows_at_once(), [&](int64_t first, int rows) { op.forward(first, rows); });
  return DONE;
}

int fw_lstm_backward(const FWLSTMArguments& a) {
  FWLSTM op(a, false);
  for_blocks_of_rows(a.B, a.threads, op.rows_at_once(), [&](int64_t first, int rows) { op.backward(first, rows); });
  return DONE;
}

}  // namespace FW_ISA
