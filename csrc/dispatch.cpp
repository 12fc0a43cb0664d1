// Which of the compiled instruction sets this processor has, and the way into each.
#include "kernels.h"

#define DECLARE(isa)                        \
  namespace isa {                           \
  int lstm_forward(const LSTMArguments&); \
  int lstm_backward(const LSTMArguments&); \
  int gather_backward(const GatherArguments&); \
  int multiply_adds(const LimitArguments&); \
  int read_memory(const LimitArguments&); \
  int fwm_forward(const FWMArguments&); \
  int fwm_backward(const FWMArguments&); \
  int fwm_step(const FWMStepArguments&); \
  int core_step(const CoreStepArguments&); \
  int fw_lstm_forward(const FWLSTMArguments&); \
  int fw_lstm_backward(const FWLSTMArguments&); \
  int fw_rnn_forward(const FWRNNArguments&); \
  int fw_rnn_backward(const FWRNNArguments&); \
  int mnm_forward(const MNMArguments&); \
  int mnm_backward(const MNMArguments&); \
  }

DECLARE(fastweights_baseline)
#ifdef FW_X86
DECLARE(fastweights_avx2)
DECLARE(fastweights_avx512)
#ifdef FW_AVX512BF16
DECLARE(fastweights_avx512bf16)
#else
namespace fastweights_avx512bf16 = fastweights_avx512;  // never chosen
#endif
#define CALL(function, isa, a)                            \
  switch (isa) {                                          \
    case 3: return fastweights_avx512bf16::function(*a); \
    case 2: return fastweights_avx512::function(*a); \
    case 1: return fastweights_avx2::function(*a); \
    default: return fastweights_baseline::function(*a); \
  }
#else
#define CALL(function, isa, a) return fastweights_baseline::function(*a)
#endif

extern "C" {

// The best instruction set of this processor: 0 baseline, 1 AVX2 with FMA, 2 AVX-512, 3 AVX-512 with bfloat16. All below
// it run, too.
int fastweights_best() {
#ifdef FW_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
#ifdef FW_AVX512BF16
    if (__builtin_cpu_supports("avx512bf16")) return 3;
#endif
    return 2;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

// What ops/cpu.py must have the same of, in the order of INTERFACE there; returns how many numbers these are.
int fastweights_interface(int64_t* values) {
  const int64_t all[] = {
      INTERFACE_VERSION, WIDEST_VECTOR, MOST_HOPS, int64_t(LAYER_NORM_EPSILON * 1e9 + 0.5),
      sizeof(LSTMArguments), sizeof(GatherArguments), sizeof(FWMArguments), sizeof(FWMStepArguments),
      sizeof(CoreStepArguments), sizeof(LimitArguments),
      sizeof(FWLSTMArguments), sizeof(FWRNNArguments), sizeof(MNMArguments),
  };
  for (int64_t value : all) *values++ = value;
  return sizeof(all) / sizeof(*all);
}

int fastweights_lstm_forward(const LSTMArguments* a, int isa) { CALL(lstm_forward, isa, a); }
int fastweights_lstm_backward(const LSTMArguments* a, int isa) { CALL(lstm_backward, isa, a); }
int fastweights_gather_backward(const GatherArguments* a, int isa) { CALL(gather_backward, isa, a); }
int fastweights_fwm_forward(const FWMArguments* a, int isa) { CALL(fwm_forward, isa, a); }
int fastweights_fwm_backward(const FWMArguments* a, int isa) { CALL(fwm_backward, isa, a); }
int fastweights_fwm_step(const FWMStepArguments* a, int isa) { CALL(fwm_step, isa, a); }
int fastweights_multiply_adds(const LimitArguments* a, int isa) { CALL(multiply_adds, isa, a); }
int fastweights_read_memory(const LimitArguments* a, int isa) { CALL(read_memory, isa, a); }
int fastweights_core_step(const CoreStepArguments* a, int isa) { CALL(core_step, isa, a); }
int fastweights_fw_lstm_forward(const FWLSTMArguments* a, int isa) { CALL(fw_lstm_forward, isa, a); }
int fastweights_fw_lstm_backward(const FWLSTMArguments* a, int isa) { CALL(fw_lstm_backward, isa, a); }
int fastweights_fw_rnn_forward(const FWRNNArguments* a, int isa) { CALL(fw_rnn_forward, isa, a); }
int fastweights_fw_rnn_backward(const FWRNNArguments* a, int isa) { CALL(fw_rnn_backward, isa, a); }
int fastweights_mnm_forward(const MNMArguments* a, int isa) { CALL(mnm_forward, isa, a); }
int fastweights_mnm_backward(const MNMArguments* a, int isa) { CALL(mnm_backward, isa, a); }
}
