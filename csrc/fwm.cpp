// The fast weight memory in exact chunks, forward and backward; names and derivation as in
// src/fastweights/ops/fwm/README.md. In parallel over rows only: the same bits from run to run.
//
// The addresses u = x (x) y are never formed: with the memory as D slices F[s] of D x D, every product with u is a
// product of small matrices for each s, in which x[s] scales one side.
#include "kernels.h"
#include "simd.h"

namespace FW_ISA {

namespace {

constexpr float EPSILON = LAYER_NORM_EPSILON;

constexpr int padded(int steps) { return (steps + WIDTH - 1) / WIDTH * WIDTH; }

template <int D>
struct Memory {
  static constexpr int W = width_for(D), NV = D / W, R = rows_for(NV), SIZE = D * D * D;
  using V = vec<W>;

  // out[a] = sum_s x[a][s] sum_r y[a][r] F[s][r]: the read-outs at the addresses x[a] (x) y[a].
  static void read(int count, const float* x, const float* y, const float* F, float* out) {
    std::memset(out, 0, sizeof(float) * count * D);
    for (int s = 0; s < D; ++s)
      tiles<R>(count, [&](int from, auto size) {
        read_tile<decltype(size)::value>(x + from * D + s, y + from * D, F + s * D * D, out + from * D);
      });
  }

  template <int ROWS>
  static FW_INLINE void read_tile(const float* x, const float* y, const float* F, float* out) {
    V sums[ROWS][NV] = {};
    for (int r = 0; r < D; ++r) {
      V row[NV];
      for (int n = 0; n < NV; ++n) row[n] = load<W>(F + r * D + n * W);
      for (int i = 0; i < ROWS; ++i)
        for (int n = 0; n < NV; ++n) sums[i][n] += y[i * D + r] * row[n];
    }
    for (int i = 0; i < ROWS; ++i)
      for (int n = 0; n < NV; ++n) {
        float* to = out + i * D + n * W;
        store<W>(to, load<W>(to) + x[i * D] * sums[i][n]);
      }
  }

  // A list of writes: F += sum_a x[a] (x) y[a] (x) q[a].
  struct Writes {
    int count;
    const float *x, *y, *q;
  };

  // F = scale F0 (0 where it is not given) - H G (where G is given) + all writes; scaled: room for the largest count of
  // rows of D.
  static void write(const Writes* lists, int number, const float* F0, float scale, const float* G, float H, float* F,
                    float* scaled) {
    for (int s = 0; s < D; ++s) {
      const int slice = s * D * D;
      if (G)
        for (int i = slice; i < slice + D * D; i += W) store<W>(F + i, load<W>(F0 + i) * scale - load<W>(G + i) * H);
      else if (F0)
        for (int i = slice; i < slice + D * D; i += W) store<W>(F + i, load<W>(F0 + i) * scale);
      else
        std::memset(F + slice, 0, sizeof(float) * D * D);
      for (int l = 0; l < number; ++l) {
        const Writes& list = lists[l];
        for (int a = 0; a < list.count; ++a)
          for (int n = 0; n < NV; ++n)
            store<W>(scaled + a * D + n * W, list.x[a * D + s] * load<W>(list.q + a * D + n * W));
        tiles<R>(D, [&](int r, auto size) {
          product_tile<W, decltype(size)::value, NV, true>(list.count, list.y + r, 1, D, scaled, D, F + slice + r * D,
                                                           D);
        });
      }
    }
  }

  // Gradients of x and y from those q of the read-outs, where addresses are many: everything transposed [D][stride], so
  // that addresses lie along the vectors. P[s][r] = F[s][r] . q (+ G[s][r] . p), dx[s] = P[s] . y, dy = sum_s x[s] P[s].
  static void pull_many(int count, int stride, const float* x, const float* y, const float* F, const float* q,
                        const float* G, const float* p, float* dx, float* dy) {
    std::memset(dx, 0, sizeof(float) * D * stride);
    std::memset(dy, 0, sizeof(float) * D * stride);
    for (int s = 0; s < D; ++s) {
      int a = 0;
      const float* f = F + s * D * D;
      const float* g = G ? G + s * D * D : nullptr;
      for (; a + 2 * WIDTH < padded(count); a += 3 * WIDTH)
        pull_columns<3>(s, stride, x + a, y + a, f, q + a, g, p + a, dx + a, dy + a);
      for (; a + WIDTH < padded(count); a += 2 * WIDTH)
        pull_columns<2>(s, stride, x + a, y + a, f, q + a, g, p + a, dx + a, dy + a);
      for (; a < count; a += WIDTH)
        pull_columns<1>(s, stride, x + a, y + a, f, q + a, g, p + a, dx + a, dy + a);
    }
  }

  template <int N>
  static FW_INLINE void pull_columns(int s, int stride, const float* x, const float* y, const float* F, const float* q,
                                     const float* G, const float* p, float* dx, float* dy) {
    vec<WIDTH> left[N], total[N] = {};
    for (int n = 0; n < N; ++n) left[n] = load<WIDTH>(x + s * stride + n * WIDTH);
    tiles<rows_for(N)>(D, [&](int r, auto size) {
      constexpr int ROWS = decltype(size)::value;
      vec<WIDTH> sums[ROWS][N] = {};
      dot_columns<ROWS, N>(stride, F + r * D, q, sums);
      if (G) dot_columns<ROWS, N>(stride, G + r * D, p, sums);
      for (int i = 0; i < ROWS; ++i)
        for (int n = 0; n < N; ++n) {
          const int place = (r + i) * stride + n * WIDTH;
          total[n] += sums[i][n] * load<WIDTH>(y + place);
          store<WIDTH>(dy + place, load<WIDTH>(dy + place) + sums[i][n] * left[n]);
        }
    });
    for (int n = 0; n < N; ++n) store<WIDTH>(dx + s * stride + n * WIDTH, total[n]);
  }

  template <int ROWS, int N>
  static FW_INLINE void dot_columns(int stride, const float* F, const float* q, vec<WIDTH> (&sums)[ROWS][N]) {
    for (int v = 0; v < D; ++v) {
      vec<WIDTH> row[N];
      for (int n = 0; n < N; ++n) row[n] = load<WIDTH>(q + v * stride + n * WIDTH);
      for (int i = 0; i < ROWS; ++i) {
        float f = F[i * D + v];
        for (int n = 0; n < N; ++n) sums[i][n] += f * row[n];
      }
    }
  }

  // The same where addresses are few, rows of D as elsewhere: two passes, F[s]^T y and F^T x.
  static void pull_few(int count, const float* x, const float* y, const float* F, const float* q, float* dx,
                       float* dy) {
    for (int a = 0; a < count; ++a) {
      V gradient[NV];
      for (int n = 0; n < NV; ++n) gradient[n] = load<W>(q + a * D + n * W);
      V folded[D][NV] = {};  // sum_s x[s] F[s][r]
      for (int s = 0; s < D; ++s) {
        V left = all<W>(x[a * D + s]);
        V sums[NV] = {};
        const float* f = F + s * D * D;
        for (int r = 0; r < D; ++r) {
          float right = y[a * D + r];
          for (int n = 0; n < NV; ++n) {
            V row = load<W>(f + r * D + n * W);
            sums[n] += right * row;
            folded[r][n] += left * row;
          }
        }
        V total = sums[0] * gradient[0];
        for (int n = 1; n < NV; ++n) total += sums[n] * gradient[n];
        dx[a * D + s] = sum<W>(total);
      }
      for (int r = 0; r < D; ++r) {
        V total = folded[r][0] * gradient[0];
        for (int n = 1; n < NV; ++n) total += folded[r][n] * gradient[n];
        dy[a * D + r] = sum<W>(total);
      }
    }
  }

  static bool is_empty(const float* F) {
    for (int s = 0; s < D; ++s) {  // slice by slice: a memory that is not empty shows it at once
      V squares = {};
      for (int i = s * D * D; i < (s + 1) * D * D; i += W) squares += load<W>(F + i) * load<W>(F + i);
      if (sum<W>(squares) != 0) return false;
    }
    return true;
  }

  static FW_INLINE float dot(const float* x, const float* y) {
    V total = load<W>(x) * load<W>(y);
    for (int n = 1; n < NV; ++n) total += load<W>(x + n * W) * load<W>(y + n * W);
    return sum<W>(total);
  }

  static FW_INLINE V at(const float* y, int n) { return load<W>(y + n * W); }

  static FW_INLINE void moments(const float* y, float& mean, float& scale) {
    V total = at(y, 0), squares = {};
    for (int n = 1; n < NV; ++n) total += at(y, n);
    mean = sum<W>(total) / D;
    for (int n = 0; n < NV; ++n) squares += (at(y, n) - mean) * (at(y, n) - mean);
    scale = 1 / __builtin_sqrtf(sum<W>(squares) / D + EPSILON);
  }

  static void normalise(int count, const float* y, float* out) {
    for (int a = 0; a < count; ++a, y += D, out += D) {
      float mean, scale;
      moments(y, mean, scale);
      for (int n = 0; n < NV; ++n) store<W>(out + n * W, (at(y, n) - mean) * scale);
    }
  }

  // The gradient of y from that of normalise(y), in place.
  static void normalise_backward(int count, const float* y, float* gradient) {
    for (int a = 0; a < count; ++a, y += D, gradient += D) {
      float mean, scale;
      moments(y, mean, scale);
      V total = {}, along = {};
      for (int n = 0; n < NV; ++n) {
        total += at(gradient, n);
        along += at(gradient, n) * (at(y, n) - mean);
      }
      const float shift = sum<W>(total) / D, slope = sum<W>(along) * scale * scale / D;
      for (int n = 0; n < NV; ++n)
        store<W>(gradient + n * W, scale * (at(gradient, n) - shift - (at(y, n) - mean) * slope));
    }
  }
};

// One row of the batch, chunk by chunk.
template <int D>
struct Row {
  using M = Memory<D>;
  static constexpr int W = M::W, NV = M::NV;
  using V = vec<W>;

  const FWMArguments& a;
  const int64_t b;
  const int T, chunk, chunks, stride, hops;  // stride: of matrices with a column for each step of a chunk
  // the chunk at hand
  int first = 0, steps = 0;
  float *k1, *k2;                // [steps][D]
  float *k1_columns, *k2_columns;  // [D][stride]
  float *similar1, *similar2, *gram;  // [steps][stride]
  float *after, *start;          // the remaining scale of write j after step t [steps][stride], and of the first memory [steps]
  float *factors;                // [steps]
  int* where;                    // where outputs are needed
  int reads = 0;
  float *read_after, *read_start;  // the rows of after and start at those positions
  float *weights;                // [steps][stride]
  float *scaled;                 // [steps][D]
  float* rest;                   // what the directions need beside

  Row(const FWMArguments& arguments, int64_t row)
      : a(arguments),
        b(row),
        T(int(a.T)),
        chunk(int(a.chunk)),
        chunks((T + chunk - 1) / chunk),
        stride(padded(chunk)),
        hops(int(a.hops)) {
    float* p = workspace(size(a));
    auto take = [&](std::size_t count) {
      float* taken = p;
      p += (count + 15) / 16 * 16;
      return taken;
    };
    const std::size_t square = std::size_t(chunk) * stride, columns = std::size_t(D) * stride, flat = columns;
    k1 = take(flat), k2 = take(flat);
    k1_columns = take(columns), k2_columns = take(columns);
    similar1 = take(square), similar2 = take(square), gram = take(square), after = take(square);
    start = take(stride), factors = take(stride);
    where = reinterpret_cast<int*>(take(stride));
    read_after = take(square), read_start = take(stride), weights = take(square);
    scaled = take(flat);
    rest = p;
  }

  static std::size_t size(const FWMArguments& a) {
    const std::size_t stride = padded(int(a.chunk)), flat = (D + 16) * (stride + 16);
    return 9 * (a.chunk + 1) * (stride + 16) + (5 + 24 + 7 * (a.hops + 1)) * flat + 16 * stride + 2 * M::SIZE;
  }

  // a chunk's first memory: where it is kept, and null where the first chunk's is empty
  const float* start_of(int c) const {
    if (c) return a.starts + (std::size_t(b) * (chunks - 1) + c - 1) * M::SIZE;
    return a.memory ? a.memory + b * M::SIZE : nullptr;
  }
  FW_INLINE bool passes(int t) const { return !a.mask || a.mask[b * T + first + t]; }
  FW_INLINE bool reset(int t) const { return a.resets && a.resets[b * T + first + t]; }
  FW_INLINE float strength(int t) const {
    return passes(t) ? a.beta[b * a.beta_row + (first + t) * a.beta_step] : 0.f;
  }
  FW_INLINE const float* value(int t) const { return a.v + b * a.v_row + (first + t) * a.v_step; }
  FW_INLINE std::size_t place(int t) const { return std::size_t(b) * T + first + t; }  // in [B, T]
  FW_INLINE std::size_t out(int t) const { return std::size_t(first + t) * a.B + b; }  // in [T, B]

  static void columns_of(const float* rows, int count, int stride, float* columns) {
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < D; ++k) columns[k * stride + i] = rows[i * D + k];
  }
  static void add_columns(const float* columns, int count, int stride, float* rows) {
    for (int i = 0; i < count; ++i)
      for (int k = 0; k < D; ++k) rows[i * D + k] += columns[k * stride + i];
  }

  // Keys, their similarities, and where outputs are needed.
  void begin(int from) {
    first = from;
    steps = smaller(chunk, T - from);
    for (int t = 0; t < steps; ++t) {
      std::memcpy(k1 + t * D, a.k1 + b * a.k1_row + (from + t) * a.k1_step, sizeof(float) * D);
      std::memcpy(k2 + t * D, a.k2 + b * a.k2_row + (from + t) * a.k2_step, sizeof(float) * D);
    }
    std::memset(k1_columns, 0, sizeof(float) * D * stride);
    std::memset(k2_columns, 0, sizeof(float) * D * stride);
    columns_of(k1, steps, stride, k1_columns);
    columns_of(k2, steps, stride, k2_columns);
    similarities(steps, k1, k2, similar1, similar2);
    for (int i = 0; i < steps * stride; i += WIDTH)
      store<WIDTH>(gram + i, load<WIDTH>(similar1 + i) * load<WIDTH>(similar2 + i));
    reads = 0;
    for (int t = 0; t < steps; ++t)
      if (!a.output_mask || a.output_mask[b * T + from + t]) where[reads++] = t;
  }

  void similarities(int count, const float* x, const float* y, float* first_half, float* second_half) {
    product<WIDTH, false>(count, padded(steps), D, x, D, 1, k1_columns, stride, first_half, stride);
    product<WIDTH, false>(count, padded(steps), D, y, D, 1, k2_columns, stride, second_half, stride);
  }

  // after and start from the factors; zeros where a write is still to come.
  void decay(int t) {
    float* now = after + t * stride;
    const float f = factors[t], kept = reset(t) ? 0.f : f;
    if (t == 0) {
      std::memset(now, 0, sizeof(float) * stride);
    } else {
      for (int j = 0; j < stride; j += WIDTH) store<WIDTH>(now + j, load<WIDTH>(now - stride + j) * kept);
    }
    now[t] = f;
    start[t] = (t ? start[t - 1] : 1.f) * kept;
  }

  void gather_decays() {
    for (int p = 0; p < reads; ++p) {
      std::memcpy(read_after + p * stride, after + where[p] * stride, sizeof(float) * stride);
      read_start[p] = start[where[p]];
    }
  }

  // ------------------------------------------------------------------------------------------------ forward

  void forward() {
    float* p = rest;
    auto take = [&](std::size_t count) { float* taken = p; p += (count + 15) / 16 * 16; return taken; };
    const std::size_t flat = std::size_t(D) * stride;
    float *old = take(flat), *delta = take(flat), *n = take(flat), *e = take(flat), *y = take(flat), *last = take(flat);
    float* halves = take(std::size_t(chunk) * stride);
    const bool keep = a.old != nullptr;
    V squares = {};
    for (int i = 0; a.memory && i < M::SIZE; i += W) squares += load<W>(start_of(0) + i) * load<W>(start_of(0) + i);
    float norm = sum<W>(squares);
    const float* F = start_of(0);
    for (int c = 0; c < chunks; ++c) {
      begin(c * chunk);
      const bool empty = c == 0 && norm == 0;  // as most sequences start: what would be read is 0
      if (empty)
        std::memset(old, 0, sizeof(float) * flat);
      else
        M::read(steps, k1, k2, F, old);
      norm = write_scan(old, delta, norm);
      if (keep) {
        std::memcpy(a.old + place(0) * D, old, sizeof(float) * steps * D);
        std::memcpy(a.written + place(0) * D, delta, sizeof(float) * steps * D);
        std::memcpy(a.factors + place(0), factors, sizeof(float) * steps);
      }
      if (a.output_mask)
        for (int t = 0; t < steps; ++t) std::memset(a.outputs + out(t) * D, 0, sizeof(float) * D);
      if (reads) read_out(empty ? nullptr : F, delta, n, e, y, halves);
      for (int t = 0; t < steps; ++t) {
        const float left = after[(steps - 1) * stride + t];
        for (int i = 0; i < D; i += W) store<W>(last + t * D + i, left * load<W>(delta + t * D + i));
      }
      float* F_next = c + 1 < chunks && keep ? const_cast<float*>(start_of(c + 1)) : a.last_memory + b * M::SIZE;
      const typename M::Writes list{steps, k1, k2, last};
      M::write(&list, 1, F, start[steps - 1], nullptr, 0, F_next, scaled);
      F = F_next;
    }
  }

  // The only sequential part: what each step writes. old holds F_0^T u at first, v_old in the end.
  float write_scan(float* old, float* delta, float norm) {
    float* before = weights;  // one row: the remaining scale of each write before this step
    for (int t = 0; t < steps; ++t) {
      const bool fresh = reset(t);
      if (fresh) norm = 0;
      const float from_start = fresh ? 0.f : (t ? start[t - 1] : 1.f);
      V found[NV], more[NV] = {};
      for (int n = 0; n < NV; ++n) found[n] = from_start * load<W>(old + t * D + n * W);
      if (t && !fresh) {
        for (int j = 0; j < t; j += WIDTH)
          store<WIDTH>(before + j, load<WIDTH>(after + (t - 1) * stride + j) * load<WIDTH>(gram + t * stride + j));
        int j = 0;
        for (; j + 1 < t; j += 2)
          for (int n = 0; n < NV; ++n) {
            found[n] += before[j] * load<W>(delta + j * D + n * W);
            more[n] += before[j + 1] * load<W>(delta + (j + 1) * D + n * W);
          }
        if (j < t)
          for (int n = 0; n < NV; ++n) found[n] += before[j] * load<W>(delta + j * D + n * W);
      }
      const float beta = strength(t), half = gram[t * stride + t] / 2;
      V growth = {};
      for (int n = 0; n < NV; ++n) {
        V v_old = found[n] + more[n];
        V d = beta * (load<W>(value(t) + n * W) - v_old);
        store<W>(old + t * D + n * W, v_old);
        store<W>(delta + t * D + n * W, d);
        growth += (v_old + half * d) * d;
      }
      norm += 2 * sum<W>(growth);  // |F'|^2 = |F|^2 + 2 (v_old + |u|^2 delta / 2) . delta
      factors[t] = 1;
      if (norm > 1 && passes(t)) {
        factors[t] = 1 / __builtin_sqrtf(norm);
        norm = 1;
      }
      decay(t);
    }
    return norm;
  }

  // F: the first memory, or null where it is empty.
  void read_out(const float* F, const float* delta, float* n, float* e, float* y, float* halves) {
    gather_decays();
    for (int p = 0; p < reads; ++p)
      std::memcpy(n + p * D, a.n + b * a.n_row + (first + where[p]) * a.n_step, sizeof(float) * D);
    for (int i = 0; i < hops; ++i) {
      for (int p = 0; p < reads; ++p)
        std::memcpy(e + p * D, a.e + b * a.e_row + (first + where[p]) * a.e_step + i * D, sizeof(float) * D);
      if (F)
        M::read(reads, n, e, F, y);
      else
        std::memset(y, 0, sizeof(float) * reads * D);
      for (int p = 0; F && p < reads; ++p)
        for (int k = 0; k < D; k += W) store<W>(y + p * D + k, load<W>(y + p * D + k) * read_start[p]);
      similarities(reads, n, e, weights, halves);
      for (int k = 0; k < reads * stride; k += WIDTH)
        store<WIDTH>(weights + k, load<WIDTH>(weights + k) * load<WIDTH>(halves + k) * load<WIDTH>(read_after + k));
      product<W, true>(reads, D, steps, weights, stride, 1, delta, D, y, D);
      M::normalise(reads, y, n);
      if (a.retrieved)
        for (int p = 0; p < reads; ++p)
          std::memcpy(a.retrieved + (place(where[p]) * hops + i) * D, y + p * D, sizeof(float) * D);
    }
    for (int p = 0; p < reads; ++p) std::memcpy(a.outputs + out(where[p]) * D, n + p * D, sizeof(float) * D);
  }

  // ----------------------------------------------------------------------------------------------- backward

  void backward() {
    float* p = rest;
    auto take = [&](std::size_t count) { float* taken = p; p += (count + 15) / 16 * 16; return taken; };
    const std::size_t flat = std::size_t(D) * stride;
    float* Phi = take(M::SIZE);
    float *d_k1 = take(flat), *d_k2 = take(flat), *d_delta = take(flat), *epsilon = take(flat), *from_start = take(flat);
    float *delta_columns = take(flat), *later = take(flat), *H = take(stride), *radial = take(stride);
    float *epsilon_columns = take(flat), *later_columns = take(flat), *dx = take(flat), *dy = take(flat);
    float *d_y = take(flat), *d_n = take(flat), *d_e = take(flat), *y = take(flat);
    float *n_columns = take(flat), *e_columns = take(flat), *q_columns = take(flat);
    float *half1 = take(std::size_t(chunk) * stride), *half2 = take(std::size_t(chunk) * stride);
    float *n[MOST_HOPS], *e[MOST_HOPS], *arrived[MOST_HOPS];
    for (int i = 0; i < hops; ++i) n[i] = take(flat), e[i] = take(flat), arrived[i] = take(flat);
    bool later_matters = a.d_last_memory != nullptr;
    float phi = 0;
    if (later_matters) {
      std::memcpy(Phi, a.d_last_memory + b * M::SIZE, sizeof(float) * M::SIZE);
      V total = {};
      const float* F = a.last_memory + b * M::SIZE;
      for (int i = 0; i < M::SIZE; i += W) total += load<W>(Phi + i) * load<W>(F + i);
      phi = sum<W>(total);
    } else {
      std::memset(Phi, 0, sizeof(float) * M::SIZE);
    }
    for (int c = chunks - 1; c >= 0; --c) {
      begin(c * chunk);
      const float* F = start_of(c);
      const bool empty = c == 0 && (!F || M::is_empty(F));
      const float *old = a.old + place(0) * D, *delta = a.written + place(0) * D;
      std::memcpy(factors, a.factors + place(0), sizeof(float) * steps);
      for (int t = 0; t < steps; ++t) decay(t);
      const float* last = after + (steps - 1) * stride;
      std::memset(delta_columns, 0, sizeof(float) * flat);
      columns_of(delta, steps, stride, delta_columns);
      std::memset(d_k1, 0, sizeof(float) * flat);
      std::memset(d_k2, 0, sizeof(float) * flat);
      std::memset(radial, 0, sizeof(float) * stride);

      if (later_matters) {
        M::read(steps, k1, k2, Phi, d_delta);
        for (int t = 0; t < steps; ++t)
          for (int k = 0; k < D; k += W) {
            store<W>(d_delta + t * D + k, last[t] * load<W>(d_delta + t * D + k));
            store<W>(later + t * D + k, last[t] * load<W>(delta + t * D + k));
          }
      } else {
        std::memset(d_delta, 0, sizeof(float) * flat);
      }

      // the reads, last hop first
      if (a.output_mask || !reads)
        for (int t = 0; t < steps; ++t) {
          std::memset(a.d_n + out(t) * D, 0, sizeof(float) * D);
          std::memset(a.d_e + out(t) * D * hops, 0, sizeof(float) * D * hops);
        }
      if (reads) {
        gather_decays();
        for (int p = 0; p < reads; ++p) {
          const float* g = a.d_outputs ? a.d_outputs + b * a.d_outputs_row + (first + where[p]) * a.d_outputs_step
                                       : nullptr;
          if (g)
            std::memcpy(d_y + p * D, g, sizeof(float) * D);
          else
            std::memset(d_y + p * D, 0, sizeof(float) * D);
          std::memcpy(n[0] + p * D, a.n + b * a.n_row + (first + where[p]) * a.n_step, sizeof(float) * D);
        }
      }
      for (int i = hops - 1; i >= 0 && reads; --i) {
        for (int p = 0; p < reads; ++p) {
          const float* found = a.retrieved + (place(where[p]) * hops + i) * D;
          std::memcpy(y + p * D, found, sizeof(float) * D);
          if (i) M::normalise(1, found - D, n[i] + p * D);
          std::memcpy(e[i] + p * D, a.e + b * a.e_row + (first + where[p]) * a.e_step + i * D, sizeof(float) * D);
        }
        M::normalise_backward(reads, y, d_y);
        for (int p = 0; p < reads; ++p) {
          radial[where[p]] += M::dot(y + p * D, d_y + p * D);
          for (int k = 0; k < D; k += W)
            store<W>(arrived[i] + p * D + k, read_start[p] * load<W>(d_y + p * D + k));
        }
        similarities(reads, n[i], e[i], half1, half2);
        for (int k = 0; k < reads * stride; k += WIDTH)
          store<WIDTH>(weights + k, load<WIDTH>(half1 + k) * load<WIDTH>(half2 + k) * load<WIDTH>(read_after + k));
        product<W, true>(steps, D, reads, weights, 1, stride, d_y, D, d_delta, D);
        // from the first memory
        if (empty) {
          std::memset(d_n, 0, sizeof(float) * reads * D);
          std::memset(d_e, 0, sizeof(float) * reads * D);
        } else if (reads > FEW) {
          std::memset(n_columns, 0, sizeof(float) * flat);
          std::memset(e_columns, 0, sizeof(float) * flat);
          std::memset(q_columns, 0, sizeof(float) * flat);
          columns_of(n[i], reads, stride, n_columns);
          columns_of(e[i], reads, stride, e_columns);
          columns_of(arrived[i], reads, stride, q_columns);
          M::pull_many(reads, stride, n_columns, e_columns, F, q_columns, nullptr, nullptr, dx, dy);
          std::memset(d_n, 0, sizeof(float) * flat);
          std::memset(d_e, 0, sizeof(float) * flat);
          add_columns(dx, reads, stride, d_n);
          add_columns(dy, reads, stride, d_e);
        } else {
          M::pull_few(reads, n[i], e[i], F, arrived[i], d_n, d_e);
        }
        // from the chunk's own writes
        product<WIDTH, false>(reads, padded(steps), D, d_y, D, 1, delta_columns, stride, weights, stride);
        for (int k = 0; k < reads * stride; k += WIDTH) {
          vec<WIDTH> coefficient = load<WIDTH>(weights + k) * load<WIDTH>(read_after + k);
          vec<WIDTH> h1 = load<WIDTH>(half1 + k), h2 = load<WIDTH>(half2 + k);
          store<WIDTH>(half1 + k, coefficient * h2);
          store<WIDTH>(half2 + k, coefficient * h1);
        }
        product<W, true>(reads, D, steps, half1, stride, 1, k1, D, d_n, D);
        product<W, true>(reads, D, steps, half2, stride, 1, k2, D, d_e, D);
        product<W, true>(steps, D, reads, half1, 1, stride, n[i], D, d_k1, D);
        product<W, true>(steps, D, reads, half2, 1, stride, e[i], D, d_k2, D);
        for (int p = 0; p < reads; ++p)
          std::memcpy(a.d_e + (out(where[p]) * hops + i) * D, d_e + p * D, sizeof(float) * D);
        std::memcpy(d_y, d_n, sizeof(float) * reads * D);
      }
      for (int p = 0; p < reads; ++p) std::memcpy(a.d_n + out(where[p]) * D, d_y + p * D, sizeof(float) * D);

      const float carried = gradient_scan(old, delta, d_delta, epsilon, H, radial, phi);

      for (int t = 0; t < steps; ++t) {
        const float beta = strength(t);
        const float left = reset(t) ? 0.f : (t ? start[t - 1] : 1.f);
        float* d_v = a.d_v + out(t) * D;
        V total = {};
        for (int k = 0; k < D; k += W) {
          V g = load<W>(d_delta + t * D + k);
          store<W>(d_v + k, beta * g);
          total += g * (load<W>(value(t) + k) - load<W>(old + t * D + k));
          store<W>(from_start + t * D + k, left * load<W>(epsilon + t * D + k));
        }
        a.d_beta[out(t)] = passes(t) ? sum<W>(total) : 0.f;
      }
      // the keys: through the first memory and the gradient of the last
      std::memset(epsilon_columns, 0, sizeof(float) * flat);
      columns_of(from_start, steps, stride, epsilon_columns);
      if (later_matters) {
        std::memset(later_columns, 0, sizeof(float) * flat);
        columns_of(later, steps, stride, later_columns);
      }
      if (!empty || later_matters) {
        if (empty)
          M::pull_many(steps, stride, k1_columns, k2_columns, Phi, later_columns, nullptr, nullptr, dx, dy);
        else
          M::pull_many(steps, stride, k1_columns, k2_columns, F, epsilon_columns, later_matters ? Phi : nullptr,
                       later_columns, dx, dy);
        add_columns(dx, steps, stride, d_k1);
        add_columns(dy, steps, stride, d_k2);
      }
      // and through each other
      product<WIDTH, false>(steps, padded(steps), D, epsilon, D, 1, delta_columns, stride, weights, stride);
      for (int t = 0; t < steps; ++t) {
        float* row = weights + t * stride;
        const bool fresh = t == 0 || reset(t);
        for (int j = 0; j < stride; j += WIDTH)
          store<WIDTH>(row + j, fresh ? vec<WIDTH>{} : load<WIDTH>(row + j) * load<WIDTH>(after + (t - 1) * stride + j));
      }
      for (int t = 0; t < steps; ++t) {
        for (int j = 0; j < t; ++j) weights[j * stride + t] = weights[t * stride + j];
        weights[t * stride + t] = -H[t] * M::dot(delta + t * D, delta + t * D);
      }
      for (int k = 0; k < steps * stride; k += WIDTH) {
        vec<WIDTH> w = load<WIDTH>(weights + k);
        store<WIDTH>(half1 + k, w * load<WIDTH>(similar2 + k));
        store<WIDTH>(half2 + k, w * load<WIDTH>(similar1 + k));
      }
      product<W, true>(steps, D, steps, half1, stride, 1, k1, D, d_k1, D);
      product<W, true>(steps, D, steps, half2, stride, 1, k2, D, d_k2, D);
      for (int t = 0; t < steps; ++t) {
        std::memcpy(a.d_k1 + out(t) * D, d_k1 + t * D, sizeof(float) * D);
        std::memcpy(a.d_k2 + out(t) * D, d_k2 + t * D, sizeof(float) * D);
      }
      if (c == 0 && !a.d_memory) return;

      typename M::Writes lists[MOST_HOPS + 1];
      lists[0] = {steps, k1, k2, from_start};
      int number = 1;
      for (int i = 0; i < hops && reads; ++i) lists[number++] = {reads, n[i], e[i], arrived[i]};
      float* to = c ? Phi : a.d_memory + b * M::SIZE;
      M::write(lists, number, Phi, start[steps - 1], empty ? nullptr : F, reset(0) ? 0.f : H[0], to, scaled);
      phi = carried;
      later_matters = true;
    }
  }

  // The sequential part of the gradient: completes d_delta in place, gives epsilon, H, and <F_0, dL/dF_0>.
  float gradient_scan(const float* old, const float* delta, float* d_delta, float* epsilon, float* H,
                      const float* radial, float phi) {
    float above = 0;  // H of the step after
    for (int t = steps - 1; t >= 0; --t) {
      const bool fresh = reset(t);
      const float beta = strength(t), f = factors[t], self = gram[t * stride + t];
      phi += radial[t];
      // eq. 4 acted where it scaled; where |F'| = 1 exactly, scaling or not are the same
      const float passed = f == 1 ? phi : 0.f;
      const float h = (above + phi - passed) * f * f;
      V total = {}, eps[NV];
      for (int n = 0; n < NV; ++n) {
        const int at = t * D + n * W;
        V d = load<W>(delta + at), o = load<W>(old + at);
        V g = load<W>(d_delta + at) - h * (o + self * d);
        store<W>(d_delta + at, g);
        eps[n] = -beta * g - h * d;
        store<W>(epsilon + at, eps[n]);
        total += g * (d + beta * o);
      }
      phi = passed - sum<W>(total);
      H[t] = h;
      above = h;
      if (fresh) phi = above = 0;
      if (t && !fresh)
        for (int j = 0; j < t; ++j) {
          const float met = after[(t - 1) * stride + j] * gram[t * stride + j];
          for (int n = 0; n < NV; ++n) {
            float* to = d_delta + j * D + n * W;
            store<W>(to, load<W>(to) + met * eps[n]);
          }
        }
    }
    return phi;
  }

  static constexpr int FEW = 8;
};

// One step of a log of writes: F = sum_j decay[j] (k1_j (x) k2_j) (x) written_j. Each read of a chain waits
// for the one before: a few rows go through it side by side, so that the processor has something else to do meanwhile.
template <int D>
struct Step {
  using M = Memory<D>;
  static constexpr int W = M::W, NV = M::NV, ROWS = 4;
  using V = vec<W>;

  const FWMStepArguments& a;
  const int C = int(a.capacity), count = int(a.count), hops = int(a.hops);

  const float* key1(int64_t b) const { return a.k1 + b * a.k1_row; }
  const float* key2(int64_t b) const { return a.k2 + b * a.k2_row; }
  float* decay(int64_t b) const { return a.decay + b * C; }
  float* written(int64_t b) const { return a.written + b * C * D; }

  void run(int64_t first, int rows) const {
    const std::size_t each = std::size_t(hops + 1) * C;
    float *weights = workspace(C + ROWS * each), *similar = weights + C, y[D];
    for (int r = 0; r < rows; ++r) begin(first + r, similar + r * each);
    for (int r = 0; r < rows; ++r) {
      read_out(first + r, key1(first + r), similar + r * each, count, weights, y);
      write(first + r, y);
    }
    for (int r = 0; r < rows; ++r)
      std::memcpy(a.outputs + (first + r) * D, a.n + (first + r) * a.n_row, sizeof(float) * D);
    for (int i = 1; i <= hops; ++i)
      for (int r = 0; r < rows; ++r) {
        float* n = a.outputs + (first + r) * D;
        read_out(first + r, n, similar + r * each + i * C, count + 1, weights, y);
        M::normalise(1, y, n);
      }
  }

  // Keep the keys, and give the products of all kept second keys with this step's and with each hop's: [hops + 1][C].
  void begin(int64_t b, float* similar) const {
    float *keys1 = a.first_keys + b * D * C, *keys2 = a.second_keys + b * D * C;
    for (int k = 0; k < D; ++k) keys1[k * C + count] = key1(b)[k], keys2[k * C + count] = key2(b)[k];
    for (int i = 0; i <= hops; ++i)
      products(keys2, i ? a.e + b * a.e_row + (i - 1) * D : key2(b), count + 1, similar + i * C);
  }

  void products(const float* keys, const float* x, int writes, float* out) const {
    for (int j = 0; j < writes; j += WIDTH) {
      vec<WIDTH> even{}, odd{};
      for (int k = 0; k < D; k += 2) {
        even += x[k] * load<WIDTH>(keys + k * C + j);
        odd += x[k + 1] * load<WIDTH>(keys + (k + 1) * C + j);
      }
      store<WIDTH>(out + j, even + odd);
    }
  }

  // The read-out of the first `writes` writes at x and the second key of `similar`.
  void read_out(int64_t b, const float* x, const float* similar, int writes, float* weights, float* out) const {
    products(a.first_keys + b * D * C, x, writes, weights);
    for (int j = 0; j < writes; j += WIDTH)
      store<WIDTH>(weights + j, load<WIDTH>(weights + j) * load<WIDTH>(similar + j) * load<WIDTH>(decay(b) + j));
    V even[NV] = {}, odd[NV] = {};
    for (int j = 0; j < writes; j += 2)  // the weight beyond the last is 0
      for (int n = 0; n < NV; ++n) {
        even[n] += weights[j] * load<W>(written(b) + j * D + n * W);
        odd[n] += weights[j + 1] * load<W>(written(b) + (j + 1) * D + n * W);
      }
    for (int n = 0; n < NV; ++n) store<W>(out + n * W, even[n] + odd[n]);
  }

  void write(int64_t b, const float* old) const {
    const float *v = a.v + b * a.v_row, beta = a.beta[b * a.beta_row];
    const float half = M::dot(key1(b), key1(b)) * M::dot(key2(b), key2(b)) / 2;
    float* delta = written(b) + count * D;
    V growth = {};
    for (int n = 0; n < D; n += W) {
      V o = load<W>(old + n), d = beta * (load<W>(v + n) - o);
      store<W>(delta + n, d);
      growth += (o + half * d) * d;
    }
    float norm = a.squared_norm[b] + 2 * sum<W>(growth);  // as in Row::write_scan
    decay(b)[count] = 1;
    if (!(norm <= 1)) {  // NaN, too
      const float factor = 1 / __builtin_sqrtf(norm);
      for (int j = 0; j <= count; ++j) decay(b)[j] *= factor;
    }
    a.squared_norm[b] = norm > 1 ? 1 : norm;
  }
};

template <int D>
int run_step(const FWMStepArguments& a) {
  constexpr int ROWS = Step<D>::ROWS;
  const int64_t blocks = (a.B + ROWS - 1) / ROWS;
  const int threads = larger(1, smaller(int(a.threads), int(blocks)));
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t block = 0; block < blocks; ++block)
    Step<D>{a}.run(block * ROWS, smaller(ROWS, int(a.B - block * ROWS)));
  return DONE;
}

template <bool BACKWARD, int D>
int run(const FWMArguments& a) {
  const int threads = larger(1, smaller(int(a.threads), int(a.B)));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t b = 0; b < a.B; ++b) {
    Row<D> row(a, b);
    if (BACKWARD)
      row.backward();
    else
      row.forward();
  }
  return DONE;
}

template <bool BACKWARD>
int run_size(const FWMArguments& a) {
  if (a.hops > MOST_HOPS) return UNSUPPORTED_SIZE;
  switch (a.d) {
    case 8: return run<BACKWARD, 8>(a);
    case 16: return run<BACKWARD, 16>(a);
    case 32: return run<BACKWARD, 32>(a);
    default: return UNSUPPORTED_SIZE;
  }
}

}  // namespace

int fwm_forward(const FWMArguments& a) { return run_size<false>(a); }
int fwm_backward(const FWMArguments& a) { return run_size<true>(a); }
int fwm_step(const FWMStepArguments& a) {
  switch (a.d) {
    case 8: return run_step<8>(a);
    case 16: return run_step<16>(a);
    case 32: return run_step<32>(a);
    default: return UNSUPPORTED_SIZE;
  }
}

}  // namespace FW_ISA
