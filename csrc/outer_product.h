// What the recurrences with fast weights as a decaying sum of outer products share (FW-LSTM, FW-RNN): layer
// normalisation, and reads of fast weights that are not formed at each step
// (src/fastweights/ops/outer_product/README.md has the derivation).
#pragma once

#include "rows.h"

namespace FW_ISA {

namespace {

constexpr float EPSILON = LAYER_NORM_EPSILON;

// ---- layer normalisation of `parts` pieces of H floats, padded to P, as one

struct Moments {
  float mean, inverse_deviation;
};

inline Moments moments_of(const float* x, int H, int P, int parts) {
  vec<WIDTH> total{}, squares{};
  for (int i = 0; i < parts * P; i += WIDTH) total += load<WIDTH>(x + i);  // what pads is 0
  const float mean = sum<WIDTH>(total) / (parts * H);
  for (int part = 0; part < parts; ++part)
    for (int u = 0; u < P; u += WIDTH) {
      vec<WIDTH> away = first_lanes(load<WIDTH>(x + part * P + u) - mean, H - u);
      squares += away * away;
    }
  return {mean, 1.f / __builtin_sqrtf(sum<WIDTH>(squares) / (parts * H) + EPSILON)};
}

FW_INLINE vec<WIDTH> normalized(const float* x, Moments m, const float* gain, const float* bias) {
  return (load<WIDTH>(x) - m.mean) * m.inverse_deviation * load<WIDTH>(gain) + load<WIDTH>(bias);
}

// d_x from d_y (0 where it pads; the two may be one), and what this step adds to the gradients of gain and bias.
inline void normalize_backward(const float* d_y, const float* x, Moments m, const float* gain, int H, int P, int parts,
                               float* d_x, float* d_gain, float* d_bias) {
  vec<WIDTH> mean_of_d{}, along{};
  for (int i = 0; i < parts * P; i += WIDTH) {
    vec<WIDTH> d = load<WIDTH>(d_y + i), standard = (load<WIDTH>(x + i) - m.mean) * m.inverse_deviation;
    store<WIDTH>(d_gain + i, load<WIDTH>(d_gain + i) + d * standard);
    store<WIDTH>(d_bias + i, load<WIDTH>(d_bias + i) + d);
    d *= load<WIDTH>(gain + i);
    mean_of_d += d;
    along += d * standard;
  }
  const float c = sum<WIDTH>(mean_of_d) / (parts * H), s = sum<WIDTH>(along) / (parts * H);
  for (int part = 0; part < parts; ++part)
    for (int u = 0; u < P; u += WIDTH) {
      const int i = part * P + u;
      vec<WIDTH> standard = (load<WIDTH>(x + i) - m.mean) * m.inverse_deviation;
      vec<WIDTH> found = (load<WIDTH>(d_y + i) * load<WIDTH>(gain + i) - c - standard * s) * m.inverse_deviation;
      store<WIDTH>(d_x + i, first_lanes(found, H - u));
    }
}

// ---- fast weights

// What counts how much in one row: the steps that pass, the resets, the powers of the decay.
struct Row : Masks {
  const float* powers;  // decay^n
  float rate;

  // How much the writes of steps begin..t count in what is read at t; returns how much what was there before does.
  float writes(int begin, int t, float* counts) const {
    int age = 0;
    for (int i = t; i >= begin; --i) {
      counts[i - begin] = passes(i) ? rate * powers[age] : 0.f;
      age += passes(i);
      if (reset(i)) {
        zero(counts, i - begin);
        return 0.f;
      }
    }
    return powers[age];
  }

  // How much the write of step t, which passes, counts in what is read at steps t..end-1; returns for how many.
  int readers(int t, int end, float* counts) const {
    int age = 0;
    for (int i = t; i < end; ++i) {
      if (i > t && reset(i)) return i - t;
      age += i > t && passes(i);
      counts[i - t] = passes(i) ? rate * powers[age] : 0.f;
    }
    return end - t;
  }
};

inline float* powers_of(double decay, int64_t count) {
  float* powers = aligned_floats(count + 1);
  double power = 1;
  for (int64_t i = 0; i <= count; ++i, power *= decay) powers[i] = float(power);
  return powers;
}

template <int N>
FW_INLINE void add_scaled(const float* keys, int64_t step, const float* factors, int P, float* out) {
  for (int u = 0; u < P; u += WIDTH) {
    vec<WIDTH> total = load<WIDTH>(out + u);
    for (int i = 0; i < N; ++i) total += factors[i] * load<WIDTH>(keys + i * step + u);
    store<WIDTH>(out + u, total);
  }
}

// out += sum_i counts_i key_i (key_i . query): four keys at a time, while they are near.
inline void read(const float* keys, const float* counts, int n, const float* query, int P, float* out) {
  float factors[4];
  int i = 0;
  for (; i + 4 <= n; i += 4) {
    dots<4>(keys + std::size_t(i) * P, P, query, P, factors);
    for (int j = 0; j < 4; ++j) factors[j] *= counts[i + j];
    add_scaled<4>(keys + std::size_t(i) * P, P, factors, P, out);
  }
  for (; i < n; ++i) {
    dots<1>(keys + std::size_t(i) * P, P, query, P, factors);
    factors[0] *= counts[i];
    add_scaled<1>(keys + std::size_t(i) * P, P, factors, P, out);
  }
}

// The gradient of a key: out += sum_i counts_i sum_s [d_read_is (key . query_is) + query_is (key . d_read_is)], of
// which this does N pairs at once.
template <int N>
FW_INLINE void read_by_some(const float* queries, const float* d_reads, const float* counts, int first, int S,
                            const float* key, int P, float* out) {
  const std::size_t place = std::size_t(first) * P;
  float with_queries[N], with_gradients[N];
  dots<N>(queries + place, P, key, P, with_queries);
  dots<N>(d_reads + place, P, key, P, with_gradients);
  for (int i = 0; i < N; ++i) {
    const float count = counts[S == 1 ? first + i : (first + i) / S];
    with_queries[i] *= count;
    with_gradients[i] *= count;
  }
  add_scaled<N>(d_reads + place, P, with_queries, P, out);
  add_scaled<N>(queries + place, P, with_gradients, P, out);
}
inline void read_by(const float* queries, const float* d_reads, const float* counts, int n, int S, const float* key,
                    int P, float* out) {
  int i = 0;
  for (; i + 4 <= n * S; i += 4) read_by_some<4>(queries, d_reads, counts, i, S, key, P, out);
  for (; i < n * S; ++i) read_by_some<1>(queries, d_reads, counts, i, S, key, P, out);
}

inline bool is_zero(const float* memory, int H) {
  for (int i = 0; i < H; ++i, memory += H) {
    bool zero = true;
    for (int u = 0; u < H; ++u) zero &= memory[u] == 0;
    if (!zero) return false;
  }
  return true;
}

// out += factor A q, or A transposed q, of A [H][H], null where it is zero: four of its rows at a time.
inline void read_memory(const float* memory, float factor, const float* query, int H, float* out) {
  if (!memory || factor == 0) return;
  const int whole = H / WIDTH * WIDTH;
  tiles<4>(H, [&](int i, auto count) {
    constexpr int N = decltype(count)::value;
    const float* rows = memory + std::size_t(i) * H;
    float found[N];
    dots<N>(rows, H, query, whole, found);
    for (int j = 0; j < N; ++j) {
      for (int u = whole; u < H; ++u) found[j] += rows[std::size_t(j) * H + u] * query[u];
      out[i + j] += factor * found[j];
    }
  });
}
inline void read_memory_transposed(const float* memory, float factor, const float* query, int H, float* out) {
  if (!memory || factor == 0) return;
  const int whole = H / WIDTH * WIDTH;
  tiles<4>(H, [&](int i, auto count) {
    constexpr int N = decltype(count)::value;
    const float* rows = memory + std::size_t(i) * H;
    float factors[N];
    for (int j = 0; j < N; ++j) factors[j] = factor * query[i + j];
    add_scaled<N>(rows, H, factors, whole, out);
    for (int j = 0; j < N; ++j)
      for (int u = whole; u < H; ++u) out[u] += factors[j] * rows[std::size_t(j) * H + u];
  });
}

// The floats that forming fast weights from up to n pairs of rows, or their gradient, needs to work in.
inline std::size_t forming_space(int n, int H, int P) {
  const std::size_t outer = std::size_t(n) * (H + P + WIDTH) + rows_for(2) * 2 * WIDTH, square = std::size_t(H) * P;
  return outer > square ? outer : square;
}

// to = factor from + sum_k a_k b_k^T over n pairs of rows [P]; `from` and `to` [H][H] may be one, or `from` null: zeros.
// Some rows of `to` are finished at a time, since it is large and not near.
inline void add_outer_products(const float* a, const float* b, int n, const float* from, float factor, int H, int P,
                               float* space, float* to) {
  constexpr int WIDE = 2 * WIDTH;
  const std::size_t panel = std::size_t(n) * WIDE;
  float *tile = space, *panels = tile + rows_for(2) * WIDE, *columns = panels + std::size_t(n) * (P + WIDTH);
  for (int k = 0; k < n; ++k) {
    const std::size_t pair = std::size_t(k) * P;
    for (int i = 0; i < H; ++i) columns[std::size_t(i) * n + k] = a[pair + i];
    for (int u = 0; u < H; u += WIDTH)
      store<WIDTH>(panels + u / WIDE * panel + k * WIDE + u % WIDE, load<WIDTH>(b + pair + u));
  }
  tiles<rows_for(2)>(H, [&](int i, auto size) {
    constexpr int R = decltype(size)::value;
    for (int first = 0; first < H; first += WIDE) {
      const float* row = panels + first / WIDE * panel;
      if (P - first >= WIDE)
        product_tile<WIDTH, R, 2, false>(n, columns + std::size_t(i) * n, n, 1, row, WIDE, tile, WIDE);
      else
        product_tile<WIDTH, R, 1, false>(n, columns + std::size_t(i) * n, n, 1, row, WIDE, tile, WIDE);
      for (int r = 0; r < R; ++r) {
        const std::size_t place = std::size_t(i + r) * H + first;
        for (int u = 0; u < smaller(WIDE, H - first); ++u)
          to[place + u] = (from ? factor * from[place + u] : 0.f) + tile[r * WIDE + u];
      }
    }
  });
}

// The fast weights after steps begin..end-1 of one row.
inline void form_memory(const Row& row, int begin, int end, const float* keys, const float* from, int H, int P,
                        float* counts, float* counted, float* space, float* to) {
  const float start = row.writes(begin, end - 1, counts);
  for (int i = 0; i < end - begin; ++i)
    for (int u = 0; u < P; ++u) counted[std::size_t(i) * P + u] = counts[i] * keys[std::size_t(i) * P + u];
  add_outer_products(counted, keys, end - begin, from, start, H, P, space, to);
}

// What the gradient of the fast weights after a chunk gives its keys: counts_i (D + D^T) key_i, as d_keys [n][P].
inline void form_memory_backward(const Row& row, int begin, int end, const float* keys, const float* d_memory, int H,
                                 int P, float* counts, float* counted, float* symmetric, float* d_keys) {
  row.writes(begin, end - 1, counts);
  for (int i = 0; i < end - begin; ++i)
    for (int u = 0; u < P; ++u) counted[std::size_t(i) * P + u] = counts[i] * keys[std::size_t(i) * P + u];
  for (int i = 0; i < H; ++i) {
    for (int u = 0; u < H; ++u)
      symmetric[std::size_t(i) * P + u] = d_memory[std::size_t(i) * H + u] + d_memory[std::size_t(u) * H + i];
    zero(symmetric + std::size_t(i) * P + H, P - H);
  }
  product<WIDTH, false>(end - begin, P, H, counted, P, 1, symmetric, P, d_keys, P);
}

// The gradient of the fast weights before a chunk, in the place of that after it (`has_later`: there is one).
inline void memory_gradient(const Row& row, int begin, int end, int S, const float* queries, const float* d_reads,
                            bool has_later, int H, int P, float* counts, float* counted, float* space,
                            float* d_memory) {
  const float* later = has_later ? d_memory : nullptr;
  float start = 0;
  for (int t = begin; t < end; ++t) {
    start = row.writes(begin, t, counts);
    for (int i = 0; i < S * P; ++i) {
      const std::size_t place = std::size_t(t - begin) * S * P + i;
      counted[place] = start * d_reads[place];
    }
  }
  add_outer_products(counted, queries, (end - begin) * S, later, start, H, P, space, d_memory);
}

// A recurrence with such fast weights: its sizes, and where a row's masks, writes and memories are.
template <class Arguments>
struct Recurrence {
  const Arguments& a;
  const int H, P, T, C;
  float* const powers;
  bool* const starts_zero;  // [B]: the fast weights before the first step are
  bool reads_formed;        // some step reads fast weights that are formed

  Recurrence(const Arguments& a, bool has_fast_weights)
      : a(a), H(int(a.H)), P(padded(H)), T(int(a.T)), C(int(a.chunk)), powers(powers_of(a.decay, C)),
        starts_zero(static_cast<bool*>(std::malloc(a.B))), reads_formed(has_fast_weights && T > C) {
    for_blocks_of_rows(a.B, a.threads, 1, [&](int64_t b, int) {
      starts_zero[b] = !a.memory || is_zero(a.memory + std::size_t(b) * H * H, H);
    });
    for (int64_t b = 0; b < a.B; ++b) reads_formed |= !starts_zero[b];
  }
  ~Recurrence() {
    std::free(powers);
    std::free(starts_zero);
  }
  Recurrence(const Recurrence&) = delete;

  // Rows side by side share a product with W; what they read of formed fast weights is to stay near: 2 MB.
  int rows_at_once() const {
    const std::size_t fit = (std::size_t(2) << 20) / (sizeof(float) * H * H);
    return !reads_formed || fit >= ROWS_AT_ONCE ? ROWS_AT_ONCE : larger(1, int(fit));
  }
  Row row(int64_t b) const {
    return {masks_of(a, b), powers, float(a.rate)};
  }
  // where a step's values are: [T or 1, B, ...], for a block of rows in one piece
  std::size_t at(int64_t b, int t) const { return (a.keep ? t * a.B : 0) + b; }
  // the keys of the chunk that begins there, of [B, T or C, P]
  float* keys(int64_t b, int begin) const { return a.keys + (b * (a.keep ? T : C) + (a.keep ? begin : 0)) * P; }
  // the fast weights before that chunk, or null where they are zero
  const float* start(int64_t b, int begin) const {
    const std::size_t size = std::size_t(H) * H;
    if (!begin) return starts_zero[b] ? nullptr : a.memory + b * size;
    return a.keep ? a.starts + (b * ((T - 1) / C) + begin / C - 1) * size : a.last_memory + b * size;
  }
};

}  // namespace

}  // namespace FW_ISA
