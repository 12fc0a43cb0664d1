// The fast weight RNN, forward and backward; src/fastweights/ops/fw_rnn.
//
// In parallel over rows only, each step's product with W for a block of rows at once: the same bits from run to run.
#include "kernels.h"
#include "outer_product.h"

namespace FW_ISA {

namespace {

struct FWRNN : Recurrence<FWRNNArguments> {
  int S;
  float *gain, *bias;
  Weight weight;

  FWRNN(const FWRNNArguments& a, bool forward)
      : Recurrence(a, true), S(int(a.inner_steps)), weight(P, P, a.threads, [&](int column, int k) {
          if (column >= H || k >= H) return 0.f;
          return forward ? a.weight[std::size_t(column) * H + k] : a.weight[std::size_t(k) * H + column];
        }) {
    gain = aligned_floats(2 * P), bias = gain + P;
    pad(gain, a.gain, H, P);
    pad(bias, a.bias, H, P);
  }
  ~FWRNN() { std::free(gain); }

  float* query(int64_t b, int t, int s) const { return a.queries + ((a.keep ? b * T + t : b) * S + s) * P; }

  std::size_t forward_space() const {
    return std::size_t(2 * ROWS_AT_ONCE) * P + P + padded(C) + std::size_t(C) * P + forming_space(C, H, P);
  }
  void forward(int64_t first, int rows) const {
    Pieces space{workspace(forward_space())};
    float *h = space.take(ROWS_AT_ONCE * P), *boundary = space.take(ROWS_AT_ONCE * P), *found = space.take(P);
    float *counts = space.take(C), *counted = space.take(std::size_t(C) * P), *formed = space.take(forming_space(C, H, P));
    pad(h, a.hidden + first * H, H, P, rows);
    for (int begin = 0; begin < T; begin += C) {
      const int end = smaller(T, begin + C);
      for (int t = begin; t < end; ++t) {
        for (int r = 0; r < rows; ++r) {
          const int64_t b = first + r;
          if (row(b).reset(t)) zero(h + r * P, P);
          pad(boundary + r * P, a.inputs + b * a.inputs_row + t * a.inputs_step, H, P);
        }
        weight.multiply<true>(rows, h, boundary);
        for (int r = 0; r < rows; ++r) {
          const int64_t b = first + r;
          if (row(b).passes(t))
            step(b, begin, t, boundary + r * P, h + r * P, counts, found);
          else
            zero(keys(b, begin) + (t - begin) * P, P), zero(query(b, t, 0), S * P);
          unpad(a.hiddens + (b * T + t) * H, h + r * P, H, P);
        }
      }
      for (int r = 0; r < rows; ++r) {
        const int64_t b = first + r;
        float* to = end < T && a.keep ? const_cast<float*>(start(b, end)) : a.last_memory + std::size_t(b) * H * H;
        form_memory(row(b), begin, end, keys(b, begin), start(b, begin), H, P, counts, counted, formed, to);
      }
    }
    unpad(a.last_hidden + first * H, h, H, P, rows);
  }

  void step(int64_t b, int begin, int t, const float* boundary, float* h, float* counts,
            float* found) const {
    float* written = keys(b, begin);
    std::memcpy(written + (t - begin) * P, h, sizeof(float) * P);
    const float of_start = row(b).writes(begin, t, counts);
    for (int u = 0; u < P; u += WIDTH) store<WIDTH>(h + u, relu<WIDTH>(load<WIDTH>(boundary + u)));
    for (int s = 0; s < S; ++s) {
      float *sums = a.sums + (at(b, t) * S + s) * P, *moments = a.moments + (at(b, t) * S + s) * 2;
      std::memcpy(query(b, t, s), h, sizeof(float) * P);
      std::memcpy(sums, boundary, sizeof(float) * P);
      zero(found, P);
      read(written, counts, t - begin + 1, h, P, found);
      read_memory(start(b, begin), of_start, h, H, found);
      for (int u = 0; u < P; u += WIDTH) store<WIDTH>(sums + u, load<WIDTH>(sums + u) + load<WIDTH>(found + u));
      const Moments m = moments_of(sums, H, P, 1);
      for (int u = 0; u < P; u += WIDTH)
        store<WIDTH>(h + u, relu<WIDTH>(normalized(sums + u, m, gain + u, bias + u)));
      moments[0] = m.mean, moments[1] = m.inverse_deviation;
    }
  }

  // What a block of rows works on in the backward pass.
  struct Gradients {
    float *h, *boundary, *keys, *product, *reads, *of_last, *sum, *counts, *counted, *formed;
    bool from_last;
  };
  std::size_t backward_space() const {
    const std::size_t block = std::size_t(ROWS_AT_ONCE) * P;
    return block * (4 + std::size_t(C) * (S + 1)) + P + padded(C) + std::size_t(C) * S * P + forming_space(C * S, H, P);
  }
  void backward(int64_t first, int rows) const {
    Pieces space{workspace(backward_space())};
    const std::size_t block = std::size_t(ROWS_AT_ONCE) * P;
    Gradients d;
    d.h = space.take(block), d.boundary = space.take(block), d.keys = space.take(block), d.product = space.take(block);
    d.reads = space.take(block * C * S), d.of_last = space.take(block * C), d.sum = space.take(P);
    d.counts = space.take(C), d.counted = space.take(std::size_t(C) * S * P), d.formed = space.take(forming_space(C * S, H, P));
    pad(d.h, a.d_hidden + first * H, H, P, rows);
    zero(a.d_norms + first * 2 * P, rows * 2 * P);
    for (int begin = (T - 1) / C * C; begin >= 0; begin -= C) {
      const int end = smaller(T, begin + C);
      d.from_last = end < T || a.has_d_last_memory;
      for (int r = 0; d.from_last && r < rows; ++r)
        form_memory_backward(row(first + r), begin, end, keys(first + r, begin), a.d_memory + (first + r) * H * H, H, P,
                             d.counts, d.counted, d.formed, d.of_last + std::size_t(r) * C * P);
      for (int t = end - 1; t >= begin; --t) {
        for (int r = 0; r < rows; ++r) {
          const int64_t b = first + r;
          const float* above = a.d_hiddens ? a.d_hiddens + b * a.d_hiddens_row + t * a.d_hiddens_step : nullptr;
          for (int u = 0; above && u < H; ++u) d.h[r * P + u] += above[u];
          if (row(b).passes(t)) {
            step_backward(b, r, begin, end, t, d);
          } else {
            zero(d.boundary + r * P, P);
            zero(d.reads + (std::size_t(r) * C + t - begin) * S * P, S * P);
          }
          unpad(a.d_inputs + (b * T + t) * H, d.boundary + r * P, H, P);
        }
        weight.multiply<false>(rows, d.boundary, d.product);
        for (int r = 0; r < rows; ++r) {
          float* d_h = d.h + r * P;
          if (row(first + r).passes(t))
            for (int u = 0; u < P; ++u) d_h[u] = d.keys[r * P + u] + d.product[r * P + u];
          if (row(first + r).reset(t)) zero(d_h, P);
        }
      }
      for (int r = 0; a.d_memory && r < rows; ++r)
        memory_gradient(row(first + r), begin, end, S, query(first + r, begin, 0),
                        d.reads + std::size_t(r) * C * S * P, d.from_last, H, P, d.counts, d.counted, d.formed,
                        a.d_memory + (first + r) * H * H);
    }
    unpad(a.d_hidden + first * H, d.h, H, P, rows);
  }

  void step_backward(int64_t b, int r, int begin, int end, int t, Gradients& d) const {
    const float *written = keys(b, begin), *key = written + (t - begin) * P;
    float *d_h = d.h + r * P, *d_boundary = d.boundary + r * P, *d_key = d.keys + r * P;
    float *norms = a.d_norms + b * 2 * P, *d_reads = d.reads + (std::size_t(r) * C + t - begin) * S * P;
    const float of_start = row(b).writes(begin, t, d.counts);
    zero(d_boundary, P);
    for (int s = S - 1; s >= 0; --s) {
      const float *sums = a.sums + (at(b, t) * S + s) * P, *moments = a.moments + (at(b, t) * S + s) * 2;
      const Moments m{moments[0], moments[1]};
      float* d_sum = d_reads + s * P;  // of what was read, too
      for (int u = 0; u < P; u += WIDTH) {
        vec<WIDTH> open = normalized(sums + u, m, gain + u, bias + u);
        store<WIDTH>(d.sum + u, open > 0.f ? load<WIDTH>(d_h + u) : vec<WIDTH>{});
      }
      normalize_backward(d.sum, sums, m, gain, H, P, 1, d_sum, norms, norms + P);
      for (int u = 0; u < P; u += WIDTH)
        store<WIDTH>(d_boundary + u, load<WIDTH>(d_boundary + u) + load<WIDTH>(d_sum + u));
      zero(d_h, P);
      read(written, d.counts, t - begin + 1, d_sum, P, d_h);
      read_memory_transposed(start(b, begin), of_start, d_sum, H, d_h);
    }
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> through = load<WIDTH>(query(b, t, 0) + u) > 0.f ? load<WIDTH>(d_h + u) : vec<WIDTH>{};
      store<WIDTH>(d_boundary + u, load<WIDTH>(d_boundary + u) + through);
    }
    zero(d_key, P);
    const int readers = row(b).readers(t, end, d.counts);
    read_by(query(b, t, 0), d_reads, d.counts, readers, S, key, P, d_key);
    const float* of_last = d.of_last + (std::size_t(r) * C + t - begin) * P;
    for (int u = 0; d.from_last && u < P; ++u) d_key[u] += of_last[u];
  }
};

}  // namespace

int fw_rnn_forward(const FWRNNArguments& a) {
  FWRNN op(a, true);
  for_blocks_of_rows(a.B, a.threads, op.rows_at_once(), [&](int64_t first, int rows) { op.forward(first, rows); });
  return DONE;
}

int fw_rnn_backward(const FWRNNArguments& a) {
  FWRNN op(a, false);
  for_blocks_of_rows(a.B, a.threads, op.rows_at_once(), [&](int64_t first, int rows) { op.backward(first, rows); });
  return DONE;
}

}  // namespace FW_ISA
