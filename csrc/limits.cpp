// What the processor can do at most, for the roofline: multiply-adds in registers, and reading memory.
#include "kernels.h"
#include "packed.h"
#include "simd.h"

namespace FW_ISA {

namespace {

constexpr int SUMS = 12;  // they wait for nothing but themselves

template <typename F>
FW_INLINE float rounds(int64_t repeats, F&& multiply_add) {
  vec<WIDTH> sums[SUMS];
  for (int s = 0; s < SUMS; ++s) sums[s] = all<WIDTH>(float(s));
  for (int64_t n = 0; n < repeats; ++n)
#pragma GCC unroll 12
    for (int s = 0; s < SUMS; ++s) sums[s] = multiply_add(sums[s]);
  // not `sum`, which would have the compiler keep them in memory
  for (int s = 1; s < SUMS; ++s) sums[0] += sums[s];
  float found[WIDTH], total = 0;
  store<WIDTH>(found, sums[0]);
  for (float x : found) total += x;
  return total;
}

}  // namespace

// `repeats` rounds of multiply-adds in each thread, of numbers that `sink` begins with and sums that it ends with;
// `count` says how many operations these were.
int multiply_adds(const LimitArguments& a) {
  const int threads = int(a.threads);
  bool pairs = false;
#ifdef FW_BFLOAT16
  pairs = a.bfloat16;
#endif
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    const vec<WIDTH> half = all<WIDTH>(a.sink[i]);
#ifdef FW_BFLOAT16
    if (pairs) {
      const uint16_t some[2 * WIDTH] = {};
      const auto x = BFloat16::spread(some), w = BFloat16::columns(some);
      a.sink[i] = rounds(a.repeats, [=](vec<WIDTH> sum) { return BFloat16::add(sum, x, w); });
      continue;
    }
#endif
    a.sink[i] = rounds(a.repeats, [=](vec<WIDTH> sum) { return sum * half + half; });
  }
  *a.count = 2 * a.repeats * SUMS * WIDTH * threads * (pairs ? 2 : 1);
  return DONE;
}

// Reads `size` floats, each thread a part of its own.
int read_memory(const LimitArguments& a) {
  const int threads = int(a.threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    vec<WIDTH> sums[4] = {};
    const int64_t first = a.size / threads * i, last = a.size / threads * (i + 1);
    for (int64_t k = first; k + 4 * WIDTH <= last; k += 4 * WIDTH)
      for (int s = 0; s < 4; ++s) sums[s] += load<WIDTH>(a.values + k + s * WIDTH);
    a.sink[i] = sum<WIDTH>(sums[0] + sums[1] + sums[2] + sums[3]);
  }
  return DONE;
}

}  // namespace FW_ISA
