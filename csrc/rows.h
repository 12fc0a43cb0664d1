// What recurrences that run in parallel over blocks of rows share: rows padded to whole vectors, masks, products of a
// block of rows with a packed weight, and of single rows with each other.
#pragma once

#include "packed.h"

namespace FW_ISA {

namespace {

constexpr int ROWS_AT_ONCE = 24;  // at most

constexpr int padded(int size) { return (size + WIDEST_VECTOR - 1) / WIDEST_VECTOR * WIDEST_VECTOR; }

// x in its first `count` lanes, 0 in the others.
FW_INLINE vec<WIDTH> first_lanes(vec<WIDTH> x, int count) {
  typename vector_of<WIDTH>::integer lane;
  for (int i = 0; i < WIDTH; ++i) lane[i] = i;
  return lane < count ? x : vec<WIDTH>{};
}

inline void zero(float* x, int count) { std::memset(x, 0, sizeof(float) * count); }

// `parts` pieces of H floats, each padded with zeros to P, and back.
inline void pad(float* to, const float* from, int H, int P, int parts = 1) {
  for (int part = 0; part < parts; ++part) {
    std::memcpy(to + part * P, from + part * H, sizeof(float) * H);
    zero(to + part * P + H, P - H);
  }
}
inline void unpad(float* to, const float* from, int H, int P, int parts = 1) {
  for (int part = 0; part < parts; ++part) std::memcpy(to + part * H, from + part * P, sizeof(float) * H);
}

// A weight [columns][depth], packed; out [rows][columns] (+)= x [rows][depth] times it, the columns padded to whole vectors.
struct Weight {
  static constexpr int PANEL = Packed<Float32>::PANEL;
  const int columns;
  const Packed<Float32> packed;

  template <typename F>  // at(column, k)
  Weight(int columns, int depth, int64_t threads, F&& at)
      : columns(columns),
        packed((columns + PANEL - 1) / PANEL, depth, int(threads), [&](int panel, int column, int k) {
          const int place = panel * PANEL + column;
          return place < columns ? at(place, k) : 0.f;
        }) {}

  template <bool ADD>
  void multiply(int rows, const float* x, float* out) const {
    float sums[ROWS_AT_ONCE * PANEL];
    const Operands<Float32> operands(x, rows, packed.depth, nullptr);
    for (int first = 0; first < columns; first += PANEL) {
      packed.multiply(first / PANEL, operands, sums);
      for (int r = 0; r < rows; ++r)
        for (int i = 0; i < smaller(PANEL, columns - first); i += WIDTH) {
          float* to = out + std::size_t(r) * columns + first + i;
          const vec<WIDTH> found = load<WIDTH>(sums + r * PANEL + i);
          store<WIDTH>(to, ADD ? load<WIDTH>(to) + found : found);
        }
    }
  }
};

// Which steps of one row pass, and where it starts again.
struct Masks {
  const bool *mask, *resets;  // [T], or null

  bool passes(int t) const { return !mask || mask[t]; }
  bool reset(int t) const { return resets && resets[t]; }
};
template <class Arguments>
Masks masks_of(const Arguments& a, int64_t b) {
  return {a.mask ? a.mask + b * a.T : nullptr, a.resets ? a.resets + b * a.T : nullptr};
}

// found_i = key_i . query, of rows [P] whose padding is 0.
template <int N>
FW_INLINE void dots(const float* keys, int64_t step, const float* query, int P, float* found) {
  vec<WIDTH> sums[N] = {};
  for (int u = 0; u < P; u += WIDTH) {
    vec<WIDTH> q = load<WIDTH>(query + u);
    for (int i = 0; i < N; ++i) sums[i] += load<WIDTH>(keys + i * step + u) * q;
  }
  for (int i = 0; i < N; ++i) found[i] = sum<WIDTH>(sums[i]);
}

// Calls run(first, rows) for blocks of at most `at_once` of B rows, some of them by each thread.
template <typename F>
void for_blocks_of_rows(int64_t B, int64_t wanted_threads, int at_once, F&& run) {
  const int threads = larger(1, smaller(int(wanted_threads), int(B)));
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    const int64_t begin = B * i / threads, end = B * (i + 1) / threads;
    for (int64_t first = begin; first < end; first += at_once)
      run(first, end - first < at_once ? int(end - first) : at_once);
  }
}

// Cuts one workspace into pieces.
struct Pieces {
  float* next;
  float* take(std::size_t floats) {
    float* piece = next;
    next += (floats + WIDEST_VECTOR - 1) / WIDEST_VECTOR * WIDEST_VECTOR;
    return piece;
  }
};

}  // namespace

}  // namespace FW_ISA
