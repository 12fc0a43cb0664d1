// The fast weight memory in exact chunks, forward and backward; names and derivation as in
// src/fastweights/ops/fwm/README.md. In parallel over rows only: the same bits from run to run.
//
// The addresses u = x (x) y are never formed: with the memory as D slices F[s] of D x D, every product with u is a
// product of small matrices for each s, in which x[s] scales one side.
#include "memory.h"

namespace FW_ISA {

namespace {

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
