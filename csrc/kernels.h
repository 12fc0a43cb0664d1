// The C interface: plain structures of pointers and sizes, mirrored by ctypes in src/fastweights/ops/cpu.py.
#pragma once

#include <cstdint>

// What the two sides of the interface agree on: `fastweights_interface` gives it, ops/cpu.py compares it.
constexpr int INTERFACE_VERSION = 4;  // raise it with every change of these structures or of their meaning
constexpr int WIDEST_VECTOR = 16;     // rows of floats are padded to whole ones, with every instruction set
constexpr int MOST_HOPS = 16;         // in a chain of reads of the fast weight memory
constexpr double LAYER_NORM_EPSILON = 1e-5;

// What every kernel returns; it writes nothing where a size is not supported.
constexpr int DONE = 0, UNSUPPORTED_SIZE = 1;

extern "C" {

// All tensors are float32; sizes count elements, *_row and *_step are strides over rows and over time.
struct LSTMArguments {
  int64_t B, T, H, threads, bfloat16;  // bfloat16: whether products take their operands in it
  const float* gate_inputs;  // [B, T, 4 H], or a table [V, 4 H] whose rows the tokens [B, T] choose
  int64_t gate_inputs_row, gate_inputs_step;
  const int64_t* tokens;
  int64_t tokens_row, tokens_step;
  const float *weight, *hidden, *cell;  // [4 H, H], [B, H], [B, H]
  const bool *mask, *resets;           // [B, T], or null
  float *hiddens, *last_hidden, *last_cell;  // [T, B, H], [B, H], [B, H]
  float *cells, *gates;                      // [T, B, H], [T, B, 4 H]: what the gradient needs, or null
  const float* d_hiddens;                    // [B, T, H], or null
  int64_t d_hiddens_row, d_hiddens_step;
  float *d_gate_inputs, *d_hidden, *d_cell;  // [T, B, 4 H], [B, H], [B, H]
};

struct LimitArguments {
  int64_t threads, repeats, bfloat16, size;
  const float* values;  // [size]
  float* sink;          // [threads]
  int64_t* count;
};

struct GatherArguments {
  int64_t positions, columns, threads;
  const int64_t* tokens;
  const float* gradient;  // [positions, columns]
  float* table;           // [V, columns]
};

struct FWMArguments {
  int64_t B, T, d, hops, chunk, threads;
  const float *k1, *k2, *v, *beta, *n, *e;
  int64_t k1_row, k1_step, k2_row, k2_step, v_row, v_step, beta_row, beta_step, n_row, n_step, e_row, e_step;
  const bool *output_mask, *mask, *resets;  // [B, T], or null
  const float* memory;                 // [B, d, d, d], or null where it is empty
  float *outputs, *last_memory;        // [T, B, d], [B, d, d, d]
  // what the gradient needs, or null: each later chunk's first memory [B, chunks - 1, d, d, d]; v_old, delta [B, T, d];
  // 1 / max(1, |F'|) [B, T]; what each hop found [B, T, hops, d]
  float *starts, *old, *written, *factors, *retrieved;
  const float* d_outputs;  // [B, T, d], or null
  int64_t d_outputs_row, d_outputs_step;
  const float* d_last_memory;  // [B, d, d, d], or null
  float *d_k1, *d_k2, *d_v, *d_beta, *d_n, *d_e;  // [T, B, ...]
  float* d_memory;                                // [B, d, d, d], or null
};

// One step of a memory kept as the writes that it is a sum of, in place.
struct FWMStepArguments {
  int64_t B, d, hops, threads, count, capacity;  // count: of the writes so far; capacity: a multiple of WIDEST_VECTOR
  const float *k1, *k2, *v, *beta, *n, *e;       // [B, d], [B], [B, hops, d], each row in one piece
  int64_t k1_row, k2_row, v_row, beta_row, n_row, e_row;
  float *first_keys, *second_keys;               // [B, d, capacity]
  float *written, *decay, *squared_norm;          // [B, capacity, d], [B, capacity], [B]
  float* outputs;                                // [B, d]
};

// One step of an LSTM with a memory over it: F, kept whole, or a log of writes.
struct CoreStepArguments {
  int64_t B, I, H, d, hops, threads, tanh_first_query, tanh_queries, residual;
  double forget_bias, write_scale;
  const float *x, *input_weight, *recurrent_weight, *bias, *second_bias;  // [B, I], [4 H, I], [4 H, H], [4 H], or null
  const float *write_weight, *write_bias;                                  // [3 d + 1, H]
  const float *read_weight, *read_bias, *output_weight, *output_bias;      // [d + hops d, H], [H, d]
  const float *hidden, *cell, *memory;                                     // [B, H], [B, H], [B, d, d, d] or null
  float *outputs, *new_hidden, *new_cell, *new_memory;                     // [B, H], ..., [B, d, d, d] or null
  FWMStepArguments log;  // where memory is null; without its inputs
};

// Sizes P are H padded to whole vectors; K is T where values are kept for the gradient, else 1; N is T or the chunk.
struct FWLSTMArguments {
  int64_t B, T, H, chunk, threads, keep;
  double decay, rate;
  const float* gate_inputs;  // [B, T, 4 H]
  int64_t gate_inputs_row, gate_inputs_step;
  const float *weight, *gates_gain, *gates_bias, *cell_gain, *cell_bias;  // [4 H, H], [4 H], [4 H], [H], [H]
  const float *hidden, *cell, *memory;                                    // [B, H], [B, H], [B, H, H] or null
  const bool *mask, *resets;                                             // [B, T], or null
  float *hiddens, *last_hidden, *last_cell, *last_memory;                 // [B, T, H], [B, H], [B, H], [B, H, H]
  float *before, *gates, *moments, *totals, *candidates, *cells;  // [K, B, ...]: 4 P, 4 P, 4, P, P, P
  float *keys, *starts;                                           // [B, N, P]; [B, chunks - 1, H, H] where kept
  const float* d_hiddens;                                         // [B, T, H], or null
  int64_t d_hiddens_row, d_hiddens_step, has_d_last_memory;
  float *d_gate_inputs, *d_hidden, *d_cell;  // [B, T, 4 H], [B, H], [B, H]: at first those of the last states
  float *d_memory, *d_norms;                 // [B, H, H] or null, the same; [B, 10, P]
};

struct FWRNNArguments {
  int64_t B, T, H, chunk, threads, keep, inner_steps;
  double decay, rate;
  const float* inputs;  // [B, T, H]
  int64_t inputs_row, inputs_step;
  const float *weight, *gain, *bias;          // [H, H], [H], [H]
  const float *hidden, *memory;               // [B, H], [B, H, H] or null: zeros
  const bool *mask, *resets;                 // [B, T], or null
  float *hiddens, *last_hidden, *last_memory;  // [B, T, H], [B, H], [B, H, H]
  float *sums, *moments, *queries;            // [K, B, S, P], [K, B, S, 2], [B, K, S, P]
  float *keys, *starts;                       // [B, N, P]; [B, chunks - 1, H, H] where kept
  const float* d_hiddens;                     // [B, T, H], or null
  int64_t d_hiddens_row, d_hiddens_step, has_d_last_memory;
  float *d_inputs, *d_hidden;   // [B, T, H], [B, H]: at first that of the last state
  float *d_memory, *d_norms;    // [B, H, H] or null, the same; [B, 2, P]
};

// Sizes P and M are H and m padded; U is (3 N + 1) m; K is T where values are kept for the gradient, else 1.
struct MNMArguments {
  int64_t B, T, H, m, heads, layers, threads, keep, interval;  // interval: every how many steps the memory is kept
  const float* gate_inputs;  // [B, T, 4 H]
  int64_t gate_inputs_row, gate_inputs_step;
  const float *recurrent_weight, *interaction_weight, *interaction_bias;            // [4 H, H + m], [U, H], [U]
  const float *strength_weight, *strength_bias, *target_weight, *target_bias;       // [m], [1], [L m, m], [L m]
  const float *hidden, *cell, *read, *memory, *initial_memory;  // [B, H], [B, H], [B, m], [B, L, m, m], [L, m, m]
  const bool *mask, *resets;                                    // [B, T], or null
  float *outputs, *meta_losses;                                 // [T, B, H + m], [B, T]
  float *last_hidden, *last_cell, *last_read, *last_memory;     // [B, H], [B, H], [B, m], [B, L, m, m]
  float *gates, *cells, *interactions, *strengths;              // [K, B, ...]: 4 P, P, U, nothing
  float *activations, *errors;                                  // [K, B, L + 1, 3 N, M], [K, B, L, N, M]
  float* memories;                                              // [(T - 1) / interval, B, L, m, m] where kept
  const float* d_outputs;                                       // [B, T, H + m], or null
  int64_t d_outputs_row, d_outputs_step;
  const float* d_meta_losses;                                   // [B, T], or null
  float *d_gates, *d_interactions, *d_strengths, *d_targets;    // [T, B, ...]: 4 H, U, nothing, [N, L m]
  float *d_hidden, *d_cell, *d_read, *d_memory;                 // as the states: at first those of the last
  float* d_initial_memories;                                    // [B, L, m, m], at first zeros, or null
};
}
