// Which of the compiled instruction sets this processor has, and the way into each.
#include "kernels.h"

#define DECLARE(isa)                        \
  namespace isa {                           \
  void lstm_forward(const LSTMArguments&);  \
  void lstm_backward(const LSTMArguments&); \
  void gather_backward(const GatherArguments&); \
  void fwm_forward(const FWMArguments&);    \
  void fwm_backward(const FWMArguments&);   \
  void fwm_step(const FWMStepArguments&);   \
  void fw_lstm_forward(const FWLSTMArguments&);  \
  void fw_lstm_backward(const FWLSTMArguments&); \
  void fw_rnn_forward(const FWRNNArguments&);   \
  void fw_rnn_backward(const FWRNNArguments&);  \
  }

DECLARE(fastweights_baseline)
#ifdef FW_X86
DECLARE(fastweights_avx2)
DECLARE(fastweights_avx512)
#define CALL(function, isa, a)                            \
  switch (isa) {                                          \
    case 2: return fastweights_avx512::function(*a);      \
    case 1: return fastweights_avx2::function(*a);        \
    default: return fastweights_baseline::function(*a);   \
  }
#else
#define CALL(function, isa, a) return fastweights_baseline::function(*a)
#endif

extern "C" {

// The best instruction set of this processor: 0 baseline, 1 AVX2 with FMA, 2 AVX-512. All below it run, too.
int fastweights_best() {
#ifdef FW_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

void fastweights_lstm_forward(const LSTMArguments* a, int isa) { CALL(lstm_forward, isa, a); }
void fastweights_lstm_backward(const LSTMArguments* a, int isa) { CALL(lstm_backward, isa, a); }
void fastweights_gather_backward(const GatherArguments* a, int isa) { CALL(gather_backward, isa, a); }
void fastweights_fwm_forward(const FWMArguments* a, int isa) { CALL(fwm_forward, isa, a); }
void fastweights_fwm_backward(const FWMArguments* a, int isa) { CALL(fwm_backward, isa, a); }
void fastweights_fwm_step(const FWMStepArguments* a, int isa) { CALL(fwm_step, isa, a); }
void fastweights_fw_lstm_forward(const FWLSTMArguments* a, int isa) { CALL(fw_lstm_forward, isa, a); }
void fastweights_fw_lstm_backward(const FWLSTMArguments* a, int isa) { CALL(fw_lstm_backward, isa, a); }
void fastweights_fw_rnn_forward(const FWRNNArguments* a, int isa) { CALL(fw_rnn_forward, isa, a); }
void fastweights_fw_rnn_backward(const FWRNNArguments* a, int isa) { CALL(fw_rnn_backward, isa, a); }
}
