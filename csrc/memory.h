// The fast weight memory of one row: reads, writes and their gradients on D slices F[s] of D x D, and one step of a log of
// writes. Names as in src/fastweights/ops/fwm/README.md.
#pragma once

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

}  // namespace

}  // namespace FW_ISA
