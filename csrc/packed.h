// Products of a few rows with a matrix that is used again and again, step by step.
//
// The matrix is packed into panels of NV vectors of columns, in the order in which they are read. Two vectors make
// panels that mostly fit the first-level cache, so that what one tile of rows has read is near for the next.
#pragma once

#include "simd.h"

#ifdef __AVX512BF16__
#define FW_BFLOAT16
#include <immintrin.h>
#endif

namespace FW_ISA {

// What the operands of products are: as they are, or rounded to bfloat16 and in pairs. Sums are float32.
struct Float32 {
  typedef float element;
  static constexpr int PAIR = 1;
  static FW_INLINE float rounded(float x) { return x; }
  static FW_INLINE vec<WIDTH> spread(const float* x) { return all<WIDTH>(*x); }
  static FW_INLINE vec<WIDTH> columns(const float* w) { return load<WIDTH>(w); }
  static FW_INLINE vec<WIDTH> add(vec<WIDTH> sum, vec<WIDTH> x, vec<WIDTH> w) { return sum + x * w; }
};

#ifdef FW_BFLOAT16
struct BFloat16 {
  typedef uint16_t element;
  static constexpr int PAIR = 2;
  static FW_INLINE uint16_t rounded(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    return x == x ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : 0x7FC0;  // to the nearest, ties to even
  }
  static FW_INLINE __m512bh spread(const uint16_t* x) {
    int pair;
    std::memcpy(&pair, x, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static FW_INLINE __m512bh columns(const uint16_t* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static FW_INLINE vec<WIDTH> add(vec<WIDTH> sum, __m512bh x, __m512bh w) {
    return (vec<WIDTH>)_mm512_dpbf16_ps((__m512)sum, x, w);
  }
};
#endif

template <typename P>
constexpr int whole_pairs(int size) {
  return (size + P::PAIR - 1) / P::PAIR * P::PAIR;
}

// The rows on the left [count][depth].
template <typename P>
struct Operands {
  const typename P::element* elements;
  int count, stride;

  // The floats of working space that they need.
  static std::size_t floats(int count, int size) {
    return P::PAIR == 1 ? 0 : std::size_t(count) * whole_pairs<P>(size) / P::PAIR;
  }
  Operands(const float* rows, int count, int size, float* space) : count(count), stride(whole_pairs<P>(size)) {
    if constexpr (P::PAIR == 1) {
      elements = rows;
    } else {
      auto* to = reinterpret_cast<typename P::element*>(space);
      elements = to;
      for (int r = 0; r < count; ++r, to += stride) {
        for (int k = 0; k < size; ++k) to[k] = P::rounded(rows[std::size_t(r) * size + k]);
        for (int k = size; k < stride; ++k) to[k] = 0;
      }
    }
  }
};

// A matrix [depth][panels NV WIDTH], in panels [depth / PAIR][NV WIDTH][PAIR].
template <typename P, int NV = 2>
class Packed {
 public:
  typedef typename P::element element;
  static constexpr int PANEL = NV * WIDTH;
  const int depth;

  // at(panel, column, k): the element in row k and in a column of a panel.
  template <typename F>
  Packed(int panels, int size, int threads, F&& at) : depth(whole_pairs<P>(size)) {
    const std::size_t all = std::size_t(depth) * PANEL;
    elements = reinterpret_cast<element*>(aligned_floats(panels * all / P::PAIR));
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int panel = 0; panel < panels; ++panel) {
      element* to = elements + panel * all;
      for (int from = 0; from < depth; from += WIDTH)  // in blocks, since one side of a transposition is scattered
        for (int column = 0; column < PANEL; ++column)
          for (int k = from; k < smaller(from + WIDTH, depth); ++k)
            to[(k / P::PAIR * PANEL + column) * P::PAIR + k % P::PAIR] = P::rounded(k < size ? at(panel, column, k) : 0.f);
    }
  }
  Packed(const Packed&) = delete;
  ~Packed() { std::free(elements); }

  // out [count][PANEL] = the rows times a panel.
  void multiply(int panel, const Operands<P>& rows, float* out) const {
    const element* w = elements + std::size_t(panel) * depth * PANEL;
    tiles<rows_for(NV)>(rows.count, [&](int first, auto size) {
      tile<decltype(size)::value>(rows.elements + std::size_t(first) * rows.stride, rows.stride, w, out + first * PANEL);
    });
  }

 private:
  element* elements;

  template <int R>
  FW_INLINE void tile(const element* x, int stride, const element* w, float* out) const {
    vec<WIDTH> sums[R][NV] = {};
    for (int k = 0; k < depth; k += P::PAIR, w += PANEL * P::PAIR) add<R>(x + k, stride, w, sums);
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < NV; ++n) store<WIDTH>(out + r * PANEL + n * WIDTH, sums[r][n]);
  }

  template <int R>
  static FW_INLINE void add(const element* x, int stride, const element* w, vec<WIDTH> (&sums)[R][NV]) {
    decltype(P::columns(w)) columns[NV];
    for (int n = 0; n < NV; ++n) columns[n] = P::columns(w + n * WIDTH * P::PAIR);
    for (int r = 0; r < R; ++r) {
      auto left = P::spread(x + r * stride);
      for (int n = 0; n < NV; ++n) sums[r][n] = P::add(sums[r][n], left, columns[n]);
    }
  }
};

}  // namespace FW_ISA
