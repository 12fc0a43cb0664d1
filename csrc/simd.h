// Vectors of floats and the small dense products that both kernels are made of.
//
// Every kernel is compiled once for each instruction set (see CMakeLists.txt); FW_ISA names the namespace and WIDTH is
// the number of floats in its widest vector. Only the vector extensions that GCC and Clang share are used.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512F__)
#define FW_WIDTH 16
#elif defined(__AVX2__)
#define FW_WIDTH 8
#else
#define FW_WIDTH 4
#endif

#define FW_INLINE inline __attribute__((always_inline))

namespace FW_ISA {

constexpr int WIDTH = FW_WIDTH;
// How many accumulators fit beside the operands: 32 registers with AVX-512, 16 without.
constexpr int ACCUMULATORS = WIDTH == 16 ? 24 : 12;

template <int N>
struct vector_of {
  typedef float type __attribute__((vector_size(N * 4)));
  typedef int32_t integer __attribute__((vector_size(N * 4)));
  typedef float unaligned __attribute__((vector_size(N * 4), aligned(4), may_alias));
};
template <int N>
using vec = typename vector_of<N>::type;

constexpr int smaller(int a, int b) { return a < b ? a : b; }
constexpr int larger(int a, int b) { return a > b ? a : b; }
// The vector for rows of D floats, and how many rows of them a tile holds.
constexpr int width_for(int D) { return smaller(WIDTH, D); }
constexpr int rows_for(int vectors) { return larger(1, smaller(12, ACCUMULATORS / vectors)); }

template <int N>
FW_INLINE vec<N> load(const float* p) {
  return *reinterpret_cast<const typename vector_of<N>::unaligned*>(p);
}
template <int N>
FW_INLINE void store(float* p, vec<N> x) {
  *reinterpret_cast<typename vector_of<N>::unaligned*>(p) = x;
}
// The same for the first `count` floats, where a row does not end with a whole vector; the others are 0.
template <int N>
FW_INLINE vec<N> load(const float* p, int count) {
  if (count >= N) return load<N>(p);
  vec<N> x = {};
  std::memcpy(&x, p, sizeof(float) * count);
  return x;
}
template <int N>
FW_INLINE void store(float* p, vec<N> x, int count) {
  if (count >= N)
    store<N>(p, x);
  else
    std::memcpy(p, &x, sizeof(float) * count);
}
template <int N>
FW_INLINE vec<N> all(float x) {
  return x - vec<N>{};
}
template <int N>
FW_INLINE vec<N> relu(vec<N> x) {
  return x <= 0.f ? vec<N>{} : x;  // NaN stays NaN
}
template <int N>
FW_INLINE float sum(vec<N> x) {
  if constexpr (N == 1) {
    return x[0];
  } else if constexpr (N == 2) {
    return x[0] + x[1];
  } else {
    float values[N];  // x itself, its address taken, would not stay in a register while it is summed up
    store<N>(values, x);
    return sum<N / 2>(load<N / 2>(values) + load<N / 2>(values + N / 2));
  }
}

// exp(x) to about 2 units in the last place: 2^n exp(r) with |r| <= ln 2 / 2 (Cephes' polynomial).
template <int N>
FW_INLINE vec<N> exp(vec<N> x) {
  typedef typename vector_of<N>::integer ints;
  x = x < -87.f ? all<N>(-87.f) : x;
  x = x > 88.f ? all<N>(88.f) : x;
  const float shift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  vec<N> shifted = x * 1.44269504f + shift;
  vec<N> n = shifted - shift;
  vec<N> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  vec<N> p = all<N>(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  ints exponent = ((ints)shifted - 0x4B400000 + 127) << 23;
  return p * (vec<N>)exponent;
}

template <int N>
FW_INLINE vec<N> sigmoid(vec<N> x) {
  return x == -__builtin_inff() ? vec<N>{} : 1.f / (1.f + exp<N>(-x));  // exp alone never gives 0, and 0 inf is NaN
}

// tanh(x) as an odd rational function on |x| <= 7.9, beyond which it is 1 in float32 (Eigen's coefficients).
template <int N>
FW_INLINE vec<N> tanh(vec<N> x) {
  x = x < -7.90531110763549805f ? all<N>(-7.90531110763549805f) : x;
  x = x > 7.90531110763549805f ? all<N>(7.90531110763549805f) : x;
  vec<N> s = x * x;
  vec<N> p = all<N>(-2.76076847742355e-16f);
  p = p * s + 2.00018790482477e-13f;
  p = p * s + -8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  vec<N> q = all<N>(1.19825839466702e-06f);
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}

inline float* aligned_floats(std::size_t count) {
  void* found = nullptr;
  if (posix_memalign(&found, 64, (count * sizeof(float) + 63) / 64 * 64)) std::abort();
  return static_cast<float*>(found);
}

// Calls f with the constant R for each tile of at most R rows: f(first_row, std::integral_constant<R>).
template <int R>
struct rows_constant {
  static constexpr int value = R;
};
template <int R, typename F>
FW_INLINE void rest_of_rows(int first, int count, F&& f) {
  if constexpr (R > 0) {
    if (count == R)
      f(first, rows_constant<R>{});
    else
      rest_of_rows<R - 1>(first, count, f);
  }
}
template <int R, typename F>
FW_INLINE void tiles(int rows, F&& f) {
  // as even as possible: 16 rows in tiles of up to 6 are 6 + 5 + 5
  int count = (rows + R - 1) / R;
  for (int i = 0, first = 0; i < count; ++i) {
    int size = (rows - first + count - i - 1) / (count - i);
    rest_of_rows<R>(first, size, f);
    first += size;
  }
}

// out[m][n] (+)= sum_k a[m][k] b[k][n]; a may be transposed by its strides, N is a multiple of W.
template <int W, int R, int NV, bool ADD>
FW_INLINE void product_tile(int K, const float* a, int a_row, int a_column, const float* b, int b_row, float* out,
                            int out_row) {
  vec<W> sums[R][NV];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < NV; ++n) sums[r][n] = ADD ? load<W>(out + r * out_row + n * W) : vec<W>{};
  for (int k = 0; k < K; ++k) {
    vec<W> row[NV];
    for (int n = 0; n < NV; ++n) row[n] = load<W>(b + k * b_row + n * W);
    for (int r = 0; r < R; ++r) {
      float x = a[r * a_row + k * a_column];
      for (int n = 0; n < NV; ++n) sums[r][n] += x * row[n];
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < NV; ++n) store<W>(out + r * out_row + n * W, sums[r][n]);
}

template <int W, bool ADD>
void product(int M, int N, int K, const float* a, int a_row, int a_column, const float* b, int b_row, float* out,
             int out_row) {
  constexpr int NV = 2, R = rows_for(NV);
  int n = 0;
  for (; n + NV * W <= N; n += NV * W)
    tiles<R>(M, [&](int m, auto size) {
      product_tile<W, decltype(size)::value, NV, ADD>(K, a + m * a_row, a_row, a_column, b + n, b_row,
                                                      out + m * out_row + n, out_row);
    });
  for (; n + W <= N; n += W)
    tiles<R>(M, [&](int m, auto size) {
      product_tile<W, decltype(size)::value, 1, ADD>(K, a + m * a_row, a_row, a_column, b + n, b_row,
                                                     out + m * out_row + n, out_row);
    });
}

// A thread's own working space, kept from call to call. (No class of the standard library is used in these files: its
// inlined functions, compiled for one instruction set, could be linked into another's.)
inline float* workspace(std::size_t floats) {
  static thread_local float* space = nullptr;
  static thread_local std::size_t size = 0;
  if (size < floats) {
    std::free(space);
    size = 0;
    space = aligned_floats(floats);
    size = floats;
  }
  return space;
}

}  // namespace FW_ISA
