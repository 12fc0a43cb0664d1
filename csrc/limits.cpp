// What the processor can do at most, for the roofline: multiply-adds in registers, and reading memory.
#include "kernels.h"
#include "packed.h"
#include "simd.h"

namespace FW_ISA {

// `repeats` rounds of multiply-adds that wait for nothing but themselves, in each thread; `count` says how many
// operations these were, `sink` takes what keeps the compiler from leaving them out.
int multiply_adds(const LimitArguments& a) {
  constexpr int SUMS = ACCUMULATORS / 2;
  const int threads = int(a.threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int i = 0; i < threads; ++i) {
    vec<WIDTH> sums[SUMS], factor = all<WIDTH>(a.sink[i]), more = all<WIDTH>(a.sink[i]);
    for (int s = 0; s < SUMS; ++s) sums[s] = all<WIDTH>(float(s));
    for (int64_t n = 0; n < a.repeats; ++n)
      for (int s = 0; s < SUMS; ++s) {
#ifdef FW_BFLOAT16
        if (a.bfloat16) {
          sums[s] = BFloat16::add(sums[s], (__m512bh)factor, (__m512bh)more);
          continue;
        }
#endif
        sums[s] = sums[s] * factor + more;
      }
    float total = 0;
    for (int s = 0; s < SUMS; ++s) total += sum<WIDTH>(sums[s]);
    a.sink[i] = total;
  }
#ifdef FW_BFLOAT16
  *a.count = 2 * a.repeats * SUMS * WIDTH * threads * (a.bfloat16 ? 2 : 1);
#else
  *a.count = 2 * a.repeats * SUMS * WIDTH * threads;
#endif
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
