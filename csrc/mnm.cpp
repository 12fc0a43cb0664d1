// The plastic Metalearned Neural Memory, forward and backward; src/fastweights/ops/mnm (plain.py has the derivation).
//
// In parallel over rows only, each step's products with the slow weights for a block of rows at once: the same bits
// from run to run. A layer of the memory is kept as its product needs it, transposed forwards and as it is backwards,
// so that products, writes and gradients all run along whole vectors.
#include "kernels.h"
#include "rows.h"

namespace FW_ISA {

namespace {

// to = from transposed, both [size][size], in blocks that stay near.
inline void transpose(const float* from, int from_row, float* to, int to_row, int size) {
  constexpr int BLOCK = 16;
  for (int i = 0; i < size; i += BLOCK)
    for (int j = 0; j < size; j += BLOCK)
      for (int column = j; column < smaller(j + BLOCK, size); ++column) {
        const float* x = from + std::size_t(i) * from_row + column;
        float* y = to + std::size_t(column) * to_row + i;
        for (int row = 0; row < smaller(BLOCK, size - i); ++row, x += from_row) y[row] = *x;
      }
}

// out(i, j) = a_i . b_j of rows [P], i by the strides of `out`.
inline void dot_products(const float* a, int A, const float* b, int B, int P, float* out, int out_row, int out_column) {
  tiles<4>(A, [&](int i, auto size) {
    constexpr int R = decltype(size)::value;
    for (int j = 0; j < B; ++j) {
      float found[R];
      dots<R>(a + std::size_t(i) * P, P, b + std::size_t(j) * P, P, found);
      for (int r = 0; r < R; ++r) out[(i + r) * out_row + j * out_column] = found[r];
    }
  });
}

// out [rows][P] += sum_k a_k b_k^T of few pairs: vectors of b stay in registers while rows of `out` pass by.
template <int K, int NV>
FW_INLINE void add_outer_tile(int rows, int P, const float* a, const float* b, float* out) {
  vec<WIDTH> right[K][NV];
  for (int k = 0; k < K; ++k)
    for (int n = 0; n < NV; ++n) right[k][n] = load<WIDTH>(b + k * P + n * WIDTH);
  for (int i = 0; i < rows; ++i, out += P) {
    vec<WIDTH> sums[NV];
    for (int n = 0; n < NV; ++n) sums[n] = load<WIDTH>(out + n * WIDTH);
    for (int k = 0; k < K; ++k)
      for (int n = 0; n < NV; ++n) sums[n] += a[k * P + i] * right[k][n];
    for (int n = 0; n < NV; ++n) store<WIDTH>(out + n * WIDTH, sums[n]);
  }
}
inline void add_outer_products(int pairs, int rows, int P, const float* a, const float* b, float* out) {
  tiles<(ACCUMULATORS - 4) / 2>(pairs, [&](int k, auto size) {
    constexpr int K = decltype(size)::value;
    const float *left = a + std::size_t(k) * P, *right = b + std::size_t(k) * P;
    int u = 0;
    for (; u + 2 * WIDTH <= P; u += 2 * WIDTH) add_outer_tile<K, 2>(rows, P, left, right + u, out + u);
    for (; u < P; u += WIDTH) add_outer_tile<K, 1>(rows, P, left, right + u, out + u);
  });
}

inline void tanh_of(float* x, int count) {
  for (int i = 0; i < count; i += WIDTH) store<WIDTH>(x + i, tanh<WIDTH>(load<WIDTH>(x + i)));
}
// d_x from that of y = tanh(x), in its place
inline void tanh_backward(float* d, const float* y, int count) {
  for (int i = 0; i < count; i += WIDTH) {
    const vec<WIDTH> of = load<WIDTH>(y + i);
    store<WIDTH>(d + i, load<WIDTH>(d + i) * (1.f - of * of));
  }
}

struct MNM {
  const MNMArguments& a;
  const int T, H, m, N, L, P, M;    // P and M: H and m padded
  const int U;                      // k_w, v_w, k_r of all heads and u_beta, m each
  const std::size_t layer, memory;  // floats of a layer, padded, and of all of them
  const float rate;                 // of a write, times beta
  const int memories;               // of each row: the memory, and backwards its gradient

  MNM(const MNMArguments& a, int memories)
      : a(a), T(int(a.T)), H(int(a.H)), m(int(a.m)), N(int(a.heads)), L(int(a.layers)), P(padded(H)), M(padded(m)),
        U((3 * N + 1) * m), layer(std::size_t(m) * M), memory(L * layer), rate(-2.f / (N * m)),
        memories(memories) {}

  // Rows side by side share products with the slow weights; their memories are to stay near: 8 MB.
  int rows_at_once() const {
    const std::size_t fit = (std::size_t(8) << 20) / (sizeof(float) * memory * memories);
    return fit >= ROWS_AT_ONCE ? ROWS_AT_ONCE : larger(1, int(fit));
  }
  // where a step's values are: [T or 1, B, ...], for a block of rows in one piece
  std::size_t at(int64_t b, int t) const { return (a.keep ? t * a.B : 0) + b; }
  float* interactions(int64_t b, int t) const { return a.interactions + at(b, t) * U; }
  float* activations(int64_t b, int t) const { return a.activations + at(b, t) * (L + 1) * 3 * N * M; }
  float* errors(int64_t b, int t) const { return a.errors + at(b, t) * L * N * M; }
  // the memory that is kept of a step, in one piece
  float* kept(int64_t b, int t) const { return a.memories + ((t / a.interval - 1) * a.B + b) * L * m * m; }

  template <typename F>
  FW_INLINE void for_passing(int64_t first, int rows, int t, F&& run) const {
    for (int r = 0; r < rows; ++r)
      if (masks_of(a, first + r).passes(t)) run(first + r, r);
  }
};

struct Forward : MNM {
  const Weight recurrent, interaction, target;
  float *biases, *initial;  // of interactions and targets, padded; the memory after a reset

  explicit Forward(const MNMArguments& a)
      : MNM(a, 1), recurrent(4 * P, H + m, a.threads, [&](int column, int k) {
          return column % P < H ? a.recurrent_weight[(std::size_t(column / P) * H + column % P) * (H + m) + k] : 0.f;
        }),
        interaction(padded(U), P, a.threads, [&](int column, int k) {
          return column < U && k < H ? a.interaction_weight[std::size_t(column) * H + k] : 0.f;
        }),
        target(padded(L * m), m, a.threads, [&](int column, int k) {
          return column < L * m ? a.target_weight[std::size_t(column) * m + k] : 0.f;
        }) {
    biases = aligned_floats(std::size_t(3 * N + 2 + L) * M);
    pad(biases, a.interaction_bias, m, M, 3 * N + 1);
    pad(target_bias(0), a.target_bias, m, M, L);
    pad(strength_weight(), a.strength_weight, m, M);
    initial = aligned_floats(memory);
    transposed(a.initial_memory, initial);
  }
  ~Forward() {
    std::free(biases);
    std::free(initial);
  }
  Forward(const Forward&) = delete;

  float* target_bias(int l) const { return biases + (3 * N + 1 + l) * M; }
  float* strength_weight() const { return target_bias(L); }

  // [L][m][m] to padded rows that are its columns, and back
  void transposed(const float* from, float* to) const {
    for (int l = 0; l < L; ++l, from += m * m, to += layer) {
      zero(to, int(layer));
      transpose(from, m, to, M, m);
    }
  }
  void transposed_back(const float* from, float* to) const {
    for (int l = 0; l < L; ++l, from += layer, to += m * m) transpose(from, M, to, m, m);
  }

  // What a block of rows works on.
  struct State {
    float *h_and_v, *h, *c, *W;                 // of each row: [H + m], [P], [P], [L][m][M]
    float *interactions, *padded_interactions;  // of each row, dense; of one
    float *values, *targets;                    // [N][rows][m], [N][rows][L m]
    float *scores, *written;                    // of one row
  };
  std::size_t space() const {
    const int R = rows_at_once();
    const std::size_t row = padded(H + m) + 2 * P + interaction.columns + N * (M + target.columns);
    return memories * R * memory + R * row + std::size_t(4 * N + 1) * M + padded(2 * N * N) + 8 * WIDEST_VECTOR;
  }
  void run(int64_t first, int rows) const {
    Pieces space{workspace(this->space())};
    State s;
    s.h_and_v = space.take(std::size_t(rows) * (H + m)), s.h = space.take(rows * P), s.c = space.take(rows * P);
    s.interactions = space.take(std::size_t(rows) * interaction.columns + WIDEST_VECTOR);
    s.values = space.take(std::size_t(N) * rows * m);
    s.targets = space.take(std::size_t(N) * rows * target.columns + WIDEST_VECTOR);
    s.padded_interactions = space.take((3 * N + 1) * M);
    s.scores = space.take(2 * N * N), s.written = space.take(N * M);
    s.W = space.take(rows * memory);
    zero(s.values, N * rows * m);  // of rows that do not pass
    pad(s.h, a.hidden + first * H, H, P, rows);
    pad(s.c, a.cell + first * H, H, P, rows);
    for (int r = 0; r < rows; ++r) {
      float* state = s.h_and_v + r * (H + m);
      std::memcpy(state, a.hidden + (first + r) * H, sizeof(float) * H);
      std::memcpy(state + H, a.read + (first + r) * m, sizeof(float) * m);
      transposed(a.memory + (first + r) * L * m * m, s.W + r * memory);
    }
    for (int t = 0; t < T; ++t) {
      for (int r = 0; r < rows; ++r) {
        const int64_t b = first + r;
        if (masks_of(a, b).reset(t)) {
          zero(s.h_and_v + r * (H + m), H + m), zero(s.h + r * P, P), zero(s.c + r * P, P);
          std::memcpy(s.W + r * memory, initial, sizeof(float) * memory);
        }
        if (a.keep && t && t % a.interval == 0) transposed_back(s.W + r * memory, kept(b, t));
        pad(a.gates + at(b, t) * 4 * P, a.gate_inputs + b * a.gate_inputs_row + t * a.gate_inputs_step, H, P, 4);
      }
      recurrent.multiply<true>(rows, s.h_and_v, a.gates + at(first, t) * 4 * P);
      for_passing(first, rows, t, [&](int64_t b, int r) { controller(b, r, t, s); });
      interaction.multiply<false>(rows, s.h, s.interactions);
      for_passing(first, rows, t, [&](int64_t b, int r) { interact(b, r, rows, t, s); });
      for (int n = 0; n < N; ++n)
        target.multiply<false>(rows, s.values + std::size_t(n) * rows * m,
                               s.targets + std::size_t(n) * rows * target.columns);
      for (int r = 0; r < rows; ++r) a.meta_losses[(first + r) * T + t] = 0;
      for_passing(first, rows, t, [&](int64_t b, int r) { write_and_read(b, r, rows, t, s); });
      std::memcpy(a.outputs + (t * a.B + first) * (H + m), s.h_and_v, sizeof(float) * rows * (H + m));
      std::memcpy(a.cells + at(first, t) * P, s.c, sizeof(float) * rows * P);
    }
    unpad(a.last_hidden + first * H, s.h, H, P, rows);
    unpad(a.last_cell + first * H, s.c, H, P, rows);
    unpad(a.last_read + first * m, s.h_and_v + H, m, H + m, rows);
    for (int r = 0; r < rows; ++r) transposed_back(s.W + r * memory, a.last_memory + (first + r) * L * m * m);
  }

  // The gates, the cell and h.
  void controller(int64_t b, int r, int t, const State& s) const {
    float *gates = a.gates + at(b, t) * 4 * P, *c = s.c + r * P, *h = s.h + r * P;
    for (int u = 0; u < P; u += WIDTH) {
      const vec<WIDTH> i = sigmoid<WIDTH>(load<WIDTH>(gates + u)), f = sigmoid<WIDTH>(load<WIDTH>(gates + P + u));
      const vec<WIDTH> g = tanh<WIDTH>(load<WIDTH>(gates + 2 * P + u));
      const vec<WIDTH> o = sigmoid<WIDTH>(load<WIDTH>(gates + 3 * P + u));
      const vec<WIDTH> new_c = f * load<WIDTH>(c + u) + i * g;
      store<WIDTH>(gates + u, i);
      store<WIDTH>(gates + P + u, f);
      store<WIDTH>(gates + 2 * P + u, g);
      store<WIDTH>(gates + 3 * P + u, o);
      store<WIDTH>(c + u, new_c);
      store<WIDTH>(h + u, o * tanh<WIDTH>(new_c));
    }
    std::memcpy(s.h_and_v + r * (H + m), h, sizeof(float) * H);
  }

  // Keys to z_0, values to where the targets are made of them, beta.
  void interact(int64_t b, int r, int rows, int t, const State& s) const {
    const float* products = s.interactions + std::size_t(r) * interaction.columns;
    float *u = s.padded_interactions, *z = activations(b, t);
    for (int part = 0; part < 3 * N + 1; ++part)
      for (int k = 0; k < M; k += WIDTH) {
        const vec<WIDTH> x = load<WIDTH>(products + part * m + k) + load<WIDTH>(biases + part * M + k);
        store<WIDTH>(u + part * M + k, first_lanes(tanh<WIDTH>(x), m - k));
      }
    unpad(interactions(b, t), u, m, M, 3 * N + 1);
    std::memcpy(z, u, sizeof(float) * N * M);
    std::memcpy(z + N * M, u, sizeof(float) * N * M);
    std::memcpy(z + 2 * N * M, u + 2 * N * M, sizeof(float) * N * M);
    for (int n = 0; n < N; ++n)
      std::memcpy(s.values + (std::size_t(n) * rows + r) * m, u + (N + n) * M, sizeof(float) * m);
    float along;
    dots<1>(u + 3 * N * M, M, strength_weight(), M, &along);
    a.strengths[at(b, t)] = sigmoid<WIDTH>(all<WIDTH>(along + *a.strength_bias))[0];
  }

  void write_and_read(int64_t b, int r, int rows, int t, const State& s) const {
    const float scale = a.strengths[at(b, t)] * rate;
    float *z = activations(b, t), *error = errors(b, t), *W = s.W + r * memory;
    for (int l = 0; l < L; ++l, W += layer, error += N * M) {
      float *reading = z + N * M, *above = z + 3 * N * M, *above_reading = above + N * M;
      product<WIDTH, false>(3 * N, M, m, z, M, 1, W, M, above, M);
      if (l < L - 1) tanh_of(above, N * M);
      for (int n = 0; n < N; ++n) {
        const float* targets = s.targets + (std::size_t(n) * rows + r) * target.columns + l * m;
        for (int k = 0; k < M; k += WIDTH) {
          const vec<WIDTH> wanted = load<WIDTH>(targets + k) + load<WIDTH>(target_bias(l) + k);
          const vec<WIDTH> away = first_lanes(load<WIDTH>(above + n * M + k) - wanted, m - k);
          store<WIDTH>(error + n * M + k, away);
          store<WIDTH>(s.written + n * M + k, away * scale);
        }
      }
      dot_products(reading, 2 * N, z, N, M, s.scores, N, 1);
      product<WIDTH, true>(2 * N, M, N, s.scores, N, 1, s.written, M, above_reading, M);
      if (l < L - 1) tanh_of(above_reading, 2 * N * M);
      add_outer_products(N, m, M, z, s.written, W);
      z = above;
    }
    vec<WIDTH> squares{};
    float* v = s.h_and_v + r * (H + m) + H;
    for (int k = 0; k < m; k += WIDTH) {
      vec<WIDTH> total{};
      for (int n = 0; n < N; ++n) {
        const float* value = s.values + (std::size_t(n) * rows + r) * m;
        const vec<WIDTH> away = load<WIDTH>(z + (N + n) * M + k) - load<WIDTH>(value + k, m - k);
        squares += away * away;
        total += load<WIDTH>(z + (2 * N + n) * M + k);
      }
      store<WIDTH>(v + k, total * (1.f / N), m - k);
    }
    a.meta_losses[b * T + t] = sum<WIDTH>(squares) / (N * m);
  }
};

struct Backward : MNM {
  const Weight recurrent, interaction, target;

  explicit Backward(const MNMArguments& a)
      : MNM(a, 2), recurrent(padded(H + m), 4 * H, a.threads, [&](int column, int k) {
          return column < H + m ? a.recurrent_weight[std::size_t(k) * (H + m) + column] : 0.f;
        }),
        interaction(P, U, a.threads, [&](int column, int k) {
          return column < H ? a.interaction_weight[std::size_t(k) * H + column] : 0.f;
        }),
        target(M, L * m, a.threads, [&](int column, int k) {
          return column < m ? a.target_weight[std::size_t(k) * m + column] : 0.f;
        }) {}

  // The gradients of what a block of rows works on.
  struct Gradients {
    float *h, *c, *v;         // of each row: [P], [P], [M]
    float *of_h, *state;      // of each row: of h with what interacts [P], of h and v before [H + m]
    float *W, *memory;        // of each row: the memory before the step, its gradient
    float *targets, *values;  // [N][rows][L m], [N][rows][M]
    float *recalled, *keys;   // of each row: f(k_w) - v_w [N][M], z_0 [3 N][M]
    float *above, *below, *d_written, *written, *scores, *d_scores;  // of one row
  };
  std::size_t space() const {
    const int R = rows_at_once();
    return memories * R * memory + std::size_t(R) * (3 * P + M + recurrent.columns + N * (padded(L * m) + 5 * M)) +
           std::size_t(8) * N * M + 2 * padded(2 * N * N) + 8 * WIDEST_VECTOR;
  }
  void run(int64_t first, int rows) const {
    Pieces space{workspace(this->space())};
    Gradients d;
    d.h = space.take(rows * P), d.c = space.take(rows * P), d.v = space.take(rows * M), d.of_h = space.take(rows * P);
    d.state = space.take(std::size_t(rows) * recurrent.columns);
    d.targets = space.take(std::size_t(N) * rows * L * m), d.values = space.take(std::size_t(N) * rows * M);
    d.recalled = space.take(std::size_t(rows) * N * M), d.keys = space.take(std::size_t(rows) * 3 * N * M);
    d.above = space.take(3 * N * M), d.below = space.take(3 * N * M);
    d.d_written = space.take(N * M), d.written = space.take(N * M);
    d.scores = space.take(2 * N * N), d.d_scores = space.take(2 * N * N);
    d.W = space.take(rows * memory), d.memory = space.take(rows * memory);
    pad(d.h, a.d_hidden + first * H, H, P, rows);
    pad(d.c, a.d_cell + first * H, H, P, rows);
    pad(d.v, a.d_read + first * m, m, M, rows);
    pad(d.memory, a.d_memory + first * L * m * m, m, M, rows * L * m);
    zero(d.targets, N * rows * L * m);
    for (int t = T - 1; t >= 0; --t) {
      float *d_gates = a.d_gates + (t * a.B + first) * 4 * H, *d_u = a.d_interactions + (t * a.B + first) * U;
      for (int r = 0; r < rows; ++r) {
        const int64_t b = first + r;
        memory_before(b, t, d.W + r * memory, d.written);
        if (a.d_outputs) {
          const float* from_outputs = a.d_outputs + b * a.d_outputs_row + t * a.d_outputs_step;
          for (int u = 0; u < H; ++u) d.h[r * P + u] += from_outputs[u];
          for (int k = 0; k < m; ++k) d.v[r * M + k] += from_outputs[H + k];
        }
        if (masks_of(a, b).passes(t)) {
          memory_backward(b, r, rows, t, d);
        } else {
          zero(d_gates + r * 4 * H, 4 * H), zero(d_u + r * U, U);
          zero(a.d_targets + (t * a.B + b) * N * L * m, N * L * m);
          a.d_strengths[t * a.B + b] = 0;
        }
      }
      for (int n = 0; n < N; ++n)
        target.multiply<false>(rows, d.targets + std::size_t(n) * rows * L * m, d.values + std::size_t(n) * rows * M);
      for_passing(first, rows, t, [&](int64_t b, int r) { interact_backward(b, r, rows, t, d, d_u + r * U); });
      std::memcpy(d.of_h, d.h, sizeof(float) * rows * P);
      interaction.multiply<true>(rows, d_u, d.of_h);
      for_passing(first, rows, t, [&](int64_t b, int r) { controller_backward(b, r, t, d, d_gates + r * 4 * H); });
      recurrent.multiply<false>(rows, d_gates, d.state);
      for (int r = 0; r < rows; ++r) {
        const float* state = d.state + std::size_t(r) * recurrent.columns;
        const Masks masks = masks_of(a, first + r);
        if (masks.passes(t)) pad(d.h + r * P, state, H, P), pad(d.v + r * M, state + H, m, M);
        if (masks.reset(t)) {
          zero(d.h + r * P, P), zero(d.c + r * P, P), zero(d.v + r * M, M);
          if (a.d_initial_memories) add_to_initial(first + r, d.memory + r * memory);
          zero(d.memory + r * memory, int(memory));
        }
      }
    }
    unpad(a.d_hidden + first * H, d.h, H, P, rows);
    unpad(a.d_cell + first * H, d.c, H, P, rows);
    unpad(a.d_read + first * m, d.v, m, M, rows);
    unpad(a.d_memory + first * L * m * m, d.memory, m, M, rows * L * m);
  }

  void add_to_initial(int64_t b, const float* d_W) const {
    float* sum = a.d_initial_memories + b * L * m * m;
    for (int i = 0; i < L * m; ++i, sum += m, d_W += M)
      for (int k = 0; k < m; ++k) sum[k] += d_W[k];
  }

  // Add to the memory W what a step has written, or take it back.
  void write(int64_t b, int t, float sign, float* W, float* written) const {
    if (!masks_of(a, b).passes(t)) return;
    const float scale = sign * a.strengths[at(b, t)] * rate;
    const float *z = activations(b, t), *error = errors(b, t);
    for (int l = 0; l < L; ++l, z += 3 * N * M, error += N * M, W += layer) {
      for (int i = 0; i < N * M; i += WIDTH) store<WIDTH>(written + i, load<WIDTH>(error + i) * scale);
      add_outer_products(N, m, M, written, z, W);
    }
  }

  // The memory before a step, in the place of that after it; where that is another's, from the last that is known.
  void memory_before(int64_t b, int t, float* W, float* written) const {
    const Masks masks = masks_of(a, b);
    int begin = t;
    while (begin % a.interval && !masks.reset(begin)) --begin;
    if (begin < t && t < T - 1 && !masks.reset(t + 1)) return write(b, t, -1, W, written);
    const bool fresh = masks.reset(begin);
    pad(W, fresh ? a.initial_memory : begin ? kept(b, begin) : a.memory + b * L * m * m, m, M, L * m);
    for (; begin < t; ++begin) write(b, begin, 1, W, written);
  }

  void memory_backward(int64_t b, int r, int rows, int t, const Gradients& d) const {
    const float beta = a.strengths[at(b, t)], scale = beta * rate;
    const float of_loss = a.d_meta_losses ? a.d_meta_losses[b * T + t] * 2.f / (N * m) : 0.f;
    const float *z = activations(b, t) + L * 3 * N * M, *error = errors(b, t) + L * N * M;
    const float* W = d.W + (r + 1) * memory;
    float *recalled = d.recalled + r * N * M, *above = d.above, *below = d.below, *d_W = d.memory + (r + 1) * memory;
    pad(recalled, interactions(b, t) + N * m, m, M, N);
    zero(above, N * M);
    for (int n = 0; n < N; ++n)
      for (int k = 0; k < M; k += WIDTH) {
        const int i = n * M + k;
        store<WIDTH>(recalled + i, (load<WIDTH>(z + N * M + i) - load<WIDTH>(recalled + i)) * of_loss);
        store<WIDTH>(above + N * M + i, load<WIDTH>(recalled + i));
        store<WIDTH>(above + 2 * N * M + i, load<WIDTH>(d.v + r * M + k) * (1.f / N));
      }
    vec<WIDTH> d_beta{};
    for (int l = L - 1; l >= 0; --l) {
      const float* activated = z;
      z -= 3 * N * M, error -= N * M, W -= layer, d_W -= layer;
      const float* reading = z + N * M;
      float *above_reading = above + N * M, *below_reading = below + N * M;
      if (l < L - 1) tanh_backward(above_reading, activated + N * M, 2 * N * M);
      for (int i = 0; i < N * M; i += WIDTH) store<WIDTH>(d.written + i, load<WIDTH>(error + i) * scale);
      dot_products(reading, 2 * N, z, N, M, d.scores, N, 1);
      dot_products(above_reading, 2 * N, d.written, N, M, d.d_scores, N, 1);
      zero(d.d_written, N * M);
      dot_products(d_W, m, z, N, M, d.d_written, 1, M);
      product<WIDTH, true>(N, M, 2 * N, d.scores, 1, N, above_reading, M, d.d_written, M);
      for (int n = 0; n < N; ++n) {
        float* d_target = d.targets + (std::size_t(n) * rows + r) * L * m + l * m;
        for (int k = 0; k < m; k += WIDTH) {
          const int i = n * M + k;
          const vec<WIDTH> of_written = load<WIDTH>(d.d_written + i), of_error = of_written * scale;
          d_beta += of_written * load<WIDTH>(error + i);
          store<WIDTH>(above + i, load<WIDTH>(above + i) + of_error);
          store<WIDTH>(d_target + k, -of_error, m - k);
        }
      }
      if (l < L - 1) tanh_backward(above, activated, N * M);
      product<WIDTH, false>(3 * N, M, m, above, M, 1, W, M, below, M);
      product<WIDTH, true>(N, M, m, d.written, M, 1, d_W, M, below, M);
      product<WIDTH, true>(N, M, 2 * N, d.d_scores, 1, N, reading, M, below, M);
      product<WIDTH, true>(2 * N, M, N, d.d_scores, N, 1, z, M, below_reading, M);
      add_outer_products(3 * N, m, M, above, z, d_W);
      float* done = above;
      above = below, below = done;
    }
    std::memcpy(d.keys + r * 3 * N * M, above, sizeof(float) * 3 * N * M);
    a.d_strengths[t * a.B + b] = sum<WIDTH>(d_beta) * rate * beta * (1.f - beta);
    for (int n = 0; n < N; ++n)
      std::memcpy(a.d_targets + ((t * a.B + b) * N + n) * L * m, d.targets + (std::size_t(n) * rows + r) * L * m,
                  sizeof(float) * L * m);
  }

  void interact_backward(int64_t b, int r, int rows, int t, const Gradients& d, float* d_u) const {
    const float *u = interactions(b, t), *keys = d.keys + r * 3 * N * M, d_strength = a.d_strengths[t * a.B + b];
    for (int k = 0; k < m; k += WIDTH) {
      auto put = [&](int part, vec<WIDTH> x) {
        const vec<WIDTH> y = load<WIDTH>(u + part * m + k, m - k);
        store<WIDTH>(d_u + part * m + k, x * (1.f - y * y), m - k);
      };
      for (int n = 0; n < N; ++n) {
        const float *d_value = d.values + (std::size_t(n) * rows + r) * M, *recalled = d.recalled + (r * N + n) * M;
        put(n, load<WIDTH>(keys + n * M + k) + load<WIDTH>(keys + (N + n) * M + k));
        put(N + n, load<WIDTH>(d_value + k) - load<WIDTH>(recalled + k));
        put(2 * N + n, load<WIDTH>(keys + (2 * N + n) * M + k));
      }
      put(3 * N, load<WIDTH>(a.strength_weight + k, m - k) * d_strength);
    }
  }

  void controller_backward(int64_t b, int r, int t, const Gradients& d, float* d_gates) const {
    const float *gates = a.gates + at(b, t) * 4 * P, *cell = a.cells + at(b, t) * P;
    const bool fresh = masks_of(a, b).reset(t);
    float* d_c = d.c + r * P;
    for (int u = 0; u < H; u += WIDTH) {
      const vec<WIDTH> i = load<WIDTH>(gates + u), f = load<WIDTH>(gates + P + u), g = load<WIDTH>(gates + 2 * P + u);
      const vec<WIDTH> o = load<WIDTH>(gates + 3 * P + u), tanh_c = tanh<WIDTH>(load<WIDTH>(cell + u));
      const vec<WIDTH> d_h = load<WIDTH>(d.of_h + r * P + u);
      const vec<WIDTH> of_c = load<WIDTH>(d_c + u) + d_h * o * (1.f - tanh_c * tanh_c);
      vec<WIDTH> before{};
      if (!fresh) before = t ? load<WIDTH>(a.cells + at(b, t - 1) * P + u) : load<WIDTH>(a.cell + b * H + u, H - u);
      store<WIDTH>(d_gates + u, of_c * g * i * (1.f - i), H - u);
      store<WIDTH>(d_gates + H + u, of_c * before * f * (1.f - f), H - u);
      store<WIDTH>(d_gates + 2 * H + u, of_c * i * (1.f - g * g), H - u);
      store<WIDTH>(d_gates + 3 * H + u, d_h * tanh_c * o * (1.f - o), H - u);
      store<WIDTH>(d_c + u, of_c * f);
    }
  }
};

template <class Pass>
int run(const MNMArguments& a) {
  const Pass pass(a);
  for_blocks_of_rows(a.B, a.threads, pass.rows_at_once(), [&](int64_t first, int rows) { pass.run(first, rows); });
  return DONE;
}

}  // namespace

int mnm_forward(const MNMArguments& a) { return run<Forward>(a); }
int mnm_backward(const MNMArguments& a) { return run<Backward>(a); }

}  // namespace FW_ISA
